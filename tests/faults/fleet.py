"""A NATS server, a network and clients for the faults of a fleet."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import pytest
from tornado.websocket import WebSocketClientConnection

from tests.conftest import Server, until
from tests.fake_rbkit import FakeRbkit, free_port
from tests.patient import PATIENT
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.link import Link
from tornado_rbkit.fleet.nats import NatsServers
from tornado_rbkit.fleet.server import NatsServer, NatsServerError, find_program
from tornado_rbkit.fleet.subjects import Watcher
from tornado_rbkit.protocol import message_counter, parse_notice

COMMAND = [sys.executable, *PATIENT]


def freeze(pid: int) -> None:
    """Stop a child without ending it, and return once it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


class Node:
    """A nats-server without credentials, at one port of this machine for its whole life."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._server: NatsServer | None = None
        self._has_run = False

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def servers(self) -> NatsServers:
        return NatsServers(urls=(self.url,))

    async def start(self) -> None:
        """Start it; at first, at another port if somebody has taken this one meanwhile."""
        config = self._folder / "nats.conf"
        while self._server is None:
            config.write_text(f'listen: "127.0.0.1:{self.port}"\nports_file_dir: {json.dumps(str(self._folder))}\n')
            try:
                self._server = await NatsServer.start(find_program((2, 9, 0)), config, self._folder)
            except NatsServerError:
                if self._has_run:
                    raise
                self.port = free_port()
        self._has_run = True

    def kill(self) -> None:
        if self._server is not None:
            self._server._process.kill()
            self._server._process.wait()
            self._server = None


class Processes:
    """Commands of tornado-rbkit that run until the test ends."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    async def start(self, *arguments: str) -> tuple[subprocess.Popen[str], str]:
        """Start a command; return its process, and what follows ``ready`` in its output."""
        process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True)
        self._stack.callback(self._end, process)
        assert process.stdout is not None
        word, _, rest = (await asyncio.to_thread(process.stdout.readline)).strip().partition(" ")
        assert word == "ready", f"it has ended with {process.wait()}"
        return process, rest

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()  # after its test: how it ends by itself is tested elsewhere
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Wire:
    """A TCP proxy whose cable can be cut: no byte passes any more, and no connection ends."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()

    def servers(self) -> NatsServers:
        return NatsServers(urls=(f"nats://127.0.0.1:{self.port}",))

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        """Carry new connections; those that were cut stay dead, as their peers have given them up."""
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        self._whole.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if not self._whole.is_set():
            return  # accepted by the listening socket, and never answered
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.add(far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._copy(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._whole.wait()
                sink.write(data)
                await sink.drain()
            sink.close()


class Bystander:
    """A client of one profiler that compares every byte, and adds up what was reported as lost.

    Attributes:
        messages: number of messages that arrived, each as it was published.
        told: number of messages that were reported as dropped.
        notices: how often each notice about the profiler arrived.
        replies: the replies and errors, in order.
    """

    def __init__(self, connection: WebSocketClientConnection, rbkit: FakeRbkit, published: dict[int, bytes]) -> None:
        self.messages = self.told = 0
        self.notices: Counter[str] = Counter()
        self.replies: asyncio.Queue[bytes] = asyncio.Queue()
        self._connection = connection
        self._rbkit = rbkit
        self._published = published
        self._first = self._next = rbkit.counter
        self._reading = asyncio.create_task(self._read())

    @property
    def accounted(self) -> bool:
        """Whether each message that was published has arrived or was reported as lost."""
        if self._reading.done():
            self._reading.result()  # raises the error it has found
        return self._first + self.messages + self.told == self._rbkit.counter

    async def goes_on(self, *, padding: int = 0, times: int = 3) -> None:
        """Publish a few messages, of which the last arrives."""
        for _ in range(times):
            message = publish(self._rbkit, self._published, padding=padding)
        counter = message_counter(message)
        assert counter is not None
        await until(lambda: self._next > counter or self._reading.done(), f"message {counter} arrives", timeout=60)
        assert self._next > counter, self._reading.exception()

    async def all_accounted(self) -> None:
        """Wait until each message has arrived or was reported as lost; what is lost last shows with a later one."""
        since = self._rbkit.counter
        for _ in range(30):
            publish(self._rbkit, self._published)
            for _ in range(400):
                if self.accounted and self._next > since:
                    return
                await asyncio.sleep(0.005)
        pytest.fail(f"{self._first} + {self.messages} + {self.told} is not {self._rbkit.counter}")

    async def ask(self, command: str) -> bytes:
        await self._connection.write_message(command)
        return await asyncio.wait_for(self.replies.get(), 60)

    async def stop(self) -> None:
        self._connection.close()
        await self._reading

    async def _read(self) -> None:
        while (message := await self._connection.read_message()) is not None:
            assert isinstance(message, bytes)
            if message.startswith(b"1"):
                self._on_data(message[1:])
            elif (notice := parse_notice(message[1:])) is None:
                self.replies.put_nowait(message[1:])
            elif notice.name == "dropped":
                self.told += int(notice.value)
            else:
                self.notices[notice.value] += 1

    def _on_data(self, message: bytes) -> None:
        counter = message_counter(message)
        assert counter is not None
        assert self._published[counter] == message, f"message {counter} is not what was published"
        assert counter >= self._next, f"message {counter} after {self._next - 1}"
        self._next = counter + 1
        self.messages += 1


def publish(rbkit: FakeRbkit, published: dict[int, bytes], *, padding: int = 0, to_nobody: bool = False) -> bytes:
    """Publish a message, and remember it."""
    counter = rbkit.counter
    published[counter] = message = rbkit.publish_collection(padding=padding, to_nobody=to_nobody)
    return message


async def connected(server: Server) -> WebSocketClientConnection:
    """Open a WebSocket, and return it once its bridge is connected, which may take long on a busy machine."""
    connection = await server.connect()
    await until(lambda: server.bridge.state is State.CONNECTED, "the bridge is connected", timeout=60)
    return connection


@contextlib.asynccontextmanager
async def bystander(server: Server, rbkit: FakeRbkit, published: dict[int, bytes]) -> AsyncIterator[Bystander]:
    """Run a client that is connected, and has received the profiler's first messages."""
    client = Bystander(await connected(server), rbkit, published)
    try:
        await client.goes_on()
        yield client
    finally:
        await client.stop()


@contextlib.asynccontextmanager
async def raw_link(node: Node, name: str = "raw") -> AsyncIterator[Link]:
    """Connect somebody who says what he likes."""
    link = Link(node.servers, "raw", inbox=subjects.inbox(name), patience=60)
    running = asyncio.create_task(link.run())
    try:
        await asyncio.wait_for(link.wait_until_up(), 60)
        yield link
    finally:
        running.cancel()
        await asyncio.wait([running])


async def lease(link: Link, host: str, watcher: Watcher, **asked: Any) -> dict[str, Any]:
    reply = await link.request(subjects.watch(host, "puma", watcher), msgpack.packb({"stream": 0, **asked}), 60)
    unpacked: dict[str, Any] = msgpack.unpackb(reply)
    return unpacked


def running_node(folder: Path) -> Iterator[Node]:
    """Run a server, for a fixture."""
    node = Node(folder)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(node.start())
    loop.close()
    yield node
    node.kill()
