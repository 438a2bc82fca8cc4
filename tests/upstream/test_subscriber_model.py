"""The pacing against a model: nothing is withheld or counted wrong, in whatever order things happen."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import cast

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.upstream.pacing import (
    FLUSH_INTERVAL,
    Pacing,
    decoded,
    make_small,
    message,
)
from tornado_rbkit.bridge.clients import Clients
from tornado_rbkit.bridge.session import Session
from tornado_rbkit.frames import Chunk, Encoding


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

    A run ends in silence: no more messages arrive, and everything under way is delivered.
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
    def lose_connection_during_the_next_delivery(self) -> None:
        """Reconnecting in libzmq clears the signal of the messages that have arrived."""

        def lose() -> None:
            self.pacing.on_delivered = lambda: None
            self.publish([("next", 20)], 0)
            self.pacing.source.signalled = False
            self.lose_connection()

        self.pacing.on_delivered = lose

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
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=60)
