"""One client's send queue on a real socket, with a reader that reads when the test says so."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from tornado.iostream import IOStream, StreamClosedError
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from tests.conftest import until
from tests.encoded import encode_data
from tornado_rbkit.bridge import outbox as outbox_module
from tornado_rbkit.bridge.backlog import Backlog
from tornado_rbkit.bridge.outbox import WRITE_SIZE, Outbox, _join_small
from tornado_rbkit.frames import JOIN_LIMIT, Buffer, Chunk, Encoding, encode_notice, encode_reply

BINARY = Encoding()
KIB = 1024
MIB = 1024 * 1024
FOREVER = 3600.0


def chunk(number: int, size: int) -> Chunk:
    """Return a published message with a number."""
    (result,) = encode_data([b"%08d" % number + bytes(size - 8)], BINARY)
    return result


class Client:
    """The other end of a connection, and the bytes that it has received."""

    def __init__(self, stream: IOStream) -> None:
        self.stream = stream
        self.received = 0
        self._parser = Protocol(Side.CLIENT, max_size=None)
        self._frames: list[Frame] = []
        self.messages: list[bytes] = []
        self.opcodes: list[Opcode] = []
        self._begun = b""

    async def read(self, size: int = 256 * KIB) -> None:
        """Read up to `size` bytes, at least one."""
        data = await self.stream.read_bytes(size, partial=True)
        self.received += len(data)
        self._parser.receive_data(data)
        assert self._parser.parser_exc is None, f"not a WebSocket's bytes: {self._parser.parser_exc!r}"
        for frame in self._parser.events_received():
            assert isinstance(frame, Frame)
            self.opcodes.append(frame.opcode)
            if frame.opcode is Opcode.PING:
                continue
            self._begun += bytes(frame.data)
            if frame.fin:
                self.messages.append(self._begun)
                self._begun = b""

    async def read_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.wait_for(self.read(), 60)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the published messages that arrived, in order."""
        return [int(message[1:9]) for message in self.messages if message[:1] == b"1"]


class Near:
    """An outbox, and the calls of its callbacks."""

    def __init__(self, stream: IOStream, **options: Any) -> None:
        self.stream = stream
        self.stalled = 0
        self.caught_up: list[int] = []
        settings = {"max_backlog_bytes": 64 * MIB, "stall_timeout": FOREVER, **options}
        self.outbox = Outbox(stream, on_stalled=self._on_stalled, on_caught_up=self.caught_up.append, **settings)

    def _on_stalled(self) -> None:
        self.stalled += 1


class Line:
    """The two ends of a connection with small buffers."""

    def __init__(self) -> None:
        ends = socket.socketpair()
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * KIB)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * KIB)
        self.near, self.far = (IOStream(end, max_write_buffer_size=64 * MIB) for end in ends)
        self.client = Client(self.far)
        self._boxes: list[Outbox] = []

    def outbox(self, **options: Any) -> Near:
        near = Near(self.near, **options)
        self._boxes.append(near.outbox)
        return near

    def close(self) -> None:
        for box in self._boxes:
            box.close()
        self.near.close()
        self.far.close()


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    """Two connected streams; fails the test if anything is left open."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    line = Line()
    yield line
    line.close()
    del line
    await asyncio.sleep(0)
    gc.collect()
    assert complaints == [], f"left to the event loop: {complaints}"


async def test_data_and_replies_arrive_whole_and_in_order(line: Line) -> None:
    near = line.outbox()
    near.outbox.send_data([chunk(number, 10 * KIB) for number in range(30)])
    near.outbox.send_data([chunk(number, 700 * KIB) for number in range(30, 33)])
    await line.client.read_until(lambda: len(line.client.messages) == 33)
    assert line.client.numbers == list(range(33))
    await until(lambda: near.outbox.data_bytes == 0, "nothing waits")
    assert near.outbox.bytes_sent == line.client.received
    assert (near.outbox.messages_sent, near.outbox.messages_dropped, near.outbox.messages_waiting) == (33, 0, 0)
    assert near.caught_up == []


@pytest.mark.parametrize("size", [1 * KIB, 100 * KIB, 700 * KIB])
async def test_a_reply_overtakes_the_data_that_waits(line: Line, size: int) -> None:
    near = line.outbox()
    count = 6 * MIB // size
    near.outbox.send_data([chunk(number, size) for number in range(count)])
    near.outbox.send_reply(encode_reply(b"ok", BINARY))
    near.outbox.send_reply(encode_reply(b"second", BINARY))
    await line.client.read_until(lambda: len(line.client.messages) == count + 2)
    at = line.client.messages.index(b"0ok")
    assert at * size <= WRITE_SIZE + size, f"the reply waited behind {at} messages of {size} bytes"
    assert line.client.messages[at + 1] == b"0second"
    assert line.client.numbers == list(range(count))


async def test_a_reply_waits_only_for_the_end_of_the_message_under_way(line: Line) -> None:
    near = line.outbox()
    near.outbox.send_data([chunk(number, 3 * MIB) for number in range(3)])
    near.outbox.send_reply(encode_reply(b"ok", BINARY))
    await line.client.read_until(lambda: len(line.client.messages) == 4)
    assert line.client.messages[1] == b"0ok"


async def test_replies_are_never_dropped(line: Line) -> None:
    near = line.outbox(max_backlog_bytes=1)
    replies = [b"reply %d" % number + bytes(5000) for number in range(400)]
    for reply in replies:
        near.outbox.send_reply(encode_reply(reply, BINARY))
    await line.client.read_until(lambda: len(line.client.messages) == len(replies))
    assert line.client.messages == [b"0" + reply for reply in replies]
    assert near.outbox.messages_dropped == 0


# The bound


async def test_past_the_bound_the_oldest_is_dropped_first_and_counted(line: Line) -> None:
    near = line.outbox(max_backlog_bytes=500 * KIB)
    for number in range(40):
        near.outbox.send_data([chunk(number, 100 * KIB)])
        assert near.outbox.data_bytes <= 500 * KIB
    waiting = near.outbox.messages_waiting
    assert near.outbox.messages_sent + near.outbox.messages_dropped + waiting == 40
    await line.client.read_until(lambda: line.client.numbers[-1:] == [39])
    numbers = line.client.numbers
    newest = waiting - 1  # one of those that wait is under way
    assert numbers[-newest:] == list(range(40 - newest, 40)), "the newest are kept"
    assert numbers[:-waiting] == list(range(len(numbers) - waiting)), "those that had begun were finished"
    assert near.outbox.messages_dropped == 40 - len(numbers) > 0


async def test_a_client_that_takes_everything_loses_nothing_of_a_burst_larger_than_the_bound() -> None:
    ends = socket.socketpair()
    near, far = (IOStream(end) for end in ends)
    outbox = Near(near, max_backlog_bytes=20 * KIB).outbox
    outbox.send_data([chunk(number, 8 * KIB) for number in range(12)])  # which the kernel's buffers have room for
    outbox.send_data([chunk(number, 100) for number in range(12, 300)])
    client = Client(far)
    await client.read_until(lambda: client.numbers[-1:] == [299])
    assert (client.numbers, outbox.messages_dropped) == (list(range(300)), 0)
    outbox.close()
    near.close()
    far.close()


async def test_the_number_of_dropped_messages_is_told_once_when_the_client_has_caught_up(line: Line) -> None:
    near = line.outbox(max_backlog_bytes=300 * KIB)
    for number in range(20):
        near.outbox.send_data([chunk(number, 100 * KIB)])
    assert near.caught_up == [], "it has not caught up"
    dropped = near.outbox.messages_dropped
    await line.client.read_until(lambda: line.client.numbers[-1:] == [19])
    await until(lambda: near.caught_up, "the number is told")
    near.outbox.send_data([chunk(20, 100 * KIB)])
    await line.client.read_until(lambda: line.client.numbers[-1:] == [20])
    await until(lambda: near.outbox.data_bytes == 0, "nothing waits")
    assert near.caught_up == [dropped]


async def test_a_notice_sent_when_the_client_has_caught_up_is_the_last_message(line: Line) -> None:
    outbox = Outbox(
        line.near,
        max_backlog_bytes=300 * KIB,
        stall_timeout=FOREVER,
        on_stalled=lambda: None,
        on_caught_up=lambda count: outbox.send_reply(encode_notice(b"dropped:%d" % count, BINARY)),
    )
    for number in range(20):
        outbox.send_data([chunk(number, 100 * KIB)])
    await line.client.read_until(lambda: line.client.messages and line.client.messages[-1][:1] == b"0")
    assert line.client.messages[-1] == b"0dropped:%d" % (20 - len(line.client.numbers))
    assert line.client.numbers[-1] == 19
    outbox.close()


async def test_a_message_larger_than_the_bound_passes_when_nothing_else_waits(line: Line) -> None:
    near = line.outbox(max_backlog_bytes=100 * KIB)
    near.outbox.send_data([chunk(1, 2 * MIB)])
    await line.client.read_until(lambda: line.client.numbers == [1])
    assert near.outbox.messages_dropped == 0
    assert len(line.client.messages[0]) == 1 + 2 * MIB


async def test_a_message_over_the_bound_is_sent_after_a_reply_and_before_later_messages(line: Line) -> None:
    near = line.outbox(max_backlog_bytes=8 * MIB)
    sent = 0
    while not near.outbox.blocked:
        near.outbox.send_data([chunk(sent, MIB)])
        sent += 1
    near.outbox.send_reply(encode_reply(b"ok", BINARY))
    near.outbox.send_data([chunk(900, 12 * MIB)])
    near.outbox.send_data([chunk(901 + number, MIB) for number in range(20)])
    assert near.outbox.messages_dropped >= 12, "what came later is bounded"
    await line.client.read_until(lambda: line.client.numbers[-1:] == [920])
    assert 900 in line.client.numbers


async def test_a_message_that_was_begun_is_always_finished(line: Line) -> None:
    near = line.outbox(max_backlog_bytes=100 * KIB)
    near.outbox.send_data([chunk(0, 2 * MIB)])
    for number in range(1, 50):
        near.outbox.send_data([chunk(number, 50 * KIB)])
    await line.client.read_until(lambda: line.client.messages)
    assert line.client.numbers == [0]
    assert len(line.client.messages[0]) == 1 + 2 * MIB


@pytest.mark.parametrize("seed", range(4))
async def test_every_message_is_sent_or_dropped_or_waits_and_the_bytes_agree(line: Line, seed: int) -> None:
    source = random.Random(seed)
    near = line.outbox(max_backlog_bytes=2 * MIB)
    outbox = near.outbox
    sizes: dict[int, int] = {}
    replies = 0
    for _ in range(400):
        if source.random() < 0.5:
            first = len(sizes)
            sizes.update(
                {
                    number: source.choice([100, 5 * KIB, 60 * KIB, 300 * KIB, 3 * MIB if source.random() < 0.1 else 9])
                    for number in range(first, first + source.randint(1, 6))
                }
            )
            payloads = [b"%08d" % number + bytes(sizes[number]) for number in range(first, len(sizes))]
            outbox.send_data(encode_data(payloads, BINARY))
        elif source.random() < 0.2:
            outbox.send_reply(encode_reply(b"reply %d" % replies, BINARY))
            replies += 1
        elif (
            source.random() < 0.5 and outbox.bytes_sent + outbox.data_bytes + outbox.reply_bytes > line.client.received
        ):
            await line.client.read(source.randint(1, MIB))
        else:
            await asyncio.sleep(0)
        assert outbox.messages_sent + outbox.messages_dropped + outbox.messages_waiting == len(sizes)
        assert outbox.data_bytes >= 0
        assert outbox.reply_bytes >= 0
        assert outbox.bytes_sent <= line.client.received + 4 * MIB
    last = len(sizes)
    outbox.send_reply(encode_reply(b"end", BINARY))
    await line.client.read_until(
        lambda: (
            b"0end" in line.client.messages
            and len(line.client.numbers) == outbox.messages_sent
            and not outbox.messages_waiting
        )
    )
    await until(lambda: outbox.data_bytes == outbox.reply_bytes == 0, "nothing waits")
    assert outbox.bytes_sent == line.client.received
    assert len(line.client.numbers) + outbox.messages_dropped == last
    assert sum(near.caught_up) == outbox.messages_dropped
    assert line.client.numbers == sorted(set(line.client.numbers)), "in order, none twice"
    published = [message for message in line.client.messages if message[:1] == b"1"]
    assert [len(message) - 9 for message in published] == [sizes[number] for number in line.client.numbers]
    told = [message for message in line.client.messages if message.startswith(b"0reply")]
    assert told == [b"0reply %d" % number for number in range(replies)]


# Stalled


async def test_a_client_that_does_not_read_is_reported_once_the_stall_timeout_has_passed(line: Line) -> None:
    near = line.outbox(stall_timeout=0.05)
    assert not near.outbox.blocked
    near.outbox.send_data([chunk(0, 4 * MIB)])
    assert near.outbox.blocked
    await until(lambda: near.stalled, "the stall is told")
    assert near.stalled == 1


async def test_an_idle_client_is_not_stalled(line: Line) -> None:
    near = line.outbox(stall_timeout=0.02)
    near.outbox.send_data([chunk(0, KIB)])
    await line.client.read_until(lambda: line.client.messages)
    await asyncio.sleep(0.1)  # five times the time-out
    assert not near.outbox.blocked
    assert near.stalled == 0


async def test_the_stall_timeout_begins_again_with_what_a_client_takes(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = due = 1000.0
    deadline = Mock()
    monkeypatch.setattr(outbox_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(outbox_module, "Deadline", deadline)
    near = line.outbox(stall_timeout=60.0)
    near.outbox.send_data([chunk(0, 16 * MIB)])

    def has_taken() -> bool:
        return near.outbox._progress_at == now

    for seconds, taken in [(60.0, 1001.0), (15.0, 1070.0), (55.0, None)]:
        [(given, check)] = [call.args for call in deadline.call_args_list]
        assert given == seconds
        deadline.reset_mock()
        if taken is not None:
            now = taken
            await line.client.read_until(has_taken)
        now = due = due + seconds
        check()
        assert near.stalled == (taken is None)
    deadline.assert_not_called()


async def test_64_kib_are_enough_to_count_as_something_taken(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(outbox_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    near = line.outbox()
    near.outbox.send_data([chunk(0, 16 * MIB)])
    progress = set()
    while line.client.received < 4 * MIB:
        await line.client.read(16 * KIB)
        progress.add(near.outbox._progress_at)
    assert len(progress) >= 4 * MIB / (64 * KIB) / 2, "two may be counted together"


# The end


@pytest.mark.parametrize("size", [10 * KIB, 5 * MIB])
async def test_a_client_that_disconnects_midway_ends_the_outbox_quietly(line: Line, size: int) -> None:
    near = line.outbox(stall_timeout=5.0)
    count = 10 * MIB // size
    near.outbox.send_data([chunk(number, size) for number in range(count)])
    near.outbox.send_reply(encode_reply(b"ok", BINARY))
    waiter = asyncio.ensure_future(near.outbox.drain())
    await line.client.read()
    line.far.close()
    await asyncio.wait_for(waiter, 60)
    await until(lambda: near.outbox.data_bytes == near.outbox.reply_bytes == 0, "the outbox is empty")
    near.outbox.send_data([chunk(0, size)])
    near.outbox.send_reply(encode_reply(b"ok", BINARY))
    assert (near.outbox.data_bytes, near.outbox.reply_bytes, near.outbox.messages_waiting) == (0, 0, 0)
    assert not near.outbox.blocked, "no timer is left"
    assert near.outbox.messages_sent + near.outbox.messages_dropped == count


async def test_sending_to_a_stream_that_is_closed_raises_nothing(line: Line) -> None:
    near = line.outbox()
    line.near.close()
    near.outbox.send_data([chunk(0, KIB)])
    near.outbox.send_reply(encode_reply(b"ok", BINARY))
    assert near.outbox.messages_sent == 0
    assert near.outbox.messages_dropped == 1, "the client did not get it"


async def test_close_discards_everything_that_waits_and_writes_nothing_more(line: Line) -> None:
    near = line.outbox()
    near.outbox.send_data([chunk(number, 600 * KIB) for number in range(20)])
    near.outbox.close()
    near.outbox.close()
    near.outbox.send_data([chunk(99, KIB)])
    assert near.outbox.data_bytes == 0
    assert near.outbox.messages_sent + near.outbox.messages_dropped == 20
    line.near.write(b"").add_done_callback(lambda future: line.near.close())
    with pytest.raises(StreamClosedError):
        await line.client.read_until(lambda: False)
    assert line.client.received <= 2 * WRITE_SIZE


async def test_close_ends_the_wait_for_replies_and_a_begun_reply_counts_as_no_message(line: Line) -> None:
    near = line.outbox()
    near.outbox.send_reply(encode_reply(bytes(3 * MIB), BINARY))
    waiting = asyncio.ensure_future(near.outbox.drain())
    await asyncio.sleep(0)
    assert near.outbox.blocked
    assert near.outbox.messages_waiting == 0
    near.outbox.close()
    await asyncio.wait_for(waiting, 60)
    assert near.outbox.messages_dropped == 0


async def test_no_timer_holds_an_outbox_that_was_closed_while_its_client_took_nothing() -> None:
    line = Line()
    outbox = line.outbox().outbox
    outbox.send_data([chunk(number, 100 * KIB) for number in range(10)])
    held = weakref.ref(outbox)
    line.close()
    del line, outbox
    await asyncio.sleep(0)
    gc.collect()
    assert held() is None


async def test_nothing_is_scheduled_once_everything_is_sent(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled: list[object] = []
    monkeypatch.setattr(line.near.io_loop, "add_callback", lambda callback: scheduled.append(callback))
    near = line.outbox()
    near.outbox.send_data([chunk(0, KIB)])
    near.outbox.send_reply(encode_reply(b"ok", BINARY))
    assert near.outbox.bytes_waiting == 0
    assert scheduled == [], "the loop would never rest"


def test_a_begun_chunk_of_exactly_the_bound_leaves_no_room_for_others() -> None:
    begun = Chunk((), 1000, 1)
    backlog = Backlog(1000)
    backlog.extend([begun, Chunk((), 100, 1)])
    assert backlog.take() is begun
    backlog.trim(begun, begun.size)
    assert (backlog.size, backlog.dropped) == (1000, 1)


async def test_replies_gone_returns_at_once_when_no_reply_waits(line: Line) -> None:
    near = line.outbox()
    await asyncio.wait_for(near.outbox.drain(), 60)


async def test_replies_gone_returns_when_the_last_reply_is_handed_over(line: Line) -> None:
    near = line.outbox()
    for _ in range(100):
        near.outbox.send_reply(encode_reply(bytes(50 * KIB), BINARY))
    waiters = [asyncio.ensure_future(near.outbox.drain()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(waiter.done() for waiter in waiters)
    await line.client.read_until(lambda: len(line.client.messages) == 100)
    await asyncio.wait_for(asyncio.gather(*waiters), 60)


# Others on the same stream


@pytest.mark.parametrize("seed", range(4))
async def test_a_ping_written_by_others_never_lands_inside_a_frame(line: Line, seed: int) -> None:
    source = random.Random(seed)
    payload = source.randbytes(5 * MIB)
    near = line.outbox()
    near.outbox.send_data(encode_data([payload], BINARY))
    pings = 0
    while not line.client.messages:
        if pings < 300:
            line.near.write(b"\x89\x04ping")
            pings += 1
        if source.random() < 0.1:
            near.outbox.send_reply(encode_reply(b"ok", BINARY))
        for _ in range(source.randint(0, 3)):
            await asyncio.sleep(0)
        await asyncio.wait_for(line.client.read(source.randint(1, 200 * KIB)), 60)
    assert line.client.messages[0] == b"1" + payload
    last = max(at for at, opcode in enumerate(line.client.opcodes) if opcode is Opcode.CONT)
    assert line.client.opcodes[:last].count(Opcode.PING) > 1, "pings pass between the fragments"


def test_small_buffers_are_joined_up_to_the_limit_and_a_large_one_is_not_copied() -> None:
    large = bytes(2 * JOIN_LIMIT)
    buffers: list[Buffer] = [*(bytes([number]) * 1000 for number in range(200)), large, b"a", b"b"]
    joined = _join_small(buffers)
    assert b"".join(joined) == b"".join(buffers)
    assert [len(buffer) for buffer in joined[:-3]] == [JOIN_LIMIT // 1000 * 1000] * (200_000 // JOIN_LIMIT)
    assert joined[-2] is large
    assert joined[-1] == b"ab"
