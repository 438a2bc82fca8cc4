"""The monitor of a connection: what its events mean, and that a lost connection is always made again."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import zmq
from tornado.ioloop import IOLoop

from tests.conftest import until
from tests.fake_rbkit import free_port
from tornado_rbkit.upstream import monitored_socket
from tornado_rbkit.upstream.monitored_socket import MonitoredSocket

UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
DOWN = zmq.EVENT_DISCONNECTED
RETRIED = zmq.EVENT_CONNECT_RETRIED
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL

Connect = Callable[..., MonitoredSocket]


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


@contextlib.contextmanager
def peer(kind: int, endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """Bind a socket in a context of its own, whose end waits until the endpoint is free again."""
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.linger = 0
        socket.bind(endpoint)
        yield socket


@pytest.fixture
async def changes() -> list[tuple[bool, int]]:
    return []


@pytest.fixture
async def connect(context: zmq.Context[zmq.Socket[bytes]], changes: list[tuple[bool, int]]) -> AsyncIterator[Connect]:
    """Return a function that connects a SUB socket, whose changes are recorded as pairs of `up` and `refusals`."""
    opened: list[MonitoredSocket] = []

    def connect(endpoint: str, *, max_message_bytes: int = 100_000) -> MonitoredSocket:
        options: dict[int, Any] = {zmq.MAXMSGSIZE: max_message_bytes, zmq.SUBSCRIBE: b""}

        def note() -> None:
            changes.append((opened[0].up, opened[0].refusals))

        opened.append(MonitoredSocket(context, zmq.SUB, endpoint, IOLoop.current(), options, note))
        return opened[-1]

    yield connect
    for one in opened:
        one.stop()
        one.close()


@pytest.mark.parametrize(
    ("events", "expected", "reconnects"),
    [
        ([], [], False),
        ([UP], [(True, 0)], False),
        ([UP, UP], [(True, 0)], False),
        ([RETRIED], [], False),
        ([UP, DOWN], [(True, 0), (False, 0)], True),
        ([UP, DOWN, DOWN], [(True, 0), (False, 0)], True),
        ([UP, DOWN, RETRIED], [(True, 0), (False, 0)], False),
        ([UP, DOWN, UP], [(True, 0), (False, 0), (True, 0)], False),
        ([REFUSED, REFUSED], [(False, 1), (False, 2)], False),
        ([REFUSED, UP], [(False, 1), (True, 1)], False),
    ],
)
async def test_events_and_what_is_reported(
    connect: Connect,
    changes: list[tuple[bool, int]],
    events: list[int],
    expected: list[tuple[bool, int]],
    reconnects: bool,
) -> None:
    socket = connect(f"tcp://127.0.0.1:{free_port()}")
    for event in events:
        socket._on_event([struct.pack("=hi", event, 0), b"tcp://127.0.0.1:1"])
    assert changes == expected
    assert (socket._reconnect_deadline is not None) == reconnects, "only libzmq itself reports that it connects again"


async def test_is_up_while_a_peer_is_there(connect: Connect, changes: list[tuple[bool, int]]) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    socket = connect(endpoint)
    for _ in range(2):
        with peer(zmq.PUB, endpoint):
            await until(lambda: socket.up, "it is connected")
        await until(lambda: not socket.up, "the loss is noticed")
    assert changes == [(True, 0), (False, 0)] * 2


async def test_a_peer_of_another_kind_is_refused_until_one_of_the_right_kind_stays(
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(monitored_socket, "_STEADY", 0.05)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with peer(zmq.REP, endpoint):
        socket = connect(endpoint)
        await until(lambda: socket.refusals > 3, "it is refused, and tried again")
        assert not socket.up
    lines = [line for line in caplog.messages if endpoint in line and not line.endswith(" times in short succession)")]
    assert len(set(lines)) == len(lines) <= 2, "each reason that libzmq gives is logged once, not each time"
    with peer(zmq.PUB, endpoint):
        await until(lambda: socket.up and not socket.refusals, "the refusals are forgotten")


async def test_is_connected_again_after_a_message_longer_than_allowed(
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(monitored_socket, "_RECONNECT", 0.05)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with peer(zmq.PUB, endpoint) as pub:
        socket = connect(endpoint, max_message_bytes=1000)
        for _ in range(2):
            await until(lambda: socket.up, "it is connected")
            while socket.up:  # the subscription may not have arrived yet
                pub.send(bytes(2000))
                await asyncio.sleep(0)
        await until(lambda: socket.up, "it is connected")
        assert socket.refusals >= 1
    assert "or sent a message longer than 1000 bytes (max_message_bytes)" in caplog.text
