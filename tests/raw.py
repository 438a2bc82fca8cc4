"""A client that writes arbitrary bytes to a TCP connection, including frames that RFC 6455 forbids."""

from __future__ import annotations

import asyncio
import socket
import struct


def upgrade_request(path: str = "/rbkit/ws", **headers: str) -> bytes:
    """Return the request that opens a WebSocket; a header, named with _ for -, is added or replaces the usual one."""
    sent = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "rbkit",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
    return "\r\n".join(lines).encode()


HANDSHAKE = upgrade_request()


def frame(payload: bytes, *, first: int = 0x81, mask: bytes | None = b"abcd", length: int | None = None) -> bytes:
    """Return a frame in the layout of RFC 6455 section 5.2, with any first byte, any length, and a mask or none."""
    length = len(payload) if length is None else length
    bit = 0x80 if mask else 0
    if length < 126:
        head = bytes((first, bit | length))
    elif length < 65536:
        head = struct.pack("!BBH", first, bit | 126, length)
    else:
        head = struct.pack("!BBQ", first, bit | 127, length)
    if not mask:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


class Raw:
    """One connection, which reads only on request."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Raw:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 16)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def upgrade(self) -> None:
        self.writer.write(HANDSHAKE)
        assert b" 101 " in await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)

    async def until(self, marker: bytes, timeout: float = 60.0) -> None:
        """Read until `marker` arrives."""
        received = b""
        while marker not in received:
            more = await asyncio.wait_for(self.reader.read(65536), timeout)
            assert more, f"closed before {marker!r} came"
            received = received[-len(marker) :] + more

    async def end(self, timeout: float = 60.0) -> bytes:
        """Read until the server closes, and return the last kilobytes received."""
        received = b""
        try:
            while more := await asyncio.wait_for(self.reader.read(65536), timeout):
                received = (received + more)[-4096:]
        except ConnectionError:
            pass
        return received

    def reset(self) -> None:
        """Close the connection with an RST, whatever is in progress."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
