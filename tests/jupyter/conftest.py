"""A Jupyter Server with the extension, in the test's own loop: pytest-jupyter's fixtures without its hooks.

Its plugin would run every coroutine of the suite on a loop of its own; here that is pytest-asyncio's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import ipykernel.kernelspec  # noqa: F401 - ipykernel 6 sets a variable of the environment when a server imports it
import pytest
from jupyter_server.serverapp import ServerApp
from pytest_jupyter.jupyter_core import (  # noqa: F401
    echo_kernel_spec,
    jp_config_dir,
    jp_data_dir,
    jp_env_config_path,
    jp_env_jupyter_path,
    jp_environ,
    jp_home_dir,
    jp_kernel_dir,
    jp_system_config_path,
    jp_system_jupyter_path,
)
from pytest_jupyter.jupyter_server import (  # noqa: F401
    jp_argv,
    jp_base_url,
    jp_configurable_serverapp,
    jp_http_port,
    jp_logging_stream,
    jp_nbconvert_templates,
    jp_root_dir,
    jp_server_config,
)
from pytest_jupyter.pytest_tornasync import http_server_port  # noqa: F401
from selenium.webdriver.chromium.webdriver import ChromiumDriver
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.log import access_log, app_log, gen_log
from tornado.websocket import WebSocketClientConnection, websocket_connect
from traitlets.config import Config

from tests.browser import open_browser
from tests.conftest import closing, until
from tests.jupyter.lab import KERNEL_MANAGER
from tests.patient import PATIENCE
from tornado_rbkit.jupyter.application import RbkitExtension

TOKEN = "s3cret"


class Kernel:
    """A kernel of a running server, and a client of it."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self._client = manager.client()

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)

    @property
    def id(self) -> str:
        return str(self.manager.kernel_id)

    async def open(self) -> None:
        self._client.start_channels()
        await self._client.wait_for_ready(timeout=60)

    def close(self) -> None:
        self._client.stop_channels()

    async def run(self, code: str) -> list[dict[str, Any]]:
        """Run a cell and return its outputs, as a notebook would keep them."""
        outputs: list[dict[str, Any]] = []
        await self._client.execute_interactive(
            code,
            timeout=60,
            output_hook=lambda message: outputs.append({"kind": message["msg_type"], **message["content"]}),
        )
        return [output for output in outputs if output["kind"] not in ("status", "execute_input")]

    async def text(self, code: str) -> str:
        """Run a cell and return what it printed."""
        return "".join(output.get("text", "") for output in await self.run(code))


class Jupyter:
    """A running server. `url` is that of its base_url."""

    def __init__(self, app: ServerApp, listening: socket.socket) -> None:
        self.app = app
        self.origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.url = f"{self.origin}{app.base_url}"
        self._http = HTTPServer(app.web_app)
        self._http.add_socket(listening)
        self._connections: list[WebSocketClientConnection] = []

    @property
    def extension(self) -> RbkitExtension:
        extension = self.app.extension_manager.extension_points["rbkit"].app
        assert isinstance(extension, RbkitExtension)
        return extension

    async def connect(
        self, path: str = "rbkit/ws", token: str | None = TOKEN, **headers: str
    ) -> WebSocketClientConnection:
        """Open a WebSocket; it is closed with the server."""
        request = HTTPRequest(self.url.replace("http", "ws") + path, headers=_headers(token, headers))
        connection = await websocket_connect(request, subprotocols=["rbkit"])
        self._connections.append(connection)
        return connection

    async def log_in(self) -> str:
        """Return the cookie of somebody who has given the token once."""
        request = HTTPRequest(f"{self.url}?token={TOKEN}", follow_redirects=False)
        response = await AsyncHTTPClient().fetch(request, raise_error=False)
        return "; ".join(cookie.partition(";")[0] for cookie in response.headers.get_list("Set-Cookie"))

    async def knock(
        self, path: str, token: str | None = TOKEN, method: str = "GET", query: str = "", **headers: str
    ) -> int:
        """Return the status with which a door answers: 101 for an open WebSocket."""
        try:
            if path.endswith("ws"):
                (await self.connect(path + query, token, **headers)).close()
                return 101
            request = HTTPRequest(
                self.url + path + query,
                headers=_headers(token, headers),
                method=method,
                body=b"" if method == "POST" else None,
                follow_redirects=False,
            )
            return (await AsyncHTTPClient().fetch(request)).code
        except HTTPClientError as error:
            return error.code

    async def get(self, path: str, **headers: str) -> Any:
        request = HTTPRequest(self.url + path, headers=_headers(TOKEN, headers))
        return await AsyncHTTPClient().fetch(request)

    @contextlib.asynccontextmanager
    async def kernel(self, notebook: str = "Analysis.ipynb") -> AsyncIterator[Kernel]:
        """Start a kernel as JupyterLab does when it opens a notebook."""
        sessions: Any = self.app.session_manager
        session = await sessions.create_session(path=notebook, name=notebook, type="notebook", kernel_name="python3")
        kernels: Any = self.app.kernel_manager
        kernel = Kernel(kernels.get_kernel(session["kernel"]["id"]))
        try:
            await kernel.open()
            yield kernel
        finally:
            kernel.close()
            await until(kernel.manager.ready.done, "the kernel is not being restarted")
            await kernels.shutdown_kernel(session["kernel"]["id"], now=True)

    async def close(self) -> None:
        self._http.stop()
        ends = [asyncio.create_task(closing(connection)) for connection in self._connections]
        await self.app._cleanup()
        app: Any = self.app  # Python 3.13 warns of the databases that Jupyter leaves open
        app.session_manager.connection.close()
        app.contents_manager.notary.store.close()
        await self._http.close_all_connections()
        await asyncio.gather(*ends)


StartJupyter = Callable[..., Awaitable[Jupyter]]


@pytest.fixture
async def jp_asyncio_loop() -> asyncio.AbstractEventLoop:
    """The loop that pytest-asyncio runs."""
    return asyncio.get_running_loop()


@pytest.fixture
def jp_runtime_dir() -> Iterator[Path]:
    """A folder with a short path, since those of the kernels' sockets are limited."""
    with tempfile.TemporaryDirectory(prefix="jp") as folder:
        yield Path(folder)


@pytest.fixture
def own_logging(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Restore the loggers of Tornado and of the package, which a server takes over; errors of the package are seen."""
    taken = [logging.getLogger("tornado"), logging.getLogger("tornado_rbkit")]
    before = [(logger.parent, logger.propagate, logger.level) for logger in taken]
    names = {log: log.name for log in (app_log, access_log, gen_log)}
    taken[1].addHandler(caplog.handler)
    yield
    taken[1].removeHandler(caplog.handler)
    for logger, (parent, propagate, level) in zip(taken, before, strict=True):
        logger.parent, logger.propagate = parent, propagate
        logger.setLevel(level)
    for log, name in names.items():
        log.name = name


@pytest.fixture
async def jupyter(
    own_logging: None,
    jp_configurable_serverapp: Callable[..., ServerApp],  # noqa: F811
    http_server_port: tuple[socket.socket, int],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[StartJupyter]:
    """Return what starts a server: `await jupyter(pub=..., req=...)` with settings of the extension.

    It waits for profilers as long as a busy machine may need.
    """
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", str(tmp_path / "rbkit"))
    monkeypatch.setattr("tornado_rbkit.bridge.commands.DEFAULT_COMMAND_TIMEOUT", PATIENCE)
    monkeypatch.setattr("tornado_rbkit.jupyter.kernels._REPLY_MS", 1000 * PATIENCE)
    threads = set(threading.enumerate())
    servers: list[Jupyter] = []

    async def start(server: dict[str, Any] | None = None, **settings: Any) -> Jupyter:
        config = Config(
            ServerApp={
                "jpserver_extensions": {"tornado_rbkit": True},
                "reraise_server_extension_failures": True,
                **(server or {}),
            },
            IdentityProvider={"token": TOKEN},
            KernelManager=KERNEL_MANAGER,
            RbkitExtension={"connect_timeout": PATIENCE, **settings},
        )
        servers.append(Jupyter(jp_configurable_serverapp(config=config), http_server_port[0]))
        await asyncio.sleep(0)  # for the callback that starts the extension
        return servers[-1]

    yield start
    for server in servers:
        await server.close()
        server.app.clear_instance()
    left = [thread.name for thread in set(threading.enumerate()) - threads if thread.name.startswith("rbkit")]
    assert not left, f"threads that the extension left behind: {left}"


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromiumDriver]:
    with open_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chrome: ChromiumDriver) -> Iterator[ChromiumDriver]:
    """A browser with one window, in which there is nothing, and without cookies, which all ports share."""
    first = chrome.current_window_handle
    yield chrome
    for window in set(chrome.window_handles) - {first}:
        chrome.switch_to.window(window)
        chrome.close()
    chrome.switch_to.window(first)
    chrome.get("about:blank")
    chrome.execute_cdp_cmd("Network.clearBrowserCookies", {})
    chrome.get_log("browser")  # type: ignore[no-untyped-call]  # what is read is gone


def _headers(token: str | None, headers: dict[str, str]) -> dict[str, str]:
    authorization = {} if token is None else {"Authorization": f"token {token}"}
    return {**authorization, **{name.replace("_", "-"): value for name, value in headers.items()}}
