"""Profiling data off the SUB socket: drained, encoded and handed over in paced batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import zmq
from tornado.ioloop import IOLoop

from tornado_rbkit.frames import FRAGMENT_SIZE, Buffer, Chunk, Form, encode_data
from tornado_rbkit.protocol import message_counter

MAX_DELIVERED: Final = 4 * 1024 * 1024
"""Bytes, encoded batch × clients: about a millisecond of the web loop."""

_SLICE: Final = FRAGMENT_SIZE * 7 // 8  # bytes that are encoded together: with headers and a last message, a chunk
_MIN_BATCH: Final = 3 * _SLICE  # bytes; smaller writes cost the kernel more for each byte
_MAX_DEFLATED: Final = 8 * _SLICE  # bytes before compression: some 4 ms of it, and recorded traffic's ratio
_MAX_MESSAGES: Final = 512
_COPY_LIMIT: Final = 8 * 1024  # bytes
_RECEIPT_POLL: Final = 0.001  # seconds: the resolution of epoll


@dataclass(slots=True)
class Batch:
    """What one hand-over carries. All of it is fixed before it crosses, but for `work`.

    Attributes:
        chunks: the messages, for each form that a client has.
        messages: how many there are, before any client's bound.
        size: their payload, bytes.
        encoded: bytes that a client gets, in the largest form.
        pending: what waits behind it, bytes.
        missed: how many the profiler's counter says were lost on the way here.
        restarted: the counter began again.
        foreign: how many came without a counter, which rbkit's have.
        work: the receipt, None until the receiver has written it: the seconds it was busy with the batch. A plain
            store that is read at the next turn; a callback would wake the thread once more for each batch.
    """

    chunks: dict[Form, list[Chunk]]
    messages: int
    size: int
    encoded: int
    pending: int
    missed: int
    restarted: bool
    foreign: int
    work: float | None = None

    def acknowledge(self, seconds: float) -> None:
        """Write the receipt; for the receiver, on its own thread."""
        self.work = seconds


class Subscriber:
    """The pacing of one SUB socket. On its loop's thread only.

    A wake-up costs more than the messages behind it, so all that is ready is taken at once and the socket is then
    left alone for `flush_interval`. After a batch that was full, it rests for as long as the web loop was busy with
    it, so that the loop's other work gets every second turn; on a thread, the next one is compressed meanwhile. While
    the web loop is busy elsewhere, messages are taken off the socket into a hold, which is bounded; past the bound the
    profiler's high-water mark applies.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        io_loop: IOLoop,
        deliver: Callable[[Batch], None],
        *,
        on_thread: bool,
        flush_interval: float,
        max_pending_bytes: int,
        compression_level: int,
    ) -> None:
        """Begin to receive.

        Args:
            socket: a SUB, already connected.
            io_loop: its loop.
            deliver: takes a batch to the clients, on whatever thread they are; must not block or raise.
            on_thread: `io_loop` is not the clients' loop.
            flush_interval: seconds of rest after the socket was emptied.
            max_pending_bytes: payload that may wait here.
            compression_level: 1 to 9, for clients whose form says compressed.
        """
        self._socket = socket
        self._io_loop = io_loop
        self._deliver = deliver
        self._on_thread = on_thread
        self._encodes_ahead = False
        self._flush_interval = flush_interval
        self._max_pending = max_pending_bytes
        self._compression_level = compression_level
        self._forms: frozenset[Form] = frozenset()
        self._batch_bytes = self._payload_bytes = MAX_DELIVERED
        self._pending: deque[Buffer] = deque()
        self._pending_bytes = 0
        self._missed = 0
        self._foreign = 0
        self._restarted = False
        self._next_counter: int | None = None
        self._connection_counter: int | None = None
        self._sent: Batch | None = None
        self._next: Batch | None = None  # encoded while the web loop was busy with the one before
        self._handed_over_at = 0.0
        self._timer: object | None = None
        self._listen()

    def set_audience(self, forms: Iterable[Form], clients: int) -> None:
        """Say in which forms batches are wanted, and for how many clients; with no form, data is let go by."""
        self._forms = frozenset(forms)
        self._batch_bytes = max(_MIN_BATCH, MAX_DELIVERED // max(1, clients))
        deflates = any(form.deflate for form in self._forms)
        self._payload_bytes = _MAX_DEFLATED if deflates else self._batch_bytes
        self._encodes_ahead = self._on_thread and deflates  # zlib gives up the GIL, which the web loop wants then

    def reset_counter(self) -> None:
        """Begin to count anew: the connection was lost, and what was published meanwhile nobody can know."""
        if self._next_counter is not None:
            self._connection_counter, self._next_counter = self._next_counter, None

    def close(self) -> None:
        """Stop receiving; the socket is the owner's to close."""
        self._io_loop.remove_handler(self._socket)
        if self._timer is not None:
            self._io_loop.remove_timeout(self._timer)
            self._timer = None
        self._pending.clear()

    def _listen(self) -> None:
        """Wait for the next message; the socket is empty.

        Not through a ZMQStream: it stays registered while it does not receive, and so wakes the loop from each rest.
        """
        self._io_loop.add_handler(self._socket, self._on_readable, IOLoop.READ)

    def _on_readable(self, socket: zmq.Socket[bytes], events: int) -> None:
        received, emptied = self._drain()
        if not received:
            return  # the file descriptor tells of more than messages
        rested = self._io_loop.time() - self._handed_over_at > self._flush_interval
        if rested and emptied and self._pending and self._acknowledged:
            self._hand_over()  # often there is no other soon, and a timer would be one wake-up more
            return
        self._io_loop.remove_handler(self._socket)
        self._go_on(emptied)

    def _turn(self) -> None:
        """Take what is ready; listen again if that is nothing."""
        self._timer = None
        received, emptied = self._drain()
        if received or self._pending or self._next:
            self._go_on(emptied)
        else:
            self._listen()

    def _go_on(self, emptied: bool) -> None:
        """Hand over what may be, and arrange for the next turn."""
        rest = _RECEIPT_POLL
        if (self._next or self._pending) and self._acknowledged:
            started = self._io_loop.time()
            work = self._sent.work if self._sent else None
            self._hand_over()
            rest = max(rest, (work or 0.0) + self._io_loop.time() - started)  # the next one will take as long
        at = self._io_loop.time() + rest
        if self._encodes_ahead and self._next is None:
            if not self._pending and not emptied:
                _, emptied = self._drain()
            if self._pending:
                self._next = self._encode()
        if emptied and not self._pending and self._next is None:
            at = self._io_loop.time() + self._flush_interval
        self._timer = self._io_loop.call_at(at, self._turn)

    @property
    def _acknowledged(self) -> bool:
        return self._sent is None or self._sent.work is not None

    def _drain(self) -> tuple[bool, bool]:
        """Receive up to a batch; return whether anything came and whether the socket is now empty."""
        budget = min(self._payload_bytes, self._max_pending - self._pending_bytes)
        receive = self._socket.recv
        payloads: list[Buffer] = []
        emptied = False
        while budget > 0 and len(payloads) < _MAX_MESSAGES:
            try:
                frame = receive(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                emptied = True
                break
            parts = [frame]
            while parts[-1].more:
                parts.append(receive(copy=False))  # a message arrives whole, so this does not wait
            payload = _payload(parts)
            budget -= len(payload)
            payloads.append(payload)
        self._accept(payloads)
        return bool(payloads), emptied

    def _accept(self, payloads: list[Buffer]) -> None:
        if not payloads:
            return
        self._count(payloads)
        if self._forms:
            self._pending.extend(payloads)
            self._pending_bytes += sum(map(len, payloads))
        else:
            self._missed, self._foreign, self._restarted = 0, 0, False  # nobody was there to miss it

    def _count(self, payloads: list[Buffer]) -> None:
        """Look for gaps in the counters; where the last is as far from the first as it should be, there are none."""
        last = message_counter(payloads[-1])
        if last is not None and self._next_counter == message_counter(payloads[0]) == last - len(payloads) + 1:
            self._next_counter = last + 1
            return
        for payload in payloads:
            self._count_one(message_counter(payload))

    def _count_one(self, counter: int | None) -> None:
        if counter is None:
            self._foreign += 1
            return
        expected = self._next_counter
        if expected is None:
            self._restarted |= self._connection_counter is not None and counter < self._connection_counter
            self._connection_counter = None
        elif counter > expected:
            self._missed += counter - expected
        elif counter < expected:
            self._restarted = True
        self._next_counter = counter + 1

    def _hand_over(self) -> None:
        self._handed_over_at = self._io_loop.time()
        self._sent, self._next = self._next or self._encode(), None
        self._deliver(self._sent)

    def _encode(self) -> Batch:
        """Return the next batch of what waits, in slices until it is full."""
        chunks: dict[Form, list[Chunk]] = {form: [] for form in self._forms}
        messages = size = encoded = 0
        while (
            self._pending and messages < _MAX_MESSAGES and size < self._payload_bytes and encoded < self._batch_bytes
        ):
            payloads: list[Buffer] = []
            end = size + _SLICE
            while self._pending and size < end and messages + len(payloads) < _MAX_MESSAGES:
                payload = self._pending.popleft()
                payloads.append(payload)
                size += len(payload)
            messages += len(payloads)
            largest = 0
            for form, so_far in chunks.items():
                more = encode_data(payloads, form, compression_level=self._compression_level)
                so_far += more
                largest = max(largest, sum(chunk.size for chunk in more))
            encoded += largest
        self._pending_bytes -= size
        counts = self._missed, self._restarted, self._foreign
        batch = Batch(chunks, messages, size, encoded, self._pending_bytes, *counts)
        self._missed, self._foreign, self._restarted = 0, 0, False
        return batch


def _payload(parts: list[zmq.Frame]) -> Buffer:
    """Return one message; what rbkit does not do, several parts, is joined."""
    if len(parts) > 1:
        return b"".join(part.buffer for part in parts)
    # A small one is copied: holding on to the frame costs more. A large one is not: it would hold the GIL.
    return parts[0].bytes if len(parts[0]) < _COPY_LIMIT else parts[0].buffer
