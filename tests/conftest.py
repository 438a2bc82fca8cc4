"""Servers for tests: a fake rbkit, a bridge before it, and an HTTP server that mounts it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge, RbkitClient, rbkit_routes


class Server:
    """A mounted bridge. `url` is that of the HTTP server, `ws` that of its WebSocket."""

    def __init__(self, bridge: Bridge, http: HTTPServer, port: int) -> None:
        self.bridge = bridge
        self.http = http
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.ws = f"ws://127.0.0.1:{port}/rbkit/ws"

    def client(self, **options: Any) -> RbkitClient:
        return RbkitClient(self.ws, **options)

    async def close(self) -> None:
        self.http.stop()
        await self.bridge.close()
        await self.http.close_all_connections()


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture(params=[True, False], ids=["threaded", "unthreaded"])
def threaded(request: pytest.FixtureRequest) -> bool:
    """Both homes of the ZMQ sockets; what a test promises holds for both."""
    assert isinstance(request.param, bool)
    return request.param


@pytest.fixture
def rbkit() -> Iterator[FakeRbkit]:
    with FakeRbkit() as server:
        yield server


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Return what starts a server: `await serve(bridge, routes_after=[...], **access)`."""
    servers: list[Server] = []
    threads = set(threading.enumerate())

    async def start(bridge: Bridge, *, routes_after: list[Any] | None = None, **access: Any) -> Server:
        routes = rbkit_routes(bridge, **access)
        http = HTTPServer(Application([*routes, *(routes_after or [])]))
        sockets = bind_sockets(0, "127.0.0.1")
        http.add_sockets(sockets)
        servers.append(Server(bridge, http, sockets[0].getsockname()[1]))
        return servers[-1]

    yield start
    for server in servers:
        await server.close()
    left = [thread.name for thread in set(threading.enumerate()) - threads if thread.name.startswith("rbkit")]
    assert not left, f"threads that the bridge left behind: {left}"


async def until(condition: Callable[[], object], what: str, timeout: float = 10.0) -> None:
    """Wait for something to become true; fail with what it should have been."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not condition():
        if loop.time() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(0.005)
