"""A real Chromium on the dashboard of a server that runs in a thread; a test fails if the browser's console said
anything, and the Content-Security-Policy speaks there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver.chromium.webdriver import ChromiumDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.netutil import bind_sockets
from tornado.web import Application

from tests.browser import open_browser
from tests.fake_rbkit import FakeRbkit
from tests.patient import PATIENT, patient
from tornado_rbkit import Bridge, rbkit_routes

PATIENCE = 60.0
"""Seconds until a test fails that waits for something."""

_NOT_YET = (
    *(ElementClickInterceptedException, ElementNotInteractableException, NoSuchElementException),
    *(StaleElementReferenceException, AssertionError, LookupError, StopIteration),
)
"""What a look at the page raises if it is drawn anew meanwhile, or if something is not there yet."""

TICKED = """
const seconds = new BroadcastChannel("seconds");
self.setInterval = (act) => (seconds.onmessage = ({ data }) => { while (data--) act(); });
"""
"""Have a second of the page's worker pass with `Page.tick`, and at no other time."""

STAY = """
const plain = setTimeout;
window.setTimeout = (act, ms, ...more) => plain(act, ms === 15_000 ? 1e9 : ms, ...more);
"""
"""Have the page's alerts stay until they are dismissed: a test may look late."""

HOLD = """
const [plain, held] = [setTimeout, []];
window.setTimeout = (act, ms, ...more) => ms === 1000 ? held.push(act) : plain(act, ms, ...more);
window.goOn = () => {
    window.setTimeout = plain;
    for (const act of held) act();
};
"""

VISIBLE = "[...document.querySelectorAll(arguments[0])].filter(element => element.checkVisibility())"


class Page:
    """The dashboard in the browser, as its user sees it: by the words on it."""

    def __init__(self, driver: ChromiumDriver, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads
        self.expected_console: list[str] = []

    def open(self, url: str, view: str = "") -> None:
        self.driver.get(f"{url}#{view}")
        self.until(lambda: self.one("[role=tab]"), "the page is drawn")

    def open_with(self, url: str, view: str, code: str) -> None:
        """Open the page with a script run in its worker first, as one that makes its clock run faster."""
        driver = self.driver
        driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})  # of a worker that is not a file of the server
        wrapped = """
            const Plain = Worker;
            const file = text => URL.createObjectURL(new Blob([text], {type: 'text/javascript'}));
            window.Worker = class extends Plain {
                constructor(url, options) {
                    super(file(`import "${file(%s)}"; import "${url}";`), options);
                }
            };
        """
        try:
            with scripted(driver, wrapped % json.dumps(code)):
                self.open(url, view)
        finally:
            driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})

    def tick(self, seconds: int) -> None:
        """Let seconds of the worker of a page pass that was opened with `TICKED`."""
        self.script("(window.seconds ??= new BroadcastChannel('seconds')).postMessage(arguments[0])", seconds)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the pauses of the page's procedures, such as that between two snapshots, until the end of a block."""
        self.script(HOLD)
        yield
        self.script("goOn()")

    @property
    def state(self) -> str:
        return self.text_of(".state")

    @property
    def text(self) -> str:
        return self.text_of("body")

    @property
    def facts(self) -> dict[str, str]:
        """The facts about the process in the header."""
        items = "[...document.querySelectorAll('.facts div')]"
        return dict(self.script(f"return {items}.map(item => [...item.children].map(part => part.textContent))"))

    @property
    def alerts(self) -> list[str]:
        return self.texts(".alerts p")

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """The visible elements of a selector."""
        return self.script(f"return {VISIBLE}", selector)  # type: ignore[no-any-return]

    def text_of(self, selector: str) -> str:
        """The text of the first element of a selector; one look, as the page may draw it anew between two."""
        text: str | None = self.script("return document.querySelector(arguments[0])?.innerText", selector)
        if text is None:
            raise NoSuchElementException(selector)
        return text

    def texts(self, selector: str) -> list[str]:
        return self.script(f"return {VISIBLE}.map(element => element.innerText)", selector)  # type: ignore[no-any-return]

    def button(self, label: str) -> WebElement:
        """Return a visible button, or one that is visible once its menu is open."""
        named = "[element.textContent, element.getAttribute('aria-label')].includes(arguments[1])"
        self.script(
            f"""
            const has = menu => [...menu.querySelectorAll(arguments[0])].some(element => {named});
            const menu = [...document.querySelectorAll('.menu:not([open])')].find(has);
            if (menu?.checkVisibility()) menu.querySelector('summary').click();
            """,
            "button",
            label,
        )
        found = self.script(f"return {VISIBLE}.filter(element => {named})", "button", label)
        assert len(found) == 1, f"{len(found)} buttons {label!r} among {self.texts('button')}"
        return found[0]  # type: ignore[no-any-return]

    def click(self, label: str) -> None:
        """Click a button as soon as it can be."""

        def enabled() -> WebElement:
            assert not self.obstacle(label)
            return self.button(label)

        self.press(enabled)

    def press(self, look: str | Callable[[], WebElement]) -> None:
        """Click what a selector or a look finds; find it again if the page has drawn it anew before the click."""

        def pressed() -> bool:
            (self.one(look) if isinstance(look, str) else look()).click()
            return True

        self.until(pressed, f"{look} can be clicked")

    def obstacle(self, label: str) -> str | None:
        """Return why a button is disabled, None if it is not."""
        button = self.button(label)
        return button.get_attribute("title") if button.get_attribute("aria-disabled") else None

    def rows(self, caption: str, *, exact: bool = False) -> list[list[str]]:
        """Return the rows of a table once it is complete; if `exact`, the titles of the cells."""
        code = """
            const captions = [...document.querySelectorAll('caption')];
            const table = captions.find(caption => caption.textContent.startsWith(arguments[0])).closest('table');
            if (table.tBodies[0].ariaBusy) return null;
            const text = cell => (arguments[1] && cell.title) || cell.textContent;
            return [...table.tBodies[0].rows].map(row => [...row.cells].map(text));
            """
        rows: list[list[str]] = self.found(lambda: self.script(code, caption, exact), f"{caption} is written")
        return rows

    def row(self, caption: str, name: str) -> list[str]:
        """Return one row of a table, without its name."""
        return next(row[1:] for row in self.rows(caption) if row[0] == name)

    def type(self, label: str, text: str) -> None:
        """Replace the text in the field of a label."""

        def fields() -> list[WebElement]:
            return [field for field in self.all("input") if field.get_attribute("aria-label") == label]

        self.until(fields, f"{label} can be written in")
        [field] = fields()
        field.clear()
        field.send_keys(text)

    def choose(self, label: str, option: str) -> None:
        """Choose the option of a menu that begins with a text, as soon as it can be."""

        def chosen() -> bool:
            menu = next(menu for menu in self.all("select") if menu.get_attribute("aria-label") == label)
            next(each for each in menu.find_elements(By.TAG_NAME, "option") if each.text.startswith(option)).click()
            return True

        self.until(chosen, f"{option} can be chosen as {label}")

    def upload(self, label: str, file: Path) -> None:
        self.one(f"input[type=file][aria-label='{label}']").send_keys(str(file))

    def downloaded(self, name: str) -> Path:
        """Return a file that the page saved, once it is complete."""
        path = self.downloads / name
        self.until(lambda: path.exists() and not list(self.downloads.glob("*.crdownload")), f"{name} is saved")
        return path

    def script(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def until(self, condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
        """Wait until a condition is true; fail with the expected state and the page's text."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                if condition():
                    return
            except _NOT_YET:
                pass
            if time.monotonic() > deadline:
                pytest.fail(f"not within {timeout:g} s: {what}; the page says:\n{self.text}")
            time.sleep(0.02)

    def found(self, look: Callable[[], Any], what: str) -> Any:
        """Wait until a look finds something other than None, and return it."""
        found: list[Any] = []

        def is_found() -> bool:
            found[:] = [look()]
            return found != [None]

        self.until(is_found, what)
        return found[0]

    def until_live(self) -> None:
        """Wait until the page has the profiler, and what its handshake says."""
        self.until(lambda: self.state == "live" and "pid" in self.facts, "the page is live")


@contextlib.contextmanager
def scripted(driver: ChromiumDriver, code: str) -> Iterator[None]:
    """Run a script first in each document that the current tab opens in a block."""
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": code})
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromiumDriver]:
    with open_browser(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture
def page(chromium: ChromiumDriver, site: Serve, tmp_path: Path) -> Iterator[Page]:
    """A new page; at the end the browser's console must be empty, except for the errors that the test expects.

    What it looks at, as `site`, is made before it and so ends after it: a page whose server ends has much to say.
    """
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
    chromium.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    chromium.get_log("browser")  # type: ignore[no-untyped-call]  # of pages before
    opened = Page(chromium, downloads)
    first = chromium.current_window_handle
    with scripted(chromium, STAY):
        yield opened
        for window in set(chromium.window_handles) - {first}:
            chromium.switch_to.window(window)
            chromium.close()
        chromium.switch_to.window(first)
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    messages = [entry["message"] for entry in chromium.get_log("browser")]  # type: ignore[no-untyped-call]
    chromium.get("about:blank")
    unexpected = [text for text in messages if not any(part in text for part in opened.expected_console)]
    assert unexpected == [], "the browser's console is empty"


class Site:
    """A web server with the dashboard, in a thread with a loop of its own."""

    def __init__(self, bridges: Mapping[str, dict[str, Any]], prefix: str, access: dict[str, Any]) -> None:
        self._bridges, self._prefix, self._access = bridges, prefix, access
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Event
        self.port = 0
        self.requests: list[HTTPServerRequest] = []

    def start(self) -> Site:
        """Listen; after `stop` at the same port as before."""
        self._ready.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self._ready.wait()
        return self

    def stop(self) -> None:
        """Close everything; may be called twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        bridges = {name: patient(Bridge(**options)) for name, options in self._bridges.items()}
        routes = rbkit_routes(bridges.get("") or bridges, self._prefix, **self._access)
        application = Application(routes, log_function=lambda handler: self.requests.append(handler.request))
        http = HTTPServer(application)
        sockets = bind_sockets(self.port, "127.0.0.1")
        http.add_sockets(sockets)
        self.port = sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}{self._prefix}/"
        self._ready.set()
        await self._stopped.wait()
        http.stop()
        for bridge in bridges.values():
            await bridge.close()
        await http.close_all_connections()


Serve = Callable[..., Site]


@pytest.fixture
def site() -> Iterator[Serve]:
    """Return a function that starts a server: `site(rbkit)`, or `site(one=rbkit, two=other)`; rules as keywords of
    `access`."""
    started: list[Site] = []

    def start(
        rbkit: Any = None,
        *,
        prefix: str = "/rbkit",
        options: dict[str, Any] | None = None,
        access: dict[str, Any] | None = None,
        **several: Any,
    ) -> Site:
        bridges = {name: one.endpoints | (options or {}) for name, one in ({"": rbkit} if rbkit else several).items()}
        started.append(Site(bridges, prefix, access or {}).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()


class Script:
    """Publishes given events through a fake rbkit, with the clock of a process that began at `start`."""

    def __init__(self, rbkit: FakeRbkit, start: float | None = None) -> None:
        self.rbkit = rbkit
        self.start = time.time() if start is None else start

    def publish(self, *events: tuple[float, int, Any]) -> None:
        """Publish events, each as the seconds since the start, its type and its payload, None for none."""
        packed = [
            {0: kind, 1: (self.start + at) * 1000} | ({} if payload is None else {2: payload})
            for at, kind, payload in events
        ]
        self.publish_raw(packed, events[-1][0] if events else 0.0)

    def publish_raw(self, events: list[dict[int, Any]], at: float = 0.0) -> None:
        """Publish events that are maps already, in the next event_collection."""
        message = {0: 7, 1: (self.start + at) * 1000, 9: self.rbkit.counter, 2: events}
        self.rbkit.counter += 1
        self.rbkit.publish(msgpack.packb(message))

    def lose(self, messages: int) -> None:
        """Skip counters, as if messages were lost before the next."""
        self.rbkit.counter += messages


@pytest.fixture
def script(rbkit: FakeRbkit) -> Script:
    return Script(rbkit)


class Program:
    """A Python program under `tornado-rbkit run`, which answers each line it is told with one."""

    def __init__(self, code: str, folder: Path) -> None:
        path = folder / "program.py"
        path.write_text(code)
        command = [sys.executable, *PATIENT, "run", str(path)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self._process.stderr is not None
        self.url = self._process.stderr.readline().removeprefix("tornado-rbkit: ").strip()

    def tell(self, line: str) -> str:
        """Write a line to the program, and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()

    def end(self) -> None:
        """Close its standard input, and wait for its end."""
        self._process.communicate()


@pytest.fixture
def program(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Program]]:
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", str(tmp_path / "runtime"))
    started: list[Program] = []

    def start(code: str) -> Program:
        started.append(Program(code, tmp_path))
        return started[-1]

    yield start
    page.driver.get("about:blank")  # it would say in the console that its server went away
    for one in started:
        one.end()
