"""The browser that tests drive: the Chromium, Chrome or Edge of this machine, or the one Selenium Manager fetches."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Edge, EdgeOptions, EdgeService
from selenium.webdriver.chromium.webdriver import ChromiumDriver

FLAGS: Final = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
    "--window-size=1280,1000",
]

_CHROMES: Final = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    os.path.expandvars(r"%PROGRAMFILES%\Google\Chrome\Application\chrome.exe"),
]
_EDGES: Final = [
    "microsoft-edge",
    "msedge",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    os.path.expandvars(r"%PROGRAMFILES(X86)%\Microsoft\Edge\Application\msedge.exe"),
]

SCRIPT_SECONDS: Final = 110
"""How long a script may take, such as one that waits for the start of a kernel; the client gives up after 120."""

Options = TypeVar("Options", ChromeOptions, EdgeOptions)

_failure: str | None = None
"""Why there is no browser. Selenium Manager takes seconds to find out, so it is asked once per process."""


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[ChromiumDriver]:
    """Run a browser with a profile in `folder`, which must not exist; skip the test where there is no browser."""
    driver = _start(folder)
    try:
        driver.set_script_timeout(SCRIPT_SECONDS)
        yield driver
    finally:
        driver.quit()


def _start(folder: Path) -> ChromiumDriver:
    global _failure
    chrome, edge = _find(_CHROMES), _find(_EDGES)
    is_edge = edge is not None and chrome is None
    driver = shutil.which("msedgedriver" if is_edge else "chromedriver")
    if _failure is None:
        try:
            if is_edge:
                return Edge(_configure(EdgeOptions(), folder, edge), EdgeService(driver))
            return Chrome(_configure(ChromeOptions(), folder, chrome), ChromeService(driver))
        except WebDriverException as error:
            if driver and (chrome or edge):
                raise  # a browser that does not start is a failure, not a reason to skip
            _failure = (error.msg or str(error)).splitlines()[0]
    pytest.skip(f"there is no Chromium, Chrome or Edge with its driver, and none could be fetched: {_failure}")


def _find(names: list[str]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


def _configure(options: Options, folder: Path, binary: str | None) -> Options:
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    if binary:
        options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return options
