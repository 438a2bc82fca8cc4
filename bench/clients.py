"""The clients of the load: one process with many raw WebSockets, which checks every byte.

Without fragments and compression, all servers send the same frames (RFC 6455). So the bytes that each client must
receive are known in advance, and compared as they arrive: order, loss and content.
"""

from __future__ import annotations

import base64
import os
import resource
import select
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any

from feed import END, GO, SYNC, messages
from measure import order_waits, orders, say

_CHUNK = 1 << 20
_REST_SECONDS = 0.0005
_PATIENCE_SECONDS = 120.0


def frame(payload: bytes) -> bytes:
    """Return a published message as a binary frame: the channel and the payload."""
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
    """One WebSocket. It parses frames until ``GO``, and compares bytes from then on."""

    def __init__(self, port: int, deflate: bool = False, path: str = "/ws") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflate else ""
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
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
        self._pieces: list[bytes] = []
        self._have, self._need = 0, 2
        self._parts: list[bytes] = []
        self._compressed = False
        self.leaves_compressed = False
        self.synced = self.going = self.fresh = False
        self.at = 0
        self.checksum = 0
        self.messages_seen = 0

    def read(self) -> bytes:
        data = self.socket.recv(_CHUNK)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def messages(self, data: bytes) -> Iterator[bytes]:
        """Yield the complete messages that have arrived, as channel and payload; answer pings."""
        self._pieces.append(data)
        self._have += len(data)
        if self._have < self._need:
            return  # of a large frame: it is not joined before it is whole
        data, at = b"".join(self._pieces), 0
        self._keep(data, at, 2)
        while len(data) - at >= 2:
            first, size, head = data[at], data[at + 1], at + 2
            if size > 125:
                head += 2 if size == 126 else 8
                if len(data) < head:
                    break
                size = int.from_bytes(data[at + 2 : head], "big")
            if len(data) < head + size:
                self._keep(data, at, head + size - at)
                return
            payload = data[head : head + size]
            at = head + size
            if first & 0x0F == 9:
                self.socket.sendall(masked(payload, 10))
                continue
            assert first & 0x0F < 3, f"an unexpected frame: {first:#x} {payload[:60]!r}"
            if first & 0x0F:
                self._compressed = bool(first & 0x40)
            self._parts.append(payload)
            if first & 0x80:
                message, self._parts = b"".join(self._parts), []
                self._keep(data, at, 2)
                yield self.inflate(message) if self._compressed and not self.leaves_compressed else message
        self._keep(data, at, 2)

    def _keep(self, data: bytes, at: int, need: int) -> None:
        """Keep the following data, which begins with a frame of at least this many bytes."""
        self._pieces = [data[at:]]
        self._have, self._need = len(data) - at, need

    def inflate(self, message: bytes) -> bytes:
        if not self._keeps_context:
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        assert self._inflater is not None
        return self._inflater.decompress(message + b"\x00\x00\xff\xff")

    def drain(self, seconds: float) -> None:
        """Read and discard data for a number of seconds."""
        deadline = time.perf_counter() + seconds
        while (remaining := deadline - time.perf_counter()) > 0:
            if select.select([self.socket], [], [], remaining)[0]:
                self.messages_seen += sum(1 for _ in self.messages(self.read()))

    def until_reply(self, command: bytes) -> None:
        """Send a command and read until its reply."""
        self.socket.sendall(command)
        while True:
            replied = False
            for message in self.messages(self.read()):
                replied |= message.startswith(b"0\x83")
                self.messages_seen += 1
            if replied:
                return

    def sync(self) -> None:
        """Read until ``SYNC`` or ``GO`` has arrived."""
        for message in self.messages(self.read()):
            self.synced |= message == b"1" + SYNC
            self.going |= message == b"1" + GO
            if self.going:
                return  # what is behind it is left to be compared

    def compare(self, expected: bytes) -> None:
        """Read and compare."""
        self._compare(expected, self.read())

    def note(self, data: bytes) -> None:
        """Add data that arrived after ``GO`` to the checksum."""
        self.at += len(data)
        self.checksum = zlib.crc32(data, self.checksum)

    def rest(self) -> bytes:
        """Return the data after the last message."""
        return b"".join(self._pieces)

    def begin(self, expected: bytes) -> None:
        """Compare the data that arrived after ``GO``."""
        self._compare(expected, self.rest())

    def _compare(self, expected: bytes, data: bytes) -> None:
        if not expected.startswith(data, self.at):
            wrong = next(i for i, byte in enumerate(data) if expected[self.at + i : self.at + i + 1] != bytes((byte,)))
            raise AssertionError(
                f"not what was published, {self.at + wrong} bytes after the first message: "
                f"{data[max(0, wrong - 8) : wrong + 40]!r}"
            )
        self.at += len(data)


class Clients:
    """All clients, on one epoll, with a short sleep after each turn, so that reading costs little."""

    def __init__(self) -> None:
        self.all: list[Client] = []
        self._poll = select.epoll()
        self._by_number: dict[int, Client] = {}
        self._began = 0.0
        self.waiting: set[Client] = set()

    def connect(self, port: int, count: int, deflate: bool, path: str) -> None:
        """Open more connections."""
        for _ in range(count):
            client = Client(port, deflate, path)
            self.all.append(client)
            self._by_number[client.socket.fileno()] = client
            self._poll.register(client.socket, select.EPOLLIN)

    def drain(self) -> None:
        """Read and discard data until the next order."""
        while not order_waits():
            for client in self.ready(time.monotonic() + _PATIENCE_SECONDS):
                client.read()
            time.sleep(_REST_SECONDS)

    def ready(self, deadline: float) -> list[Client]:
        events = self._poll.poll(1.0)
        if time.monotonic() > deadline:
            raise TimeoutError("the clients waited too long for the next message")
        return [self._by_number[number] for number, _ in events]

    def wait_for_sync(self) -> None:
        """Read until all clients have received ``SYNC``."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not all(client.synced for client in self.all):
            for client in self.ready(deadline):
                client.sync()

    def going(self, stalled: int, patience: float) -> Iterator[Client]:
        """Yield each readable client that has received ``GO``, until `done` is called with it.

        The first time, it is yielded for the data that arrived after ``GO``.
        """
        for client in self.all[:stalled]:
            self._poll.unregister(client.socket)
        self.waiting = set(self.all[stalled:])
        last = time.monotonic()
        while self.waiting:
            ready = self.ready(last + patience)
            last = time.monotonic() if ready else last
            for client in ready:
                if not client.going:
                    client.sync()
                    if not client.going:
                        continue
                    self._began = self._began or time.perf_counter()
                    client.fresh = True
                yield client
                client.fresh = False
            time.sleep(_REST_SECONDS)

    def done(self, client: Client) -> None:
        """Record that a client has received everything."""
        self.waiting.discard(client)
        self._poll.unregister(client.socket)

    def receive(self, expected: bytes, stalled: int, patience: float) -> dict[str, Any]:
        """Receive exactly these bytes after ``GO``; return the seconds since the first ``GO``."""
        for client in self.going(stalled, patience):
            if client.fresh:
                client.begin(expected)
            else:
                client.compare(expected)
            if client.at == len(expected):
                self.done(client)
        return {"seconds": time.perf_counter() - self._began}

    def receive_whole(self, load: list[bytes], stalled: int, patience: float) -> dict[str, Any]:
        """Receive these messages in any framing; count the missing ones."""
        wanted = [*load, END]
        missing = 0
        for client in self.going(stalled, patience):
            for message in client.messages(b"" if client.fresh else client.read()):
                if message.startswith((b"0dropped:", b"0client_count:")):  # the latter when another bridge has clients
                    continue
                before, at = client.at, client.at
                while at < len(wanted) and wanted[at] != message[1:]:
                    at += 1
                assert at < len(wanted), f"message {before} is another one: {message[:60]!r}"
                missing += at - before
                client.at = at + 1
            if client.at == len(wanted):
                self.done(client)
        return {"seconds": time.perf_counter() - self._began, "missing": missing}

    def receive_deflated(self, load: list[bytes], stalled: int, patience: float) -> dict[str, Any]:
        """Receive these messages compressed; all clients must get the same bytes as the first.

        The bytes are inflated and checked only at the end, because inflating would take a core from the server.
        """
        wanted = [*load, END]
        leader = self.all[0]
        seen: list[bytes] = []
        for client in self.going(stalled, patience):
            data = client.rest() if client.fresh else client.read()
            client.note(data)
            if client is leader:
                client.leaves_compressed = True
                seen += client.messages(b"" if client.fresh else data)
            if len(seen) == len(wanted):
                for other in [other for other in self.waiting if other.at >= leader.at]:
                    self.done(other)
        seconds = time.perf_counter() - self._began
        for number, message in enumerate(wanted):
            assert leader.inflate(seen[number])[1:] == message, (
                f"message {number} is another one: {seen[number]!r:.60}"
            )
        sums = {(client.at, client.checksum) for client in self.all}
        assert len(sums) == 1, f"the clients got different bytes: {sums}"
        return {"seconds": seconds, "received": leader.at}


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = Clients()
    load: list[bytes] = []
    expected = b""
    try:
        for order in orders():
            match order["do"]:
                case "connect":
                    clients.connect(
                        order["port"], order["clients"], order.get("deflate", False), order.get("path", "/ws")
                    )
                    say(connected=len(clients.all))
                case "expect":
                    load = list(messages(order["kind"], order["count"]))
                    expected = b"".join([*map(frame, load), frame(END)])
                    say(bytes=len(expected))
                case "drain":
                    clients.drain()
                case "sync":
                    clients.wait_for_sync()
                    say(synced=True)
                case "receive":
                    say(**clients.receive(expected, order.get("stalled", 0), order.get("patience", _PATIENCE_SECONDS)))
                case "receive whole":
                    say(**clients.receive_whole(load, order["stalled"], order["patience"]))
                case "receive deflated":
                    say(**clients.receive_deflated(load, order["stalled"], order["patience"]))
    except (OSError, AssertionError) as error:
        say(failed=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
