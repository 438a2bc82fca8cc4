"""Takes profiling data off the SUB socket, encodes it and delivers it in paced batches."""

from __future__ import annotations

import enum
import logging
import struct
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import zmq
from tornado.ioloop import IOLoop

from tornado_rbkit.frames import FRAGMENT_SIZE, Buffer, Chunk, Form, encode_in_slices
from tornado_rbkit.log_throttle import LogThrottle, times
from tornado_rbkit.protocol import Field, message_counter

_log = logging.getLogger(__name__)

MAX_DELIVERED: Final = 4 * 1024 * 1024
"""Bytes, size of an encoded batch × clients: writing them takes the web loop about a millisecond."""

_SLICE: Final = FRAGMENT_SIZE * 7 // 8  # bytes encoded together; with headers and the last message they fit a chunk
_MIN_BATCH: Final = 3 * _SLICE  # bytes; smaller writes cost the kernel more per byte
_MAX_DEFLATED: Final = 8 * _SLICE  # bytes before compression, which takes about 4 ms at recorded traffic's ratio
_MAX_MESSAGES: Final = 512
_COUNTER_TYPE_AT: Final = 14  # index of the type byte, after the key, in the head that `message_counter` reads
_UINT16: Final = 0xCD  # MessagePack type bytes
_UINT32: Final = 0xCE
_COPY_LIMIT: Final = 8 * 1024  # bytes
_RECEIPT_POLL: Final = 0.001  # seconds, the resolution of epoll
_MAX_RECEIPT_POLL: Final = 0.01  # seconds, while nothing arrives; too short for RCVHWM messages to arrive
_ENCODING_TURN: Final = 0.01  # seconds of encoding before the loop gets a turn


@dataclass(slots=True)
class Batch:
    """Encoded messages for the clients. Nothing changes after delivery to the web loop, except by `acknowledge`.

    Attributes:
        chunks: the encoded messages, for each encoding in use.
        generation: of the clients when encoding began; a client that joined later does not get the batch.
        messages: number of messages, before any client drops some.
        size: bytes of payload.
        encoded: bytes that a client gets, in the largest encoding.
        pending: bytes of payload that wait behind this batch.
        missed: messages lost before they arrived here, by the profiler's counter.
        restarted: whether the counter began again.
        foreign: messages without rbkit's counter.
        work: seconds that the receiver spent on the batch; None until it calls `acknowledge`. The subscriber reads it
            at its next turn; a callback would wake its thread once more for each batch.
    """

    chunks: dict[Form, list[Chunk]]
    generation: int
    messages: int = 0
    size: int = 0
    encoded: int = 0
    pending: int = 0
    missed: int = 0
    restarted: bool = False
    foreign: int = 0
    work: float | None = None

    def acknowledge(self, seconds: float) -> None:
        """Release the chunks and set `work`. For the receiver, on its own thread."""
        self.chunks = {}
        self.work = seconds


class Source(Protocol):
    """A source of published messages for a `Subscriber`."""

    def take(self, max_bytes: int, max_messages: int) -> tuple[list[Buffer], bool]:
        """Return the messages that are ready, in order, and whether none is left.

        Stop at `max_messages`, or with the message that reaches `max_bytes`.
        """

    def watch(self, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` whenever messages may be ready, until `unwatch`. Earlier messages may not trigger it."""

    def unwatch(self) -> None:
        """Stop calling `on_ready`."""


class SocketSource:
    """The messages of a SUB socket. On its loop's thread only."""

    def __init__(self, socket: zmq.Socket[bytes], io_loop: IOLoop, *, max_message_bytes: int) -> None:
        """Wrap a connected socket, which its owner must close.

        Args:
            socket: a SUB socket.
            io_loop: the socket's loop.
            max_message_bytes: the most bytes in all parts of a message together (ZMQ_MAXMSGSIZE bounds each part); a
                longer message is discarded, and counted as missed.
        """
        self._max_message_bytes = max_message_bytes
        self._repeats = LogThrottle()
        self._socket = socket
        self._io_loop = io_loop

    def take(self, max_bytes: int, max_messages: int) -> tuple[list[Buffer], bool]:
        """See `Source.take`."""
        receive = self._socket.recv
        payloads: list[Buffer] = []
        while max_bytes > 0 and len(payloads) < max_messages:
            try:
                frame = receive(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return payloads, True
            payload: Buffer
            if frame.more:
                joined = self._join(frame)
                if joined is None:
                    return payloads, False
                payload = joined
            elif len(frame) < _COPY_LIMIT:
                payload = frame.bytes  # a copy: keeping the frame costs more
            else:
                payload = frame.buffer  # no copy: copying would hold the GIL
            max_bytes -= len(payload)
            payloads.append(payload)
        return payloads, False

    def _join(self, frame: zmq.Frame) -> bytes | None:
        """Join the parts of a multipart message (rbkit sends none); return None if it is too long."""
        parts = [frame]
        size = len(frame)
        while frame.more:
            frame = self._socket.recv(copy=False)  # does not wait: libzmq delivers all parts together
            size += len(frame)
            if size <= self._max_message_bytes:
                parts.append(frame)
            else:
                parts.clear()
        if size <= self._max_message_bytes:
            return b"".join(part.buffer for part in parts)
        count = self._repeats.add("too long")
        if count:
            text = "let go of a published message whose parts have %d bytes; allowed: at most %d (max_message_bytes)%s"
            _log.warning(text, size, self._max_message_bytes, times(count))
        return None

    def watch(self, on_ready: Callable[[], None]) -> None:
        """See `Source.watch`.

        Not through a ZMQStream: it stays registered with the loop while it does not receive, and wakes it for nothing.
        """
        self._io_loop.add_handler(self._socket, lambda socket, events: on_ready(), IOLoop.READ)

    def unwatch(self) -> None:
        """See `Source.unwatch`."""
        self._io_loop.remove_handler(self._socket)


class LossCounter:
    """Counts gaps in the message counters, counter restarts and messages without a counter until they are reported.

    Attributes:
        missed: see `Batch`.
        restarted: see `Batch`.
        foreign: see `Batch`.
    """

    def __init__(self) -> None:
        self.missed = self.foreign = 0
        self.restarted = False
        self._next: int | None = None
        self._before: int | None = None  # `_next` of the previous connection, until the first message of this one

    def __bool__(self) -> bool:
        """Return whether there is something to report."""
        return bool(self.missed or self.foreign or self.restarted)

    def reset(self) -> None:
        """Start over after a lost connection: the number of messages published meanwhile is unknown."""
        if self._next is not None:
            self._before, self._next = self._next, None

    def count(self, payloads: list[Buffer], *, wanted: bool) -> None:
        """Count the gaps in consecutively received messages; if they are not `wanted`, record only a restart.

        Messages are not wanted while there are no clients.
        """
        if not payloads or self._have_no_gap(payloads):
            return
        before = self.missed, self.foreign
        for payload in payloads:
            counter = message_counter(payload)
            if counter is None:
                self.foreign += 1
                continue
            if self._next is None:
                self.restarted |= self._before is not None and counter < self._before
                self._before = None
            elif counter > self._next:
                self.missed += counter - self._next
            elif counter < self._next:
                self.restarted = True
            self._next = counter + 1
        if not wanted:
            self.missed, self.foreign = before

    def _have_no_gap(self, payloads: list[Buffer]) -> bool:
        """Return True if the messages follow each other and the last message counted; False if in doubt.

        This costs a fifth of reading each counter: it compares four bytes of each message (key, type and 16-bit
        counter, or 32-bit counter) with the bytes of consecutive numbers.
        """
        first, last = message_counter(payloads[0]), message_counter(payloads[-1])
        if first is None or first != self._next or last != first + len(payloads) - 1:
            return False
        kind = payloads[0][_COUNTER_TYPE_AT]
        if kind == _UINT16:
            at, number = _COUNTER_TYPE_AT - 1, first + (Field.MESSAGE_COUNTER << 24) + (kind << 16)
        elif kind == _UINT32 and last <= 0xFFFFFFFF:
            at, number = _COUNTER_TYPE_AT + 1, first
        else:
            return False
        end = at + 4
        counters = b"".join([payload[at:end] for payload in payloads])
        if counters != struct.pack(f">{len(payloads)}I", *range(number, number + len(payloads))):
            return False
        self._next = last + 1
        return True

    def report(self, batch: Batch) -> None:
        """Move the counts into a batch."""
        batch.missed, batch.restarted, batch.foreign = self.missed, self.restarted, self.foreign
        self.missed, self.restarted, self.foreign = 0, False, 0


class Phase(enum.Enum):
    """The event that a `Subscriber` waits for."""

    LISTENING = "listening"  # the source is ready
    RESTING = "resting"  # a timer fires; until then the source and the web loop are left alone
    WAITING = "waiting"  # the last batch is acknowledged; a timer polls for it
    ENCODING = "encoding"  # a timer fires, to continue a batch that takes more than one turn to encode
    CLOSED = "closed"


class Subscriber:
    """Paces one profiler's messages. On its loop's thread only.

    A wake-up costs more than the messages that caused it, so all ready messages are taken at once and the source is
    then left alone for `flush_interval`. After a full batch, the subscriber rests for as long as the web loop was busy
    with it, so that the loop's other work gets every second turn; on a thread, the next batch is compressed meanwhile.
    While the web loop is busy with other work, messages are moved from the source to a bounded queue; past the bound
    the profiler's high-water mark applies. Encoding pauses every 10 ms for one turn of the loop, so a large message
    delays neither commands nor `close`.

    Invariant, whenever no method is running: if anything is pending, encoded and not delivered, or counted and not
    reported, or if the source was not empty when last read, a timer is set. Otherwise the phase is `LISTENING`, in
    which the source is watched. `_go_on` chooses the phase, and `_wait` enters it.

    Attributes:
        phase: the event that the subscriber waits for.
    """

    def __init__(
        self,
        source: Source,
        io_loop: IOLoop,
        deliver: Callable[[Batch], None],
        *,
        on_thread: bool,
        flush_interval: float,
        max_pending_bytes: int,
        compression_level: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to receive.

        Args:
            source: the messages, on `io_loop`.
            io_loop: the source's loop; only its timers are used.
            deliver: passes a batch to the clients, on their thread; must not block, raise or call back.
            on_thread: whether `io_loop` is not the clients' loop.
            flush_interval: seconds of rest after the source was emptied.
            max_pending_bytes: bytes of payload that may wait here.
            compression_level: 1 to 9, for clients with a compressed encoding.
            clock: returns seconds; monotonic.
        """
        self.phase = Phase.RESTING
        self._source = source
        self._io_loop = io_loop
        self._deliver = deliver
        self._on_thread = on_thread
        self._encodes_ahead = False
        self._flush_interval = flush_interval
        self._max_pending = max_pending_bytes
        self._compression_level = compression_level
        self._clock = clock
        self._forms: frozenset[Form] = frozenset()
        self._generation = 0
        self._batch_bytes = self._payload_bytes = MAX_DELIVERED
        self._pending: deque[Buffer] = deque()
        self._pending_bytes = 0
        self._losses = LossCounter()
        self._encoding: Iterator[None] | None = None  # the next batch, while it is encoded
        self._next: Batch | None = None  # encoded, not delivered
        self._sent: Batch | None = None
        self._handed_over_at = self._rests_until = float("-inf")  # by the clock
        self._timer: object | None = None
        self._wait(Phase.LISTENING)

    def set_encodings(self, forms: Iterable[Form], clients: int, generation: int) -> None:
        """Set the encodings of the batches; without any, pending and arriving messages are discarded.

        Args:
            forms: the encodings in use.
            clients: the number of clients.
            generation: a number that grows with each client that joins, see `Batch.generation`.
        """
        self._forms = frozenset(forms)
        self._generation = generation
        self._batch_bytes = max(_MIN_BATCH, MAX_DELIVERED // max(1, clients))
        deflates = any(form.deflate for form in self._forms)
        self._payload_bytes = _MAX_DEFLATED if deflates else self._batch_bytes
        self._encodes_ahead = self._on_thread and deflates  # zlib releases the GIL for the web loop
        if not self._forms:
            self._discard()

    def reset_counter(self) -> None:
        """Restart the counting because the connection was lost, and check the source once.

        Reconnecting the socket processes libzmq's internal commands, among them the notification of arrived messages,
        and the socket does not become readable again for those messages.
        """
        self._losses.reset()
        if self.phase is Phase.LISTENING:
            self._wait(Phase.RESTING, self._flush_interval)

    def close(self) -> None:
        """Stop receiving. Does not close the source's socket. May be called twice."""
        if self.phase is Phase.LISTENING:
            self._source.unwatch()
        if self._timer is not None:
            self._io_loop.remove_timeout(self._timer)
            self._timer = None
        self.phase = Phase.CLOSED
        self._discard()

    def _turn(self) -> None:
        """Do the work that is due, and enter the next phase."""
        self._timer = None
        phase, seconds = Phase.RESTING, self._flush_interval
        try:
            phase, seconds = self._go_on()
        finally:  # the loop logs an exception, such as MemoryError
            self._wait(phase, seconds)

    def _wait(self, phase: Phase, seconds: float = 0.0) -> None:
        """Enter a phase. Only this method watches the source and sets the timer."""
        if self.phase is Phase.LISTENING and phase is not Phase.LISTENING:
            self._source.unwatch()
        elif phase is Phase.LISTENING and self.phase is not Phase.LISTENING:
            self._source.watch(self._turn)
        self.phase = phase
        if phase is not Phase.LISTENING:
            self._timer = self._io_loop.call_later(seconds, self._turn)

    def _go_on(self) -> tuple[Phase, float]:
        """Take the ready messages, encode for a while and deliver a batch if one is due.

        Return the next phase, and its length in seconds (ignored for `LISTENING`).
        """
        started = self._clock()
        was_quiet = self.phase is Phase.LISTENING and started - self._handed_over_at > self._flush_interval
        received, emptied = self._take()
        due = self._acknowledged and started > self._rests_until - _RECEIPT_POLL  # timers are no more exact
        delivered = due and self._encode()
        if delivered:
            work = (self._sent.work if self._sent else None) or 0.0
            self._hand_over()
            now = self._rests_until = self._handed_over_at = self._clock()
            if self._pending or not emptied:
                self._rests_until += work + now - started  # expect the next batch to take as long
        if delivered or not due:
            if self._encodes_ahead and not emptied and not self._unreported and self._encoding is None:
                _, emptied = self._take()
            if self._encoding is not None or (self._encodes_ahead and self._pending):
                self._encode()
        now = self._clock()
        rest = max(_RECEIPT_POLL, self._rests_until - now)
        if self._encoding is not None:
            return Phase.ENCODING, 0.0 if self._on_thread else now - started
        if self._unreported and not self._acknowledged:
            silence = 0.0 if received else (now - self._handed_over_at) / 8
            return Phase.WAITING, min(max(_RECEIPT_POLL, silence), _MAX_RECEIPT_POLL)
        if self._unreported or not emptied:
            return Phase.RESTING, rest
        if delivered and was_quiet:
            return Phase.LISTENING, 0.0  # often no other message follows soon: save a timer's wake-up
        if delivered or received:
            return Phase.RESTING, self._flush_interval
        return Phase.LISTENING, 0.0

    @property
    def _acknowledged(self) -> bool:
        return self._sent is None or self._sent.work is not None

    @property
    def _unreported(self) -> bool:
        """Whether another batch is needed: for messages, for losses, or because the last batch had `pending` bytes."""
        return bool(self._next or self._pending or self._losses or (self._sent and self._sent.pending))

    def _take(self) -> tuple[bool, bool]:
        """Take up to a batch off the source; return whether messages arrived and whether the source is now empty."""
        budget = min(self._payload_bytes, self._max_pending - self._pending_bytes)
        payloads, emptied = self._source.take(budget, _MAX_MESSAGES)
        self._losses.count(payloads, wanted=bool(self._forms))
        if self._forms:
            self._pending.extend(payloads)
            self._pending_bytes += sum(map(len, payloads))
        return bool(payloads), emptied

    def _hand_over(self) -> None:
        assert self._next is not None
        self._sent, self._next = self._next, None
        self._sent.pending = self._pending_bytes
        self._losses.report(self._sent)
        self._deliver(self._sent)

    def _discard(self) -> None:
        self._pending.clear()
        self._pending_bytes = 0
        self._encoding = self._next = None

    def _encode(self) -> bool:
        """Encode the next batch for up to `_ENCODING_TURN`; return whether it is complete."""
        if self._next is None:
            if self._encoding is None:
                if not self._unreported:
                    return False
                self._encoding = self._encode_batch()
            encoding, self._encoding = self._encoding, None
            until = self._clock() + _ENCODING_TURN
            for _ in encoding:
                if self._clock() >= until:
                    self._encoding = encoding
                    return False
        return True

    def _encode_batch(self) -> Iterator[None]:
        """Encode pending messages into `_next`, slice by slice, until it is full or a client joins."""
        batch = Batch({form: [] for form in self._forms}, self._generation)
        try:
            while (
                self._pending
                and batch.generation == self._generation
                and batch.messages < _MAX_MESSAGES
                and batch.size < self._payload_bytes
                and batch.encoded < self._batch_bytes
            ):
                payloads, size = self._take_slice(_MAX_MESSAGES - batch.messages)
                batch.messages += len(payloads)
                batch.size += size
                largest = 0
                for form, chunks in batch.chunks.items():
                    more = yield from self._encode_slice(payloads, form)
                    chunks += more
                    largest = max(largest, sum(chunk.size for chunk in more))
                    yield
                batch.encoded += largest
        except Exception:
            self._losses.missed += batch.messages
            raise
        self._next = batch

    def _take_slice(self, max_messages: int) -> tuple[list[Buffer], int]:
        """Take about `_SLICE` bytes of pending messages; return them and their size."""
        payloads: list[Buffer] = []
        size = 0
        while self._pending and size < _SLICE and len(payloads) < max_messages:
            payload = self._pending.popleft()
            payloads.append(payload)
            size += len(payload)
        self._pending_bytes -= size
        return payloads, size

    def _encode_slice(self, payloads: list[Buffer], form: Form) -> Generator[None, None, list[Chunk]]:
        """Encode a slice; stop and return no chunks once no client uses that encoding."""
        encoding = encode_in_slices(payloads, form, compression_level=self._compression_level)
        while form in self._forms:
            try:
                next(encoding)
            except StopIteration as end:
                chunks: list[Chunk] = end.value
                return chunks
            yield
        return []
