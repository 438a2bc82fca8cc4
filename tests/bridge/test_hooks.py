"""Subclasses of the WebSocket handler that override Tornado's hooks without calling super(), as they may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from tests.bridge.test_fanout import MIB, StalledClient
from tests.conftest import Server, ask, closing, receive, receive_data, until
from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge, RbkitWebSocketHandler
from tornado_rbkit.bridge.profiler_state import State

Mount = Callable[..., Server]


@pytest.fixture
async def mount(rbkit: FakeRbkit) -> AsyncIterator[Mount]:
    """Return what mounts a handler at the bridge's usual path."""
    servers: list[Server] = []

    def start(handler: type[RbkitWebSocketHandler], **options: Any) -> Server:
        bridge = Bridge(**rbkit.endpoints, **options)
        http = HTTPServer(Application([("/rbkit/ws", handler, {"bridge": bridge})]))
        sockets = bind_sockets(0, "127.0.0.1")
        http.add_sockets(sockets)
        servers.append(Server(bridge, http, sockets[0].getsockname()[1]))
        return servers[-1]

    yield start
    for server in servers:
        await server.close()


class OwnOnClose(RbkitWebSocketHandler):
    def on_close(self) -> None:
        """Call no super()."""


class OwnOpen(RbkitWebSocketHandler):
    def open(self, *args: str, **kwargs: str) -> None:
        """Call no super()."""


class OwnAsyncOpen(RbkitWebSocketHandler):
    async def open(self, *args: str, **kwargs: str) -> None:
        await asyncio.sleep(0.01)  # it asks a database, say


class OpenWithSuper(RbkitWebSocketHandler):
    async def open(self, *args: str, **kwargs: str) -> None:
        await asyncio.sleep(0.01)
        super().open()
        super().open()


class OwnOnPong(RbkitWebSocketHandler):
    def on_pong(self, data: bytes) -> None:
        """Call no super()."""


class ClosesInOpen(RbkitWebSocketHandler):
    async def open(self, *args: str, **kwargs: str) -> None:
        await asyncio.sleep(0.01)
        self.close(4001, "not you")


class FailsInOpen(RbkitWebSocketHandler):
    def open(self, *args: str, **kwargs: str) -> None:
        super().open()
        raise ValueError("a fault of the application's")


class Writes(RbkitWebSocketHandler):
    current: Writes

    def open(self, *args: str, **kwargs: str) -> None:
        Writes.current = self


@pytest.mark.parametrize("handler", [OwnOnClose, OwnOpen, OwnAsyncOpen, OpenWithSuper, OwnOnPong])
async def test_a_client_is_served_and_leaves(mount: Mount, rbkit: FakeRbkit, handler: type) -> None:
    server = mount(handler, max_clients=1)
    for _ in range(3):  # which there would be no room for, if one stayed
        connection = await server.connect()
        await until(lambda: server.bridge.state is State.CONNECTED, "the bridge is connected")
        assert await ask(connection, "trigger_gc") == b"0ok"
        message = rbkit.publish_collection()
        assert await receive_data(connection) == message
        connection.close()
        await until(lambda: not server.bridge.stats()["clients"], "the client has left")


@pytest.mark.parametrize("handler", [OwnOnClose, OwnOpen])
async def test_a_client_whose_connection_is_cut_leaves(mount: Mount, rbkit: FakeRbkit, handler: type) -> None:
    server = mount(handler)
    client = StalledClient(server.port)
    await client.open()
    await until(lambda: server.bridge.stats()["clients"], "the client has joined")
    client.socket.close()
    await until(lambda: not server.bridge.stats()["clients"], "the client has left")


async def test_a_client_that_open_closes_gets_no_data(mount: Mount, rbkit: FakeRbkit) -> None:
    server = mount(ClosesInOpen)
    assert await closing(await server.connect()) == (4001, "not you")
    assert server.bridge.state is State.IDLE, "it never joined"


@pytest.mark.logs_errors
async def test_a_client_whose_open_raises_leaves(mount: Mount, rbkit: FakeRbkit) -> None:
    server = mount(FailsInOpen)
    assert await closing(await server.connect()) == (None, None)
    await until(lambda: not server.bridge.stats()["clients"], "the client has left")


async def test_a_full_bridge_refuses_a_client_of_an_overridden_open(mount: Mount, rbkit: FakeRbkit) -> None:
    server = mount(OwnOpen, max_clients=1)
    await server.connected()
    code, reason = await closing(await server.connect())
    assert (code, reason) == (1013, "client limit reached (max_clients=1)")


async def test_pongs_count_although_on_pong_is_overridden(mount: Mount, rbkit: FakeRbkit) -> None:
    server = mount(OwnOnPong, ping_interval=0.5, ping_timeout=0.5)
    connection = await server.connected()
    loop = asyncio.get_running_loop()
    end = loop.time() + 1.7  # without a pong for the first ping it would be closed after 1 s
    while loop.time() < end:
        assert await ask(connection, "trigger_gc") == b"0ok"
        await asyncio.sleep(0.05)


async def test_a_message_of_the_application_never_lands_between_fragments(mount: Mount, rbkit: FakeRbkit) -> None:
    server = mount(Writes)
    client = StalledClient(server.port)
    await client.open()
    await until(lambda: server.bridge.stats()["handshake"], "the bridge is connected")
    message = rbkit.publish_collection(8 * MIB)
    await until(lambda: server.bridge.stats()["clients"][0]["blocked"], "the message is under way")
    written = Writes.current.write_message({"application": 1})
    assert (await client.read_message())[1:] == message
    assert await client.read_frame() == (0x81, b'{"application": 1}')
    await asyncio.wait_for(written, 60)
    client.socket.close()


async def test_a_message_of_the_application_arrives_as_it_is(mount: Mount, rbkit: FakeRbkit) -> None:
    server = mount(Writes)
    connection = await server.connected()
    await Writes.current.write_message("hello")
    await Writes.current.write_message(b"\x00", binary=True)
    assert [await receive(connection), await receive(connection)] == ["hello", b"\x00"]
