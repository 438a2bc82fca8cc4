"""The dashboard on a JupyterHub, in a browser with the cookies of one user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver.chromium.webdriver import ChromiumDriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.jupyter.hub import FRAMED, Hub, hub
from tests.jupyter.lab import PATIENCE, RUN_ALL, click, errors, find, write_notebook

pytestmark = pytest.mark.timeout(600)  # servers and browsers start, which a busy machine does slowly


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with hub(tmp_path_factory.mktemp("hub")) as server:
        yield server


def switch_to_new_window(browser: ChromiumDriver) -> None:
    first = browser.current_window_handle
    WebDriverWait(browser, PATIENCE).until(lambda browser: len(browser.window_handles) == 2)
    browser.switch_to.window(next(window for window in browser.window_handles if window != first))


def test_a_kernel_is_watched_and_commanded_from_its_user_s_browser_alone(server: Hub, browser: ChromiumDriver) -> None:
    url = server.log_in(browser, "ann")
    write_notebook(server.home("ann") / "Analysis.ipynb", ["%load_ext tornado_rbkit\n%rbkit start"])
    browser.get(f"{url}lab/tree/Analysis.ipynb")
    find(browser, ".jp-Notebook .jp-CodeCell")
    browser.execute_async_script(RUN_ALL)
    click(browser, ".jp-OutputArea-output a", "open the dashboard")
    switch_to_new_window(browser)
    find(browser, "#page", "Analysis-")
    find(browser, ".state", "live")
    click(browser, "[data-command=start_cpu_profiling]")
    find(browser, "[data-command=stop_cpu_profiling]")
    browser.refresh()
    find(browser, "[data-command=stop_cpu_profiling]")
    assert errors(browser) == []

    target = browser.current_url
    url = server.log_in(browser, FRAMED)  # whose server the last test needs, too
    browser.get(f"{url}rbkit/")
    find(browser, ".state", "no profiler yet")
    assert errors(browser) == []
    browser.get(target)
    find(browser, "body", "403")


def test_the_card_opens_a_browser_tab_where_the_hub_forbids_frames(server: Hub, browser: ChromiumDriver) -> None:
    url = server.log_in(browser, "cid")
    browser.get(f"{url}lab?reset")
    click(browser, ".jp-LauncherCard", "rbkit dashboard")
    switch_to_new_window(browser)
    find(browser, ".state", "no profiler yet")
    assert browser.current_url.startswith(f"{url}rbkit/")
    assert errors(browser) == []


def test_the_card_opens_a_tab_of_jupyterlab_where_the_administrator_allows_frames(
    server: Hub, browser: ChromiumDriver
) -> None:
    url = server.log_in(browser, FRAMED)
    browser.get(f"{url}lab?reset")
    click(browser, ".jp-LauncherCard", "rbkit dashboard")
    browser.switch_to.frame(find(browser, "iframe[src*='rbkit/']"))
    find(browser, ".state", "no profiler yet")
    assert errors(browser) == []
