"""The pacing of published messages: nothing is withheld, whatever happens in which order."""

from __future__ import annotations

import pytest

from tests.upstream.pacing import (
    BINARY,
    COMPRESSED,
    ESCAPED,
    FLUSH_INTERVAL,
    PHASES,
    Pacing,
    encoding_slowly,
    in_each_phase,
    listening,
    message,
    messages,
    waiting,
    watched,
)
from tornado_rbkit import frames
from tornado_rbkit.frames import Buffer, Encoding
from tornado_rbkit.upstream.subscriber import Phase


@in_each_phase
@pytest.mark.parametrize("on_thread", [True, False], ids=["threaded", "unthreaded"])
@pytest.mark.usefixtures("small")
class TestInEachPhase:
    def test_remaining_messages_are_delivered_although_the_profiler_is_silent(
        self, phase: Phase, on_thread: bool
    ) -> None:
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

    def test_a_loss_is_reported_although_the_last_client_leaves(self, phase: Phase, on_thread: bool) -> None:
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

    def test_a_connection_found_lost_at_a_delivery_is_a_reason_to_look_again(
        self, phase: Phase, on_thread: bool
    ) -> None:
        pacing = PHASES[phase](on_thread)

        def lose() -> None:
            pacing.on_delivered = lambda: None
            pacing.sent.append(message(len(pacing.sent)))
            pacing.source.arrive(pacing.sent[-1])
            pacing.source.signalled = False
            pacing.subscriber.reset_counter()

        pacing.on_delivered = lose
        pacing.arrive(message(len(pacing.sent)))
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

    def test_a_message_after_silence_is_handed_over_at_once_and_listening_continues(self) -> None:
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
        pacing = encoding_slowly()
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
        pacing = encoding_slowly()
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

    def test_a_restart_is_reported_although_no_client_is_there(self) -> None:
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
