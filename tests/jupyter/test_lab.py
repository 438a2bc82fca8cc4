"""A real JupyterLab in a real browser: the card, the palette's entry, a notebook's run, the item in the status bar."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from selenium.webdriver import Keys
from selenium.webdriver.chromium.webdriver import ChromiumDriver

from tests.jupyter.lab import RUN_ALL, SEEN, TOKEN, Lab, click, errors, find, lab, write_foreign_kernel, write_notebook

CELLS = [
    f"%load_ext tornado_rbkit\n%rbkit start\n{SEEN}",
    "%%rbkit\nwhile not seen('__main__.<module>'):\n    for number in range(10**5):\n        str(number)",
]

pytestmark = pytest.mark.timeout(600)  # servers and browsers start, which a busy machine does slowly


RUN = """
const [code, done] = arguments;
for (const {sessionContext} of jupyterapp.shell.widgets("main"))
  sessionContext?.session.kernel.requestExecute({code}).done.then(() => done?.());
"""
"""Runs code in the kernel of the only notebook; as a script that is not asynchronous, begins to."""

BUSY = """
from pathlib import Path
def busy():
    while not Path({end!r}).exists():
        for number in range(10**5): str(number)
busy()
"""


@pytest.fixture(scope="module")
def server_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    write_foreign_kernel(folder)
    with lab(folder, "--LabApp.expose_app_in_browser=True", base_url="/user/ann/") as server:
        yield server


@pytest.fixture
def server(server_of_all: Lab) -> Iterator[Lab]:
    """A server without kernels, and so without profilers."""
    yield server_of_all
    server_of_all.end_kernels()


def test_the_launcher_s_card_opens_the_dashboard_in_a_tab(server: Lab, browser: ChromiumDriver) -> None:
    browser.get(f"{server.url}lab?reset&token={TOKEN}")
    click(browser, ".jp-LauncherCard", "rbkit dashboard")
    find(browser, ".lm-TabBar-tab.lm-mod-current", "rbkit dashboard")
    frame = find(browser, "iframe[src*='rbkit/']")
    assert frame.get_attribute("src") == f"{server.url}rbkit/"
    browser.switch_to.frame(frame)
    find(browser, ".state", "no profiler yet")
    find(browser, ".banner", "%rbkit start")
    find(browser, ".banner", "install it in the kernel's environment")
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
    click(browser, ".rbkit-flames label", "__main__.<module>")
    assert browser.find_elements("css selector", ".rbkit-flames :checked")
    unsigned = server.root / "Copy.ipynb"
    unsigned.write_text(path.read_text().replace("str(number)", "str(0)"))
    browser.get(f"{server.url}lab/workspaces/copy/tree/Copy.ipynb")
    bar = find(browser, ".rbkit-flames label", "__main__.<module>")
    assert not browser.find_elements("css selector", ".jp-RenderedHTML style"), "the notebook is not trusted"
    assert bar.size["width"] > 500
    assert bar.size["height"] == 17
    code = find(browser, ".jp-RenderedHTML td:last-child", "str(0)")
    assert code.value_of_css_property("text-align") == "left"
    browser.get(f"{server.url}lab/workspaces/own/tree/Analysis.ipynb")
    find(browser, ".rbkit-flames label")

    find(browser, "#rbkit-kernel", "rbkit")  # until then the extension is being loaded, and a link opens a browser tab
    click(browser, ".jp-OutputArea-output a", "open the dashboard")
    dashboard = find(browser, "iframe[src*='?target=Analysis-']")
    browser.switch_to.frame(dashboard)
    find(browser, ".state", "live")
    assert len(browser.window_handles) == 1, "it is a tab of JupyterLab"
    assert errors(browser) == []


def test_the_status_bar_shows_the_active_kernel_and_opens_its_dashboard(server: Lab, browser: ChromiumDriver) -> None:
    """The page of a kernel whose profiler has ended says so, and is back when the profiler is."""
    write_notebook(server.root / "Ends.ipynb", ["%load_ext tornado_rbkit\n%rbkit start"])
    browser.get(f"{server.url}lab/workspaces/ends/tree/Ends.ipynb?token={TOKEN}")
    find(browser, ".jp-Notebook .jp-CodeCell")
    find(browser, "#rbkit-kernel", "no profiler")
    browser.execute_async_script(RUN_ALL)
    shown = find(browser, "#rbkit-kernel button", "not recording", lambda item: item.text)
    assert re.fullmatch(r"rbkit: \d+ MiB( · CPU \d+ %)? · not recording", shown)
    click(browser, "#rbkit-kernel button", "not recording")
    dashboard = find(browser, "iframe[src*='?target=Ends-']")
    browser.switch_to.frame(dashboard)
    find(browser, ".state", "live")
    click(browser, "[data-command=start_cpu_profiling]")
    browser.switch_to.default_content()
    find(browser, "#rbkit-kernel", "recording CPU")
    find(browser, "#rbkit-kernel", " %")
    seen = server.root / "seen"
    browser.execute_script(RUN, BUSY.format(end=str(seen)))
    browser.switch_to.frame(dashboard)
    click(browser, "#tab-cpu")
    functions = find(browser, "#view-cpu table", "__main__.busy", use=lambda table: table.text)
    assert "(IPython)" in functions
    assert "run_cell" not in functions, "what runs a cell is folded"
    shares = re.compile(r"MainThread \((?:[5-9]\d\.\d|100\.0) %\)")
    find(browser, "[aria-label=Thread]", use=lambda menu: shares.findall(menu.text)[0])  # idle threads are not counted
    seen.touch()
    browser.switch_to.default_content()
    assert errors(browser) == []

    browser.execute_async_script(RUN, "%rbkit stop")
    find(browser, "#rbkit-kernel", "no profiler")
    browser.switch_to.frame(dashboard)
    find(browser, ".state", "the profiler is gone")
    find(browser, ".banner", "%rbkit start")
    browser.switch_to.default_content()
    requests = len(server.log.splitlines())
    browser.execute_async_script(RUN, "%rbkit start")
    browser.switch_to.frame(dashboard)
    find(browser, ".state", "live")
    assert " 404 GET" not in "\n".join(server.log.splitlines()[requests:]), "the page waited in silence"


def test_a_kernel_without_tornado_rbkit_is_told_where_to_install_it(server: Lab, browser: ChromiumDriver) -> None:
    write_notebook(server.root / "Foreign.ipynb", ["%load_ext tornado_rbkit"], "foreign")
    browser.get(f"{server.url}lab/workspaces/foreign/tree/Foreign.ipynb?token={TOKEN}")
    find(browser, ".jp-Notebook .jp-CodeCell")
    browser.execute_async_script(RUN_ALL)
    find(browser, ".jp-OutputArea-output", "ModuleNotFoundError: No module named 'tornado_rbkit'")
    click(browser, "#rbkit-kernel button", "no profiler")
    find(browser, ".jp-Dialog", "must be installed in the environment of the kernel")
    assert errors(browser) == []
