"""A slow or counted link: a process between a program and a NATS server, with one queue for all connections.

All that comes from the server, on every connection, waits in one queue, first in, first out, as in the device before a
slow line. The queue holds what the line takes in `_QUEUE_SECONDS`; then nothing more is read. What goes to the server
is only counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from typing import Final

from measure import say

_QUEUE_SECONDS: Final = 0.02
_PIECE: Final = 4096  # bytes
_BUFFER: Final = 256 * 1024  # bytes of each socket; TCP stalls with less than a few packets of loopback


class Wire:
    """Passes on what connections carry. `to_server` and `from_server` are the bytes so far."""

    def __init__(self, port: int, rate: float | None) -> None:
        """Describe a link to a port of this machine; `rate` is in bytes per second."""
        self.to_server = self.from_server = 0
        self._port = port
        self._rate = rate
        self._bound = (rate or 0) * _QUEUE_SECONDS
        self._queued = 0
        self._room = asyncio.Condition()
        self._queue: asyncio.Queue[tuple[asyncio.StreamWriter, bytes]] = asyncio.Queue()
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen; return the port."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_PIECE)
        self._spawn(self._send())
        port: int = server.sockets[0].getsockname()[1]
        return port

    def _spawn(self, coroutine: object) -> None:
        task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = socket.socket()
        if self._rate:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._port))
        from_server, to_server = await asyncio.open_connection(sock=connection, limit=_PIECE)
        self._spawn(self._down(from_server, writer))
        self._spawn(self._up(reader, to_server))

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.to_server += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE if self._rate else 1 << 16):
                self.from_server += len(data)
                if self._rate is None:
                    writer.write(data)
                    await writer.drain()
                    continue
                async with self._room:
                    await self._room.wait_for(lambda: self._queued < self._bound)
                    self._queued += len(data)
                self._queue.put_nowait((writer, data))
                await asyncio.sleep(0)  # let the other connections have the room that is left
        self._queue.put_nowait((writer, b""))

    async def _send(self) -> None:
        """Send the queued bytes, at the rate."""
        loop = asyncio.get_running_loop()
        free_at = loop.time()
        while True:
            writer, data = await self._queue.get()
            if not data:
                writer.close()
                continue
            writer.write(data)
            assert self._rate is not None
            free_at = max(loop.time() - 0.01, free_at) + len(data) / self._rate
            if (ahead := free_at - loop.time()) > 0.002:
                await asyncio.sleep(ahead)
            async with self._room:
                self._queued -= len(data)
                self._room.notify_all()


async def main(port: int, rate: float | None) -> None:
    with contextlib.suppress(PermissionError):  # a network does not wait for a processor
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    wire = Wire(port, rate)
    say(port=await wire.start())

    def order() -> None:
        line = os.read(0, 4096)
        if not line:
            os._exit(0)
        assert json.loads(line)["do"] == "count"
        say(to_server=wire.to_server, from_server=wire.from_server)

    asyncio.get_running_loop().add_reader(0, order)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]) or None))
