"""The asyncio client, through a real server to a fake rbkit."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import warnings
from base64 import b64encode
from collections.abc import AsyncIterator, Coroutine
from hashlib import sha1
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketClientConnection, WebSocketHandler

from tests.conftest import Serve, Server, until
from tests.fake_rbkit import FakeRbkit, collection, free_port
from tests.patient import patient
from tests.test_deadline import Clock, clock
from tornado_rbkit import Bridge, ConnectionLost, DecodeError, Gap, RbkitClient, RbkitError, rbkit_routes
from tornado_rbkit import client as client_module
from tornado_rbkit.client import _abort, _with_binary_encoding
from tornado_rbkit.protocol import COMMANDS, TRACING_COMMANDS, CommandError, GCEndSweep, Handshake, Notice

__all__ = ["clock"]  # a fixture


@pytest.fixture
async def server(rbkit: FakeRbkit, serve: Serve) -> Server:
    return await serve(Bridge(pub=rbkit.pub, req=rbkit.req))


async def soon(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, 60)


async def take(messages: AsyncIterator[Any], count: int) -> list[Any]:
    return [await soon(anext(messages)) for _ in range(count)]


class Scripted(WebSocketHandler):
    """A server that says what a test tells it to."""

    def initialize(self, said: list[bytes]) -> None:
        self.said = said

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return "rbkit" if "rbkit" in subprotocols else None

    async def open(self) -> None:
        for message in self.said:
            await self.write_message(message, binary=True)

    def on_message(self, message: str | bytes) -> None:
        if message == "close":
            self.close(4000, "as you wish")


@pytest.fixture
async def scripted() -> AsyncIterator[Any]:
    """Return what starts such a server and gives its URL."""
    servers: list[HTTPServer] = []

    def start(*said: bytes) -> str:
        server = HTTPServer(Application([("/", Scripted, {"said": said})]))
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        servers.append(server)
        return f"ws://127.0.0.1:{sockets[0].getsockname()[1]}/"

    yield start
    for server in servers:
        server.stop()
        await server.close_all_connections()


# Commands


@pytest.mark.parametrize("command", sorted(COMMANDS - TRACING_COMMANDS - {"handshake"}))
async def test_the_reply_to_a_command_is_its_text(server: Server, rbkit: FakeRbkit, command: str) -> None:
    async with server.client() as client:
        assert await soon(client.command(command)) == "ok"
    assert command.encode() in rbkit.received


async def test_the_reply_to_handshake_is_decoded(server: Server) -> None:
    async with server.client() as client:
        reply = await soon(client.command("handshake"))
    assert isinstance(reply, Handshake)
    assert (reply.process_name, reply.rbkit_protocol_version) == ("fake", "2.1")


async def test_replies_come_in_the_order_of_asking(server: Server, rbkit: FakeRbkit) -> None:
    rbkit.reply = {b"trigger_gc": b"first", b"use_cpu_time": b"second", b"use_wall_time": b"third"}
    async with server.client() as client:
        replies = await soon(asyncio.gather(*(client.command(command.decode()) for command in rbkit.reply)))
    assert replies == ["first", "second", "third"]


async def test_request_gives_the_bytes_as_they_came(server: Server, rbkit: FakeRbkit) -> None:
    rbkit.reply = {b"trigger_gc": b"\xff\x00raw"}
    async with server.client() as client:
        assert await soon(client.request("trigger_gc")) == b"\xff\x00raw"
        assert await soon(client.request(b"use_cpu_time")) == b"ok"
        assert (await soon(client.request("bogus"))).startswith(b"error:unknown-command ")


@pytest.mark.parametrize(
    ("access", "command", "reason", "text"),
    [
        ({}, "bogus", "unknown-command", "start_memory_profile"),
        ({}, "", "invalid-command", "empty"),
        ({}, "handshake\n", "invalid-command", "ASCII"),
        ({"read_only": True}, "trigger_gc", "forbidden", "`read_only`"),
        (
            {"authorize": lambda handler, command: command == "handshake"},
            "trigger_gc",
            "forbidden",
            "`authorize`",
        ),
    ],
)
async def test_a_command_that_is_not_carried_out_raises_the_reason_and_the_text(
    rbkit: FakeRbkit, serve: Serve, access: dict[str, Any], command: str, reason: str, text: str
) -> None:
    server = await serve(Bridge(pub=rbkit.pub, req=rbkit.req), **access)
    async with server.client() as client:
        with pytest.raises(CommandError) as caught:
            await soon(client.command(command))
        assert caught.value.reason == reason
        assert text in caught.value.text
        assert isinstance(await soon(client.command("handshake")), Handshake), "the connection goes on"


async def test_requests_given_up_on_a_silent_server_are_bounded_until_their_replies_arrive(scripted: Any) -> None:
    async with RbkitClient(scripted()) as client:
        for _ in range(client_module._MAX_ABANDONED):
            asked = asyncio.create_task(client.request("trigger_gc"))
            await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait([asked])
        for _ in range(3):
            with pytest.raises(CommandError, match="256 cancelled requests have no reply") as error:
                await soon(client.command("trigger_gc"))
            assert error.value.reason == "busy"
        assert len(client._asked) == client_module._MAX_ABANDONED
        client._take(b"0ok")
        asked = asyncio.create_task(client.request("trigger_gc"))
        await asyncio.sleep(0)
        assert len(client._asked) == client_module._MAX_ABANDONED
        for _ in range(client_module._MAX_ABANDONED - 1):
            client._take(b"0of another")
        client._take(b"0its own")
        assert await soon(asked) == b"its own"
        assert client._abandoned == 0


async def test_requests_given_up_on_a_lost_connection_do_not_count_on_the_next(scripted: Any) -> None:
    async with RbkitClient(scripted()) as client:
        asked = [asyncio.create_task(client.request("trigger_gc")) for _ in range(2)]
        await asyncio.sleep(0)
        for each in asked:
            each.cancel()
        client._fail_pending("lost")  # before the tasks notice that they were cancelled
        await asyncio.wait(asked)
        assert client._abandoned == 0


async def test_a_command_without_a_reply_raises_timeout(rbkit: FakeRbkit, serve: Serve) -> None:
    server = await serve(Bridge(pub=rbkit.pub, req=rbkit.req, command_timeouts={"trigger_gc": 0.1}))
    async with server.client() as client:
        await soon(client.command("handshake"))
        rbkit.answering.clear()
        with pytest.raises(CommandError) as caught:
            await soon(client.command("trigger_gc"))
        assert caught.value.reason == "timeout"
        rbkit.answering.set()


# Events


async def test_events_are_decoded_and_a_gap_stands_where_messages_are_missing(scripted: Any) -> None:
    def sweep(counter: int) -> bytes:
        return b"1" + collection(counter, [{0: 4, 1: float(counter)}])

    url = scripted(*(sweep(counter) for counter in (5, 6, 9, 10, 0, 1, 3)))
    async with RbkitClient(url) as client:
        assert await take(client.events(), 9) == [
            GCEndSweep(5.0),
            GCEndSweep(6.0),
            Gap(2),
            GCEndSweep(9.0),
            GCEndSweep(10.0),
            GCEndSweep(0.0),
            GCEndSweep(1.0),
            Gap(1),
            GCEndSweep(3.0),
        ]


async def test_messages_are_the_bytes_that_rbkit_published(server: Server, rbkit: FakeRbkit) -> None:
    async with server.client() as client:
        await soon(client.command("handshake"))
        await until(lambda: server.bridge.state.value == "connected", "the bridge is connected")
        messages = client.messages()
        published = [rbkit.publish_collection(padding=padding) for padding in (0, 1000, 1_000_000)]
        assert await take(messages, 3) == published


async def test_notices_stand_among_the_events(scripted: Any) -> None:
    url = scripted(b"0client_count:2", b"1" + collection(0), b"0dropped:3", b"1" + collection(4))
    async with RbkitClient(url) as client:
        assert await take(client.events(), 5) == [
            Notice("client_count", "2"),
            GCEndSweep(1.0),
            Notice("dropped", "3"),
            Gap(3),
            GCEndSweep(1.0),
        ]


async def test_a_restarted_profiler_is_not_a_gap(scripted: Any) -> None:
    url = scripted(b"1" + collection(3), b"0server:restarted", b"1" + collection(7))
    async with RbkitClient(url) as client:
        assert await take(client.events(), 3) == [GCEndSweep(1.0), Notice("server", "restarted"), GCEndSweep(1.0)]


async def test_a_new_client_is_told_to_those_already_there(server: Server) -> None:
    async with server.client() as first, server.client():
        assert await soon(anext(first.events())) == Notice("client_count", "2")


async def test_of_data_that_waits_too_long_the_oldest_is_let_go_and_told_as_a_gap(
    server: Server, rbkit: FakeRbkit
) -> None:
    async with server.client(max_pending_bytes=100_000) as client:
        await soon(client.command("handshake"))
        items = client.messages()
        await until(lambda: server.bridge.state.value == "connected", "the bridge is connected")
        first = rbkit.publish_collection()
        assert await take(items, 1) == [first]
        published = [rbkit.publish_collection(padding=10_000) for _ in range(50)]
        await until(lambda: server.bridge.stats()["messages_sent"] == 51, "all are on their way")
        await soon(client.command("handshake"))
        assert await take(items, 11) == [Gap(40), *published[-10:]], "one, and what the bound lets wait behind it"


async def test_data_dropped_before_the_first_was_read_is_reported_as_a_gap(scripted: Any) -> None:
    messages = [collection(counter, padding=10_000) for counter in range(50)]
    url = scripted(*(b"1" + message for message in messages), b"0ok")
    async with RbkitClient(url, max_pending_bytes=100_000) as client:
        await soon(client.request("wait until all has come"))
        first = await soon(anext(client.messages()))
        assert first == Gap(40), f"{len(first)} bytes came instead of the gap" if isinstance(first, bytes) else first


async def test_a_message_larger_than_the_bound_is_kept_when_it_is_the_newest(scripted: Any) -> None:
    message = collection(0, padding=500_000)
    async with RbkitClient(scripted(b"1" + message), max_pending_bytes=1000) as client:
        assert await soon(anext(client.messages())) == message


async def test_what_is_not_rbkits_raises_decode_error_and_says_so(scripted: Any) -> None:
    async with RbkitClient(scripted(b"1not MessagePack")) as client:
        with pytest.raises(RbkitError, match="not an rbkit message"):
            await soon(anext(client.events()))


# Connections that are lost


async def test_a_close_raises_its_code_and_reason(scripted: Any) -> None:
    async with RbkitClient(scripted()) as client:
        with pytest.raises(ConnectionLost, match="as you wish") as caught:
            await soon(client.command("close"))
        assert (caught.value.code, caught.value.reason) == (4000, "as you wish")
        with pytest.raises(ConnectionLost, match="as you wish"):
            await soon(anext(client.events()))
        with pytest.raises(ConnectionLost, match="as you wish"):
            await soon(client.command("handshake"))


async def test_a_profiler_that_is_not_there_is_1013_with_its_endpoint(serve: Serve) -> None:
    endpoints: dict[str, Any] = {name: f"tcp://127.0.0.1:{free_port()}" for name in ("pub", "req")}
    server = await serve(Bridge(**endpoints, connect_timeout=0.2))
    async with server.client() as client:
        with pytest.raises(ConnectionLost) as caught:
            await soon(client.command("handshake"))
    assert caught.value.code == 1013
    assert caught.value.reason == f"rbkit server is not running at {endpoints['req']}"
    assert endpoints["req"] in str(caught.value)


async def test_a_server_that_shuts_down_is_1001(rbkit: FakeRbkit, serve: Serve) -> None:
    server = await serve(Bridge(pub=rbkit.pub, req=rbkit.req))
    async with server.client() as client:
        await soon(client.command("handshake"))
        await soon(server.bridge.close())
        with pytest.raises(ConnectionLost) as caught:
            await soon(anext(client.events()))
    assert caught.value.code == 1001


async def test_a_server_that_is_not_there_is_reported_with_its_url() -> None:
    url = f"ws://127.0.0.1:{free_port()}/rbkit/ws"
    with pytest.raises(ConnectionLost, match="refused") as caught:
        async with RbkitClient(url):
            pass
    assert caught.value.code is None
    assert url in str(caught.value)


@pytest.mark.parametrize(
    ("access", "status", "text"),
    [
        ({"token": "s3cret"}, 401, "Authorization: Bearer"),
        ({"authorize": lambda handler, command: False}, 403, "`authorize`"),
    ],
)
async def test_a_refusal_is_raised_with_its_status_and_text(
    rbkit: FakeRbkit, serve: Serve, access: dict[str, Any], status: int, text: str
) -> None:
    server = await serve(Bridge(pub=rbkit.pub, req=rbkit.req), **access)
    with pytest.raises(ConnectionLost) as caught:
        async with server.client():
            pass
    assert caught.value.code == status
    assert text in caught.value.reason
    assert text in str(caught.value)


async def test_a_page_of_html_is_not_taken_for_the_reason(rbkit: FakeRbkit, serve: Serve) -> None:
    server = await serve(Bridge(pub=rbkit.pub, req=rbkit.req), anywhere=False)
    with pytest.raises(ConnectionLost) as caught:
        async with RbkitClient(server.ws.replace("/rbkit/ws", "/nothing"), reconnect=False):
            pass
    assert caught.value.code == 404
    assert "Not Found" in caught.value.reason
    assert "<" not in caught.value.reason


async def test_the_token_opens(rbkit: FakeRbkit, serve: Serve) -> None:
    server = await serve(Bridge(pub=rbkit.pub, req=rbkit.req), token="s3cret")
    async with server.client(token="s3cret") as client:
        assert await soon(client.command("trigger_gc")) == "ok"


@pytest.mark.parametrize("url", ["", "http://127.0.0.1/", "127.0.0.1:8765", "tcp://127.0.0.1:5555", "ws:/x"])
def test_a_url_that_is_not_a_websockets_is_a_value_error_that_says_what_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match="ws://") as caught:
        RbkitClient(url)
    assert repr(url) in str(caught.value)


@pytest.mark.parametrize("url", ["ws://", "ws:///path", "ws://127.0.0.1:99999/", "ws://[::1/", "ws://host name/"])
async def test_a_url_that_leads_nowhere_is_a_value_error_or_a_lost_connection(url: str) -> None:
    with pytest.raises((ValueError, ConnectionLost)):
        async with RbkitClient(url):
            pass


# Closing


async def test_a_command_that_waits_when_the_client_is_closed_raises(server: Server, rbkit: FakeRbkit) -> None:
    async with server.client() as client:
        await soon(client.command("handshake"))
        rbkit.answering.clear()
        waiting = [asyncio.ensure_future(client.command("trigger_gc")) for _ in range(3)]
        await asyncio.sleep(0)
    try:
        results = await soon(asyncio.gather(*waiting, return_exceptions=True))
    finally:
        rbkit.answering.set()
    assert [type(result) for result in results] == [ConnectionLost] * 3


async def test_a_client_that_was_never_opened_can_be_closed() -> None:
    await RbkitClient("ws://127.0.0.1/").close()


async def test_events_end_when_the_client_is_closed(server: Server) -> None:
    client = server.client()
    async with client:
        await soon(client.command("handshake"))
        reader = asyncio.ensure_future(anext(client.events(), "the end"))
        await asyncio.sleep(0)
        await soon(client.close())
        await soon(client.close())
        assert await soon(reader) == "the end"
    with pytest.raises(ConnectionLost):
        await client.command("handshake")


async def test_nothing_is_left_of_clients_that_were_closed(server: Server) -> None:
    for _ in range(3):
        async with server.client() as client:
            await soon(client.command("handshake"))
        with pytest.raises(ConnectionLost):
            async with RbkitClient(f"ws://127.0.0.1:{free_port()}/"):
                pass
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        gc.collect()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "RbkitClient" in repr(task.get_coro())]


# Reconnection


class Comeback:
    """A server that can go and come back on its port."""

    def __init__(self, rbkit: FakeRbkit) -> None:
        self.port = free_port()
        self.url = f"ws://127.0.0.1:{self.port}/rbkit/ws"
        self._rbkit = rbkit

    def start(self, **access: Any) -> None:
        self.bridge = patient(Bridge(pub=self._rbkit.pub, req=self._rbkit.req))
        self._http = HTTPServer(Application(rbkit_routes(self.bridge, **access)))
        self._http.listen(self.port, "127.0.0.1")

    async def stop(self) -> None:
        """May be called twice."""
        self._http.stop()
        await self.bridge.close()
        await self._http.close_all_connections()


@pytest.fixture
async def place(rbkit: FakeRbkit) -> AsyncIterator[Comeback]:
    place = Comeback(rbkit)
    place.start()
    yield place
    await place.stop()


@pytest.mark.parametrize("waits", [True, False], ids=["while-waiting", "while-busy"])
async def test_with_reconnect_a_server_that_comes_back_is_found_and_the_gap_is_reported(
    rbkit: FakeRbkit, place: Comeback, waits: bool
) -> None:
    async with RbkitClient(place.url, reconnect=True) as client:
        events = client.events()
        await soon(client.command("handshake"))
        following = asyncio.ensure_future(anext(events)) if waits else None
        await asyncio.sleep(0)
        await place.stop()
        place.start()
        assert await soon(following or anext(events)) == Gap(None)
        assert await soon(client.command("trigger_gc")) == "ok"
        await until(lambda: place.bridge.state.value == "connected", "the bridge is connected")
        rbkit.publish_collection()
        assert await soon(anext(events)) == GCEndSweep(1.0)


async def test_with_reconnect_a_command_in_the_meantime_raises_and_the_client_can_be_closed(
    rbkit: FakeRbkit, place: Comeback
) -> None:
    async with RbkitClient(place.url, reconnect=True) as client:
        await soon(client.command("handshake"))
        rbkit.answering.clear()
        waiting = asyncio.ensure_future(client.command("trigger_gc"))
        await asyncio.sleep(0)
        await place.stop()
        rbkit.answering.set()
        with pytest.raises(ConnectionLost):
            await soon(waiting)
        with pytest.raises(ConnectionLost):
            await soon(client.command("handshake"))
        await soon(client.close())


async def test_a_large_message_is_kept_behind_a_notice_and_before_a_small_one(scripted: Any) -> None:
    large, small = collection(0, padding=300_000), collection(1)
    url = scripted(b"0client_count:2", b"1" + large, b"1" + small, b"0ok")
    async with RbkitClient(url, max_pending_bytes=100_000) as client:
        await soon(client.request("wait until all has come"))
        assert await take(client.messages(), 3) == [Notice("client_count", "2"), large, small]


async def test_notices_and_small_messages_that_nobody_takes_are_bounded(scripted: Any) -> None:
    said = [b"0dropped:many"]
    for number in range(500):
        said += [b"0client_count:%d" % number, b"0server:disconnected", b"0server:connected", b"0dropped:2", b"1"]
    async with RbkitClient(scripted(*said, b"0ok"), max_pending_bytes=10_000) as client:
        await soon(client.request("wait until all has come"))
    items = [item async for item in client.messages()]
    assert len(items) <= 10_000 / 256 + 5
    notices = [item for item in items if isinstance(item, Notice)]
    assert [item for item in notices if item.name == "client_count"][-1].value == "499"
    assert [item for item in notices if item.name == "server"][-1].value == "connected"
    assert sum(int(item.value) for item in notices if item.name == "dropped") == 1000


async def test_events_end_when_the_client_is_closed_while_it_reconnects(server: Server) -> None:
    async with server.client(reconnect=True) as client:
        await soon(client.command("handshake"))
        waiting = asyncio.create_task(anext(client.events(), None))
        server.http.stop()
        await server.bridge.close()
        await until(lambda: client._connection is None, "the connection is lost")
        await client.close()
        assert await soon(waiting) is None


# What the client asks for


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("ws://h/ws", "ws://h/ws?encoding=binary"),
        ("ws://h", "ws://h?encoding=binary"),
        ("wss://u:p@[::1]:1/a?token=x%26y&flag", "wss://u:p@[::1]:1/a?token=x%26y&flag&encoding=binary"),
        ("ws://h/ws?encoding=escaped&a=1&encoding", "ws://h/ws?a=1&encoding=binary"),
        ("ws://h/ws?", "ws://h/ws?encoding=binary"),
        ("ws://h/ws?a=1#part", "ws://h/ws?a=1&encoding=binary"),
    ],
)
def test_binary_is_asked_for_beside_what_the_url_asks_for(url: str, asked: str) -> None:
    assert _with_binary_encoding(url) == asked


async def test_a_server_that_sends_text_is_understood(rbkit: FakeRbkit) -> None:
    class Middleware(Scripted):
        """Knows the escaped encoding only, and writes a space as Ruby does."""

        def on_message(self, message: str | bytes) -> None:
            self.write_message("0" + quote_plus(b"error:busy 1+1 %"))
            self.write_message("1" + quote_plus(collection(0)))

    server = HTTPServer(Application([("/", Middleware, {"said": []})]))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    async with RbkitClient(f"ws://127.0.0.1:{sockets[0].getsockname()[1]}/") as client:
        with pytest.raises(CommandError, match=r"busy: 1\+1 %"):
            await soon(client.command("handshake"))
        assert await soon(anext(client.events())) == GCEndSweep(1.0)
    server.stop()
    await server.close_all_connections()


async def test_a_handshake_that_is_invalid_is_a_decode_error(scripted: Any) -> None:
    async with RbkitClient(scripted(b"0client_count:2")) as client:
        waiting = asyncio.ensure_future(client.command("handshake"))
        await asyncio.sleep(0)
        client._take(b"0ok")
        with pytest.raises(DecodeError):
            await soon(waiting)


# Who comes back


class Policy(Scripted):
    """Sends what its query says and closes, with the code and the reason that are in there too; counts who came."""

    came = 0

    async def open(self) -> None:
        type(self).came += 1
        if message := self.get_argument("message", ""):
            await self.write_message(message.encode(), binary=True)
        self.close(int(self.get_argument("code")), self.get_argument("reason"))


@pytest.fixture
async def policy() -> AsyncIterator[str]:
    Policy.came = 0
    server = HTTPServer(Application([("/", Policy, {"said": []})]))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    yield f"ws://127.0.0.1:{sockets[0].getsockname()[1]}/"
    server.stop()
    await server.close_all_connections()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1008, "too slow for 60 s (stall_timeout)"),
        (1008, "no pong within 15 s (ping_timeout)"),
        (1001, "the server shuts down"),
        (1013, "rbkit server is not running at tcp://127.0.0.1:5556"),
    ],
)
async def test_with_reconnect_a_client_comes_back_unless_it_is_refused(policy: str, code: int, reason: str) -> None:
    async with RbkitClient(f"{policy}?code={code}&reason={quote(reason)}", reconnect=True) as client:
        assert await take(client.messages(), 2) == [Gap(None), Gap(None)]
    assert Policy.came >= 3


@pytest.mark.parametrize("reason", ["not authorized any more (authorize)", ""])
async def test_with_reconnect_a_client_that_is_not_authorized_any_more_does_not_come_back(
    policy: str, reason: str
) -> None:
    async with RbkitClient(f"{policy}?code=1008&reason={quote(reason)}", reconnect=True) as client:
        with pytest.raises(ConnectionLost) as caught:
            await soon(anext(client.messages()))
        assert (caught.value.code, caught.value.reason, caught.value.is_final) == (1008, reason, True)
        with pytest.raises(ConnectionLost):
            await soon(client.command("handshake"))
    assert Policy.came == 1


async def test_with_reconnect_a_token_that_is_refused_later_ends_it(rbkit: FakeRbkit, place: Comeback) -> None:
    async with RbkitClient(place.url, token="old", reconnect=True) as client:
        await soon(client.command("handshake"))
        await place.stop()
        place.start(token="new")
        with pytest.raises(ConnectionLost) as caught:
            await soon(anext(client.messages()))
        assert caught.value.code == 401


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("", [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]),
        ("0client_count:7", [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]),  # also who is closed then gets a notice
        ("1data", [0.1] * 9),
    ],
)
async def test_the_pause_before_the_next_attempt_grows_until_a_message_of_the_profiler_has_come(
    policy: str, monkeypatch: pytest.MonkeyPatch, message: str, expected: list[float]
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noted)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    async with RbkitClient(f"{policy}?code=1013&reason=full&message={message}", reconnect=True) as client:
        await take(client.messages(), 18 if message else 9)
    assert pauses[:9] == expected


# Cancellation


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled_after(count: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Run something for that many turns of the loop and cancel it; return whether it was done before."""
    task = asyncio.ensure_future(work)
    await turns(count)
    was_done = task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, ConnectionLost):
        await soon(task)
    return was_done


async def opens_and_asks(server: Server) -> None:
    async with server.client() as client:
        await client.command("handshake")


async def opens_and_follows(server: Server) -> None:
    async with server.client() as client:
        async for _ in client.events():
            pass


async def opens_and_closes(server: Server) -> None:
    client = server.client()
    await client.__aenter__()
    await client.close()


async def reconnects(server: Server) -> None:
    async with server.client(reconnect=True) as client:
        assert client._connection is not None
        client._connection.stream.close()  # what a network that fails does
        await anext(client.messages())
        await client.command("handshake")


async def slowly(handler: Any, command: str | None) -> bool:
    await turns(3)
    return True


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")
@pytest.mark.parametrize("work", [opens_and_asks, opens_and_follows, opens_and_closes, reconnects])
@pytest.mark.parametrize("authorize", [None, slowly], ids=["", "slow-authorize"])
async def test_nothing_is_left_of_a_client_that_was_cancelled_after_any_turn_of_the_loop(
    rbkit: FakeRbkit, serve: Serve, monkeypatch: pytest.MonkeyPatch, work: Any, authorize: Any
) -> None:
    monkeypatch.setattr("tornado_rbkit.client._FIRST_BACKOFF", 0.001)
    server = await serve(Bridge(**rbkit.endpoints, idle_grace=3600), authorize=authorize)
    await opens_and_asks(server)
    await until(lambda: not server.bridge.stats()["clients"], "the first client has left")
    await turns(10)
    tasks, files = len(asyncio.all_tasks()), descriptors()
    count = 0
    while count < 60 or (work is not opens_and_follows and count < 1_000_000):
        if await cancelled_after(count, work(server)) and work is not opens_and_follows:
            break
        count += 1 + count // 20

    def is_clean() -> bool:
        return not server.bridge.stats()["clients"] and len(asyncio.all_tasks()) <= tasks and descriptors() <= files

    await until(is_clean, f"no client, at most {tasks} tasks and {files} descriptors")


async def accept_upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", head, re.IGNORECASE)
    assert key
    accept = b64encode(sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


async def test_closing_that_is_cancelled_cuts_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that confirms no close is waited for up to 5 s, but not when the wait is cancelled."""
    cut: list[object] = []

    def note(connection: WebSocketClientConnection) -> None:
        cut.append(connection)
        _abort(connection)

    monkeypatch.setattr(client_module, "_abort", note)
    gone = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept_upgrade(reader, writer)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(deaf, "127.0.0.1", 0) as server:
        client = RbkitClient(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        await soon(client.__aenter__())
        connection = client._connection
        closing = asyncio.ensure_future(client.close())
        await turns(3)
        assert not closing.done()
        closing.cancel()
        await soon(gone.wait())
        assert client._reader is not None
        await soon(asyncio.wait([client._reader]))
        assert cut == [connection], "not by the end of the 5 s"


class RawEnd:
    """The server's end of a client's connection, whose frames a test writes."""

    url: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        await accept_upgrade(reader, writer)

    async def ping(self, clock: Clock) -> None:
        """Let time pass until the client's next ping has come."""
        frame = asyncio.ensure_future(self.reader.readexactly(6))
        while not frame.done():
            await clock.run(1)
        assert frame.result()[:2] == b"\x89\x80"


@pytest.fixture
async def end() -> AsyncIterator[RawEnd]:
    end = RawEnd()
    async with await asyncio.start_server(end.accept, "127.0.0.1", 0) as server:
        end.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        yield end
        end.writer.close()


async def test_a_pong_behind_data_that_came_while_this_process_was_stopped_counts(end: RawEnd, clock: Clock) -> None:
    async with RbkitClient(end.url) as client:
        for number in range(3):
            await end.ping(clock)
            end.writer.write(b"".join(b"\x82\x021%d" % number for _ in range(50)) + b"\x8a\x00")
            clock.pause(60)
            await clock.run(1)
            assert client._connection is not None, "it was taken for lost"
        messages = client.messages()
        assert [await anext(messages) for _ in range(150)] == [b"%d" % (n // 50) for n in range(150)]
        end.writer.close()  # else closing would wait for an answer, by this clock


async def test_a_server_that_answers_no_ping_is_lost(end: RawEnd, clock: Clock) -> None:
    async with RbkitClient(end.url) as client:
        await end.ping(clock)
        lost = asyncio.ensure_future(anext(client.messages()))
        await clock.run(25)
        assert not lost.done()
        await clock.run(10)
        with pytest.raises(ConnectionLost):
            await soon(lost)


@pytest.mark.parametrize("reply", [b"server:puma 6.4", b"dropped:1000000", b"client_count:7", b"error:busy no"])
async def test_a_reply_of_the_profiler_is_never_taken_for_a_notice(
    rbkit: FakeRbkit, serve: Serve, reply: bytes
) -> None:
    rbkit.reply = {b"which_server": reply}
    server = await serve(Bridge(**rbkit.endpoints), commands="any")
    async with server.client() as client:
        odd, usual = await soon(
            asyncio.gather(client.command("which_server"), client.command("trigger_gc"), return_exceptions=True)
        )
        assert isinstance(odd, CommandError)
        assert (odd.reason, usual) == ("invalid-reply", "ok")
        assert not client._inbox
