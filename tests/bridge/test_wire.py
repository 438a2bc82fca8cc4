"""The wire to a WebSocket client: prefixes, payloads, replies in order, errors in their place, notices."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes

import msgpack
import pytest
import zmq
from tornado.httpclient import HTTPClientError
from websockets.asyncio.client import connect as websockets_connect
from websockets.typing import Subprotocol

from tests.conftest import Serve, ask, receive, receive_data
from tests.fake_rbkit import DATA, FakeRbkit, collection
from tests.raw import HANDSHAKE, Raw
from tornado_rbkit import Bridge
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.bridge.session import MAX_ESCAPED_REPLY


def published(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        records = msgpack.Unpacker(file, max_buffer_size=0)
        return [record[3] for record in records if record[1] == 1]


RECORDED = {path.stem: published(path) for path in sorted(DATA.glob("*.msgpack"))}


async def test_rbkit_is_chosen_from_a_list_of_subprotocols(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    connection = await server.connect(subprotocols=["foo", "rbkit", "bar"])
    assert connection.selected_subprotocol == "rbkit"


@pytest.mark.parametrize("subprotocols", [[], ["foo"], ["rbkit2"]])
async def test_a_mounted_path_without_the_subprotocol_says_what_to_offer(
    serve: Serve, rbkit: FakeRbkit, subprotocols: list[str]
) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    with pytest.raises(HTTPClientError) as refused:
        await server.connect(subprotocols=subprotocols)
    assert refused.value.code == 400
    assert refused.value.response is not None
    assert b"subprotocol 'rbkit'" in refused.value.response.body


@pytest.mark.parametrize(
    ("sent", "by_proxy"),
    [
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Upgrade: websocket\r\n", b""),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"Connection: Upgrade\r\n", b""),
        (b"Connection: Upgrade", b"Connection: close"),
    ],
)
async def test_a_proxy_that_loses_the_upgrade_is_answered_with_what_to_set(
    serve: Serve, rbkit: FakeRbkit, sent: bytes, by_proxy: bytes
) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    async with Raw(server.port) as client:
        client.writer.write(HANDSHAKE.replace(sent, by_proxy, 1))
        answer = await asyncio.wait_for(client.reader.readuntil(b'Connection "upgrade")\n'), 60)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"proxy_http_version 1.1" in answer
    assert server.bridge.state is State.IDLE, "nobody has joined"


@pytest.mark.parametrize("name", [name for name, messages in RECORDED.items() if messages])
async def test_recorded_traffic_arrives_byte_for_byte_and_in_order(
    serve: Serve, rbkit: FakeRbkit, threaded: bool, name: str
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    connection = await server.connected()
    for message in RECORDED[name]:
        rbkit.publish(message)
    for message in RECORDED[name]:  # some were left out of the recording, of which the bridge tells
        assert await receive_data(connection) == message


@pytest.mark.parametrize("padding", [0, 60, 65_000, 130_000, 262_000, 524_288, 3_000_000])
async def test_every_size_arrives_byte_for_byte(serve: Serve, rbkit: FakeRbkit, threaded: bool, padding: int) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    connection = await server.connected()
    expected = [rbkit.publish_collection(padding + more) for more in range(-20 if padding else 0, 20, 2)]
    for message in expected:
        assert await receive(connection) == b"1" + message


async def test_a_reply_is_the_bytes_of_rbkit_behind_a_zero(serve: Serve, rbkit: FakeRbkit, threaded: bool) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    connection = await server.connected()
    assert await ask(connection, "handshake") == b"0" + rbkit.handshake()
    assert await ask(connection, "trigger_gc") == b"0ok"
    rbkit.reply[b"trigger_gc"] = b"\xff\x00 not text"
    assert await ask(connection, "trigger_gc") == b"0\xff\x00 not text"


@pytest.mark.parametrize(
    "reply", [b"server:puma 6.4", b"dropped:1000", b"client_count:7", b"error:timeout none", b"error:"]
)
@pytest.mark.parametrize("encoding", ["binary", "escaped"])
async def test_a_reply_that_begins_as_the_bridge_s_own_messages_do_is_an_error_in_its_place(
    serve: Serve, rbkit: FakeRbkit, threaded: bool, encoding: str, reply: bytes
) -> None:
    rbkit.reply[b"which_server"] = reply
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded), commands="any")
    connection = await server.connected(f"?encoding={encoding}")
    for command in ("use_cpu_time", "which_server", "trigger_gc"):
        await connection.write_message(command)
    messages = [unquote_to_bytes(await receive(connection)) for _ in range(3)]
    assert messages[::2] == [b"0ok", b"0ok"]
    assert messages[1].startswith(b"0error:invalid-reply which_server: the reply begins with " + repr(reply).encode())


async def test_the_client_library_gives_each_reply_to_its_command_whatever_it_begins_with(
    serve: Serve, rbkit: FakeRbkit
) -> None:
    rbkit.reply[b"which_server"] = b"server:puma 6.4"
    rbkit.reply[b"which_error"] = b"error:busy none"
    server = await serve(Bridge(**rbkit.endpoints), commands="any")
    async with server.client() as client:
        asked = ["trigger_gc", "which_server", "which_error", "use_cpu_time"]
        answers = await asyncio.gather(*map(client.command, asked), return_exceptions=True)
        assert [getattr(answer, "reason", answer) for answer in answers] == [
            "ok",
            "invalid-reply",
            "invalid-reply",
            "ok",
        ]


async def test_a_reply_of_many_parts_is_joined_and_bounded_as_a_whole(
    serve: Serve, rbkit: FakeRbkit, threaded: bool
) -> None:
    with zmq.Context() as context, context.socket(zmq.REP) as rep:
        req = f"tcp://127.0.0.1:{rep.bind_to_random_port('tcp://127.0.0.1')}"

        def answer() -> None:
            for parts in ([rbkit.handshake()], [b"a", b"b"], [bytes(60)] * 20, [b"ok"]):
                rep.recv()
                rep.send_multipart(parts)

        profiler = threading.Thread(target=answer)
        profiler.start()
        server = await serve(Bridge(rbkit.pub, req, threaded=threaded, max_message_bytes=1024))
        connection = await server.connected()
        assert await ask(connection, "trigger_gc") == b"0ab"
        assert await ask(connection, "trigger_gc") == (
            b"0error:invalid-reply trigger_gc: the reply has 1200 bytes; allowed: at most 1024"
        )
        assert await ask(connection, "trigger_gc") == b"0ok"
        profiler.join()


async def test_a_long_reply_is_not_escaped_but_refused(serve: Serve, rbkit: FakeRbkit) -> None:
    rbkit.reply[b"trigger_gc"] = bytes(MAX_ESCAPED_REPLY + 1)
    server = await serve(Bridge(**rbkit.endpoints))
    escaped, plain = await server.connected("?encoding=escaped"), await server.connected()
    await escaped.write_message("trigger_gc")
    while "client_count" in (message := str(await receive(escaped))):
        pass
    assert message.startswith("0error%3Ainvalid-reply%20trigger_gc%3A%20the%20reply%20has%20262145%20bytes")
    assert await ask(plain, "trigger_gc") == b"0" + rbkit.reply[b"trigger_gc"]
    rbkit.reply[b"trigger_gc"] = bytes(MAX_ESCAPED_REPLY)
    await escaped.write_message("trigger_gc")
    assert await receive(escaped) == "0" + "%00" * MAX_ESCAPED_REPLY


async def test_a_command_may_be_text_or_binary(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    connection = await server.connected()
    assert await ask(connection, "trigger_gc") == b"0ok"
    assert await ask(connection, b"trigger_gc") == b"0ok"
    assert rbkit.received.count(b"trigger_gc") == 2


async def test_a_message_of_several_frames_is_passed_on_joined(serve: Serve, rbkit: FakeRbkit, threaded: bool) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    connection = await server.connected()
    rbkit.publish(b"one", b"", b"two")
    assert await receive(connection) == b"1onetwo"


async def test_what_is_not_rbkit_s_is_passed_on_all_the_same(serve: Serve, rbkit: FakeRbkit, threaded: bool) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    connection = await server.connected()
    for payload in (b"", b"\x00", b"\x84\x00\x07\x01\xcb", b"plain text", bytes(range(256))):
        rbkit.publish(payload)
        assert await receive(connection) == b"1" + payload


class TestEscapedForm:
    @pytest.mark.parametrize("by", ["query", "setting"])
    async def test_is_text_with_the_payload_percent_escaped(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, by: str
    ) -> None:
        default: Literal["binary", "escaped"] = "escaped" if by == "setting" else "binary"
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, default_encoding=default))
        connection = await server.connect("?encoding=escaped" if by == "query" else "")
        await connection.write_message("handshake")
        reply = await receive(connection)
        assert isinstance(reply, str)
        assert reply[0] == "0"
        assert unquote_to_bytes(reply[1:]) == rbkit.handshake()
        everything = bytes(range(256)) * 2000
        rbkit.publish(everything)
        data = await receive(connection)
        assert isinstance(data, str)
        assert data[0] == "1"
        assert "+" not in data
        assert unquote_to_bytes(data[1:]) == everything

    async def test_has_errors_escaped_and_client_count_plain_and_no_other_notice(
        self, serve: Serve, rbkit: FakeRbkit
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        connection = await server.connected("?encoding=escaped")
        await connection.write_message("nonsense")
        reply = await receive(connection)
        assert isinstance(reply, str)
        assert unquote_to_bytes(reply[1:]).startswith(b"error:unknown-command ")
        other = await server.connect()
        assert await receive(connection) == "0client_count:2"
        rbkit.publish(collection(0))
        rbkit.publish(collection(10))  # nine are missing; only clients in the binary encoding are notified
        assert b"0dropped:9" in [await receive(other) for _ in range(3)]
        assert [str(await receive(connection))[0] for _ in range(2)] == ["1", "1"]
        await connection.write_message("trigger_gc")
        assert await receive(connection) == "0ok"

    async def test_binary_can_be_asked_for_where_escaped_is_the_default(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints, default_encoding="escaped"))
        connection = await server.connect("?encoding=binary")
        assert await ask(connection, "trigger_gc") == b"0ok"

    async def test_another_encoding_is_refused_with_those_that_are_allowed(
        self, serve: Serve, rbkit: FakeRbkit
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        with pytest.raises(HTTPClientError) as refused:
            await server.connect("?encoding=base64")
        assert refused.value.code == 400
        assert refused.value.response is not None
        assert b"binary, escaped" in refused.value.response.body


class TestReplies:
    async def test_go_only_to_the_client_that_asked(self, serve: Serve, rbkit: FakeRbkit, threaded: bool) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, command_timeouts={}), commands="any")
        clients = [await server.connected() for _ in range(5)]
        names = [f"command_of_{number}" for number in range(len(clients))]
        for name in names:
            rbkit.reply[name.encode()] = name.encode()
        for client, name in zip(clients * 4, names * 4, strict=True):
            await client.write_message(name)
        for client, name in zip(clients, names, strict=True):
            replies: list[bytes] = []
            while len(replies) < 4:
                message = await receive(client)
                assert isinstance(message, bytes)
                if not message.startswith(b"0client_count"):
                    replies.append(message)
            assert replies == [b"0" + name.encode()] * 4

    async def test_come_in_the_order_of_asking_errors_in_their_place(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
        connection = await server.connected()
        rbkit.reply[b"use_cpu_time"] = b"cpu"
        rbkit.reply[b"use_wall_time"] = b"wall"
        expected = {
            "use_cpu_time": b"0cpu",
            "nonsense": b"0error:unknown-command",
            "use_wall_time": b"0wall",
            "": b"0error:invalid-command",
        }
        asked = list(expected) * 5
        for command in asked:
            await connection.write_message(command)
        for command in asked:
            reply = await receive(connection)
            assert isinstance(reply, bytes)
            assert reply.split(b" ")[0] == expected[command]

    async def test_overtake_nobody_and_wait_for_nobody_else_s_error(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        patient, hasty = await server.connected(), await server.connected()
        assert await receive(patient) == b"0client_count:2"
        rbkit.answering.clear()
        await patient.write_message("trigger_gc")
        assert (await ask(hasty, "nonsense")).startswith(b"0error:unknown-command")
        rbkit.answering.set()
        assert await receive(patient) == b"0ok"

    async def test_pings_are_answered_while_a_command_runs(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        await (await server.connected()).write_message("handshake")
        async with websockets_connect(server.ws, subprotocols=[Subprotocol("rbkit")]) as connection:
            rbkit.answering.clear()
            await connection.send("objectspace_snapshot")
            for _ in range(3):
                await asyncio.wait_for(await connection.ping(), 60)
            rbkit.answering.set()
            assert await connection.recv() == b"0ok"


class TestClientCount:
    async def test_is_told_to_the_older_clients_when_one_connects_and_not_when_one_leaves(
        self, serve: Serve, rbkit: FakeRbkit
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        first = await server.connected()
        second = await server.connect()
        assert await receive(first) == b"0client_count:2"
        third = await server.connect()
        assert await receive(first) == b"0client_count:3"
        assert await receive(second) == b"0client_count:3"
        third.close()
        assert await ask(first, "trigger_gc") == b"0ok"
        await server.connect()
        message = await receive(first)
        assert message in (b"0client_count:3", b"0client_count:4")  # by whether the third's goodbye has come
