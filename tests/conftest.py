"""Servers for tests: a fake rbkit, a bridge before it, and an HTTP server that mounts it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tornado.httpclient import HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.fake_rbkit import FakeRbkit
from tests.patient import patient
from tornado_rbkit import Bridge, RbkitClient, rbkit_routes
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.protocol import parse_notice

# The tests start hundreds of interpreters, and each of them would compile the whole package. The test processes are
# children of the process that imports this first.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A job in the background ignores Ctrl-C, one under nohup the end of its terminal, and so would the tests' programs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Examples have no time limit: a busy machine takes long for any of them.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


class Server:
    """A mounted bridge. `url` is the URL of the HTTP server, `ws` the URL of its WebSocket.

    The bridge waits a minute for its profiler, or the time that is set.
    """

    def __init__(self, bridge: Bridge, http: HTTPServer, port: int) -> None:
        self.bridge = patient(bridge)
        self.http = http
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.ws = f"ws://127.0.0.1:{port}/rbkit/ws"
        self._connections: list[WebSocketClientConnection] = []

    @classmethod
    def of(cls, bridge: Bridge, application: Application, **options: Any) -> Server:
        """Serve an application, in which a bridge is mounted, at a free port; `options` are those of HTTPServer."""
        http = HTTPServer(application, **options)
        sockets = bind_sockets(0, "127.0.0.1")
        http.add_sockets(sockets)
        return cls(bridge, http, sockets[0].getsockname()[1])

    def client(self, **options: Any) -> RbkitClient:
        return RbkitClient(self.ws, **options)

    async def connect(
        self, query: str = "", *, path: str = "/rbkit/ws", subprotocols: list[str] | None = None, **headers: str
    ) -> WebSocketClientConnection:
        """Open a WebSocket that gives the raw messages; it is closed with the server."""
        connection = await websocket_connect(
            HTTPRequest(
                f"ws://127.0.0.1:{self.port}{path}{query}",
                headers={name.replace("_", "-"): value for name, value in headers.items()},
            ),
            subprotocols=["rbkit"] if subprotocols is None else subprotocols,
            max_message_size=1 << 29,
        )
        self._connections.append(connection)
        return connection

    async def connected(self, query: str = "", **headers: str) -> WebSocketClientConnection:
        """Open a WebSocket like `connect`, and return it once the bridge is connected to its profiler."""
        connection = await self.connect(query, subprotocols=None, **headers)
        await until(lambda: self.bridge.state is State.CONNECTED, "the bridge is connected")
        return connection

    async def close(self) -> None:
        self.http.stop()
        ends = [asyncio.create_task(closing(connection)) for connection in self._connections]
        await self.bridge.close()
        await self.http.close_all_connections()
        for connection in self._connections:
            connection.close()  # opened by the application
        for end in ends:
            await end


Serve = Callable[..., Awaitable[Server]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", action="store_true", help="make the README's pictures of the dashboard anew")
    parser.addoption("--soak", type=float, default=0.0, metavar="SECONDS", help="how long the faults go on")


def pytest_configure(config: pytest.Config) -> None:
    """Set a runtime folder in which neither the user's programs nor those of other workers announce themselves."""
    folder = tempfile.mkdtemp(prefix="rbkit-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["XDG_RUNTIME_DIR"] = folder


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Run tests named on the command line, or run with -s, in this process.

    All others run in one process more than there are processors, since most of them wait most of the time.
    """
    by_name = not all(Path(argument).is_dir() for argument in config.args)
    return 0 if by_name or config.option.capture == "no" else 1 + (os.cpu_count() or 1)


@pytest.fixture(scope="session", autouse=True)
def hypothesis_has_started() -> None:
    """Let Hypothesis create its global objects before any test compares the objects or the state of the process.

    It does not find the referrers of its generator of random numbers among frozen objects.
    """
    settings(max_examples=1, database=None)(given(st.none())(lambda _: None))()


@pytest.fixture(autouse=True)
def nothing_goes_wrong_unseen(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which an error was logged: an exception in a callback is visible nowhere else."""
    yield
    if "logs_errors" not in request.keywords:
        records = [record for when in ("setup", "call", "teardown") for record in caplog.get_records(when)]
        assert [record.getMessage() for record in records if record.levelno >= logging.ERROR] == []


@pytest.fixture(params=[True, False], ids=["threaded", "unthreaded"])
def threaded(request: pytest.FixtureRequest) -> bool:
    """Run a test with the ZMQ sockets on a thread and on the IOLoop."""
    assert isinstance(request.param, bool)
    return request.param


@pytest.fixture(autouse=True)
def the_process_is_left_as_it_was(hypothesis_has_started: None) -> Iterator[None]:
    """Fail a test that changes what all tests of this process share: later tests would fail, in some orders."""
    before = _shared_state()
    yield
    left = _shared_state()
    assert {name: (before[name], left[name]) for name in left if left[name] != before[name]} == {}


def _shared_state() -> dict[str, object]:
    return {
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_debug()),
        "gc.callbacks": list(gc.callbacks),
        "switch interval": sys.getswitchinterval(),
        "recursion limit": sys.getrecursionlimit(),
        "trace and profile functions": (sys.gettrace(), sys.getprofile()),
        "tracemalloc": tracemalloc.is_tracing(),
        "working folder": os.getcwd(),
        "environment": {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "sys.path": list(sys.path),
        "signal handlers": [signal.getsignal(number) for number in _SIGNALS],
        "logging.disable": logging.root.manager.disable,
        "filters of loggers": [
            (name, list(log.filters))
            for name, log in logging.root.manager.loggerDict.items()
            if isinstance(log, logging.Logger) and log.filters
        ],
        "filters of handlers": [list(handler.filters) for handler in logging.root.handlers if handler.filters],
    }


_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD") if hasattr(signal, name)]


@pytest.fixture
def runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a runtime folder in which no other test's processes announce themselves. It does not exist yet."""
    folder = tmp_path / "runtime"
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", str(folder))
    return folder


@pytest.fixture
def rbkit() -> Iterator[FakeRbkit]:
    with FakeRbkit() as server:
        yield server


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Return a function that starts a server: `await serve(bridge, routes_after=[...], **access)`."""
    servers: list[Server] = []
    threads = set(threading.enumerate())

    async def start(
        bridge: Bridge, *, prefix: str = "/rbkit", routes_after: list[Any] | None = None, **access: Any
    ) -> Server:
        routes = rbkit_routes(bridge, prefix, **access)
        servers.append(Server.of(bridge, Application([*routes, *(routes_after or [])])))
        return servers[-1]

    yield start
    for server in servers:
        await server.close()
    left = [thread.name for thread in set(threading.enumerate()) - threads if thread.name.startswith("rbkit")]
    assert not left, f"threads that the bridge left behind: {left}"


def without_slowness(errors: str) -> str:
    """Leave out what asyncio reports with -X dev about callbacks of more than 0.1 s: that is about the machine."""
    return re.sub(r"(?m)^(WARNING )?Executing <.* took [\d.]+ seconds.*\n", "", errors)


class Clock:
    """The module `time` for a test, which advances its monotonic clock."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


async def until(condition: Callable[[], object], what: str, timeout: float = 60.0) -> None:
    """Wait until a condition is true; fail with the expected state `what`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not condition():
        if loop.time() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(0.005)


async def receive(connection: WebSocketClientConnection, timeout: float = 60.0) -> str | bytes:
    """Return the next message; fail if none arrives."""
    message = await asyncio.wait_for(connection.read_message(), timeout)
    assert message is not None, f"closed with {connection.close_code} {connection.close_reason!r}"
    return message


async def receive_data(connection: WebSocketClientConnection) -> bytes:
    """Return the next published message, skipping replies and notices."""
    while True:
        message = await receive(connection)
        assert isinstance(message, bytes)
        if message.startswith(b"1"):
            return message[1:]


async def closing(connection: WebSocketClientConnection, timeout: float = 60.0) -> tuple[int | None, str | None]:
    """Read to the end, and return the server's close code and reason."""
    while connection.protocol is not None and await asyncio.wait_for(connection.read_message(), timeout) is not None:
        pass
    connection.close()
    return connection.close_code, connection.close_reason


async def ask(connection: WebSocketClientConnection, command: str | bytes) -> bytes:
    """Send a command and return the next message of the reply channel that is not a notice."""
    await connection.write_message(command, binary=isinstance(command, bytes))
    while True:
        message = await receive(connection)
        assert isinstance(message, bytes)
        if message.startswith(b"0") and parse_notice(message[1:]) is None:
            return message
