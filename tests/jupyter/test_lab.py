"""A real JupyterLab in a real browser: the launcher's card, the palette's entry, a notebook's run."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from selenium.webdriver import Keys
from selenium.webdriver.chromium.webdriver import ChromiumDriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import open_browser
from tests.jupyter.lab import PATIENCE, RUN_ALL, TOKEN, Lab, find, lab, write_notebook

CELLS = [
    "%load_ext tornado_rbkit\n%rbkit start",
    "%%rbkit\nfor number in range(2 * 10**6):\n    str(number)",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with lab(folder, "--LabApp.expose_app_in_browser=True", base_url="/user/ann/") as server:
        yield server


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromiumDriver]:
    with open_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chrome: ChromiumDriver) -> Iterator[ChromiumDriver]:
    """A browser with one window, in which there is nothing."""
    first = chrome.current_window_handle
    yield chrome
    for window in set(chrome.window_handles) - {first}:
        chrome.switch_to.window(window)
        chrome.close()
    chrome.switch_to.window(first)
    chrome.get("about:blank")


def errors(browser: ChromiumDriver) -> list[str]:
    """Return what the browser complains of that is ours."""
    entries: list[dict[str, str]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries if entry["level"] == "SEVERE" and "rbkit" in entry["message"]]


def test_the_launcher_s_card_opens_the_dashboard_in_a_tab(server: Lab, browser: ChromiumDriver) -> None:
    browser.get(f"{server.url}lab?reset&token={TOKEN}")
    find(browser, ".jp-LauncherCard", "rbkit dashboard").click()
    find(browser, ".lm-TabBar-tab.lm-mod-current", "rbkit dashboard")
    frame = find(browser, "iframe[src*='rbkit/']")
    assert frame.get_attribute("src") == f"{server.url}rbkit/"
    browser.switch_to.frame(frame)
    find(browser, ".state", "no profiler yet")
    assert errors(browser) == []


def test_the_command_palette_opens_it_once(server: Lab, browser: ChromiumDriver) -> None:
    browser.get(f"{server.url}lab?reset&token={TOKEN}")
    find(browser, ".jp-LauncherCard", "rbkit dashboard")
    for _ in range(2):
        browser.execute_script("jupyterapp.commands.execute('apputils:activate-command-palette')")
        find(browser, ".lm-CommandPalette-input").send_keys("rbkit dashboard", Keys.ENTER)
        find(browser, "iframe[src*='rbkit/']")
    assert len(browser.find_elements("css selector", "iframe[src*='rbkit/']")) == 1
    assert errors(browser) == []


def test_a_notebook_is_profiled_and_its_picture_is_saved(server: Lab, browser: ChromiumDriver) -> None:
    path = server.root / "Analysis.ipynb"
    write_notebook(path, CELLS)
    browser.get(f"{server.url}lab/workspaces/own/tree/Analysis.ipynb?token={TOKEN}")
    find(browser, ".jp-Notebook .jp-CodeCell")
    browser.execute_async_script(RUN_ALL)
    picture = find(browser, ".rbkit-flames label")
    assert picture.size["width"] > 500, "the browser can draw it, as wide as the notebook"
    find(browser, ".jp-RenderedHTML tr", "str(number)")

    browser.execute_async_script("jupyterapp.commands.execute('docmanager:save').then(arguments[0])")
    outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell["outputs"]]
    assert "__main__.&lt;module&gt;" in "".join(outputs[-1]["data"]["image/svg+xml"])
    browser.get(f"{server.url}lab/workspaces/own/tree/Analysis.ipynb")
    find(browser, ".rbkit-flames label", "__main__.<module>").click()
    assert browser.find_elements("css selector", ".rbkit-flames :checked")
    unsigned = server.root / "Copy.ipynb"
    unsigned.write_text(path.read_text().replace("str(number)", "str(0)"))
    browser.get(f"{server.url}lab/workspaces/copy/tree/Copy.ipynb")
    bar = find(browser, ".rbkit-flames label", "__main__.<module>")
    assert not browser.find_elements("css selector", ".jp-RenderedHTML style"), "the notebook is not trusted"
    assert bar.size["width"] > 500
    assert bar.size["height"] == 17
    browser.get(f"{server.url}lab/workspaces/own/tree/Analysis.ipynb")
    find(browser, ".rbkit-flames label")

    link = find(browser, ".jp-OutputArea-output a", "open the dashboard")
    link.click()
    WebDriverWait(browser, PATIENCE).until(lambda browser: len(browser.window_handles) == 2)
    browser.switch_to.window(browser.window_handles[-1])
    find(browser, "#page", "Analysis-")
    find(browser, ".state", "live")
    assert errors(browser) == []


def test_the_page_of_a_kernel_that_ended_says_so_and_is_back_when_the_kernel_is(
    server: Lab, browser: ChromiumDriver
) -> None:
    write_notebook(server.root / "Ends.ipynb", ["%load_ext tornado_rbkit\n%rbkit start"])
    browser.get(f"{server.url}lab/workspaces/ends/tree/Ends.ipynb?token={TOKEN}")
    find(browser, ".jp-Notebook .jp-CodeCell")
    browser.execute_async_script(RUN_ALL)
    find(browser, ".jp-OutputArea-output a", "open the dashboard").click()
    WebDriverWait(browser, PATIENCE).until(lambda browser: len(browser.window_handles) == 2)
    notebook, page = browser.window_handles
    browser.switch_to.window(page)
    find(browser, ".state", "live")
    run = "jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({code: arguments[0]})"
    browser.switch_to.window(notebook)
    browser.execute_script(run, "%rbkit stop")
    browser.switch_to.window(page)
    find(browser, ".state", "the profiler is gone")
    find(browser, ".banner", "%rbkit start")
    requests = len(server.log.splitlines())
    browser.switch_to.window(notebook)
    browser.execute_script(run, "%rbkit start")
    browser.switch_to.window(page)
    find(browser, ".state", "live")
    assert " 404 GET" not in "\n".join(server.log.splitlines()[requests:]), "the page waited in silence"
