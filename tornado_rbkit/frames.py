"""Messages as finished WebSocket bytes: encoded once, then the same objects go to every client of that form.

Framing is RFC 6455 section 5.2, compression RFC 7692 section 7.2.1 without context takeover, which is what lets one
compressed message be shared. Pure functions on immutable data: any thread.
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
"""Bytes. A longer message goes out as fragments of this size, so that pings pass between them (RFC 6455, 5.4)."""

JOIN_LIMIT: Final = 64 * 1024
"""Bytes. From here on, copying a payload into a joined chunk costs more than handing it to the kernel apart."""

_MAX_HEADER: Final = 11  # bytes, the channel's included
_FIN: Final = 0x80
_RSV1: Final = 0x40  # "this message is compressed", on its first frame only
_CONTINUATION: Final = 0x0
_TEXT: Final = 0x1
_BINARY: Final = 0x2


class Form(NamedTuple):
    """How a client takes its messages: as raw bytes or percent-escaped text, compressed or not."""

    escaped: bool = False
    deflate: bool = False


Run: TypeAlias = tuple[Buffer, ...]
"""Buffers that together hold whole frames; between two runs a control frame may be written, within one nothing."""


class Chunk(NamedTuple):
    """One or more whole messages as finished bytes, in runs of at most about `FRAGMENT_SIZE` each."""

    runs: tuple[Run, ...]
    size: int
    messages: int


def encode_reply(payload: bytes, form: Form) -> Chunk:
    """Return a message of the reply channel. It goes to one client and is small, so it is not compressed."""
    return _chunk(_encode(Channel.REPLY, payload, Form(form.escaped)))


@lru_cache(maxsize=64)
def encode_notice(payload: bytes, form: Form) -> Chunk:
    """Return a message of the reply channel whose text is never escaped, as the Ruby middleware has it.

    It goes to many clients one after the other, so it is encoded once.
    """
    return encode_message(Channel.REPLY.value + payload, binary=not form.escaped)


def encode_message(payload: bytes, *, binary: bool) -> Chunk:
    """Return a message without a channel, in one frame that is not compressed."""
    frame = _header(_FIN | (_BINARY if binary else _TEXT), len(payload)) + payload
    return Chunk(((frame,),), len(frame), 1)


def encode_data(payloads: Iterable[Buffer], form: Form, *, compression_level: int = 1) -> list[Chunk]:
    """Return published messages as chunks; see `encode_in_slices`."""
    slices = encode_in_slices(payloads, form, compression_level=compression_level)
    while True:
        try:
            next(slices)
        except StopIteration as end:
            chunks: list[Chunk] = end.value
            return chunks


def encode_in_slices(
    payloads: Iterable[Buffer], form: Form, *, compression_level: int = 1
) -> Generator[None, None, list[Chunk]]:
    """Return published messages as chunks: small ones joined up to `FRAGMENT_SIZE`, a large one in a chunk of its own.

    The generator pauses after each `JOIN_LIMIT` bytes of a message that it escapes or compresses, which take a few
    milliseconds, so that the caller can do other work in between, or close it.

    Args:
        payloads: the messages as the profiler published them, in order.
        form: the encoding of the clients.
        compression_level: 1 to 9 as in zlib, used if the encoding is compressed.
    """
    chunks: list[Chunk] = []
    joined: list[Buffer] = []
    size = messages = 0
    plain = form == Form()
    header, header_length = b"", -1  # messages in a row are often as long as each other

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
            if plain or len(payload) <= JOIN_LIMIT:
                runs = _encode(Channel.DATA, payload, form, compression_level)
            else:
                runs = yield from _encode_large(Channel.DATA, payload, form, compression_level)
            if len(runs) > 1 or len(runs[0][0]) + len(runs[0][1]) > JOIN_LIMIT:
                flush()
                chunks.append(_chunk(runs))
                continue
            header_length = -1
            header, body = runs[0]
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
    """Return the percent-escaped form: RFC 3986's unreserved bytes as they are, every other byte %XX.

    It is the Ruby middleware's form but for the space, which that writes ``+`` and its own demo client reads wrong.
    """
    return b"".join(map(_escape, _slices(payload)))


def _escape(piece: Buffer) -> bytes:
    return quote_from_bytes(bytes(piece), safe="").encode("ascii")


def _slices(payload: Buffer) -> Iterator[memoryview]:
    """Cut a payload: urllib makes a list with an entry for each byte that it escapes."""
    view = memoryview(payload)
    return (view[at : at + JOIN_LIMIT] for at in range(0, len(view), JOIN_LIMIT))


def _encode(channel: Channel, payload: Buffer, form: Form, compression_level: int = 1) -> list[tuple[bytes, Buffer]]:
    """Return one message as frames, each a header (the first with the channel byte) and a slice of the payload."""
    opcode = _TEXT if form.escaped else _BINARY
    prefix: bytes = channel.value
    body = escape(payload) if form.escaped else payload
    if form.deflate:
        opcode, prefix, body = opcode | _RSV1, b"", b"".join(_deflate((prefix, body), compression_level))
    length = len(prefix) + len(body)
    if length <= FRAGMENT_SIZE:
        return [(_header(_FIN | opcode, length) + prefix, body)]
    return list(_fragments(opcode, prefix, memoryview(body)))


def _encode_large(
    channel: Channel, payload: Buffer, form: Form, compression_level: int
) -> Generator[None, None, list[tuple[bytes, Buffer]]]:
    """Return the frames of one escaped or compressed message, and never hold its whole encoded body twice."""
    opcode = _TEXT if form.escaped else _BINARY
    pieces: Iterator[Buffer] = chain(
        (channel.value,), map(_escape, _slices(payload)) if form.escaped else _slices(payload)
    )
    if form.deflate:
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
    yield compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]  # without the 00 00 ff ff, which the receiver puts back


def _chunk(frames: list[tuple[bytes, Buffer]]) -> Chunk:
    size = sum(len(header) + len(piece) for header, piece in frames)
    if size <= JOIN_LIMIT:
        return Chunk(((b"".join(frames[0]),),), size, 1)
    return Chunk(tuple(frames), size, 1)
