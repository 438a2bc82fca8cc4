"""A WebSocket client that checks every frame against RFC 6455 and RFC 7692, and reads only on request."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import zlib
from collections import deque
from urllib.parse import unquote_to_bytes

from tests.raw import HANDSHAKE, frame

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class StrictClient:
    """One connection.

    Attributes:
        replies: messages of the reply channel, notices included, without the channel byte.
        pongs: how many of `ping`'s pings were answered.
        closed: the payload of the server's close frame, None before it.
    """

    def __init__(
        self,
        port: int,
        *,
        escaped: bool = False,
        deflate: bool = False,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Describe a connection: its encoding, its SO_RCVBUF in bytes, and the TLS context if the server uses TLS."""
        self.replies: list[bytes] = []
        self.pongs = 0
        self.closed: bytes | None = None
        self._port = port
        self._escaped = escaped
        self._deflate = deflate
        self._receive_buffer = receive_buffer
        self._tls = tls
        self._pings: deque[bytes] = deque()
        self._number = 0

    async def __aenter__(self) -> StrictClient:
        sock = socket.socket()
        if self._receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        sock.connect(("127.0.0.1", self._port))
        sock.setblocking(False)
        name = "localhost" if self._tls else None
        self._reader, self._writer = await asyncio.open_connection(
            sock=sock, limit=4096, ssl=self._tls, server_hostname=name
        )
        request = HANDSHAKE.replace(b"/ws ", b"/ws?encoding=escaped " if self._escaped else b"/ws ")
        if self._deflate:
            request = request.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
        self._writer.write(request)
        response = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert response.startswith(b"http/1.1 101 "), response
        assert (b"permessage-deflate" in response) is self._deflate
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def ping(self) -> None:
        """Send a ping with a unique payload; the pong is checked when it is read."""
        self._number += 1
        payload = b"PING%d" % self._number
        self._pings.append(payload)
        self._writer.write(frame(payload, first=0x80 | _PING))

    def send(self, command: bytes) -> None:
        """Send a command; the reply is collected when it is read."""
        self._writer.write(frame(command))

    async def read_data(self) -> bytes | None:
        """Return the next published message, None once the server has closed."""
        while (message := await self._read_message()) is not None:
            if message[:1] == b"1":
                return message[1:]
            assert message[:1] == b"0", message[:40]
            self.replies.append(message[1:])
        return None

    async def _read_message(self) -> bytes | None:
        pieces: list[bytes] = []
        first = 0
        while True:
            head, payload = await self._read_frame()
            opcode = head & 0x0F
            if opcode >= _CLOSE:
                assert head & 0xF0 == 0x80, f"a control frame with the first byte {head:#x}"
                assert len(payload) <= 125
                if opcode == _CLOSE:
                    self.closed = payload
                    return None
                self._take_control(opcode, payload)
                continue
            assert (opcode == 0) is bool(pieces), f"opcode {opcode} as frame {len(pieces)} of a message"
            assert head & 0x30 == 0, f"reserved bits in {head:#x}"
            assert not (head & 0x40 and pieces), "RSV1 in a continuation"
            first = first or head
            pieces.append(payload)
            if head & 0x80:
                return self._decode(first, b"".join(pieces))

    async def _read_frame(self) -> tuple[int, bytes]:
        head, length = await self._reader.readexactly(2)
        assert length < 128, "a masked frame from the server"
        if length == 126:
            length = int.from_bytes(await self._reader.readexactly(2), "big")
            assert length > 125
        elif length == 127:
            length = int.from_bytes(await self._reader.readexactly(8), "big")
            assert 0xFFFF < length < 1 << 31
        return head, await self._reader.readexactly(length)

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self._writer.write(frame(payload, first=0x80 | _PONG))
            return
        assert opcode == _PONG, f"opcode {opcode}"
        assert payload in self._pings, f"a pong {payload!r} without a ping"
        while self._pings.popleft() != payload:
            pass  # only the latest of several pings needs an answer (RFC 6455 section 5.5.3)
        self.pongs += 1

    def _decode(self, first: int, message: bytes) -> bytes:
        if first & 0x40:
            assert self._deflate, "compressed, and not agreed"
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            message = inflate.decompress(message + b"\0\0\xff\xff")
            assert not inflate.unused_data
        assert first & 0x0F == (_TEXT if self._escaped else _BINARY)
        if self._escaped and message[:1] == b"1":
            assert message.isascii()
            return b"1" + unquote_to_bytes(message[1:])
        return message
