"""A bridge against a model of it: clients join, leave, pause and ask while the profiler publishes, hangs and restarts.

The model knows from outside what each client must have been sent at the end. It looks at nothing of the bridge but the
wire and the status.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgpack
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from tests.conftest import until
from tests.fake_rbkit import FakeRbkit, collection, free_port
from tests.faults.strict import StrictClient
from tests.patient import patient
from tornado_rbkit import Bridge, rbkit_routes

T = TypeVar("T")

COMMANDS = ["trigger_gc", "handshake", "use_cpu_time", "nonsense", "", "handshake\0junk"]
MARKER = b"marker"
NOTICES = (b"client_count:", b"dropped:", b"server:")
SIZES = strategies.sampled_from([0, 100, 5_000, 64_000, 70_000, 262_000, 600_000])
_CLIENTS = 5


class Viewer:
    """One client, what it should be sent, and what it was."""

    def __init__(self, connection: StrictClient, escaped: bool) -> None:
        self.connection = connection
        self.escaped = escaped
        self.due: list[bytes] = []
        self.received: list[bytes] = []
        self.asked: list[str] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            await self.reading.wait()
            message = await self.connection.read_data()
            if message is None:
                return
            if not message.startswith(MARKER):
                self.received.append(message)

    def check(self) -> None:
        """Raise what was wrong with a frame."""
        if self.task.done():
            self.task.result()

    @property
    def replies(self) -> list[bytes]:
        replies = [reply for reply in self.connection.replies if not reply.startswith(NOTICES)]
        return [unquote_to_bytes(reply) if self.escaped else reply for reply in replies]

    @property
    def dropped(self) -> int:
        """How many messages it was told to have lost."""
        notices = [reply for reply in self.connection.replies if reply.startswith(b"dropped:")]
        return sum(int(notice.partition(b":")[2]) for notice in notices)

    @property
    def profiler_states(self) -> list[bytes]:
        notices = [reply for reply in self.connection.replies if reply.startswith(b"server:")]
        return [notice.partition(b":")[2] for notice in notices]


class BridgeMachine(RuleBasedStateMachine):
    """Every rule leaves the bridge and the model in agreement, and `teardown` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.threads = set(threading.enumerate())
        self.viewers: list[Viewer] = []
        self.published = 0

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    @initialize(
        threaded=strategies.booleans(),
        max_backlog_bytes=strategies.sampled_from([64 << 20, 300_000]),
        compression_level=strategies.sampled_from([0, 1]),
    )
    def start(self, **options: Any) -> None:
        self.run(self._start(options))

    async def _start(self, options: dict[str, Any]) -> None:
        self.compresses = bool(options["compression_level"])
        self._new_profiler()
        timeouts = {"trigger_gc": 0.2, "handshake": 0.2, "use_cpu_time": 0.2}
        self.bridge = patient(
            Bridge(self.rbkit.pub, self.rbkit.req, command_timeouts=timeouts, idle_grace=0.05, **options)
        )
        self.server = HTTPServer(Application(rbkit_routes(self.bridge)))
        [sock] = bind_sockets(0, "127.0.0.1")
        self.server.add_socket(sock)
        self.port = sock.getsockname()[1]

    def _new_profiler(self) -> None:
        ports = free_port(), free_port()
        self.rbkit = FakeRbkit(*(f"tcp://127.0.0.1:{port}" for port in ports))
        self.rbkit.__enter__()

    @precondition(lambda self: len(self.viewers) < _CLIENTS)
    @rule(escaped=strategies.booleans(), deflate=strategies.booleans(), small=strategies.booleans())
    def join(self, escaped: bool, deflate: bool, small: bool) -> None:
        self.run(self._join(escaped, deflate and self.compresses, 4096 if small else None))

    async def _join(self, escaped: bool, deflate: bool, receive_buffer: int | None) -> None:
        if self.viewers:
            await self._until_received()  # who joins may get what is on its way to the bridge, and need not
        connection = StrictClient(self.port, escaped=escaped, deflate=deflate, receive_buffer=receive_buffer)
        await connection.__aenter__()
        self.viewers.append(Viewer(connection, escaped))
        if len(self.viewers) == 1:
            await self._until_subscribed()

    @precondition(lambda self: self.viewers)
    @rule(at=strategies.integers(0, _CLIENTS - 1))
    def leave(self, at: int) -> None:
        self.run(self._leave(self.viewers[at % len(self.viewers)]))

    async def _leave(self, viewer: Viewer) -> None:
        if len(self.viewers) == 1:
            await self._until_received()  # else the next to join may get it, or not
        self.viewers.remove(viewer)
        viewer.check()
        viewer.task.cancel()
        await asyncio.wait([viewer.task])
        await viewer.connection.__aexit__()
        await until(lambda: len(self.bridge.stats()["clients"]) == len(self.viewers), "the bridge has noticed")

    @precondition(lambda self: self.viewers)
    @rule(at=strategies.integers(0, _CLIENTS - 1))
    def pause(self, at: int) -> None:
        self.viewers[at % len(self.viewers)].reading.clear()

    @precondition(lambda self: self.viewers)
    @rule(at=strategies.integers(0, _CLIENTS - 1))
    def resume(self, at: int) -> None:
        self.viewers[at % len(self.viewers)].reading.set()

    @precondition(lambda self: self.viewers)
    @rule(
        at=strategies.integers(0, _CLIENTS - 1), command=strategies.sampled_from(COMMANDS), ping=strategies.booleans()
    )
    def ask(self, at: int, command: str, ping: bool) -> None:
        viewer = self.viewers[at % len(self.viewers)]
        if len(viewer.asked) - len(viewer.replies) >= 30:
            return
        viewer.asked.append(command)
        viewer.connection.send(command.encode())
        if ping:
            viewer.connection.ping()

    @precondition(lambda self: self.viewers)
    @rule(sizes=strategies.lists(SIZES, min_size=1, max_size=40), turns=strategies.integers(0, 3))
    def publish(self, sizes: list[int], turns: int) -> None:
        for size in sizes:
            body = b"x" * (size // 2) + self.published.to_bytes(4, "big") * (size // 8)
            message = collection(self.rbkit.counter, [{0: 0, 1: 1.0, 2: {3: self.published, 4: body}}])
            self.rbkit.counter += 1
            self.published += 1
            self.rbkit.publish(message)
            for viewer in self.viewers:
                viewer.due.append(message)
        for _ in range(turns):
            self.run(asyncio.sleep(0))

    @precondition(lambda self: self.viewers)
    @rule()
    def hang(self) -> None:
        self.rbkit.answering.clear()

    @rule()
    def go_on(self) -> None:
        self.rbkit.answering.set()

    @rule()
    def wait(self) -> None:
        self.run(asyncio.sleep(0.02))

    @precondition(lambda self: self.viewers)
    @rule()
    def restart(self) -> None:
        self.run(self._restart())

    async def _restart(self) -> None:
        await self._until_received()
        before = self.bridge.stats()["disconnects"]
        pub, req = self.rbkit.pub, self.rbkit.req
        self.rbkit.stop()
        await until(lambda: self.bridge.stats()["disconnects"] > before, "the loss is noticed")
        self.rbkit = FakeRbkit(pub, req)
        self.rbkit.__enter__()
        await self._until_subscribed()

    @precondition(lambda self: self.viewers)
    @rule()
    def retarget(self) -> None:
        self.run(self._retarget())

    async def _retarget(self) -> None:
        await self._until_received()
        old = self.rbkit
        self._new_profiler()
        self.bridge.retarget(self.rbkit.pub, self.rbkit.req)
        await self._until_subscribed()
        old.stop()

    async def _until_subscribed(self) -> None:
        """Wait until the profiler has the subscription: what it publishes before is lost, and nobody can know it.

        A bridge that is connected has sent it. Markers of 64, 128, ... bytes tell by `bytes_in` which has come.
        """
        await until(lambda: self.bridge.state.value == "connected", "the bridge is connected")
        before = self.bridge.stats()["bytes_in"]
        for exponent in range(6, 20):
            marker = MARKER.ljust(1 << exponent)
            self.rbkit.publish(marker)

            def has_come(bit: int = 1 << exponent) -> bool:
                return bool(self.bridge.stats()["bytes_in"] - before & bit)

            deadline = self.loop.time() + 0.5
            while not has_come() and self.loop.time() < deadline:
                await asyncio.sleep(0.002)
            if has_come():
                break
        self.before = self.bridge.stats()["messages_in"] - self.published

    async def _until_received(self) -> None:
        """Wait until nothing published is on its way to the bridge."""
        self.rbkit.answering.set()
        await until(
            lambda: self.bridge.stats()["messages_in"] - self.before == self.published,
            "all that was published is received",
        )

    def teardown(self) -> None:
        try:
            self.run(self._end())
            self.run(self.loop.shutdown_asyncgens())
        finally:
            self.rbkit.stop()
            self.loop.close()
        assert {thread for thread in set(threading.enumerate()) - self.threads if thread.is_alive()} == set()

    async def _end(self) -> None:
        self.rbkit.answering.set()
        for viewer in self.viewers:
            viewer.reading.set()
        try:
            for number, viewer in enumerate(self.viewers):
                await self._settle(number, viewer)
        finally:
            await self.bridge.close()
            await asyncio.wait([viewer.task for viewer in self.viewers], timeout=60) if self.viewers else None
            for viewer in self.viewers:
                await viewer.connection.__aexit__()
            self.server.stop()
            await self.server.close_all_connections()
        for viewer in self.viewers:
            assert viewer.connection.closed is not None
            assert viewer.connection.closed[:2] == (1001).to_bytes(2, "big")

    async def _settle(self, number: int, viewer: Viewer) -> None:
        def dropped() -> int:
            """Return what the client was told of; by the status in the escaped encoding, which has no such notice."""
            status = self.bridge.stats()["clients"][number]
            return int(status["messages_dropped"]) if viewer.escaped else viewer.dropped

        def settled() -> bool:
            viewer.check()
            has_all = len(viewer.received) + dropped() == len(viewer.due)
            return has_all and len(viewer.replies) == len(viewer.asked)

        try:
            await until(settled, "in silence everything has come")
        finally:
            print(
                f"client {number}: {len(viewer.received)} received + {dropped()} dropped of {len(viewer.due)},"
                f" {len(viewer.replies)} replies to {len(viewer.asked)} commands"
            )
        if not dropped():
            assert viewer.received == viewer.due
        remaining = iter(viewer.due)
        assert all(message in remaining for message in viewer.received), "out of order, or never published"
        for command, reply in zip(viewer.asked, viewer.replies, strict=True):
            assert fits(command, reply), (command, reply)
        if viewer.profiler_states:
            assert viewer.profiler_states[-1] in (b"connected", b"restarted")


def fits(command: str, reply: bytes) -> bool:
    """Return whether a reply can be that to a command."""
    if command == "nonsense":
        return reply.startswith(b"error:unknown-command ")
    if not command or "\0" in command:
        return reply.startswith(b"error:invalid-command ")
    if reply.startswith((b"error:timeout ", b"error:unavailable ", b"error:busy ")):
        return True
    if command == "handshake":
        return bool(msgpack.unpackb(reply, strict_map_key=False)[0] == 8)
    return reply == b"ok"


TestBridge = BridgeMachine.TestCase
TestBridge.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
)
