"""The pacing of published messages: nothing is withheld, whatever happens in which order."""

from __future__ import annotations

import random
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import hypothesis.strategies as st
import msgpack
import pytest
import zmq
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tornado.ioloop import IOLoop
from websockets.asyncio.client import connect as websockets_connect
from websockets.typing import Subprotocol

from tests.conftest import Serve, receive, receive_data, until
from tests.fake_rbkit import FakeRbkit
from tests.test_frames import messages_of, wire
from tornado_rbkit import Bridge, frames
from tornado_rbkit.bridge.clients import Clients
from tornado_rbkit.bridge.session import Session
from tornado_rbkit.frames import Buffer, Chunk, Encoding
from tornado_rbkit.upstream import encoder, subscriber
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.upstream.losses import LossCounter
from tornado_rbkit.upstream.source import SocketSource
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
        """Call whoever watches, as the loop does for a socket that is readable."""
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

    @property
    def phase(self) -> Phase:
        return self.subscriber.phase

    def expect(self, phase: Phase) -> None:
        assert self.phase is phase

    def arrive(self, *payloads: bytes) -> None:
        """Have messages arrive, and whoever watches called."""
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
        """Have messages arrive every so many seconds, while the web loop acknowledges each batch at once."""
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


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the sizes of batches, slices and fragments a 256th of what they are, so that little data is much."""
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


def encoding(on_thread: bool = True) -> Pacing:
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
    Phase.ENCODING: encoding,
}
in_each_phase = pytest.mark.parametrize("phase", list(PHASES), ids=lambda phase: phase.value)


@in_each_phase
@pytest.mark.parametrize("on_thread", [True, False], ids=["threaded", "unthreaded"])
@pytest.mark.usefixtures("small")
class TestInEachPhase:
    def test_all_that_is_left_comes_though_the_profiler_is_silent(self, phase: Phase, on_thread: bool) -> None:
        pacing = PHASES[phase](on_thread)
        pacing.expect(phase)
        before = len(pacing.received())
        pacing.settle()
        assert pacing.received() == pacing.received(ESCAPED) == pacing.sent
        assert len(pacing.sent) > before or phase is Phase.LISTENING
        assert sum(batch.messages for batch in pacing.batches) == len(pacing.sent)
        assert [batch.pending for batch in pacing.batches[-1:]] in ([], [0])

    def test_messages_that_arrive_are_taken_without_another_signal(self, phase: Phase, on_thread: bool) -> None:
        pacing = PHASES[phase](on_thread)
        pacing.arrive(*messages(100, start=len(pacing.sent)))
        pacing.settle()
        assert pacing.received() == pacing.received(ESCAPED) == pacing.sent
        assert not any(batch.missed or batch.foreign or batch.restarted for batch in pacing.batches)

    def test_a_gap_is_reported_once(self, phase: Phase, on_thread: bool) -> None:
        pacing = PHASES[phase](on_thread)
        pacing.arrive(message(1000))
        pacing.arrive(b"not rbkit's", message(1002))
        pacing.settle()
        missed = 1000 - len(pacing.sent[:-3]) if phase is not Phase.LISTENING else 0
        assert sum(batch.missed for batch in pacing.batches) == missed + 1
        assert sum(batch.foreign for batch in pacing.batches) == 1

    def test_pending_messages_are_discarded_when_the_last_client_leaves(self, phase: Phase, on_thread: bool) -> None:
        pacing = PHASES[phase](on_thread)
        pacing.source.ready.clear()
        before = len(pacing.received())
        pacing.subscriber.set_encodings((), 0, 1)
        pacing.check()
        pacing.settle()
        assert len(pacing.received()) == before
        assert [batch.pending for batch in pacing.batches[-1:]] in ([], [0]), "the last report was never corrected"

    def test_a_loss_is_reported_though_the_last_client_leaves(self, phase: Phase, on_thread: bool) -> None:
        pacing = PHASES[phase](on_thread)
        pacing.settle()
        pacing.loop.step = 0.0
        for number in (1000, 1002):  # the second one is taken, and waits for the receipt of the first
            pacing.arrive(message(number))
            while pacing.source.ready:
                pacing.run()
        pacing.subscriber.set_encodings((), 0, 1)
        pacing.arrive(message(2000))
        pacing.settle()
        missed = 1000 - len(pacing.sent[:-3]) if phase is not Phase.LISTENING else 0
        assert sum(batch.missed for batch in pacing.batches) == missed + 1, "what is lost without clients is no loss"

    def test_a_client_that_joins_after_the_last_one_left_gets_all_that_arrives_then(
        self, phase: Phase, on_thread: bool
    ) -> None:
        pacing = PHASES[phase](on_thread)
        pacing.source.ready.clear()
        pacing.subscriber.set_encodings((), 0, 1)
        pacing.subscriber.set_encodings([COMPRESSED], 1, 2)
        sent = messages(40, start=1000)
        pacing.arrive(*sent)
        pacing.settle()
        assert pacing.received(COMPRESSED) == sent

    def test_a_client_that_joins_gets_all_that_arrives_then_in_batches_of_its_generation(
        self, phase: Phase, on_thread: bool
    ) -> None:
        pacing = PHASES[phase](on_thread)
        pacing.subscriber.set_encodings([BINARY, ESCAPED, COMPRESSED], 2, 2)
        pacing.arrive(*messages(40, start=1000))
        pacing.settle()
        assert pacing.received() == pacing.received(ESCAPED) == pacing.sent
        assert pacing.received(COMPRESSED)[-40:] == pacing.sent[-40:]
        for encodings, generation in pacing.encodings:
            assert (COMPRESSED in encodings) == (generation == 2)

    def test_the_others_get_everything_when_a_client_leaves(self, phase: Phase, on_thread: bool) -> None:
        pacing = PHASES[phase](on_thread)
        pacing.subscriber.set_encodings([BINARY], 1, 1)
        pacing.arrive(*messages(40, start=1000))
        pacing.settle()
        assert pacing.received() == pacing.sent

    def test_a_lost_connection_is_a_reason_to_look_at_the_source(self, phase: Phase, on_thread: bool) -> None:
        pacing = PHASES[phase](on_thread)
        pacing.sent.append(message(len(pacing.sent)))
        pacing.source.arrive(pacing.sent[-1])
        pacing.source.signalled = False  # as libzmq does when `connect` is called on the socket
        pacing.subscriber.reset_counter()
        pacing.check()
        pacing.settle()
        assert pacing.received() == pacing.sent
        assert not any(batch.missed or batch.restarted for batch in pacing.batches)

    def test_close_ends_all_waiting(self, phase: Phase, on_thread: bool) -> None:
        pacing = PHASES[phase](on_thread)
        before = len(pacing.batches)
        pacing.subscriber.close()
        pacing.expect(Phase.CLOSED)
        pacing.check()
        pacing.subscriber.set_encodings([BINARY], 1, 2)
        pacing.subscriber.reset_counter()
        pacing.subscriber.close()
        pacing.check()
        assert len(pacing.batches) == before


@pytest.mark.usefixtures("small")
class TestPhases:
    def test_a_signal_without_messages_changes_nothing(self) -> None:
        pacing = listening()
        pacing.arrive()
        pacing.expect(Phase.LISTENING)

    def test_a_message_after_silence_is_handed_over_at_once_and_listening_goes_on(self) -> None:
        pacing = listening()
        pacing.arrive(message(0))
        pacing.expect(Phase.LISTENING)
        assert pacing.received() == [message(0)]

    def test_a_message_soon_after_is_handed_over_before_a_rest(self) -> None:
        pacing = listening()
        pacing.arrive(message(0))
        pacing.acknowledge()
        pacing.arrive(message(1))
        pacing.expect(Phase.RESTING)
        assert pacing.received() == [message(0), message(1)]
        assert pacing.run() == pytest.approx(FLUSH_INTERVAL, abs=1e-4)
        pacing.expect(Phase.LISTENING)

    def test_messages_without_clients_are_taken_once_in_flush_interval(self) -> None:
        pacing = Pacing()
        pacing.arrive(message(0))
        pacing.expect(Phase.RESTING)
        assert not pacing.batches
        assert pacing.run() == pytest.approx(FLUSH_INTERVAL, abs=1e-4)
        pacing.expect(Phase.LISTENING)

    def test_a_full_batch_is_followed_by_a_rest_as_long_as_the_web_loop_was_busy(self) -> None:
        pacing = listening()
        pacing.arrive(*messages(100))
        pacing.acknowledge(0.03)
        pacing.run()
        assert len(pacing.batches) == 2
        for rest, work, count in ((0.03, 0.2, 3), (0.2, 0.0, 4)):
            pacing.acknowledge(work)
            pacing.expect(Phase.RESTING)
            assert pacing.run() == pytest.approx(rest, abs=1e-4)
            assert len(pacing.batches) == count

    def test_the_receipt_is_looked_for_each_millisecond_and_less_often_in_silence(self) -> None:
        pacing = waiting()
        pacing.source.ready.clear()
        waits = [pacing.run() for _ in range(200)]
        assert waits[0] == pytest.approx(0.001, abs=1e-4)
        assert waits == sorted(waits)
        assert waits[-1] == pytest.approx(0.01, abs=1e-4)
        pacing.arrive(message(1000))
        pacing.run()
        assert pacing.run() == pytest.approx(0.001, abs=1e-4), "more may come, which the socket has no room for"

    def test_without_a_receipt_a_bounded_hold_is_filled_and_the_rest_stays_with_the_source(self) -> None:
        pacing = watched(BINARY, max_pending_bytes=10_000)
        pacing.arrive(*messages(200, size=1000))
        pacing.run(500)
        held = 200 - len(pacing.source.ready) - len(pacing.received())
        assert 10 <= held <= 11
        pacing.settle()
        assert pacing.received() == pacing.sent

    def test_a_message_larger_than_the_hold_passes(self) -> None:
        pacing = watched(BINARY, ESCAPED, max_pending_bytes=1)
        pacing.arrive(*messages(3, size=50_000))
        pacing.settle()
        assert pacing.received() == pacing.received(ESCAPED) == pacing.sent

    @pytest.mark.parametrize(("on_thread", "rest"), [(True, 0.0), (False, 0.06)])
    def test_a_batch_that_takes_long_to_encode_leaves_the_loop_turns(self, on_thread: bool, rest: float) -> None:
        pacing = watched(ESCAPED, on_thread=on_thread)
        pacing.loop.step = 0.02
        pacing.arrive(message(0, 5000))
        turns = 0
        while pacing.phase is Phase.ENCODING:
            assert pacing.run() == pytest.approx(rest, abs=1e-4), "the web loop has every second turn"
            turns += 1
        assert turns > 5000 // frames.JOIN_LIMIT
        assert pacing.received(ESCAPED) == pacing.sent

    def test_messages_are_taken_off_the_source_while_one_is_encoded(self) -> None:
        pacing = encoding()
        assert pacing.source.ready
        pacing.run(3)
        pacing.expect(Phase.ENCODING)
        assert not pacing.source.ready

    def test_a_batch_that_is_being_encoded_takes_in_no_more_once_a_client_joins(self) -> None:
        pacing = watched(ESCAPED)
        pacing.loop.step = 0.02
        pacing.arrive(message(0, 1500))
        pacing.expect(Phase.ENCODING)
        pacing.subscriber.set_encodings([ESCAPED, BINARY], 2, 2)
        pacing.arrive(message(1))
        pacing.settle()
        assert pacing.received(ESCAPED) == pacing.sent
        assert pacing.received(BINARY) == [message(1)]

    def test_a_report_of_pending_data_is_corrected_when_it_is_discarded(self) -> None:
        pacing = watched(BINARY)
        pacing.arrive(*messages(60))
        pacing.run(5)
        pacing.acknowledge()
        pacing.run()
        assert pacing.batches[-1].pending > 0
        pacing.subscriber.set_encodings((), 0, 1)
        pacing.settle()
        assert (pacing.batches[-1].pending, pacing.batches[-1].messages) == (0, 0)

    def test_what_was_encoded_ahead_is_discarded_when_the_last_client_leaves(self) -> None:
        pacing = watched(COMPRESSED)
        pacing.arrive(*messages(40))
        pacing.run()
        pacing.subscriber.set_encodings((), 0, 1)
        pacing.settle()
        assert sum(batch.messages for batch in pacing.batches) == 16

    def test_no_more_is_encoded_in_an_encoding_whose_clients_have_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pacing = encoding()
        pacing.subscriber.set_encodings([BINARY], 1, 1)
        monkeypatch.setattr(frames, "_escape", None)
        pacing.settle()
        assert pacing.received() == pacing.sent

    def test_the_next_batch_is_compressed_while_the_web_loop_is_busy(self) -> None:
        pacing = watched(BINARY, COMPRESSED)
        pacing.arrive(*messages(40))
        assert len(pacing.batches) == 1
        pacing.subscriber.set_encodings([BINARY, COMPRESSED], 2, 2)
        pacing.acknowledge()
        pacing.run(2)
        assert [batch.generation for batch in pacing.batches[:2]] == [1, 1], "it was finished before the client came"
        pacing.settle()
        assert pacing.batches[-1].generation == 2
        assert pacing.received() == pacing.received(COMPRESSED) == pacing.sent

    @pytest.mark.parametrize("encodings", [(BINARY,), (COMPRESSED,), (ESCAPED,)])
    def test_a_batch_that_was_begun_ahead_is_finished_whoever_is_left(self, encodings: tuple[Encoding, ...]) -> None:
        pacing = watched(BINARY, COMPRESSED, ESCAPED)
        pacing.arrive(message(0))
        pacing.loop.step = 0.02
        pacing.arrive(*messages(40, start=1))
        pacing.expect(Phase.ENCODING)
        pacing.subscriber.set_encodings(encodings, 1, 1)
        for _ in range(100):
            pacing.run()
        pacing.expect(Phase.WAITING)
        pacing.settle()
        for encoding in encodings:
            assert pacing.received(encoding) == pacing.sent

    def test_a_restart_is_reported_though_no_client_is_there(self) -> None:
        pacing = Pacing()
        pacing.arrive(message(5), message(0))
        pacing.settle()
        (batch,) = pacing.batches
        assert batch.restarted
        assert (batch.messages, batch.missed, batch.foreign) == (0, 0, 0)

    def test_the_chunks_are_released_with_the_receipt(self) -> None:
        pacing = listening()
        pacing.arrive(message(0, 5000))
        pacing.acknowledge()
        assert not pacing.batches[0].chunks

    def test_an_exception_while_encoding_withholds_nothing_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(piece: Buffer) -> bytes:
            raise MemoryError

        pacing = listening()
        with monkeypatch.context() as patch:
            patch.setattr(frames, "_escape", fail)
            with pytest.raises(MemoryError):
                pacing.arrive(*messages(3))
        pacing.check()
        pacing.arrive(message(3))
        pacing.settle()
        assert pacing.received(ESCAPED) == [message(3)]
        assert sum(batch.missed for batch in pacing.batches) == 3


class TestRests:
    @pytest.mark.parametrize(
        ("rate", "rest"),
        [(5000, 0.005), (2000, 0.005), (1000, 0.008), (500, 0.016), (200, 0.04), (100, 0.05), (40, 0.05), (10, 0.1)],
    )
    def test_are_as_long_as_eight_messages_take_up_to_50_ms(self, rate: float, rest: float) -> None:
        pacing = watched(BINARY)
        pacing.trickle(1 / rate, count=500)
        gaps = [later - earlier for earlier, later in zip(pacing.delivered_at, pacing.delivered_at[1:], strict=False)]
        assert sum(gaps[-5:-1]) / 4 == pytest.approx(rest, rel=0.2)
        assert max(gaps[1:-1]) <= 1.25 * max(rest, pacing.subscriber.max_rest if rate < 40 else 0)
        pacing.settle()
        assert pacing.received() == pacing.sent

    def test_end_with_a_silence_whose_next_message_is_delivered_at_once(self) -> None:
        pacing = watched(BINARY)
        for _ in range(3):
            pacing.trickle(0.01, count=50)
            pacing.settle()
            pacing.loop.now += 0.06
            before = len(pacing.batches)
            pacing.arrive(message(len(pacing.sent)))
            assert len(pacing.batches) == before + 1
            pacing.expect(Phase.LISTENING)
            pacing.acknowledge()
            pacing.loop.now += 0.0001
            pacing.arrive(message(len(pacing.sent)))
            pacing.acknowledge()
            assert pacing.run() == pytest.approx(FLUSH_INTERVAL, abs=1e-4), "it begins short again"
        pacing.settle()
        assert pacing.received() == pacing.sent

    def test_are_short_again_after_the_first_batch_of_a_burst(self) -> None:
        pacing = watched(BINARY)
        pacing.trickle(0.01, count=50)
        pacing.arrive(*messages(100, start=50))
        assert pacing.run() > 2 * FLUSH_INTERVAL
        assert pacing.received() == pacing.sent
        pacing.acknowledge()
        pacing.arrive(*messages(100, start=150))
        assert pacing.run() == pytest.approx(FLUSH_INTERVAL, abs=1e-4)
        assert pacing.received() == pacing.sent

    def test_are_short_again_after_a_full_batch(self) -> None:
        pacing = watched(BINARY)
        pacing.trickle(0.01, count=50)
        pacing.arrive(*messages(4, size=2 << 20, start=50))
        pacing.settle()
        assert pacing.received() == pacing.sent
        pacing.arrive(*messages(10, start=54))
        pacing.acknowledge()
        assert pacing.run() == pytest.approx(FLUSH_INTERVAL, abs=1e-4)

    @pytest.mark.parametrize(
        ("flush_interval", "rcvhwm", "longest"),
        [
            (0.005, 1000, 0.05),
            (0.005, 10**6, 0.05),
            (0.005, 200, 0.01),
            (0.005, 1, 0.005),
            (0.001, 1000, 0.01),
            (0.0, 1000, 0.0),
            (0.2, 1000, 0.2),
        ],
    )
    def test_are_bounded_by_flush_interval_and_by_the_room_of_the_socket(
        self, flush_interval: float, rcvhwm: int, longest: float
    ) -> None:
        pacing = watched(BINARY, flush_interval=flush_interval, rcvhwm=rcvhwm)
        assert pacing.subscriber.max_rest == pytest.approx(longest)
        pacing.trickle(max(longest, 0.001) / 2, count=50)
        rests = []
        for _ in range(20):
            pacing.arrive(message(len(pacing.sent)))
            pacing.acknowledge()
            rests.append(pacing.run() if pacing.loop.timers else 0.0)
        assert max(rests) <= longest + 1e-4
        pacing.settle()
        assert pacing.received() == pacing.sent


@pytest.mark.parametrize(
    ("counters", "missed", "restarted", "foreign"),
    [
        ([0, 1, 2], 0, False, 0),
        ([5, 6], 0, False, 0),  # where it begins, nobody knows what was before
        ([0, 3, 4, 9], 6, False, 0),
        ([0, None, 1], 0, False, 1),
        ([0, "look", 1, None, 3], 1, False, 1),  # as many foreign ones as are missed
        ([0, None, None, 3, 4], 2, False, 2),
        ([None], 0, False, 1),
        ([7, 0, 1], 0, True, 0),
        ([7, 0, 2], 1, True, 0),
        ([7, 0, 9], 8, True, 0),
        ([7, "reset", 20], 0, False, 0),
        ([7, "reset", 0], 0, True, 0),
        ([7, "reset", "reset", 0, 1], 0, True, 0),
        ([7, "reset", None, 0, 3], 2, True, 1),
    ],
)
@pytest.mark.parametrize("base", [0, 120, 250, 1000, 0x10000 - 3, 0x10000, 0x100000000 - 3], ids=hex)
@pytest.mark.parametrize("together", [True, False], ids=["together", "one by one"])
def test_losses_are_counted(
    counters: list[int | str | None], missed: int, restarted: bool, foreign: int, base: int, together: bool
) -> None:
    losses = LossCounter()
    waiting: list[Buffer] = []
    for counter in counters:
        if isinstance(counter, str) or not together:
            losses.count(waiting, wanted=True)
            waiting = []
        if counter == "reset":
            losses.reset()
        elif counter != "look":
            waiting.append(
                message(base + counter) if isinstance(counter, int) else b"a foreign message of some length"
            )
    losses.count(waiting, wanted=True)
    assert (losses.missed, losses.restarted, losses.foreign) == (missed, restarted, foreign)


class Client:
    """A session of the bridge, as far as `Clients` uses one.

    Attributes:
        since: how many messages had been taken when the Subscriber learned that the client had joined.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.outbox = SimpleNamespace(messages_sent=0, messages_dropped=0, bytes_sent=0)
        self.chunks: list[Chunk] = []
        self.since: int | None = None


class AnyOrder(RuleBasedStateMachine):
    """The web loop and the I/O loop; whatever crosses between them is under way for any time.

    A run ends in silence: nothing arrives any more, and what is under way gets there.
    """

    @initialize(
        on_thread=st.booleans(),
        step=st.sampled_from([0.0, 0.0005, 0.02]),
        max_pending=st.sampled_from([1, 3000, 1 << 25]),
        flush_interval=st.sampled_from([0.0, FLUSH_INTERVAL, 0.1]),
        rcvhwm=st.sampled_from([1, 1000]),
    )
    def begin(self, on_thread: bool, step: float, max_pending: int, flush_interval: float, rcvhwm: int) -> None:
        self.patch = pytest.MonkeyPatch()
        make_small(self.patch)
        self.pacing = Pacing(
            on_thread=on_thread, max_pending_bytes=max_pending, flush_interval=flush_interval, rcvhwm=rcvhwm
        )
        self.pacing.loop.step = step
        self.pacing.source.on_taken = self.note_taken
        self.audience = Clients()
        self.clients: list[Client] = []
        self.left: list[Client] = []
        self.to_io: deque[tuple[frozenset[Encoding], int, int, Client | None]] = deque()
        self.at_web = 0  # batches
        self.next_counter = 0
        self.counters: dict[bytes, int | None] = {}  # of every message
        self.taken: list[bytes] = []
        self.history: list[tuple[str, int | None]] = []  # of what was taken, and the connections that were lost
        self.wanted = False  # by any client, as far as the Subscriber knows

    def note_taken(self, payloads: list[bytes]) -> None:
        self.taken += payloads
        self.history += [("wanted" if self.wanted else "unwanted", self.counters[payload]) for payload in payloads]

    def tell_audience(self, joined: Client | None = None) -> None:
        self.to_io.append((self.audience.encodings, len(self.audience), self.audience.generation, joined))

    @rule(encoding=st.builds(Encoding, st.booleans(), st.booleans(), st.just(False)))
    def join(self, encoding: Encoding) -> None:
        client = Client(encoding)
        self.clients.append(client)
        self.audience.add(cast(Session, client))
        self.tell_audience(client)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        client = self.clients.pop(data.draw(st.integers(0, len(self.clients) - 1)))
        self.left.append(client)
        self.audience.remove(cast(Session, client))
        self.tell_audience()

    @precondition(lambda self: self.to_io)
    @rule()
    def io_loop_learns_of_the_audience(self) -> None:
        encodings, clients, generation, joined = self.to_io.popleft()
        self.pacing.subscriber.set_encodings(encodings, clients, generation)
        self.wanted = bool(encodings)
        if joined is not None:
            joined.since = len(self.taken)

    @rule(
        kinds=st.lists(
            st.tuples(st.sampled_from(["next"] * 8 + ["gap", "foreign", "restart"]), st.integers(0, 6000)), max_size=6
        ),
        burst=st.sampled_from([0, 0, 0, 50]),
    )
    def publish(self, kinds: list[tuple[str, int]], burst: int) -> None:
        payloads = []
        for kind, size in kinds + [("next", 20)] * burst:
            self.next_counter = 0 if kind == "restart" else self.next_counter + (3 if kind == "gap" else 0)
            counter = None if kind == "foreign" else self.next_counter
            self.next_counter += counter is not None
            serial = b"%d" % len(self.counters)
            payload = b"foreign" + serial if counter is None else message(counter, size) + serial
            self.counters[payload] = counter
            payloads.append(payload)
        self.pacing.source.arrive(*payloads)

    @rule()
    def lose_connection(self) -> None:
        self.history.append(("reset", None))
        self.pacing.subscriber.reset_counter()

    @rule()
    def io_loop_sees_the_signal(self) -> None:
        self.pacing.source.signal()

    @rule(seconds=st.sampled_from([0.001, 0.01, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.pacing.loop.now += seconds

    @precondition(lambda self: self.pacing.loop.timers)
    @rule()
    def io_loop_runs_the_timer(self) -> None:
        self.pacing.run()

    @precondition(lambda self: self.at_web < len(self.pacing.batches))
    @rule(seconds=st.sampled_from([0.0, 0.001, 0.1]))
    def web_loop_writes_a_batch(self, seconds: float) -> None:
        batch = self.pacing.batches[self.at_web]
        self.at_web += 1
        for session in self.audience.joined_by(batch.generation):
            cast(Client, session).chunks += batch.chunks[session.encoding]
        batch.acknowledge(seconds)

    @invariant()
    def something_is_awaited(self) -> None:
        if hasattr(self, "pacing"):
            self.pacing.check()
            assert len(self.pacing.batches) - self.at_web <= 1, "a batch crossed before the receipt of the last one"

    def teardown(self) -> None:
        if hasattr(self, "pacing"):
            try:
                self.fall_silent()
                self.check_clients()
                self.check_losses()
                self.pacing.subscriber.close()
                self.pacing.check()
            finally:
                self.patch.undo()

    def fall_silent(self) -> None:
        for _ in range(10_000):
            while self.to_io:
                self.io_loop_learns_of_the_audience()
            self.io_loop_sees_the_signal()
            while self.at_web < len(self.pacing.batches):
                self.web_loop_writes_a_batch(0.0)
            if not self.pacing.loop.timers:
                return
            self.pacing.run()
        pytest.fail("it never ends")

    def check_clients(self) -> None:
        assert self.taken == list(self.counters), "messages were left at the source"
        places = {payload: place for place, payload in enumerate(self.taken)}
        for client in self.clients + self.left:
            got = [places[payload] for payload in decoded(client.chunks, client.encoding)]
            first = got[0] if got else len(self.taken)
            assert got == list(range(first, first + len(got))), "a message is missing in the middle, or out of order"
            if client in self.clients:
                assert client.since is not None
                assert first <= client.since, "a message that was taken after the client joined was not delivered"
                assert first + len(got) == len(self.taken), "the end was withheld"

    def check_losses(self) -> None:
        missed = foreign = 0
        restarted = False
        expected = before = None
        for kind, counter in self.history:
            if kind == "reset":
                expected, before = None, before if expected is None else expected
            elif counter is None:
                foreign += kind == "wanted"
            else:
                restarted |= counter < (expected if expected is not None else before or 0)
                missed += max(0, counter - expected) if expected is not None and kind == "wanted" else 0
                expected, before = counter + 1, None
        batches = self.pacing.batches
        assert [batch.pending for batch in batches[-1:]] in ([], [0])
        assert sum(batch.missed for batch in batches) == missed
        assert sum(batch.foreign for batch in batches) == foreign
        assert any(batch.restarted for batch in batches) == restarted


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


class TestSocketSource:
    @pytest.fixture
    def sockets(self) -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
        with zmq.Context() as context, context.socket(zmq.PUB) as pub, context.socket(zmq.SUB) as sub:
            pub.linger = sub.linger = 0
            sub.subscribe(b"")
            port = pub.bind_to_random_port("tcp://127.0.0.1")
            sub.connect(f"tcp://127.0.0.1:{port}")
            while not sub.poll(10):
                pub.send(b"are you there")
            pub.send(b"begin")
            while sub.recv() != b"begin":
                pass
            yield pub, sub

    @staticmethod
    def take(source: SocketSource, sub: zmq.Socket[bytes], *bounds: int) -> tuple[list[bytes], bool]:
        assert sub.poll(10_000)
        payloads, emptied = source.take(*bounds)
        return [bytes(payload) for payload in payloads], emptied

    async def test_lets_go_of_a_message_whose_parts_are_too_long_together(
        self, sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]], caplog: pytest.LogCaptureFixture
    ) -> None:
        pub, sub = sockets
        source = SocketSource(sub, IOLoop.current(), max_message_bytes=100_000)
        pub.send_multipart([bytes(30_000)] * 3)
        assert self.take(source, sub, 1_000_000, 1) == ([bytes(90_000)], False)
        pub.send_multipart([bytes(30_000)] * 7)
        assert self.take(source, sub, 1_000_000, 100) == ([], False)
        pub.send_multipart([b"ne", b"xt"])
        assert self.take(source, sub, 1_000_000, 100) == ([b"next"], True)
        assert "parts of 210000 bytes; allowed: at most 100000 (max_message_bytes)" in caplog.text

    async def test_takes_what_is_ready_within_its_bounds(
        self, sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
    ) -> None:
        pub, sub = sockets
        source = SocketSource(sub, IOLoop.current(), max_message_bytes=100_000)
        assert source.take(100, 100) == ([], True)
        pub.send_multipart([b"one", b"two", b"", b"three"])
        assert self.take(source, sub, 100, 1) == ([b"onetwothree"], False), "several parts are joined"
        pub.send(bytes(20_000))
        assert self.take(source, sub, 1, 100) == ([bytes(20_000)], False), "the last one may pass the bound"
        pub.send(b"four")
        assert sub.poll(10_000)
        assert source.take(0, 100) == ([], False), "it was not looked at"
        assert self.take(source, sub, 100, 100) == ([b"four"], True)

    async def test_signals_messages_while_it_is_watched(
        self, sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
    ) -> None:
        pub, sub = sockets
        source = SocketSource(sub, IOLoop.current(), max_message_bytes=100_000)
        signals: list[list[Buffer]] = []
        assert source.take(100, 100) == ([], True)
        for number in (b"1", b"2"):
            source.watch(lambda: signals.append(source.take(100, 100)[0]))
            pub.send(number)
            await until(partial(signals.__contains__, [number]), "the message is taken")
            source.unwatch()


class TestOverSockets:
    @pytest.mark.parametrize(
        ("count", "size"),
        [(800, 200), (12, 150_000), (60, 20_000), (2, 700_000), (1, 1_500_000)],
        ids=lambda number: f"{number}",
    )
    async def test_a_burst_before_silence_arrives_whole_in_every_encoding(
        self, serve: Serve, threaded: bool, count: int, size: int
    ) -> None:
        thread = IOLoopThread()
        if threaded:
            thread.start()
        with FakeRbkit(hwm=0) as rbkit, zmq.Context() as context, context.socket(zmq.SUB) as witness:
            witness.linger = witness.rcvhwm = 0
            witness.subscribe(b"")
            witness.connect(rbkit.pub)
            while not witness.poll(10):
                rbkit.publish(b"the witness is connected")
            rbkit.publish(b"begin")
            while witness.recv() != b"begin":  # so that the bridge gets none of them
                pass
            io_loop = thread.io_loop if threaded else IOLoop.current()
            bridge = Bridge(
                **rbkit.endpoints, threaded=thread if threaded else False, compression_level=1, rcvhwm=10_000
            )
            server = await serve(bridge)
            plain = await server.connected()
            escaped = await server.connected("?encoding=escaped")
            async with websockets_connect(
                server.ws, subprotocols=[Subprotocol("rbkit")], compression="deflate", max_size=None
            ) as compressed:
                await until(lambda: len(bridge.stats()["clients"]) == 3, "all have joined")
                for at in range(0, 3 * count, count):
                    sent = messages(count, size, start=at)

                    def burst(sent: list[bytes] = sent) -> None:
                        """Publish, and keep the I/O loop from looking until all has arrived somewhere else."""
                        for payload in sent:
                            rbkit.publish(payload)
                        while witness.recv() != sent[-1]:
                            pass

                    io_loop.add_callback(burst)
                    for expected in sent:
                        assert await receive_data(plain) == expected
                    for expected in sent:
                        assert unquote_to_bytes(await published(partial(receive, escaped))) == expected
                    for expected in sent:
                        assert await published(compressed.recv) == expected
            stats = bridge.stats()
            assert (stats["messages_missed"], stats["bytes_pending"]) == (0, 0)
            await server.close()
        if threaded:
            thread.stop()

    @pytest.mark.parametrize("step", [3600.0, -3600.0], ids=["forward", "back"])
    async def test_a_step_of_the_system_clock_delays_nothing(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, step: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, offset = time.time, 0.0

        def encode_and_step(*arguments: Any, **options: Any) -> Any:
            nonlocal offset
            offset += step
            return encode(*arguments, **options)

        encode = frames.encode_in_slices
        monkeypatch.setattr(encoder, "encode_in_slices", encode_and_step)
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
        connection = await server.connected()
        await until(lambda: server.bridge.stats()["handshake"], "the handshake is known")
        monkeypatch.setattr(time, "time", lambda: real() + offset)
        sent = [rbkit.publish_collection(20_000) for _ in range(400)]
        for expected in sent:
            assert await receive_data(connection) == expected

    @pytest.mark.parametrize("encoding", ["escaped", "compressed"])
    async def test_close_does_not_wait_until_a_large_message_is_encoded(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, encoding: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = 64 * 1024 * 1024
        done = 0

        def count(payload: Buffer) -> Iterator[memoryview]:
            nonlocal done
            for piece in slices(payload):
                yield piece
                done += len(piece)

        slices = frames._slices
        monkeypatch.setattr(frames, "_slices", count)
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, compression_level=9))
        async with websockets_connect(
            server.ws + ("?encoding=escaped" if encoding == "escaped" else ""),
            subprotocols=[Subprotocol("rbkit")],
            compression="deflate" if encoding == "compressed" else None,
        ):
            await until(lambda: server.bridge.stats()["handshake"], "the handshake is known")
            rbkit.publish_collection(size)
            await until(lambda: done, "it is being encoded")
            await server.bridge.close()
            assert done < size // 2


async def published(read: Callable[[], Awaitable[str | bytes]]) -> bytes:
    """Return the payload of the next published message, past replies and notices."""
    while True:
        received = await read()
        data = received.encode() if isinstance(received, str) else received
        if data.startswith(b"1"):
            return data[1:]
