"""A connection that cannot be opened: each client gets the reason, and the next client tries again."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from tornado.iostream import IOStream

from tests.conftest import Serve, ask, closing, until
from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Access, Bridge, BridgeFullError, IOLoopThread
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.frames import Encoding
from tornado_rbkit.upstream.monitored_socket import MonitoredSocket
from tornado_rbkit.upstream.sockets import ProfilerSockets

FAILURES = [
    (zmq.ZMQError(errno.EMFILE), "Too many open files"),
    (OSError(24, "too few"), "[Errno 24] too few"),
    (TypeError("an int is wanted"), "TypeError('an int is wanted')"),
    (OverflowError(), "OverflowError()"),
]


class Broken:
    """Makes the first attempts to open a connection fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: list[Exception] = []
        monkeypatch.setattr("tornado_rbkit.upstream.sockets.require_descriptors", self._open)

    def _open(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    return Broken(monkeypatch)


@pytest.mark.parametrize(("error", "reason"), FAILURES)
async def test_whatever_it_is_reaches_the_client_and_the_log_and_the_next_one_tries_again(
    serve: Serve,
    rbkit: FakeRbkit,
    threaded: bool,
    broken: Broken,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
) -> None:
    broken.errors = [error]
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    assert await closing(await server.connect()) == (1013, f"cannot connect to the rbkit server: {reason}")
    assert f"cannot connect to the rbkit server at {rbkit.req}: {reason}" in caplog.text
    assert server.bridge.state is State.IDLE
    assert await ask(await server.connected(), "trigger_gc") == b"0ok"


async def test_of_the_second_socket_leaves_nothing_of_the_first(
    serve: Serve, rbkit: FakeRbkit, threaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = MonitoredSocket.__init__

    def fail(self: MonitoredSocket, context: Any, kind: int, *arguments: Any) -> None:
        if kind == zmq.REQ:
            raise MemoryError("none is left")
        make(self, context, kind, *arguments)

    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    with monkeypatch.context() as patch:
        patch.setattr(MonitoredSocket, "__init__", fail)
        _, reason = await closing(await server.connect())
    assert reason == "cannot connect to the rbkit server: MemoryError('none is left')"
    assert await ask(await server.connected(), "trigger_gc") == b"0ok"


class Seat:
    """A client of a bridge without a WebSocket."""

    def __init__(self, bridge: Bridge, seats: list[Seat]) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.closed: list[tuple[int, str]] = []
        self.stream = IOStream(near)
        seats.append(self)
        handler: Any = SimpleNamespace(request=SimpleNamespace(remote_ip="127.0.0.1"))
        self.session = bridge.join(handler, self._close, self.stream, Encoding(), Access())

    def _close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))

    def leave(self, bridge: Bridge) -> None:
        bridge.leave(self.session)
        self.stream.close()
        self.far.close()


@pytest.fixture
def seats() -> Iterator[list[Seat]]:
    made: list[Seat] = []
    yield made
    for seat in made:
        seat.stream.close()
        seat.far.close()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("failures", [1, 2])
async def test_who_joins_in_any_turn_of_it_is_told_of_its_own_connection_only(
    rbkit: FakeRbkit, threaded: bool, broken: Broken, seats: list[Seat], turns: int, failures: int
) -> None:
    broken.errors = [RuntimeError(f"failure {number}") for number in range(failures)]
    bridge = Bridge(**rbkit.endpoints, threaded=threaded, connect_timeout=20)
    failed = asyncio.Event()
    on_failure = bridge.on_failure

    def note(reason: str) -> None:
        on_failure(reason)
        if not failed.is_set() and turns == 0:
            Seat(bridge, seats)
        failed.set()

    bridge.on_failure = note  # type: ignore[method-assign]
    Seat(bridge, seats)
    await failed.wait()
    for _ in range(turns - 1):
        await asyncio.sleep(0)
    if turns:
        Seat(bridge, seats)
    first, second = seats
    assert first.closed == [(1013, "cannot connect to the rbkit server: failure 0")]
    if failures == 2:
        await until(lambda: second.closed, "the second is told")
        assert second.closed == [(1013, "cannot connect to the rbkit server: failure 1")]
    else:
        await until(lambda: bridge.state is State.CONNECTED, "the second has its connection")
        assert second.closed == []
    for seat in seats:
        seat.leave(bridge)
    await bridge.close()


async def test_that_is_known_at_once_refuses_the_client_and_leaves_the_others_alone(
    rbkit: FakeRbkit, seats: list[Seat]
) -> None:
    thread = IOLoopThread()
    bridge = Bridge(**rbkit.endpoints, threaded=thread)
    with pytest.raises(
        BridgeFullError, match="cannot connect to the rbkit server: the thread rbkit-io is not running"
    ):
        Seat(bridge, seats)
    thread.start()
    Seat(bridge, seats)
    await until(lambda: bridge.state is State.CONNECTED, "it is connected")
    assert [seat.closed for seat in seats] == [[], []]
    seats[1].leave(bridge)
    await bridge.close()
    thread.stop()


async def test_at_new_endpoints_closes_the_clients_with_the_reason(
    rbkit: FakeRbkit, threaded: bool, broken: Broken, seats: list[Seat]
) -> None:
    bridge = Bridge(**rbkit.endpoints, threaded=threaded)
    Seat(bridge, seats)
    await until(lambda: bridge.state is State.CONNECTED, "it is connected")
    broken.errors = [ValueError("odd")]
    bridge.retarget(rbkit.pub, rbkit.req)
    await until(lambda: seats[0].closed, "the client is told")
    assert seats[0].closed == [(1013, "cannot connect to the rbkit server: ValueError('odd')")]
    seats[0].leave(bridge)
    await bridge.close()


@pytest.mark.logs_errors
@pytest.mark.parametrize("step", ["stop", "close"])
async def test_while_it_is_closed_does_not_keep_close_waiting(
    serve: Serve, rbkit: FakeRbkit, threaded: bool, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    do = getattr(ProfilerSockets, step)

    def do_and_fail(sockets: ProfilerSockets) -> None:
        do(sockets)
        raise OSError("broken")

    monkeypatch.setattr(ProfilerSockets, step, do_and_fail)
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    await ask(await server.connected(), "trigger_gc")
    await asyncio.wait_for(server.close(), 60)
    server.bridge = Bridge()
