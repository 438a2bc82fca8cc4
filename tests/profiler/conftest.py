"""A profiler in this process, and a client that talks to it as any rbkit client would."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgpack
import pytest
import zmq

from tornado_rbkit import profiler
from tornado_rbkit.profiler import batcher, heap, memory, threads
from tornado_rbkit.protocol import Event, EventCollection, decode

_E = TypeVar("_E")
_T = TypeVar("_T")

collect_ignore = [
    *([] if sys.version_info >= (3, 14) else ["test_remote_exec.py"]),
    *([] if sys.version_info >= (3, 11) else ["test_variables.py"]),  # the collector visits the variables there
]

PATIENCE = 240.0
"""Seconds until a test fails that waits for something."""


def wait_until(condition: Callable[[], _T], what: str) -> _T:
    """Wait until a condition is true, and return its value; fail with the expected state `what`."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.005)
    return found


class Client:
    """A REQ and a SUB socket. `messages` has what was published so far, as bytes."""

    def __init__(self, pub: str, req: str, *, hwm: int = 0) -> None:
        self.messages: list[bytes] = []
        self._context: zmq.Context[Any] = zmq.Context()
        self.req: zmq.Socket[bytes] = self._context.socket(zmq.REQ)
        self.sub: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        self.req.linger = self.sub.linger = 0
        self.sub.rcvhwm = hwm
        self.sub.subscribe(b"")
        monitor = self.sub.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.sub.connect(pub)
        connected = monitor.poll(int(PATIENCE * 1000))
        self.sub.disable_monitor()
        monitor.close(0)
        assert connected, f"nothing publishes at {pub}"
        self.req.connect(req)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.req.close(0)
        self.sub.close(0)
        self._context.term()

    def ask(self, *parts: bytes) -> bytes:
        """Send a request and return the reply."""
        self.req.send_multipart(parts)
        return self.reply(*parts)

    def reply(self, *parts: object) -> bytes:
        """Return the reply to the request that was sent."""
        assert self.req.poll(int(PATIENCE * 1000)), f"no answer to {parts}"
        return self.req.recv()

    def next(self) -> EventCollection:
        """Return the next published message."""
        assert self.sub.poll(int(PATIENCE * 1000)), "nothing was published"
        self.messages.append(self.sub.recv())
        message = decode(self.messages[-1])
        assert isinstance(message, EventCollection)
        return message

    def waiting(self) -> Iterator[EventCollection]:
        """Give what has arrived, without waiting for more."""
        while self.sub.poll(0):
            yield self.next()

    def events(self, kind: type[_E], enough: Callable[[list[_E]], object]) -> list[_E]:
        """Collect the events of one kind until there are enough of them."""
        found: list[_E] = []
        deadline = time.monotonic() + PATIENCE
        while not enough(found):
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {len(found)} of {kind.__name__}"
            found.extend(event for event in self.next().events if isinstance(event, kind))
        return found


def internal_thread_names() -> set[str]:
    """Return the names of the profiler's running threads."""
    return {thread.name for thread in list(threads._running.values())}


def raw_events(message: bytes, kind: int) -> list[dict[int, Any]]:
    """Return the events of one type in a published message, as MessagePack has them."""
    collection = msgpack.unpackb(message, strict_map_key=False)
    return [event for event in collection[2] if event[0] == kind]


def shape(value: Any) -> Any:
    """Return what a value is made of: keys in their order, and types; a list's first element stands for all."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.fixture(autouse=True)
def runtime(runtime_folder: Path) -> Path:
    return runtime_folder


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take what pytest and the tests hold out of the collector's lists, and so out of snapshots and comparisons."""
    monkeypatch.setattr(heap, "get_freeze_count", lambda: 0)  # a snapshot does not look for frozen objects
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def server(frozen: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[profiler.Server]:
    """A server on free ports that compares and publishes ten times a second; nothing of it may be left afterwards.

    It samples inside the process.
    """
    monkeypatch.setattr(memory, "TICK_SECONDS", 0.1)
    monkeypatch.setattr(batcher, "BATCH_SECONDS", 0.1)
    running = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "test", cpu_engine="in-process")
    yield running
    profiler.stop_server()
    assert internal_thread_names() == set(), "threads that the profiler left behind"


@pytest.fixture
def client(server: profiler.Server) -> Iterator[Client]:
    with Client(server.pub, server.req) as connected:
        yield connected


__all__ = ["Client", "Event", "raw_events", "shape"]
