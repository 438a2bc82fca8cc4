"""Deadlines for clients: they expire neither by a pause of the server nor by steps of the system clock."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.bridge.test_fanout import StalledClient, stall, stalled
from tests.bridge.test_outbox import KIB, MIB, Line, chunk, line
from tests.conftest import Serve, ask, receive, until
from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge
from tornado_rbkit.bridge.session import Session
from tornado_rbkit.deadline import Deadline

__all__ = ["line", "stall"]  # fixtures


class Clock:
    """The monotonic clock and the system clock, which a test sets forward.

    Setting it forward by much between two turns of the loop is what a stopped process sees when it continues. They
    run by themselves too, but not while `run` sets them forward, nor while this process is stopped or starved.
    """

    STEP = 0.05

    def __init__(self) -> None:
        self._real = time.monotonic
        self._lock = threading.Lock()
        self._seen = self._now = self._real()
        self._since_epoch = time.time() - self._now
        self._is_set_forward = False

    def monotonic(self) -> float:
        with self._lock:
            real = self._real()
            if not self._is_set_forward:
                self._now += min(real - self._seen, self.STEP)
            self._seen = real
            return self._now

    def system(self) -> float:
        return self.monotonic() + self._since_epoch

    def pause(self, seconds: float) -> None:
        """Let time pass in which the loop does not run."""
        with self._lock:
            self._now += seconds

    async def run(self, seconds: float) -> None:
        """Let time pass in which the loop runs."""
        self._is_set_forward = True
        for _ in range(int(seconds / self.STEP)):
            self.pause(self.STEP)
            for _ in range(5):
                await asyncio.sleep(0)
        self._is_set_forward = False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)  # asyncio's clock
    monkeypatch.setattr(time, "time", clock.system)  # Tornado's
    return clock


class Calls:
    """A deadline, and the number of times it has called back."""

    def __init__(self, seconds: float = 10) -> None:
        self.count = 0
        self.deadline = Deadline(seconds, self._note)

    def _note(self) -> None:
        self.count += 1


class TestDeadline:
    async def test_calls_back_once_when_the_time_has_passed(self, clock: Clock) -> None:
        calls = Calls()
        await clock.run(9.8)
        assert calls.count == 0
        await clock.run(0.5)
        assert calls.count == 1
        await clock.run(30)
        assert calls.count == 1

    @pytest.mark.parametrize("before", [0.0, 5.0, 9.85])
    async def test_starts_over_after_a_pause_that_it_did_not_see(self, clock: Clock, before: float) -> None:
        calls = Calls()
        await clock.run(before)
        clock.pause(60)
        await clock.run(9.7)
        assert calls.count == 0
        await clock.run(0.6)
        assert calls.count == 1

    async def test_starts_over_after_each_of_nine_pauses(self, clock: Clock) -> None:
        calls = Calls()
        for _ in range(9):
            clock.pause(60)
            await clock.run(0.05)
        await clock.run(9.6)
        assert calls.count == 0
        await clock.run(0.6)
        assert calls.count == 1

    async def test_never_calls_back_after_it_was_cancelled(self, clock: Clock) -> None:
        waiting, grace, paused = (Calls() for _ in range(3))
        waiting.deadline.cancel()
        await clock.run(9.95)
        grace.deadline.cancel()
        clock.pause(60)
        await clock.run(1)
        for _ in range(2):
            paused.deadline.cancel()
        await clock.run(30)
        assert (waiting.count, grace.count, paused.count) == (0, 0, 0)

    async def test_is_over_although_each_turn_of_the_loop_is_long(self, clock: Clock) -> None:
        calls = Calls(2)
        for _ in range(1000):
            clock.pause(0.3)
            await asyncio.sleep(0)
        assert calls.count == 1

    async def test_of_no_seconds_is_due_at_once(self) -> None:
        called = asyncio.Event()
        Deadline(0, called.set)
        await asyncio.wait_for(called.wait(), 60)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 30)), max_size=30))
@example([(False, 9.95), (True, 0.3)])  # a pause that ends just in time
def test_the_loop_has_run_for_a_while_before_any_deadline_is_over(stretches: list[tuple[bool, float]]) -> None:
    """Time passes in stretches, in which the loop runs or not."""
    loop = ManualLoop()
    called_at: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: loop)
        Deadline(10, lambda: called_at.append(loop.now))
    paused_until = 0.0
    pauses = 0
    for runs, seconds in stretches:
        if called_at or pauses == 9:  # a loop that is late more often is slow
            break
        if runs:
            loop.run(seconds)
        else:
            loop.now += seconds
            if seconds > 0.2:
                paused_until = loop.now
                pauses += 1
            loop.fire()
    if called_at:
        assert called_at[0] >= 10 - 1e-6
        assert called_at[0] - paused_until >= 0.1 - 1e-6, "it judged before the loop had read"
    else:
        loop.run(10.3)
        assert called_at


class ManualLoop:
    """An event loop's clock and timers."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> object:
        self._timers.append((when, callback))
        return object()

    def fire(self) -> None:
        due = [timer for timer in self._timers if timer[0] <= self.now]
        self._timers = [timer for timer in self._timers if timer[0] > self.now]
        for _, callback in due:
            callback()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._timers and min(self._timers, key=lambda timer: timer[0])[0] <= end:
            self.now = max(self.now, min(when for when, _ in self._timers))
            self.fire()
        self.now = end


class TestSlowClient:
    async def test_that_is_always_behind_and_reads_is_never_stalled(self, clock: Clock, line: Line) -> None:
        near = line.outbox(stall_timeout=5)
        for number in range(200):
            while near.outbox.data_bytes < 4 * MIB:
                near.outbox.send_data([chunk(number, 100 * KIB)])
            await line.client.read()
            await clock.run(0.1)
        assert near.outbox.data_bytes > 0
        assert near.stalled == 0

    async def test_that_reads_slowly_makes_progress_and_is_not_stalled(self, clock: Clock, line: Line) -> None:
        near = line.outbox(stall_timeout=5)
        near.outbox.send_data([chunk(number, 100 * KIB) for number in range(30)])
        for _ in range(20):
            await line.client.read(32 * KIB)
            await clock.run(1)
            assert near.outbox.blocked
        assert near.stalled == 0, "it took some of the data all the time"

    async def test_is_not_taken_for_stalled_because_the_server_was_paused(self, clock: Clock, line: Line) -> None:
        near = line.outbox(stall_timeout=5)
        near.outbox.send_data([chunk(0, 4 * MIB)])
        assert near.outbox.blocked
        await clock.run(4)
        line.far.socket.recv(64 * KIB)  # the client reads on, and the server would have written on
        clock.pause(20)
        await clock.run(4.5)
        assert near.stalled == 0
        assert line.near.socket is not None

    async def test_that_takes_nothing_is_stalled_all_the_same(self, clock: Clock, line: Line) -> None:
        near = line.outbox(stall_timeout=5)
        near.outbox.send_data([chunk(0, 4 * MIB)])
        await clock.run(4)
        clock.pause(20)
        await clock.run(4.5)
        assert near.stalled == 0
        await clock.run(2)
        assert near.stalled == 1

    async def test_is_stalled_although_the_system_clock_goes_back(
        self, clock: Clock, line: Line, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        near = line.outbox(stall_timeout=5)
        near.outbox.send_data([chunk(0, 4 * MIB)])
        await clock.run(1)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() - 3600)
        await clock.run(6)
        assert near.stalled == 1

    async def test_is_not_stalled_because_the_system_clock_goes_forward(
        self, clock: Clock, line: Line, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        near = line.outbox(stall_timeout=5)
        near.outbox.send_data([chunk(0, 4 * MIB)])
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 3600)
        await clock.run(4)
        assert near.stalled == 0


class TestPong:
    async def test_that_came_while_the_server_was_paused_counts(
        self, serve: Serve, rbkit: FakeRbkit, stall: list[StalledClient], clock: Clock
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=False, ping_interval=10, ping_timeout=5))
        client = await stalled(server, stall)
        await until(lambda: server.bridge.stats()["handshake"], "the bridge is connected")
        for _ in range(3):
            ping = asyncio.ensure_future(client.read_frame())
            while not ping.done():
                await clock.run(0.5)
            assert ping.result() == (0x89, b"")
            client.socket.send(b"\x8a\x80\0\0\0\0")
            clock.pause(60)
            await clock.run(1)
            assert len(server.bridge.stats()["clients"]) == 1

    async def test_that_does_not_come_closes_the_client(
        self, serve: Serve, rbkit: FakeRbkit, stall: list[StalledClient], clock: Clock
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=False, ping_interval=10, ping_timeout=5))
        client = await stalled(server, stall)
        await until(lambda: server.bridge.stats()["handshake"], "the bridge is connected")
        await clock.run(10.5)
        assert await client.read_frame() == (0x89, b"")
        clock.pause(60)
        await clock.run(4)
        assert len(server.bridge.stats()["clients"]) == 1, "the server was away, not the client"
        await clock.run(2)
        first, payload = await client.read_frame()
        assert (first, payload[2:]) == (0x88, b"no pong within 5 s (ping_timeout)")


async def test_a_profiler_that_answered_while_the_server_was_paused_is_there(
    serve: Serve, rbkit: FakeRbkit, clock: Clock
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=False, connect_timeout=3))
    connection = await server.connect()
    clock.pause(60)
    await connection.write_message("trigger_gc")
    assert await asyncio.wait_for(connection.read_message(), 60) == b"0ok"


async def test_a_bridge_that_was_paused_while_it_closed_cuts_no_client_off_and_stops_the_profiling(
    serve: Serve, rbkit: FakeRbkit, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    aborted: list[Session] = []
    monkeypatch.setattr(Session, "abort", aborted.append)
    server = await serve(Bridge(**rbkit.endpoints, threaded=False))
    connection = await server.connected()
    assert await ask(connection, "start_cpu_profiling") == b"0ok"
    rbkit.answering.clear()
    closing = asyncio.create_task(server.bridge.close())
    await asyncio.sleep(0)
    clock.pause(60)
    await until(lambda: rbkit.received[-1] == b"stop_cpu_profiling", "the command is under way")
    clock.pause(60)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not closing.done()
    rbkit.answering.set()
    await closing
    assert server.bridge.stats()["last_commands"][-1]["outcome"] == "ok"
    assert aborted == []


class TestCommand:
    async def test_whose_reply_came_while_the_server_was_paused_is_answered(
        self, serve: Serve, rbkit: FakeRbkit, clock: Clock
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=False))
        connection = await server.connect()
        assert await ask(connection, "trigger_gc") == b"0ok"
        rbkit.answering.clear()
        await connection.write_message("trigger_gc")
        await until(lambda: server.bridge.stats()["commands_waiting"], "the command is under way")
        clock.pause(60)
        for _ in range(20):
            await asyncio.sleep(0)
        rbkit.answering.set()  # as the reply was there, for ZMQ's thread to read, which was paused as well
        assert await receive(connection) == b"0ok"

    async def test_that_is_not_answered_times_out_all_the_same(
        self, serve: Serve, rbkit: FakeRbkit, clock: Clock
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=False))
        connection = await server.connect()
        assert await ask(connection, "trigger_gc") == b"0ok"
        rbkit.answering.clear()
        await connection.write_message("trigger_gc")
        reply = asyncio.ensure_future(receive(connection, 1000))  # by the clock that is set forward
        await until(lambda: server.bridge.stats()["commands_waiting"], "the command is under way")
        clock.pause(60)
        await clock.run(4)
        assert not reply.done(), "the server was away, not the profiler"
        while not reply.done():
            await clock.run(0.5)
        text = reply.result()
        assert isinstance(text, bytes)
        assert text.startswith(b"0error:timeout ")

    async def test_that_authorize_allows_during_a_pause_is_allowed(
        self, serve: Serve, rbkit: FakeRbkit, clock: Clock
    ) -> None:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def authorize(handler: object, command: str) -> bool:
            return command == "handshake" or await answer

        server = await serve(Bridge(**rbkit.endpoints, threaded=False), authorize=authorize)
        connection = await server.connected()
        await connection.write_message("trigger_gc")
        await until(lambda: server.bridge.stats()["clients"][0]["commands_waiting"], "`authorize` is asked")
        clock.pause(60)
        for _ in range(20):
            await asyncio.sleep(0)
        answer.set_result(True)
        assert await receive(connection) == b"0ok"
