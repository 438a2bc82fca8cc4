"""WebSocket framing and encoding of messages, each encoded once and shared by all clients with that encoding.

Framing follows RFC 6455 section 5.2. Compression follows RFC 7692 section 7.2.1 without context takeover, so that one
compressed message can be shared. The functions are pure and may be called on any thread.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import quote_from_bytes

from tornado_rbkit.protocol import Channel

Buffer: TypeAlias = bytes | memoryview

FRAGMENT_SIZE: Final = 256 * 1024
"""Bytes. A longer message is sent in fragments of this size, so that pings fit in between (RFC 6455 section 5.4)."""

JOIN_LIMIT: Final = 64 * 1024
"""Bytes. Copying a larger payload into a joined chunk costs more than writing it separately."""

LENGTH_SIZE: Final = 4
"""Bytes of the length, big-endian, before each message that is encoded with `Encoding.framed`."""

_MAX_HEADER: Final = 11  # bytes, including the channel byte
_FIN: Final = 0x80
_RSV1: Final = 0x40  # marks a compressed message, on its first frame only
_CONTINUATION: Final = 0x0
_TEXT: Final = 0x1
_BINARY: Final = 0x2


class Encoding(NamedTuple):
    """A client's encoding: raw bytes or percent-escaped text, compressed or not.

    `framed` is for other bridges, not for WebSockets: each message with its length in `LENGTH_SIZE` bytes before it.
    """

    escaped: bool = False
    deflate: bool = False
    framed: bool = False


WriteUnit: TypeAlias = tuple[Buffer, ...]
"""Buffers that together hold whole frames. A control frame may be written between two units, but not within one."""


class Chunk(NamedTuple):
    """One or more whole messages, encoded and framed, in units of at most about `FRAGMENT_SIZE` bytes each."""

    units: tuple[WriteUnit, ...]
    size: int
    messages: int


def encode_reply(payload: bytes, encoding: Encoding) -> Chunk:
    """Encode a message of the reply channel. It is small and for one client, so it is not compressed."""
    return _chunk(_encode(Channel.REPLY, payload, Encoding(encoding.escaped)))


@lru_cache(maxsize=64)
def encode_notice(payload: bytes, encoding: Encoding) -> Chunk:
    """Encode a notice for the reply channel. Its text is never escaped, as in the Ruby middleware.

    The result is cached, because a notice is sent to many clients.
    """
    return encode_message(Channel.REPLY.value + payload, binary=not encoding.escaped)


def encode_message(payload: bytes, *, binary: bool) -> Chunk:
    """Encode a message without a channel byte, in one uncompressed frame."""
    frame = _header(_FIN | (_BINARY if binary else _TEXT), len(payload)) + payload
    return Chunk(((frame,),), len(frame), 1)


def encode_in_slices(
    payloads: Iterable[Buffer], encoding: Encoding, *, compression_level: int = 1
) -> Generator[None, None, list[Chunk]]:
    """Encode published messages as chunks: small messages joined up to `FRAGMENT_SIZE`, each large message separate.

    The generator pauses after each `JOIN_LIMIT` bytes of a message that it escapes or compresses, which take a few
    milliseconds, so that the caller can do other work or close the generator.

    Args:
        payloads: the messages as the profiler published them, in order.
        encoding: the encoding of the clients.
        compression_level: 1 to 9 as in zlib, used if the encoding is compressed.
    """
    chunks: list[Chunk] = []
    joined: list[Buffer] = []
    size = messages = 0
    plain = encoding == Encoding()
    header, header_length = b"", -1  # consecutive messages often have the same length

    def flush() -> None:
        nonlocal size, messages
        if joined:
            chunks.append(Chunk(((b"".join(joined),),), size, messages))
            joined.clear()
            size = messages = 0

    for payload in payloads:
        if plain and len(payload) < JOIN_LIMIT - _MAX_HEADER:
            if len(payload) != header_length:
                header_length = len(payload)
                header = _header(_FIN | _BINARY, header_length + 1) + Channel.DATA.value
            body = payload
        else:
            if plain or encoding.framed or len(payload) <= JOIN_LIMIT:
                units = _encode(Channel.DATA, payload, encoding, compression_level)
            else:
                units = yield from _encode_large(Channel.DATA, payload, encoding, compression_level)
            if len(units) > 1 or len(units[0][0]) + len(units[0][1]) > JOIN_LIMIT:
                flush()
                chunks.append(_chunk(units))
                continue
            header_length = -1
            header, body = units[0]
        length = len(header) + len(body)
        if size + length > FRAGMENT_SIZE:
            flush()
        joined.append(header)
        joined.append(body)
        size += length
        messages += 1
    flush()
    return chunks


def escape(payload: Buffer) -> bytes:
    """Percent-escape a payload: every byte that is not unreserved in RFC 3986 becomes %XX.

    The Ruby middleware does the same, except that it writes a space as ``+``, which its own demo client reads wrong.
    """
    return b"".join(map(_escape, _slices(payload)))


def _escape(piece: Buffer) -> bytes:
    return quote_from_bytes(bytes(piece), safe="").encode("ascii")


def _slices(payload: Buffer) -> Iterator[memoryview]:
    """Cut a payload into slices: urllib creates a list with an entry for each byte that it escapes."""
    view = memoryview(payload)
    return (view[at : at + JOIN_LIMIT] for at in range(0, len(view), JOIN_LIMIT))


def _encode(
    channel: Channel, payload: Buffer, encoding: Encoding, compression_level: int = 1
) -> list[tuple[bytes, Buffer]]:
    """Encode one message as frames: pairs of a header (the first with the channel byte) and a slice of the payload."""
    if encoding.framed:
        return list(_cut(payload))
    opcode = _TEXT if encoding.escaped else _BINARY
    prefix: bytes = channel.value
    body = escape(payload) if encoding.escaped else payload
    if encoding.deflate:
        opcode, prefix, body = opcode | _RSV1, b"", b"".join(_deflate((prefix, body), compression_level))
    length = len(prefix) + len(body)
    if length <= FRAGMENT_SIZE:
        return [(_header(_FIN | opcode, length) + prefix, body)]
    return list(_fragments(opcode, prefix, memoryview(body)))


def _encode_large(
    channel: Channel, payload: Buffer, encoding: Encoding, compression_level: int
) -> Generator[None, None, list[tuple[bytes, Buffer]]]:
    """Encode one escaped or compressed message as frames without holding its whole encoded body twice."""
    opcode = _TEXT if encoding.escaped else _BINARY
    pieces: Iterator[Buffer] = chain(
        (channel.value,), map(_escape, _slices(payload)) if encoding.escaped else _slices(payload)
    )
    if encoding.deflate:
        opcode, pieces = opcode | _RSV1, _deflate(pieces, compression_level)
    frames: list[tuple[bytes, Buffer]] = []
    body = bytearray()
    for piece in pieces:
        body += piece
        while len(body) > FRAGMENT_SIZE:
            frames.append((_header(opcode, FRAGMENT_SIZE), bytes(body[:FRAGMENT_SIZE])))
            opcode = _CONTINUATION
            del body[:FRAGMENT_SIZE]
        yield
    frames.append((_header(_FIN | opcode, len(body)), bytes(body)))
    return frames


def _fragments(opcode: int, prefix: bytes, body: memoryview) -> Iterator[tuple[bytes, Buffer]]:
    at = 0
    while at < len(body):
        end = at + FRAGMENT_SIZE - len(prefix)
        piece = body[at:end]
        fin = _FIN if end >= len(body) else 0
        yield _header(fin | opcode, len(prefix) + len(piece)) + prefix, piece
        opcode, prefix, at = _CONTINUATION, b"", end


def _cut(payload: Buffer) -> Iterator[tuple[bytes, Buffer]]:
    """Cut a message into slices; the first has the length before it."""
    prefix = len(payload).to_bytes(LENGTH_SIZE, "big")
    view = memoryview(payload)
    for at in range(0, len(view) or 1, FRAGMENT_SIZE):
        yield prefix, view[at : at + FRAGMENT_SIZE]
        prefix = b""


def _header(first: int, length: int) -> bytes:
    if length < 126:
        return bytes((first, length))
    if length < 0x10000:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")


def _deflate(pieces: Iterable[Buffer], level: int) -> Iterator[bytes]:
    """Compress the pieces of one message."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]  # without 00 00 ff ff, which the receiver appends


def _chunk(frames: list[tuple[bytes, Buffer]]) -> Chunk:
    size = sum(len(header) + len(piece) for header, piece in frames)
    if size <= JOIN_LIMIT:
        return Chunk(((b"".join(frames[0]),),), size, 1)
    return Chunk(tuple(frames), size, 1)
