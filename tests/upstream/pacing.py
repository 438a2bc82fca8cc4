"""A `Subscriber` with a fake loop, a fake source and a fake clock, and functions that bring it into each phase."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import msgpack
import pytest
from tornado.ioloop import IOLoop

from tests.test_frames import messages_of, wire
from tornado_rbkit import frames
from tornado_rbkit.frames import Buffer, Chunk, Encoding
from tornado_rbkit.upstream import encoder, subscriber
from tornado_rbkit.upstream.subscriber import Phase, Subscriber
from tornado_rbkit.upstream.types import Batch

BINARY, ESCAPED = Encoding(), Encoding(escaped=True)
COMPRESSED, ESCAPED_COMPRESSED = Encoding(deflate=True), Encoding(escaped=True, deflate=True)
FLUSH_INTERVAL = 0.005


class FakeLoop:
    """A clock, and the timers of an IOLoop; using its wall clock is an AttributeError.

    Attributes:
        now: what the clock shows.
        step: seconds by which each look at the clock moves it, as if the work in between took as long.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.step = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        self.now += self.step
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> object:
        assert seconds >= 0
        self.timers.append((self.now + seconds, callback))
        return self.timers[-1]

    def remove_timeout(self, timer: Any) -> None:
        self.timers.remove(timer)

    def run_timer(self) -> float:
        """Run the one timer there is, and return how long that was awaited.

        As with Tornado, a timer may come some microseconds early: its clock is read twice to set it.
        """
        ((at, callback),) = self.timers
        self.timers.clear()
        waited, self.now = at - self.now, max(at - 1e-5, self.now)
        callback()
        return waited


class FakeSource:
    """Messages that are ready, behind a signal that like a ZMQ socket's tells of arrivals since the last look only."""

    def __init__(self) -> None:
        self.ready: deque[bytes] = deque()
        self.signalled = False
        self.emptied = True
        self.on_ready: Callable[[], None] | None = None
        self.on_taken: Callable[[list[bytes]], None] = lambda payloads: None

    def arrive(self, *payloads: bytes) -> None:
        self.ready += payloads
        self.signalled = True

    def take(self, max_bytes: int, max_messages: int) -> tuple[list[Buffer], bool]:
        self.signalled = False
        payloads: list[bytes] = []
        while max_bytes > 0 and len(payloads) < max_messages:
            if not self.ready:
                break
            payloads.append(self.ready.popleft())
            max_bytes -= len(payloads[-1])
        self.emptied = max_bytes > 0 and len(payloads) < max_messages
        self.on_taken(payloads)
        return list(payloads), self.emptied

    def watch(self, on_ready: Callable[[], None]) -> None:
        assert self.on_ready is None
        self.on_ready = on_ready

    def unwatch(self) -> None:
        assert self.on_ready is not None
        self.on_ready = None

    def signal(self) -> None:
        """Call the watcher, as the loop does for a readable socket."""
        if self.signalled and self.on_ready is not None:
            self.on_ready()


class Pacing:
    """A Subscriber between a fake source and a list of the batches that it handed over.

    Attributes:
        sent: all messages that have arrived.
        encodings: those of each batch, and its generation.
        delivered_at: the time of each batch.
    """

    def __init__(
        self,
        *,
        on_thread: bool = True,
        max_pending_bytes: int = 1 << 25,
        level: int = 1,
        flush_interval: float = FLUSH_INTERVAL,
        rcvhwm: int = 1000,
    ) -> None:
        self.loop = FakeLoop()
        self.source = FakeSource()
        self.batches: list[Batch] = []
        self.chunks: defaultdict[Encoding, list[Chunk]] = defaultdict(list)
        self.encodings: list[tuple[set[Encoding], int]] = []
        self.delivered_at: list[float] = []
        self.sent: list[bytes] = []
        self.on_delivered: Callable[[], None] = lambda: None
        self.subscriber = Subscriber(
            cast(IOLoop, self.loop),
            self.deliver,
            on_thread=on_thread,
            flush_interval=flush_interval,
            rcvhwm=rcvhwm,
            max_pending_bytes=max_pending_bytes,
            compression_level=level,
            clock=self.loop.clock,
        )
        self.subscriber.open(self.source)

    def deliver(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.delivered_at.append(self.loop.now)
        self.encodings.append((set(batch.chunks), batch.generation))
        for encoding, chunks in batch.chunks.items():
            self.chunks[encoding] += chunks
        self.on_delivered()

    @property
    def phase(self) -> Phase:
        return self.subscriber.phase

    def expect(self, phase: Phase) -> None:
        assert self.phase is phase

    def arrive(self, *payloads: bytes) -> None:
        """Add arrived messages, and call the watcher."""
        self.sent += payloads
        self.source.arrive(*payloads)
        self.source.signal()
        self.check()

    def acknowledge(self, seconds: float = 0.0) -> None:
        for batch in self.batches:
            if batch.delivery_time is None:
                batch.acknowledge(seconds)

    def run(self, times: int = 1) -> float:
        """Run a number of timers, and return how long the last one was awaited."""
        waited = 0.0
        for _ in range(times):
            waited = self.loop.run_timer()
            self.check()
        return waited

    def trickle(self, seconds: float, count: int) -> None:
        """Add messages at an interval, while the web loop acknowledges each batch immediately."""
        first = len(self.sent)
        started = self.loop.now
        for number in range(count):
            arrival = started + number * seconds
            while self.loop.timers and self.loop.timers[0][0] <= arrival:
                self.run()
                self.acknowledge()
            self.loop.now = max(self.loop.now, arrival)
            self.arrive(message(first + number))
            self.acknowledge()

    def settle(self) -> None:
        """Let everything happen that happens without another message, with receipts that come at once."""
        for _ in range(10_000):
            self.acknowledge()
            self.source.signal()
            self.check()
            if self.phase in (Phase.LISTENING, Phase.CLOSED):
                return
            self.run()
        pytest.fail(f"it still is {self.phase}")

    def check(self) -> None:
        """Check the invariant that the docstring of Subscriber states."""
        held = self.subscriber._unreported or self.subscriber._encoder.is_encoding
        watched = self.source.on_ready is not None
        if self.phase is Phase.LISTENING:
            assert watched
            assert not self.loop.timers
            assert not held, "something is withheld until the next message"
            assert self.source.emptied, "messages are left where no signal tells of them"
        elif self.phase is Phase.CLOSED:
            assert not watched
            assert not self.loop.timers
            assert not held
        else:
            assert not watched
            assert len(self.loop.timers) == 1, "nothing wakes it"
            if self.phase is Phase.RESTING and not held and self.source.emptied:
                rest = self.loop.timers[0][0] - self.loop.now
                assert rest <= self.subscriber.max_rest + 1e-9, "it does not look at the source for too long"

    def received(self, encoding: Encoding = BINARY) -> list[bytes]:
        """Return the messages handed over in an encoding."""
        return decoded(self.chunks[encoding], encoding)


def decoded(chunks: list[Chunk], encoding: Encoding) -> list[bytes]:
    messages = [message.data for message in messages_of(wire(chunks), encoding)]
    assert all(message.startswith(b"1") for message in messages)
    return [unquote_to_bytes(message[1:]) if encoding.escaped else message[1:] for message in messages]


def message(counter: int, size: int = 10) -> bytes:
    packed: bytes = msgpack.packb({0: 7, 1: 1.0, 9: counter, 2: random.Random(counter).randbytes(size)})
    return packed


def messages(count: int, size: int = 10, start: int = 0) -> list[bytes]:
    return [message(start + n, size) for n in range(count)]


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide the sizes of batches, slices and fragments by 256, so that little data fills them."""
    for name in ("MAX_DELIVERED", "_SLICE", "_MIN_BATCH", "_MAX_DEFLATED"):
        monkeypatch.setattr(encoder, name, getattr(encoder, name) // 256)
    for module in (encoder, subscriber):
        monkeypatch.setattr(module, "MAX_MESSAGES", 16)
    for name in ("FRAGMENT_SIZE", "JOIN_LIMIT"):
        monkeypatch.setattr(frames, name, getattr(frames, name) // 256)


def watched(*encodings: Encoding, clients: int = 1, **options: Any) -> Pacing:
    pacing = Pacing(**options)
    pacing.subscriber.set_encodings(encodings, clients, 1)
    return pacing


# How each phase is entered. `small` makes a batch of 16 messages, or of some 16 KB.


def listening(on_thread: bool = True) -> Pacing:
    return watched(BINARY, ESCAPED, on_thread=on_thread)


def resting(on_thread: bool = True) -> Pacing:
    """The first batch is written, and the rest of a burst is pending."""
    pacing = listening(on_thread)
    pacing.arrive(*messages(40))
    pacing.acknowledge()
    return pacing


def waiting(on_thread: bool = True) -> Pacing:
    """The web loop is busy with the first batch, and the rest of a burst is pending."""
    pacing = listening(on_thread)
    pacing.arrive(*messages(40))
    pacing.run()
    return pacing


def encoding_slowly(on_thread: bool = True) -> Pacing:
    """Each slice takes so long that the loop has a turn, and one batch waits for its receipt."""
    pacing = listening(on_thread)
    pacing.arrive(message(0))
    pacing.acknowledge()
    pacing.loop.step = 0.02
    pacing.arrive(message(1, 5000), *messages(40, start=2))
    return pacing


PHASES = {
    Phase.LISTENING: listening,
    Phase.RESTING: resting,
    Phase.WAITING: waiting,
    Phase.ENCODING: encoding_slowly,
}
in_each_phase = pytest.mark.parametrize("phase", list(PHASES), ids=lambda phase: phase.value)
