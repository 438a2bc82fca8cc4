"""Fan-out to many clients, large messages, and slow or dead clients: no client waits for another."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import trustme
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketClientConnection
from websockets.asyncio.client import connect as websockets_connect
from websockets.typing import Subprotocol

from tests.conftest import Serve, Server, ask, receive, receive_data, until
from tests.fake_rbkit import FakeRbkit, collection
from tests.patient import patient
from tests.raw import frame, upgrade_request
from tornado_rbkit import Bridge, rbkit_routes
from tornado_rbkit.frames import Buffer
from tornado_rbkit.protocol import message_counter
from tornado_rbkit.upstream.source import SocketSource

MIB = 1024 * 1024


class StalledClient:
    """A client on a plain socket that reads, and answers pings, only when a test says so."""

    answers_pings = True

    def __init__(self, port: int, query: str = "") -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(upgrade_request(f"/rbkit/ws{query}"))
        self.socket.setblocking(False)

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await loop.sock_recv(self.socket, 1)
        assert head.startswith(b"HTTP/1.1 101"), head

    async def read_frame(self) -> tuple[int, bytes]:
        """Return the first byte and the payload of the next frame."""
        first, length = await self._read(2)
        if length == 126:
            length = int.from_bytes(await self._read(2), "big")
        elif length == 127:
            length = int.from_bytes(await self._read(8), "big")
        return first, await self._read(length)

    async def read_message(self) -> bytes:
        """Return the next data message, joined; answer the pings before it."""
        payload = b""
        while True:
            first, piece = await asyncio.wait_for(self.read_frame(), 60)
            if first & 0x0F == 8:
                raise EOFError(piece)
            if first & 0x0F == 9 and self.answers_pings:
                self.socket.send(frame(piece, first=0x8A))
            if first & 0x0F < 8:
                payload += piece
                if first & 0x80:
                    return payload

    async def read_to_the_end(self) -> None:
        """Raise EOFError with the payload of the close frame."""
        while True:
            await self.read_message()

    async def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = await asyncio.get_running_loop().sock_recv(self.socket, count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


@pytest.fixture
def stall() -> Iterator[list[StalledClient]]:
    clients: list[StalledClient] = []
    yield clients
    for client in clients:
        client.socket.close()


async def stalled(server: Server, clients: list[StalledClient], query: str = "") -> StalledClient:
    clients.append(StalledClient(server.port, query))
    await clients[-1].open()
    return clients[-1]


async def test_every_client_gets_every_message_in_order(serve: Serve, rbkit: FakeRbkit, threaded: bool) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    clients = [await server.connected("?encoding=escaped" if n % 4 == 3 else "") for n in range(8)]
    sent = [rbkit.publish_collection(padding) for padding in (10, 3000, 70_000, 10, 400_000, 10) * 20]

    async def watch(connection: WebSocketClientConnection) -> int:
        count = 0
        while count < len(sent):
            message = await receive(connection)
            if message[0] in (ord("1"), "1"):
                if isinstance(message, bytes):
                    assert message[1:] == sent[count]
                count += 1
        return count

    assert await asyncio.gather(*map(watch, clients)) == [len(sent)] * len(clients)
    stats = server.bridge.stats()
    assert stats["messages_in"] == len(sent)
    assert stats["bytes_in"] == sum(map(len, sent))
    assert stats["messages_sent"] == len(sent) * len(clients)
    assert stats["messages_dropped"] == stats["messages_missed"] == 0


async def test_viewers_that_take_turns_get_every_message_in_order(
    serve: Serve,
    rbkit: FakeRbkit,
    threaded: bool,
    stall: list[StalledClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tornado_rbkit.bridge.fanout.MAX_DELIVERED", 1)  # so that a batch goes to one viewer at a time
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    clients = [await server.connected() for _ in range(3)]
    leaving = await stalled(server, stall)
    messages = [rbkit.publish_collection(padding=20_000) for _ in range(300)]
    await leaving.read_frame()
    leaving.socket.close()
    for client in clients:
        assert [await receive_data(client) for _ in messages] == messages


async def test_a_client_that_vanishes_midway_disturbs_nobody(
    serve: Serve, rbkit: FakeRbkit, threaded: bool, stall: list[StalledClient]
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    healthy = await server.connected()
    doomed = await stalled(server, stall)
    sent = [rbkit.publish_collection(2 * MIB) for _ in range(5)]
    await doomed.read_frame()
    doomed.socket.close()
    for message in sent:
        assert await receive_data(healthy) == message
    await until(lambda: len(server.bridge.stats()["clients"]) == 1, "the vanished client is forgotten")


class TestLargeMessage:
    async def test_is_sent_in_fragments_and_pings_pass_between(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, stall: list[StalledClient]
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
        client = await stalled(server, stall)
        await until(lambda: server.bridge.stats()["state"] == "connected", "the bridge is connected")
        message = rbkit.publish_collection(20 * MIB)
        fragments = [await client.read_frame()]
        client.socket.send(b"\x89\x80\0\0\0\0")  # a ping, now that the message is under way
        while fragments[-1][0] != 0x80:
            fragments.append(await client.read_frame())
        opcodes = [first for first, _ in fragments]
        assert opcodes[0] == 0x02
        assert opcodes[-1] == 0x80
        assert 0x8A in opcodes[1:-1], "the pong came before the message was through"
        assert set(opcodes[1:-1]) == {0x00, 0x8A}
        assert b"".join(piece for first, piece in fragments if first != 0x8A) == b"1" + message

    async def test_lets_the_loop_turn(self, serve: Serve, rbkit: FakeRbkit, threaded: bool) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
        message = collection(0, padding=50 * MIB)

        async def watch() -> bytes:
            async with websockets_connect(
                server.ws, subprotocols=[Subprotocol("rbkit")], max_size=None, compression=None
            ) as connection:
                while True:
                    received = await connection.recv()
                    assert isinstance(received, bytes)
                    if received.startswith(b"1"):
                        return received

        watching = asyncio.create_task(watch())
        await until(lambda: server.bridge.stats()["state"] == "connected", "the bridge is connected")
        rbkit.publish(message)
        turns = 0
        while not server.bridge.stats()["messages_sent"]:
            turns += 1
            await asyncio.sleep(0)
        assert await watching == b"1" + message
        assert turns > 50 * MIB // (256 * 1024), "the loop had at least a turn for each fragment"


class TestSlowClient:
    async def test_is_bounded_and_delays_nobody_and_is_told_what_it_lost(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, stall: list[StalledClient]
    ) -> None:
        bound = 4 * MIB
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, max_backlog_bytes=bound))
        slow = await stalled(server, stall)
        fast = await server.connected()
        count = 300
        for number in range(0, count, 10):  # ten at a time, because the bridge rests longer where few messages arrive
            messages = [rbkit.publish_collection(60_000) for _ in range(10)]
            assert [await receive_data(fast) for _ in messages] == messages
            waiting = max(client["bytes_waiting"] for client in server.bridge.stats()["clients"])
            assert waiting <= bound * 1.1, f"after {number + 10} messages"
        figures = max(server.bridge.stats()["clients"], key=lambda client: client["messages_dropped"])
        assert figures["blocked"]
        assert figures["messages_dropped"] > 100
        received: list[int | None] = []
        told = 0
        while len(received) + told < count:
            payload = await slow.read_message()
            if payload.startswith(b"1"):
                received.append(message_counter(payload[1:]))
            elif payload.startswith(b"0dropped:"):
                told += int(payload.removeprefix(b"0dropped:"))
        assert received == sorted(received, key=lambda counter: counter or 0)
        assert told == figures["messages_dropped"]
        assert len(received) + told == count, "what was sent and what was dropped add up"
        assert received[-1] == count - 1, "the oldest were dropped, not the newest"

    async def test_gets_its_replies_before_the_data_that_waits(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, stall: list[StalledClient]
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
        slow = await stalled(server, stall)
        await server.connected()
        for _ in range(400):
            rbkit.publish_collection(60_000)
        await until(lambda: server.bridge.stats()["messages_in"] == 400, "all is in the backlog")
        slow.socket.send(b"\x81\x8a\0\0\0\0trigger_gc")
        await until(lambda: b"trigger_gc" in rbkit.received, "the command is carried out")
        await until(lambda: server.bridge.stats()["commands_waiting"] == 0, "it is answered")
        before = 0
        while not (await slow.read_message()).startswith(b"0ok"):
            before += 1
        assert before < 300, "it overtook what waited"

    async def test_that_takes_nothing_for_stall_timeout_is_closed_with_1008(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, stall: list[StalledClient]
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, stall_timeout=1.0, ping_interval=0.5))
        slow = await stalled(server, stall)
        fast = await server.connected()
        assert len(server.bridge.stats()["clients"]) == 2
        started = time.monotonic()
        for _ in range(20):
            message = rbkit.publish_collection(MIB)
            assert await receive_data(fast) == message
        await until(lambda: server.bridge.stats()["messages_dropped"] > 0, "it is given up")
        with pytest.raises(EOFError) as closed:
            await slow.read_to_the_end()
        assert time.monotonic() - started > 1.0
        assert closed.value.args[0][:2] == (1008).to_bytes(2, "big")
        assert closed.value.args[0][2:] == b"too slow for 1 s (stall_timeout)"
        assert await ask(fast, "trigger_gc") == b"0ok"

    async def test_that_reads_slowly_but_reads_is_kept(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, stall: list[StalledClient]
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, stall_timeout=0.9, ping_interval=0.5))
        slow = await stalled(server, stall)
        await server.connected()
        sent = [rbkit.publish_collection(MIB) for _ in range(15)]
        started = time.monotonic()
        received: list[bytes] = []
        while len(received) < len(sent):
            await asyncio.sleep(0.1)  # this is how slow it is
            payload = await slow.read_message()
            if payload.startswith(b"1"):
                received.append(payload[1:])
        assert received == sent
        assert time.monotonic() - started > 1.5, "it took longer than stall_timeout and two pings"


async def test_a_client_that_does_not_answer_pings_is_closed(
    serve: Serve, rbkit: FakeRbkit, stall: list[StalledClient]
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, ping_interval=1.0, ping_timeout=1.0))
    mute = await stalled(server, stall)
    mute.answers_pings = False
    healthy = await server.connected()
    while (received := await mute.read_frame())[0] == 0x89:
        pass  # a ping, which is not answered
    assert received == (0x82, b"0client_count:2")
    with pytest.raises(EOFError) as closed:
        await mute.read_to_the_end()
    assert closed.value.args[0][:2] == (1008).to_bytes(2, "big")
    assert closed.value.args[0][2:] == b"no pong within 1 s (ping_timeout)"
    for _ in range(3):
        assert await ask(healthy, "trigger_gc") == b"0ok"


async def test_nothing_is_lost_while_the_web_loop_is_blocked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    taken = 0
    take = SocketSource.take

    def count(source: SocketSource, max_bytes: int, max_messages: int) -> tuple[list[Buffer], bool]:
        nonlocal taken
        payloads, emptied = take(source, max_bytes, max_messages)
        taken += len(payloads)
        return payloads, emptied

    def publish() -> None:
        while len(sent) < 1200:
            sent.append(rbkit.publish_collection(20_000))
            while len(sent) - taken > 100 and not given_up.wait(0.001):  # a busy machine is given time
                pass

    monkeypatch.setattr(SocketSource, "take", count)
    given_up = threading.Event()
    with FakeRbkit(hwm=200) as rbkit:
        server = await serve(Bridge(**rbkit.endpoints, rcvhwm=200))  # a third would fit into the sockets
        connection = await server.connected()
        publisher = threading.Thread(target=publish)
        publisher.start()
        publisher.join(60)  # this is the web loop, blocked
        given_up.set()
        publisher.join()
        assert taken > 1000, "messages are taken from the socket meanwhile"
        for message in sent:
            assert await receive_data(connection) == message
        assert server.bridge.stats()["messages_missed"] == 0


class TestCompression:
    @pytest.mark.parametrize("compression", ["deflate", None])
    async def test_is_shared_by_all_that_negotiated_it(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, compression: str | None
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, compression_level=1))
        options = {"subprotocols": [Subprotocol("rbkit")], "compression": compression, "max_size": None}
        plain = await server.connected()
        async with (
            websockets_connect(server.ws, **options) as one,  # type: ignore[arg-type]
            websockets_connect(server.ws + "?encoding=escaped", **options) as two,  # type: ignore[arg-type]
        ):
            sent = [
                rbkit.publish_collection(padding) for padding in (0, 500, 100_000, 2_000_000, 0, *[20_000] * 60) * 3
            ]
            for message in sent:
                assert await receive_data(plain) == message
            for connection in (one, two):
                received = [message async for message in take(connection, len(sent))]
                if connection is one:
                    assert received == [b"1" + message for message in sent]
            await one.send("handshake")
            assert await one.recv() == b"0" + rbkit.handshake()
            encodings = {client["compressed"] for client in server.bridge.stats()["clients"]}
            assert encodings == ({True, False} if compression else {False})

    async def test_is_not_offered_by_default(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        async with websockets_connect(server.ws, subprotocols=[Subprotocol("rbkit")]) as connection:
            assert connection.response is not None
            assert "Sec-WebSocket-Extensions" not in connection.response.headers

    @pytest.mark.parametrize(
        ("offer", "answer"),
        [
            ("permessage-deflate", "permessage-deflate; server_no_context_takeover"),
            (
                "permessage-deflate; client_max_window_bits; server_max_window_bits=15",
                "permessage-deflate; server_max_window_bits=15; server_no_context_takeover",
            ),
            ("permessage-deflate; server_max_window_bits=10", None),
            (
                "permessage-deflate; server_max_window_bits=10, permessage-deflate",
                "permessage-deflate; server_no_context_takeover",
            ),
            ("permessage-deflate; client_max_window_bits=8", "permessage-deflate; server_no_context_takeover"),
            ("permessage-deflate; client_max_window_bits=0", None),
            ("permessage-deflate; client_max_window_bits=16", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", None),
            ("permessage-deflate; unheard_of=1", None),
            ("permessage-deflate; client_max_window_bits=; x", None),
            ("permessage-deflate;;", None),
            ("x-unknown", None),
        ],
    )
    async def test_is_agreed_to_only_where_it_can_be_shared(
        self, serve: Serve, rbkit: FakeRbkit, offer: str, answer: str | None
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, compression_level=6))
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(upgrade_request(Sec_WebSocket_Extensions=offer))
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line = next((line for line in head.split("\r\n") if line.startswith("Sec-Websocket-Extensions")), None)
        given = line.partition(": ")[2] if line else None
        assert (given and set(given.split("; "))) == (answer and set(answer.split("; ")))
        writer.close()
        await writer.wait_closed()


async def take(connection: object, count: int) -> AsyncIterator[str | bytes]:
    """Yield that many published messages."""
    while count:
        message = await asyncio.wait_for(connection.recv(), 60)  # type: ignore[attr-defined]
        if message[0] in (ord("1"), "1"):
            count -= 1
            yield message


async def test_tls_carries_large_messages_and_slow_readers(rbkit: FakeRbkit, threaded: bool) -> None:
    authority = trustme.CA()
    server_side, client_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    authority.configure_trust(client_side)
    bridge = patient(Bridge(**rbkit.endpoints, threaded=threaded))
    http = HTTPServer(Application(rbkit_routes(bridge)), ssl_options=server_side)
    sockets = bind_sockets(0, "127.0.0.1")
    http.add_sockets(sockets)
    url = f"wss://127.0.0.1:{sockets[0].getsockname()[1]}/rbkit/ws"

    async def watch(pause: float) -> list[bytes]:
        async with websockets_connect(
            url, ssl=client_side, subprotocols=[Subprotocol("rbkit")], max_size=None, compression=None
        ) as connection:
            received: list[bytes] = []
            async for message in take(connection, len(sizes)):
                assert isinstance(message, bytes)
                received.append(message[1:])
                await asyncio.sleep(pause)
            return received

    sizes = [10, 3 * MIB, 100_000, 70_000, 10, 700_000, 5 * MIB, 10] * 3
    watching = [asyncio.create_task(watch(pause)) for pause in (0, 0.02)]
    await until(lambda: len(bridge.stats()["clients"]) == 2 and bridge.stats()["handshake"], "both are there")
    sent = [rbkit.publish_collection(size) for size in sizes]
    assert await asyncio.gather(*watching) == [sent, sent]
    http.stop()
    await bridge.close()
    await http.close_all_connections()


class TestMessageOverTheBound:
    async def test_passes_when_nothing_else_waits_whatever_comes_with_it(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, max_backlog_bytes=MIB))
        connection = await server.connected()
        sent = [rbkit.publish_collection(size) for size in (10, 3 * MIB, 10, 10)]
        for message in sent:
            assert await receive_data(connection) == message
        assert server.bridge.stats()["messages_dropped"] == 0

    async def test_is_not_dropped_for_smaller_ones_that_come_after(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, stall: list[StalledClient]
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, max_backlog_bytes=MIB))
        slow = await stalled(server, stall)
        await until(lambda: server.bridge.stats()["state"] == "connected", "the bridge is connected")
        filler = [rbkit.publish_collection(900_000) for _ in range(8)]  # more than the kernel takes
        await until(lambda: server.bridge.stats()["messages_in"] == len(filler), "they have come")
        large = rbkit.publish_collection(3 * MIB)
        after = [rbkit.publish_collection(500_000) for _ in range(6)]
        await until(lambda: server.bridge.stats()["messages_in"] == len(filler) + 7, "all have come")
        received: list[bytes] = []
        while large not in received[-1:]:
            payload = await slow.read_message()
            if payload.startswith(b"1"):
                received.append(payload[1:])
                assert payload[1:] not in after, "the large one was dropped"


async def test_a_slow_line_is_not_taken_for_a_silent_client(
    serve: Serve, rbkit: FakeRbkit, stall: list[StalledClient]
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, ping_interval=0.2, stall_timeout=5))
    slow = await stalled(server, stall)
    await until(lambda: server.bridge.stats()["state"] == "connected", "the bridge is connected")
    sent = [rbkit.publish_collection(200_000) for _ in range(10)]  # which the kernel takes at once
    received: list[bytes] = []
    while len(received) < len(sent):
        await asyncio.sleep(0.1)  # this is how slow it is; the ping waits behind it all
        payload = await slow.read_message()
        if payload.startswith(b"1"):
            received.append(payload[1:])
    assert received == sent


async def test_nothing_follows_a_close_frame_and_no_command_is_taken_after_it(
    serve: Serve, rbkit: FakeRbkit, stall: list[StalledClient]
) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    bystander = await server.connected()
    offender = await stalled(server, stall)
    assert await receive(bystander) == b"0client_count:2"
    await ask(bystander, "handshake")
    too_big = b"\x82\xff" + (70_000).to_bytes(8, "big") + bytes(4) + bytes(70_000)
    await asyncio.get_running_loop().sock_sendall(offender.socket, too_big + b"\x81\x8a\0\0\0\0trigger_gc")
    first, _ = await offender.read_frame()
    while first & 0x0F != 8:
        first, _ = await offender.read_frame()
    message = rbkit.publish_collection()
    assert await receive_data(bystander) == message
    assert b"trigger_gc" not in rbkit.received
    offender.socket.close()
    await until(lambda: len(server.bridge.stats()["clients"]) == 1, "it is gone")
