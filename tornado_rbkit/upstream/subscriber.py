"""Paces published messages: decides when to take, encode and deliver them."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable
from typing import Final

from tornado.ioloop import IOLoop

from tornado_rbkit.frames import Encoding
from tornado_rbkit.upstream.encoder import MAX_MESSAGES, BatchEncoder
from tornado_rbkit.upstream.losses import LossCounter
from tornado_rbkit.upstream.source import Source
from tornado_rbkit.upstream.types import Batch

_ACKNOWLEDGEMENT_POLL: Final = 0.001  # seconds, the resolution of epoll
_MAX_ACKNOWLEDGEMENT_POLL: Final = 0.01  # seconds, while nothing arrives; too short for RCVHWM messages to arrive

MAX_REST: Final = 0.05
"""Seconds between two batches while few messages arrive."""

_REST_GROWTH: Final = 10  # a rest is at most this many times `flush_interval`
_MAX_RATE: Final = 20_000  # messages per second; the SUB socket's queue must not fill up during a rest
_GATHERED: Final = 8  # messages for which a rest is long enough


class Phase(enum.Enum):
    """The event that a `Subscriber` waits for."""

    LISTENING = "listening"  # the source is ready
    RESTING = "resting"  # a timer fires; until then the source and the web loop are left alone
    WAITING = "waiting"  # the last batch is acknowledged; a timer polls for it
    ENCODING = "encoding"  # a timer fires, to continue a batch that takes more than one turn to encode
    CLOSED = "closed"


class Subscriber:
    """Paces one profiler's messages. On its loop's thread only, except the constructor.

    A wake-up costs more than the messages that caused it, so all ready messages are taken at once and the source is
    then left alone for a rest: at the present rate, the time in which `_GATHERED` messages arrive, but at least
    `flush_interval` and at most `max_rest`. The first message after a silence of `max_rest` is delivered at once.
    After a full batch, the subscriber rests for as long as the web loop was busy with it, so that the loop's other
    work gets every second turn; on a thread, the next batch is compressed meanwhile. While the web loop is busy with
    other work, messages are moved from the source to a bounded queue; past the bound the profiler's high-water mark
    applies. Encoding pauses every 10 ms for one turn of the loop, so a large message delays neither commands nor
    `close`.

    Invariant, whenever no method is running: if anything is pending, encoded and not delivered, or counted and not
    reported, or if the source was not empty when last read, a timer is set. Otherwise the phase is `LISTENING`, in
    which the source is watched. `_advance` chooses the phase, and `_wait` enters it.

    Attributes:
        phase: the event that the subscriber waits for.
        max_rest: seconds; the longest rest.
    """

    _source: Source

    def __init__(
        self,
        io_loop: IOLoop,
        deliver: Callable[[Batch], None],
        *,
        on_thread: bool,
        flush_interval: float,
        rcvhwm: int,
        max_pending_bytes: int,
        compression_level: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a closed subscriber.

        Args:
            io_loop: the source's loop; only its timers are used.
            deliver: passes a batch to the clients, on their thread; must not block or raise, and may call nothing here
                but `reset_counter`.
            on_thread: whether `io_loop` is not the clients' loop.
            flush_interval: seconds of rest after the source was emptied, while many messages arrive.
            rcvhwm: number of messages for which the source has room.
            max_pending_bytes: bytes of payload that may wait here.
            compression_level: 1 to 9, for clients with a compressed encoding.
            clock: returns seconds; monotonic.
        """
        self.phase = Phase.CLOSED
        self._io_loop = io_loop
        self._deliver = deliver
        self._on_thread = on_thread
        self._flush_interval = flush_interval
        self.max_rest = max(flush_interval, min(_REST_GROWTH * flush_interval, MAX_REST, rcvhwm / _MAX_RATE))
        self._max_pending = max_pending_bytes
        self._clock = clock
        self._losses = LossCounter()
        self._encoder = BatchEncoder(self._losses, compression_level=compression_level, clock=clock)
        self._sent: Batch | None = None
        self._handed_over_at = self._rests_until = float("-inf")  # by the clock
        self._timer: object | None = None
        self._must_look = False  # whether the source may have messages although it signals none

    def open(self, source: Source) -> None:
        """Begin to receive messages from a source, on `io_loop`."""
        self._source = source
        self._wait(Phase.LISTENING)

    def set_encodings(self, encodings: Iterable[Encoding], clients: int, generation: int) -> None:
        """Set the encodings of the batches; without any, pending and arriving messages are discarded.

        Args:
            encodings: the encodings in use.
            clients: the number of clients.
            generation: a number that grows with each client that joins, see `Batch.generation`.
        """
        self._encoder.set_encodings(encodings, clients, generation)

    def reset_counter(self) -> None:
        """Restart the counting because the connection was lost, and check the source once.

        Reconnecting the socket processes libzmq's internal commands, among them the notification of arrived messages,
        and the socket does not become readable again for those messages.
        """
        self._losses.reset()
        self._must_look = True
        if self.phase is Phase.LISTENING:
            self._wait(Phase.LISTENING)

    def close(self) -> None:
        """Stop receiving. Does not close the source's socket. May be called twice."""
        if self.phase is Phase.LISTENING:
            self._source.unwatch()
        if self._timer is not None:
            self._io_loop.remove_timeout(self._timer)
            self._timer = None
        self.phase = Phase.CLOSED
        self._encoder.discard()

    def _turn(self) -> None:
        """Do the work that is due, and enter the next phase."""
        self._timer = None
        phase, seconds = Phase.RESTING, self._flush_interval
        try:
            phase, seconds = self._advance()
        finally:  # the loop logs an exception, such as MemoryError
            self._wait(phase, seconds)

    def _wait(self, phase: Phase, seconds: float = 0.0) -> None:
        """Enter a phase. Only this method watches the source and sets the timer."""
        if phase is Phase.LISTENING and self._must_look:
            phase, seconds = Phase.RESTING, self._flush_interval
        if self._timer is not None:
            self._io_loop.remove_timeout(self._timer)
            self._timer = None
        if self.phase is Phase.LISTENING and phase is not Phase.LISTENING:
            self._source.unwatch()
        elif phase is Phase.LISTENING and self.phase is not Phase.LISTENING:
            self._source.watch(self._turn)
        self.phase = phase
        if phase is not Phase.LISTENING:
            self._timer = self._io_loop.call_later(seconds, self._turn)

    def _advance(self) -> tuple[Phase, float]:
        """Take the ready messages, encode for a while and deliver a batch if one is due.

        Return the next phase, and its length in seconds (ignored for `LISTENING`).
        """
        encoder = self._encoder
        started = self._clock()
        since_last = started - self._handed_over_at
        was_silent = self.phase is Phase.LISTENING and since_last > self.max_rest
        received, emptied = self._take()
        due = self._acknowledged and started > self._rests_until - _ACKNOWLEDGEMENT_POLL  # timers are not more exact
        delivered = due and (self._unreported or encoder.is_encoding) and encoder.encode()
        if delivered:
            delivery_time = (self._sent.delivery_time if self._sent else None) or 0.0
            self._hand_over()
            now = self._rests_until = self._handed_over_at = self._clock()
            if encoder.has_pending or not emptied:
                self._rests_until += delivery_time + now - started  # expect the next batch to take as long
        if delivered or not due:
            emptied = self._encode_ahead(emptied)
        now = self._clock()
        if encoder.is_encoding:
            return Phase.ENCODING, 0.0 if self._on_thread else now - started
        if self._unreported and not self._acknowledged:
            silence = 0.0 if received else (now - self._handed_over_at) / 8
            return Phase.WAITING, min(max(_ACKNOWLEDGEMENT_POLL, silence), _MAX_ACKNOWLEDGEMENT_POLL)
        if self._unreported or not emptied:
            return Phase.RESTING, max(_ACKNOWLEDGEMENT_POLL, self._rests_until - now)
        if delivered and was_silent:
            return Phase.LISTENING, 0.0  # often no other message follows soon: save a timer's wake-up
        if delivered:
            assert self._sent is not None
            gathering = since_last * _GATHERED / max(1, self._sent.messages)
            return Phase.RESTING, min(max(self._flush_interval, gathering), self.max_rest)
        if received:
            return Phase.RESTING, self._flush_interval
        return Phase.LISTENING, 0.0

    @property
    def _acknowledged(self) -> bool:
        return self._sent is None or self._sent.delivery_time is not None

    @property
    def _unreported(self) -> bool:
        """Whether another batch is needed: for messages, for losses, or because the last batch had `pending` bytes."""
        encoder = self._encoder
        return bool(encoder.batch or encoder.has_pending or self._losses or (self._sent and self._sent.pending))

    def _take(self) -> tuple[bool, bool]:
        """Take up to one batch from the source; return whether messages arrived and whether the source is now
        empty."""
        budget = min(self._encoder.payload_bytes, self._max_pending - self._encoder.pending_bytes)
        self._must_look = False
        payloads, emptied = self._source.take(budget, MAX_MESSAGES)
        self._losses.count(payloads, wanted=bool(self._encoder.encodings))
        self._encoder.add(payloads)
        return bool(payloads), emptied

    def _encode_ahead(self, emptied: bool) -> bool:
        """Continue a begun batch; on a thread, also compress the next one while the web loop is busy.

        Return whether the source is empty; `emptied` says whether it was.
        """
        encoder = self._encoder
        encodes_ahead = self._on_thread and encoder.deflates  # zlib releases the GIL for the web loop
        if encodes_ahead and not emptied and not self._unreported and not encoder.is_encoding:
            _, emptied = self._take()
        if encoder.is_encoding or (encodes_ahead and encoder.has_pending):
            encoder.encode()
        return emptied

    def _hand_over(self) -> None:
        self._sent = self._encoder.take_batch()
        self._losses.report(self._sent)
        self._deliver(self._sent)
