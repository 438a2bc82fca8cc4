"""Streams between an agent and a bridge, over a network that loses, repeats and delays messages."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.encoded import encode_data
from tests.fake_rbkit import collection
from tornado_rbkit.fleet.framing import WINDOW, Kind, StreamReceiver, StreamSender
from tornado_rbkit.frames import FRAGMENT_SIZE, LENGTH_SIZE, Encoding
from tornado_rbkit.upstream.losses import LossCounter

KIB = 1024
MIB = 1024 * KIB
MAX_FRAME = FRAGMENT_SIZE + 64 * KIB  # NATS servers take messages of 1 MiB by default
SIZES = st.sampled_from([0, 100, 2 * KIB, 70 * KIB, FRAGMENT_SIZE - 50, FRAGMENT_SIZE + 1, 700 * KIB, 3 * MIB])


def frames_of(sender: StreamSender) -> list[bytes]:
    return list(iter(sender.next_frame, None))


def leased(sender: StreamSender, receiver: StreamReceiver) -> None:
    """Exchange leases until the receiver knows the sender's stream and has granted credit."""
    for _ in range(2):
        sender.lease(receiver.stream, receiver.grant)
        receiver.on_lease(sender.stream, sender.position, sender.state)
    sender.grant(receiver.stream, receiver.grant)


def pair(max_backlog_bytes: int = 64 * MIB, max_message_bytes: int = 64 * MIB) -> tuple[StreamSender, StreamReceiver]:
    sender, receiver = StreamSender(max_backlog_bytes), StreamReceiver(max_message_bytes=max_message_bytes)
    leased(sender, receiver)
    return sender, receiver


def add(sender: StreamSender, *messages: bytes) -> None:
    sender.add(encode_data(messages, Encoding(framed=True)))


def taken(receiver: StreamReceiver) -> list[bytes]:
    return [bytes(message) for message in receiver.take(1 << 40, 1 << 20)[0]]


@given(st.lists(SIZES, max_size=6))
@settings(max_examples=50)
def test_messages_arrive_whole_and_in_order(sizes: list[int]) -> None:
    sender, receiver = pair()
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    add(sender, *messages)
    arrived: list[bytes] = []
    while sender.backlog or sender.position < sum(map(len, messages)) + 4 * len(messages):
        for frame in frames_of(sender):
            assert len(frame) <= MAX_FRAME
            receiver.receive(frame)
        arrived += taken(receiver)
        sender.grant(receiver.stream, receiver.grant)
    assert arrived == messages
    assert receiver.broken == 0
    assert sender.messages_sent == len(messages)
    assert sender.backlog.size == 0


def test_no_more_than_the_window_is_under_way_while_the_receiver_takes_nothing() -> None:
    sender, receiver = pair()
    add(sender, *[bytes(100 * KIB)] * 100)
    for _ in range(50):
        for frame in frames_of(sender):
            receiver.receive(frame)
        leased(sender, receiver)
    assert WINDOW - MAX_FRAME < sender.position <= WINDOW
    assert len(taken(receiver)) == sender.messages_sent
    leased(sender, receiver)
    assert frames_of(sender)


def test_a_message_larger_than_the_window_arrives() -> None:
    sender, receiver = pair()
    add(sender, bytes(9 * MIB))
    for _ in range(10):
        for frame in frames_of(sender):
            receiver.receive(frame)
        sender.grant(receiver.stream, receiver.grant)
    assert [len(message) for message in taken(receiver)] == [9 * MIB]


def test_a_message_that_was_sent_in_part_is_sent_again_in_the_next_stream() -> None:
    sender, receiver = pair()
    add(sender, bytes(9 * MIB), b"next")
    frames_of(sender)
    sender.lease(0, 0)
    leased(sender, receiver)
    while sender.messages_sent < 2:
        for frame in frames_of(sender):
            receiver.receive(frame)
        sender.grant(receiver.stream, receiver.grant)
    assert [len(message) for message in taken(receiver)] == [9 * MIB, 4]


def test_a_message_longer_than_the_bound_is_discarded_and_the_next_one_arrives() -> None:
    sender, receiver = pair(max_message_bytes=MIB)
    add(sender, bytes(MIB + 1), b"next")
    for frame in frames_of(sender):
        receiver.receive(frame)
    assert taken(receiver) == [b"next"]
    assert receiver.broken > 0


def test_past_the_bound_the_oldest_messages_are_dropped_and_counted() -> None:
    sender = StreamSender(MIB)
    for number in range(20):
        add(sender, bytes([number]) * 100 * KIB)
        sender.trim()
    assert sender.backlog.size <= MIB
    assert sender.backlog.dropped == 20 - sender.backlog.messages
    sender.close()
    assert sender.backlog.dropped == 20


def test_a_change_of_the_state_is_sent_without_credit_and_in_order() -> None:
    sender, receiver = StreamSender(MIB), StreamReceiver(max_message_bytes=MIB)
    sender.lease(0, 0)
    receiver.on_lease(sender.stream, sender.position, sender.state)
    assert frames_of(sender) == []
    sender.set_connected(True)
    sender.set_connected(True)
    for frame in frames_of(sender):
        receiver.receive(frame)
    assert receiver.state == sender.state == 1
    sender.set_connected(False)
    sender.set_connected(True)
    (frame,) = frames_of(sender)
    receiver.receive(frame)
    assert receiver.state == 3


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=40))
@settings(max_examples=300)
def test_no_bytes_of_a_stranger_harm_the_receiver(data: bytes, at: int) -> None:
    sender, receiver = pair(max_message_bytes=MIB)
    add(sender, b"first", b"second")
    (frame,) = frames_of(sender)
    receiver.receive(data)
    receiver.receive(frame[:at] + data + frame[at + len(data) :])
    assert all(len(message) <= MIB for message in taken(receiver))
    sender.lease(0, 0)
    leased(sender, receiver)
    add(sender, b"third")
    for each in frames_of(sender):
        receiver.receive(each)
    assert taken(receiver)[-1] == b"third"


HEADER = struct.Struct(">BQQI")


@pytest.mark.parametrize("position", [1 << 63, (1 << 64) - 1, WINDOW + 1])
def test_credit_past_the_window_is_worth_a_window(position: int) -> None:
    sender, receiver = StreamSender(64 * MIB), StreamReceiver(max_message_bytes=MIB)
    leased(sender, receiver)
    add(sender, *[bytes(100 * KIB)] * 100)
    for _ in range(3):
        sender.grant(sender.stream, position)
    frames_of(sender)
    assert sender.position <= WINDOW


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*Kind, 4, 255]),
            st.sampled_from([0, 1, 300_000, WINDOW, 1 << 32, 1 << 63, (1 << 64) - 1, None]),
            st.sampled_from([0, 1, (1 << 32) - 1]),
            st.sampled_from([b"", bytes(4), bytes(300_000), b"\x7f\xff\xff\xff" + bytes(9), b"\0\0\0\1"]),
        ),
        max_size=60,
    )
)
@settings(max_examples=100, deadline=None)
def test_a_lying_agent_makes_a_bridge_hold_no_more_than_a_window_and_a_message(
    frames: list[tuple[int, int | None, int, bytes]],
) -> None:
    receiver = StreamReceiver(max_message_bytes=MIB)
    receiver.on_lease(7, 0, 0)
    assert receiver.grant == WINDOW
    for kind, position, state, body in frames:
        at = receiver.received if position is None else position
        receiver.receive(HEADER.pack(kind, 7, at, state) + body)
        msgpack.packb({"stream": receiver.stream, "grant": receiver.grant})  # the next lease
    assert receiver.received <= receiver.grant
    messages = taken(receiver)
    assert sum(map(len, messages)) + len(receiver._partial or b"") <= WINDOW + 2 * MIB
    assert len(messages) <= WINDOW // LENGTH_SIZE


def test_messages_without_bytes_use_up_credit_too() -> None:
    receiver = StreamReceiver(max_message_bytes=MIB)
    receiver.on_lease(7, 0, 0)
    for _ in range(100):
        assert receiver.grant
        receiver.receive(HEADER.pack(Kind.WHOLE, 7, receiver.received, 0) + bytes(FRAGMENT_SIZE))
    assert len(taken(receiver)) <= WINDOW // LENGTH_SIZE
    assert receiver.grant == receiver.received + WINDOW, "and they give it back"


def test_a_length_that_is_only_announced_takes_no_memory() -> None:
    receiver = StreamReceiver(max_message_bytes=512 * MIB)
    receiver.on_lease(7, 0, 0)
    assert receiver.grant
    receiver.receive(HEADER.pack(Kind.FIRST, 7, 0, 0) + (512 * MIB).to_bytes(4, "big") + b"begun")
    assert sys.getsizeof(receiver._partial) < MIB


class Network(RuleBasedStateMachine):
    """A sender and a receiver, the frames and the grants between them, and restarts of either."""

    def __init__(self) -> None:
        super().__init__()
        self.published: dict[bytes, int] = {}
        self.counter = 0
        self.frames: list[bytes] = []
        self.grants: list[tuple[int, int]] = []
        self.sender = StreamSender(4 * MIB)
        self._new_receiver()

    def _new_receiver(self) -> None:
        self.receiver = StreamReceiver(max_message_bytes=64 * MIB)
        self.losses = LossCounter()
        self.delivered: list[int] = []
        self.missed = 0

    @initialize()
    def lease_once(self) -> None:
        leased(self.sender, self.receiver)

    @rule(size=SIZES, times=st.integers(1, 3))
    def publish(self, size: int, times: int) -> None:
        for _ in range(times):
            message = collection(self.counter, padding=size)
            self.published[message] = self.counter
            self.counter += 1
            add(self.sender, message)
        self.sender.trim()

    @rule()
    def send(self) -> None:
        self.frames += frames_of(self.sender)

    @precondition(lambda self: self.frames)
    @rule(data=st.data(), keep=st.booleans())
    def carry_a_frame(self, data: st.DataObject, keep: bool) -> None:
        """Deliver a frame, usually the next one, and perhaps deliver it again later."""
        at = data.draw(st.one_of(st.just(0), st.integers(0, len(self.frames) - 1)))
        self.receiver.receive(self.frames[at] if keep else self.frames.pop(at))

    @precondition(lambda self: self.frames)
    @rule()
    def carry_all(self) -> None:
        for frame in self.frames:
            self.receiver.receive(frame)
        self.frames.clear()

    @precondition(lambda self: self.frames)
    @rule(data=st.data())
    def lose_a_frame(self, data: st.DataObject) -> None:
        del self.frames[data.draw(st.integers(0, len(self.frames) - 1))]

    @rule()
    def grant(self) -> None:
        self.grants.append((self.receiver.stream, self.receiver.grant))

    @precondition(lambda self: self.grants)
    @rule(data=st.data(), keep=st.booleans(), lease=st.booleans())
    def carry_a_grant(self, data: st.DataObject, keep: bool, lease: bool) -> None:
        """Deliver a grant or a lease, however old; its reply is lost."""
        at = data.draw(st.integers(0, len(self.grants) - 1))
        stream, position = self.grants[at] if keep else self.grants.pop(at)
        (self.sender.lease if lease else self.sender.grant)(stream, position)

    @rule()
    def lease(self) -> None:
        self.sender.lease(self.receiver.stream, self.receiver.grant)
        self.receiver.on_lease(self.sender.stream, self.sender.position, self.sender.state)

    @rule(connected=st.booleans())
    def change_state(self, connected: bool) -> None:
        self.sender.set_connected(connected)

    @rule()
    def restart_sender(self) -> None:
        self.sender = StreamSender(4 * MIB)

    @rule()
    def restart_receiver(self) -> None:
        self._new_receiver()

    @rule(size=st.integers(1, 4 * MIB), most=st.integers(1, 5))
    def take(self, size: int, most: int) -> None:
        payloads, _ = self.receiver.take(size, most)
        self.losses.count(payloads, wanted=True)
        self.missed += self.losses.missed
        self.losses.missed = 0
        for payload in payloads:
            assert bytes(payload) in self.published, "nothing is delivered broken"
            self.delivered.append(self.published[bytes(payload)])

    @invariant()
    def nothing_arrives_twice_or_late(self) -> None:
        assert all(one < other for one, other in zip(self.delivered, self.delivered[1:], strict=False))

    def teardown(self) -> None:
        """Repair the network: later messages arrive, and each message that was lost before is counted once."""
        for turn in range(8):
            leased(self.sender, self.receiver)
            if turn == 4:  # the leases have noticed by now if the last frames were lost
                self.publish(100, 1)
            for _ in range(40):
                self.send()
                self.frames, frames = [], self.frames
                for frame in frames:
                    self.receiver.receive(frame)
                self.take(1 << 40, 1 << 20)
                self.sender.grant(self.receiver.stream, self.receiver.grant)
        assert self.delivered[-1] == self.counter - 1, "what is published after the network healed arrives"
        assert self.missed == self.delivered[-1] - self.delivered[0] + 1 - len(self.delivered)
        assert not self.losses.restarted
        assert self.receiver.state % 2 == self.sender.state % 2


TestNetwork = Network.TestCase
TestNetwork.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.mark.parametrize("spoil", [lambda frames: frames[:-1], lambda frames: []], ids=["the last", "all"])
def test_lost_last_frames_are_noticed_by_leases(spoil: Callable[[list[bytes]], list[bytes]]) -> None:
    sender, receiver = pair()
    add(sender, *[bytes(100 * KIB)] * 5)
    for frame in spoil(frames_of(sender)):
        receiver.receive(frame)
    before = sender.stream
    for _ in range(4):
        leased(sender, receiver)
    assert sender.stream == receiver.stream != before, "the stream has begun anew, with all its credit"


def test_a_position_ahead_of_the_sender_is_corrected_by_leases() -> None:
    sender, receiver = pair()
    receiver.receive(HEADER.pack(Kind.WHOLE, sender.stream, WINDOW - 4, 0) + bytes(4))
    add(sender, b"late")
    for frame in frames_of(sender):
        receiver.receive(frame)
    assert taken(receiver) == [b""]
    for _ in range(4):
        leased(sender, receiver)
    add(sender, b"next")
    for frame in frames_of(sender):
        receiver.receive(frame)
    assert taken(receiver) == [b"next"]
