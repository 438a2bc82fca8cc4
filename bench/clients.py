"""The viewers' side of the load: one process with many raw WebSockets, which checks every byte.

A server's frames are the same for all who frame as RFC 6455 says (no fragments, no compression), so what each client
has to receive from the first message to the last is known before, and compared as it comes: order, loss and content.
"""

from __future__ import annotations

import base64
import os
import resource
import select
import socket
import time
import zlib
from collections.abc import Iterable, Iterator

from feed import END, GO, SYNC, messages
from measure import orders, say

_CHUNK = 1 << 20
_REST_SECONDS = 0.0005
_PATIENCE_SECONDS = 120.0


def frame(payload: bytes) -> bytes:
    """Return the binary message that has the channel of published data and the payload."""
    size = len(payload) + 1
    if size < 126:
        return bytes((0x82, size)) + b"1" + payload
    if size < 1 << 16:
        return b"\x82\x7e" + size.to_bytes(2, "big") + b"1" + payload
    return b"\x82\x7f" + size.to_bytes(8, "big") + b"1" + payload


def masked(payload: bytes, opcode: int) -> bytes:
    """Return a short message from the client."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + b"\0\0\0\0" + payload


class Client:
    """One WebSocket. It takes frames apart until ``GO``, and from there on compares."""

    def __init__(self, port: int, deflate: bool = False) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflate else ""
        self.socket.sendall(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: rbkit\r\n"
            f"{extension}\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            assert byte, f"the server closed: {head!r}"
            head += byte
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert (b"permessage-deflate" in head) is deflate, head
        self._keeps_context = b"server_no_context_takeover" not in head
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if deflate else None
        self._rest = b""
        self._parts: list[bytes] = []
        self._compressed = False
        self.synced = self.going = False
        self.at = 0

    def read(self) -> bytes:
        data = self.socket.recv(_CHUNK)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def messages(self, data: bytes) -> Iterator[bytes]:
        """Yield the whole messages that have come, channel and payload; answer pings."""
        data = self._rest + data
        at = 0
        while len(data) - at >= 2:
            first, size, head = data[at], data[at + 1], at + 2
            if size > 125:
                head += 2 if size == 126 else 8
                size = int.from_bytes(data[at + 2 : head], "big")
            if len(data) < head + size:
                break
            payload = data[head : head + size]
            at = head + size
            self._rest = data[at:] if first & 0x0F != 2 else b""
            if first & 0x0F == 9:
                self.socket.sendall(masked(payload, 10))
                continue
            assert first & 0x0F < 3, f"an unexpected frame: {first:#x} {payload[:60]!r}"
            if first & 0x0F:
                self._compressed = bool(first & 0x40)
            self._parts.append(payload)
            if first & 0x80:
                message, self._parts = b"".join(self._parts), []
                self._rest = data[at:]
                yield self._inflate(message) if self._compressed else message
        self._rest = data[at:]

    def _inflate(self, message: bytes) -> bytes:
        if not self._keeps_context:
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        assert self._inflater is not None
        return self._inflater.decompress(message + b"\x00\x00\xff\xff")

    def sync(self) -> None:
        """Read on until ``SYNC`` or ``GO`` has come."""
        for message in self.messages(self.read()):
            self.synced |= message == b"1" + SYNC
            self.going |= message == b"1" + GO
            if self.going:
                return  # what is behind it is left to be compared

    def compare(self, expected: bytes) -> None:
        """Read on and compare."""
        self._compare(expected, self.read())

    def begin(self, expected: bytes) -> None:
        """Compare what came behind ``GO`` with it."""
        self._compare(expected, self._rest)

    def _compare(self, expected: bytes, data: bytes) -> None:
        if not expected.startswith(data, self.at):
            wrong = next(i for i, byte in enumerate(data) if expected[self.at + i : self.at + i + 1] != bytes((byte,)))
            raise AssertionError(
                f"not what was published, {self.at + wrong} bytes after the first message: "
                f"{data[max(0, wrong - 8) : wrong + 40]!r}"
            )
        self.at += len(data)


class Clients:
    """All of them, on one epoll; it rests a moment after each turn, so that reading costs little."""

    def __init__(self, port: int, count: int, deflate: bool = False) -> None:
        self.all: list[Client] = []
        self._poll = select.epoll()
        self._by_number: dict[int, Client] = {}
        for _ in range(count):
            client = Client(port, deflate)
            self.all.append(client)
            self._by_number[client.socket.fileno()] = client
            self._poll.register(client.socket, select.EPOLLIN)

    def stall(self, client: Client) -> None:
        """Read nothing of this one any more."""
        self._poll.unregister(client.socket)

    def ready(self, deadline: float) -> Iterable[Client]:
        events = self._poll.poll(1.0)
        if time.monotonic() > deadline:
            raise TimeoutError("the clients waited too long for the next message")
        return [self._by_number[number] for number, _ in events]

    def wait(self, of: str) -> None:
        """Read until all have seen ``SYNC`` (synced) or ``GO`` (going)."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not all(getattr(client, of) for client in self.all):
            for client in self.ready(deadline):
                if not client.going:
                    client.sync()

    def receive(self, expected: bytes) -> float:
        """Receive what is expected, from ``GO`` to the last byte; return the seconds from the first ``GO``."""
        waiting = set(self.all)
        began = 0.0
        last = time.monotonic()
        while waiting:
            for client in self.ready(last + _PATIENCE_SECONDS):
                if client.going:
                    client.compare(expected)
                else:
                    client.sync()
                    if not client.going:
                        continue
                    began = began or time.perf_counter()
                    client.begin(expected)
                if client.at == len(expected):
                    waiting.discard(client)
                    self._poll.unregister(client.socket)
            last = time.monotonic()
            time.sleep(_REST_SECONDS)
        return time.perf_counter() - began

    def receive_messages(self, expected: list[bytes]) -> float:
        """The same for what is compressed or fragmented."""
        counts = dict.fromkeys(self.all, -1)  # ``GO`` is message 0
        wanted = [GO, *expected, END]
        waiting = set(self.all)
        began = 0.0
        last = time.monotonic()
        while waiting:
            for client in self.ready(last + _PATIENCE_SECONDS):
                for message in client.messages(client.read()):
                    if counts[client] < 0 and message != b"1" + GO:
                        continue
                    began = began or time.perf_counter()
                    counts[client] += 1
                    assert message[1:] == wanted[counts[client]], (
                        f"message {counts[client]} is another: {message[:60]!r}"
                    )
                if counts[client] == len(wanted) - 1:
                    waiting.discard(client)
            last = time.monotonic()
            time.sleep(_REST_SECONDS)
        return time.perf_counter() - began


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients: Clients | None = None
    load: list[bytes] = []
    expected = b""
    try:
        for order in orders():
            match order["do"]:
                case "connect":
                    clients = Clients(order["port"], order["clients"], order.get("deflate", False))
                    say(connected=order["clients"])
                case "expect":
                    load = list(messages(order["kind"], order["count"]))
                    expected = b"".join([*map(frame, load), frame(END)])
                    say(bytes=len(expected))
                case "sync":
                    assert clients
                    clients.wait("synced")
                    say(synced=True)
                case "receive":
                    assert clients
                    say(seconds=clients.receive(expected))
                case "receive messages":
                    assert clients
                    say(seconds=clients.receive_messages(load))
    except (OSError, AssertionError) as error:
        say(failed=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
