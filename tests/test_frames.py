"""Messages encoded as WebSocket frames, read by parsers of other libraries."""

from __future__ import annotations

import functools
import random
import urllib.parse
from collections.abc import AsyncIterator, Iterable
from typing import Any, NamedTuple

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler, websocket_connect
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from tests.encoded import encode_data
from tests.fake_rbkit import recorded
from tornado_rbkit.frames import (
    FRAGMENT_SIZE,
    JOIN_LIMIT,
    Buffer,
    Chunk,
    Encoding,
    encode_notice,
    encode_reply,
    escape,
)

BINARY = Encoding()
ESCAPED = Encoding(escaped=True)
DEFLATED = Encoding(deflate=True)
ESCAPED_DEFLATED = Encoding(escaped=True, deflate=True)
ENCODINGS = [BINARY, ESCAPED, DEFLATED, ESCAPED_DEFLATED]
ENCODING_IDS = ["binary", "escaped", "deflated", "escaped-deflated"]

SIZES = sorted(
    {
        *(0, 1, 2, 123, 124, 125, 126, 127, 128),
        *range(65_533, 65_538),
        *range(JOIN_LIMIT - 12, JOIN_LIMIT + 3),
        *range(FRAGMENT_SIZE - 12, FRAGMENT_SIZE + 3),
        2 * FRAGMENT_SIZE - 1,
        2 * FRAGMENT_SIZE,
        3 * FRAGMENT_SIZE - 1,
        3 * FRAGMENT_SIZE,
        3 * FRAGMENT_SIZE + 1,
    }
)


@functools.cache
def noise(size: int) -> bytes:
    """Return bytes that do not compress, the same for each size."""
    return random.Random(size).randbytes(size)


def wire(chunks: Iterable[Chunk]) -> bytes:
    """Return what a client receives."""
    return b"".join(bytes(buffer) for chunk in chunks for unit in chunk.units for buffer in unit)


class Message(NamedTuple):
    opcode: Opcode
    data: bytes


def frames_of(received: bytes, encoding: Encoding = BINARY) -> list[Frame]:
    """Return what the parser of `websockets` reads at a client; it raises for whatever RFC 6455 does not allow."""
    client = Protocol(Side.CLIENT, max_size=None)
    if encoding.deflate:
        client.extensions = [PerMessageDeflate(True, True, 15, 15)]
    client.receive_data(received)
    assert client.parser_exc is None, f"the parser of websockets refused it: {client.parser_exc!r}"
    events = client.events_received()
    assert all(isinstance(event, Frame) for event in events)
    return [event for event in events if isinstance(event, Frame)]


def messages_of(received: bytes, encoding: Encoding = BINARY) -> list[Message]:
    messages: list[Message] = []
    begun: Message | None = None
    for frame in frames_of(received, encoding):
        if begun is None:
            begun = Message(frame.opcode, bytes(frame.data))
        else:
            assert frame.opcode is Opcode.CONT
            begun = Message(begun.opcode, begun.data + bytes(frame.data))
        if frame.fin:
            messages.append(begun)
            begun = None
    assert begun is None, "the last message is not finished"
    return messages


class Head(NamedTuple):
    fin: bool
    rsv: int
    opcode: int
    length: int


def heads_of(received: bytes) -> list[Head]:
    """Return the header of each frame, as RFC 6455 section 5.2 draws it."""
    heads: list[Head] = []
    at = 0
    while at < len(received):
        first, length = received[at], received[at + 1]
        assert length < 0x80, "a server does not mask"
        at += 2
        extended = {126: 2, 127: 8}.get(length, 0)
        if extended:
            length = int.from_bytes(received[at : at + extended], "big")
            assert length >= {2: 126, 8: 0x10000}[extended], "a length is written in the least bytes"
            at += extended
        heads.append(Head(bool(first & 0x80), first >> 4 & 7, first & 15, length))
        at += length
    assert at == len(received), "the last frame is not whole"
    return heads


def body(payload: bytes, encoding: Encoding) -> bytes:
    return b"1" + (urllib.parse.quote_from_bytes(payload, safe="").encode() if encoding.escaped else payload)


# One message


@pytest.mark.parametrize("encoding", ENCODINGS, ids=ENCODING_IDS)
def test_a_message_of_any_size_arrives_as_it_was_in_correct_frames(encoding: Encoding) -> None:
    for size in SIZES:
        (chunk,) = encode_data([noise(size)], encoding)
        received = wire([chunk])
        (message,) = messages_of(received, encoding)
        assert message.opcode is (Opcode.TEXT if encoding.escaped else Opcode.BINARY), size
        assert message.data == body(noise(size), encoding), size
        assert (chunk.size, chunk.messages) == (len(received), 1), size
        check_frames(received, encoding)
        for unit in chunk.units:
            heads_of(b"".join(bytes(buffer) for buffer in unit))  # whole frames
            assert sum(map(len, unit)) <= FRAGMENT_SIZE + 16, size


def check_frames(received: bytes, encoding: Encoding) -> None:
    """Check the headers of the frames of one message by RFC 6455 section 5.4 and RFC 7692 section 6."""
    heads = heads_of(received)
    assert [head.opcode for head in heads] == [1 if encoding.escaped else 2] + [0] * (len(heads) - 1)
    assert [head.fin for head in heads] == [False] * (len(heads) - 1) + [True]
    assert [head.rsv for head in heads] == [4 if encoding.deflate else 0] + [0] * (len(heads) - 1)
    assert max(head.length for head in heads) <= FRAGMENT_SIZE
    assert min(head.length for head in heads) > 0


@pytest.mark.parametrize(
    ("size", "frames"),
    [(FRAGMENT_SIZE - 1, 1), (FRAGMENT_SIZE, 2), (2 * FRAGMENT_SIZE - 1, 2), (3 * FRAGMENT_SIZE, 4)],
)
def test_a_message_is_fragmented_from_256_kib_on_channel_byte_included(size: int, frames: int) -> None:
    (chunk,) = encode_data([noise(size)], BINARY)
    assert len(heads_of(wire([chunk]))) == frames
    assert len(chunk.units) == frames, "between two runs a ping may pass"


@pytest.mark.parametrize("size", [JOIN_LIMIT + 1, FRAGMENT_SIZE, 5 * FRAGMENT_SIZE])
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_a_large_payload_is_sent_from_where_it_lies(size: int, kind: type[bytes] | type[memoryview]) -> None:
    source = noise(size)
    (chunk,) = encode_data([kind(source)], BINARY)
    pieces = [unit[1] for unit in chunk.units]
    assert [len(unit) for unit in chunk.units] == [2] * len(chunk.units), "a header, and a slice of the payload"
    assert all(memoryview(piece).obj is source for piece in pieces), "a slice was copied"
    assert b"".join(bytes(piece) for piece in pieces) == source


@pytest.mark.parametrize("encoding", ENCODINGS, ids=ENCODING_IDS)
def test_a_memoryview_is_encoded_as_its_bytes_are(encoding: Encoding) -> None:
    payloads = [noise(size) for size in (0, 10, JOIN_LIMIT + 1, FRAGMENT_SIZE + 1)]
    views: list[Buffer] = [memoryview(payload) for payload in payloads]
    assert wire(encode_data(views, encoding)) == wire(encode_data(payloads, encoding))


# Many messages


@pytest.mark.parametrize("encoding", ENCODINGS, ids=ENCODING_IDS)
def test_messages_arrive_in_order_each_whole(encoding: Encoding) -> None:
    source = random.Random(1)
    sizes = [source.choice([0, 1, 130, 3000, 14_000, 65_535, 200_000, 700_000]) for _ in range(50)]
    payloads = [noise(size) for size in sizes]
    chunks = encode_data(payloads, encoding)
    assert [message.data for message in messages_of(wire(chunks), encoding)] == [
        body(payload, encoding) for payload in payloads
    ]
    assert sum(chunk.messages for chunk in chunks) == len(payloads)
    for chunk in chunks:
        assert chunk.size == len(wire([chunk]))
        assert chunk.messages == len(messages_of(wire([chunk]), encoding)), "a chunk holds whole messages"
        if chunk.messages > 1:
            assert chunk.size <= FRAGMENT_SIZE


def test_small_messages_are_joined_into_few_chunks() -> None:
    payloads = [noise(200)] * 5000
    chunks = encode_data(payloads, BINARY)
    total = sum(chunk.size for chunk in chunks)
    assert sum(chunk.messages for chunk in chunks) == 5000
    assert max(chunk.size for chunk in chunks) <= FRAGMENT_SIZE
    assert len(chunks) == -(-total // FRAGMENT_SIZE)
    assert all(len(chunk.units) == 1 and len(chunk.units[0]) == 1 for chunk in chunks), "one piece of bytes each"


def test_a_large_message_has_a_chunk_of_its_own_between_its_neighbours() -> None:
    sizes = [10, 10, JOIN_LIMIT + 1, 10, FRAGMENT_SIZE + 1, FRAGMENT_SIZE + 2, 10]
    chunks = encode_data([noise(size) for size in sizes], BINARY)
    assert [chunk.messages for chunk in chunks] == [2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=ENCODING_IDS)
def test_no_messages_are_no_chunks(encoding: Encoding) -> None:
    assert encode_data([], encoding) == []


# Compression


@pytest.mark.parametrize("level", range(1, 10))
def test_compressed_messages_are_smaller_at_every_level_and_come_back(level: int) -> None:
    payload = recorded("snapshot")[0][3]
    chunks = encode_data([payload, payload], DEFLATED, compression_level=level)
    assert [message.data for message in messages_of(wire(chunks), DEFLATED)] == [b"1" + payload] * 2
    assert sum(chunk.size for chunk in chunks) < len(payload)


def test_a_compressed_message_does_not_lean_on_the_one_before() -> None:
    payloads = [b"the same words " * 40, b"the same words " * 40]
    first, second = (wire(encode_data([payload], DEFLATED)) for payload in payloads)
    assert first == second, "what one client gets as its second message is another's first"
    assert messages_of(second, DEFLATED)[0].data == b"1" + payloads[1]


# The escaped encoding


def middleware() -> list[bytes]:
    records: list[Any] = list(recorded("middleware"))  # of three fields here: seconds, kind, bytes
    return [data for _, kind, data in records if kind == "text"]


def test_the_escaped_form_is_that_of_the_ruby_middleware_but_for_the_space() -> None:
    texts = middleware()
    assert any(b"+" in text for text in texts)
    for text in texts:
        payload = urllib.parse.unquote_to_bytes(text[1:].replace(b"+", b" "))
        assert escape(payload) == text[1:].replace(b"+", b"%20")


def test_the_escaped_messages_are_those_of_the_ruby_middleware() -> None:
    for text in middleware():
        payload = urllib.parse.unquote_to_bytes(text[1:].replace(b"+", b" "))
        encoded = [encode_reply(payload, ESCAPED)] if text[:1] == b"0" else encode_data([payload], ESCAPED)
        assert messages_of(wire(encoded)) == [Message(Opcode.TEXT, text.replace(b"+", b"%20"))]


def test_unreserved_bytes_stay_and_every_other_is_written_in_upper_case_hex() -> None:
    unreserved = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
    for byte in range(256):
        one = bytes((byte,))
        assert escape(one) == (one if one in unreserved else b"%%%02X" % byte)


@pytest.mark.parametrize("size", [0, 1, JOIN_LIMIT - 1, JOIN_LIMIT, JOIN_LIMIT + 1, 3 * JOIN_LIMIT + 7])
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_escaping_is_the_same_for_every_size(size: int, kind: type[bytes] | type[memoryview]) -> None:
    payload = noise(size)
    escaped = escape(kind(payload))
    assert escaped.isascii()
    assert urllib.parse.unquote_to_bytes(escaped) == payload


# Replies and notices


@pytest.mark.parametrize("encoding", ENCODINGS, ids=ENCODING_IDS)
@pytest.mark.parametrize("size", [0, 2, 226, JOIN_LIMIT, FRAGMENT_SIZE, FRAGMENT_SIZE + 1])
def test_a_reply_is_a_message_of_channel_0_and_never_compressed(size: int, encoding: Encoding) -> None:
    payload = noise(size)
    chunk = encode_reply(payload, encoding)
    (message,) = messages_of(wire([chunk]))
    assert message.opcode is (Opcode.TEXT if encoding.escaped else Opcode.BINARY)
    assert message.data == b"0" + body(payload, encoding)[1:]
    assert (chunk.size, chunk.messages) == (len(wire([chunk])), 1)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=ENCODING_IDS)
def test_a_notice_is_never_escaped(encoding: Encoding) -> None:
    chunk = encode_notice(b"client_count:2", encoding)
    opcode = Opcode.TEXT if encoding.escaped else Opcode.BINARY
    assert messages_of(wire([chunk])) == [Message(opcode, b"0client_count:2")]
    assert (chunk.size, chunk.messages) == (len(wire([chunk])), 1)


# Tornado's own client

SAMPLE = [noise(size) for size in (0, 1, 125, 126, 65_535, JOIN_LIMIT, FRAGMENT_SIZE - 1, 3 * FRAGMENT_SIZE + 1)]


class Raw(WebSocketHandler):
    """Writes our frames where Tornado would write its own."""

    def initialize(self, encoding: Encoding) -> None:
        self.encoding = encoding

    def get_compression_options(self) -> dict[str, int] | None:
        if not self.encoding.deflate:
            return None
        name = "permessage-deflate; server_no_context_takeover"
        self.request.headers["Sec-WebSocket-Extensions"] = name
        return {}

    async def open(self) -> None:
        assert self.ws_connection is not None
        assert self.ws_connection.stream is not None
        await self.ws_connection.stream.write(wire(encode_data(SAMPLE, self.encoding)))


@pytest.fixture
async def raw_port() -> AsyncIterator[int]:
    routes = [
        (f"/{name}", Raw, {"encoding": encoding}) for name, encoding in zip(ENCODING_IDS, ENCODINGS, strict=True)
    ]
    server = HTTPServer(Application(routes))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    yield sockets[0].getsockname()[1]
    server.stop()
    await server.close_all_connections()


@pytest.mark.parametrize(("name", "encoding"), list(zip(ENCODING_IDS, ENCODINGS, strict=True)), ids=ENCODING_IDS)
async def test_tornados_client_reads_them(raw_port: int, name: str, encoding: Encoding) -> None:
    connection = await websocket_connect(
        f"ws://127.0.0.1:{raw_port}/{name}",
        compression_options={} if encoding.deflate else None,
        max_message_size=16 * 1024 * 1024,
    )
    try:
        for payload in SAMPLE:
            message = await connection.read_message()
            assert message is not None, f"Tornado refused a message of {len(payload)} bytes"
            assert isinstance(message, str if encoding.escaped else bytes)
            assert (message.encode() if isinstance(message, str) else message) == body(payload, encoding)
    finally:
        connection.close()
        while await connection.read_message() is not None:
            pass
