"""Messages as finished WebSocket bytes: encoded once, then the same objects go to every client of that form.

Framing is RFC 6455 section 5.2, compression RFC 7692 section 7.2.1 without context takeover, which is what lets one
compressed message be shared. Pure functions on immutable data: any thread.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
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


def encode_notice(payload: bytes, form: Form) -> Chunk:
    """Return a message of the reply channel whose text is never escaped, as the Ruby middleware has it."""
    body = Channel.REPLY.value + payload
    frame = _header(_FIN | (_TEXT if form.escaped else _BINARY), len(body)) + body
    return Chunk(((frame,),), len(frame), 1)


def encode_data(payloads: Iterable[Buffer], form: Form, *, compression_level: int = 1) -> list[Chunk]:
    """Return published messages as chunks: small ones joined up to `FRAGMENT_SIZE`, a large one in a chunk of its own.

    Args:
        payloads: the messages as the profiler published them, in order.
        form: that of the clients they are for.
        compression_level: 1 to 9 as in zlib, where the form says compressed.
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
            runs = _encode(Channel.DATA, payload, form, compression_level)
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
    view = memoryview(payload)
    # In slices: urllib makes a list with an entry for each byte.
    slices = (bytes(view[at : at + JOIN_LIMIT]) for at in range(0, len(view), JOIN_LIMIT))
    return "".join(quote_from_bytes(piece, safe="") for piece in slices).encode("ascii")


def _encode(channel: Channel, payload: Buffer, form: Form, compression_level: int = 1) -> list[tuple[bytes, Buffer]]:
    """Return one message as frames, each a header (the first with the channel byte) and a slice of the payload."""
    opcode = _TEXT if form.escaped else _BINARY
    prefix: bytes = channel.value
    body = escape(payload) if form.escaped else payload
    if form.deflate:
        opcode, prefix, body = opcode | _RSV1, b"", _deflate(prefix, body, compression_level)
    length = len(prefix) + len(body)
    if length <= FRAGMENT_SIZE:
        return [(_header(_FIN | opcode, length) + prefix, body)]
    return list(_fragments(opcode, prefix, memoryview(body)))


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


def _deflate(prefix: bytes, body: Buffer, level: int) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = (compressor.compress(prefix), compressor.compress(body), compressor.flush(zlib.Z_SYNC_FLUSH))
    return b"".join(pieces)[:-4]  # without the 00 00 ff ff, which the receiver puts back


def _chunk(frames: list[tuple[bytes, Buffer]]) -> Chunk:
    size = sum(len(header) + len(piece) for header, piece in frames)
    if size <= JOIN_LIMIT:
        return Chunk(((b"".join(frames[0]),),), size, 1)
    return Chunk(tuple(frames), size, 1)
