"""What one client is owed, bounded, and its way onto the client's IOStream."""

from __future__ import annotations

import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tornado.concurrent import Future
from tornado.iostream import IOStream, SSLIOStream, StreamBufferFullError, StreamClosedError

from tornado_rbkit.deadline import Deadline
from tornado_rbkit.frames import JOIN_LIMIT, Buffer, Chunk, Run
from tornado_rbkit.protocol import DROPPED

WRITE_SIZE: Final = 1024 * 1024
"""Bytes handed to a stream at a time, so that a reply never waits behind more than that."""

_ENTRY_COST: Final = 256
"""Bytes that each chunk in a queue costs beside its own: many small ones must not add up to more than the bound."""

_GATHERS: Final = hasattr(socket.socket, "sendmsg")  # which Windows has not


class Outbox:
    """One client's queue. On its stream's loop only.

    Replies and notices go first and are never dropped. Profiling data is bounded; past the bound the oldest is
    dropped and counted. A message that has begun is finished, so a client never sees half of one.

    Attributes:
        data_bytes: profiling data that waits or is under way.
        reply_bytes: replies and notices that wait or are under way.
        bytes_sent: what the client's connection has taken.
        messages_sent: profiling messages that it has taken whole.
        messages_dropped: profiling messages that this client did not get: it was too slow, or it left.
    """

    def __init__(
        self,
        stream: IOStream,
        *,
        max_backlog_bytes: int,
        stall_timeout: float,
        on_stalled: Callable[[], None],
        on_caught_up: Callable[[int], None],
    ) -> None:
        """Begin with nothing to send.

        Args:
            stream: the client's. Others may write whole frames to it between two writes of this outbox.
            max_backlog_bytes: bound of `data_bytes`. A message larger than that passes when nothing else waits, and
                does not count from then on.
            stall_timeout: seconds in which the client has to take something, `JOIN_LIMIT` bytes at the most.
            on_stalled: called when it did not.
            on_caught_up: called with the number of messages dropped since the last time, when no data waits any more;
                reports it as a notice of the kind `DROPPED`.
        """
        self.data_bytes = self.reply_bytes = self.bytes_sent = 0
        self.messages_sent = self.messages_dropped = 0
        self._stream = stream
        self._is_tls = isinstance(stream, SSLIOStream)
        self._max_backlog = max_backlog_bytes
        self._write_size = min(WRITE_SIZE, max_backlog_bytes)
        self._stall_timeout = stall_timeout
        self._on_stalled = on_stalled
        self._on_caught_up = on_caught_up
        self._replies: OrderedDict[object, Chunk] = OrderedDict()  # notices by their kind, replies by unique keys
        self._data: deque[Chunk] = deque()
        self._begun: Chunk | None = None
        self._begun_is_data = False
        self._runs: deque[Run] = deque()  # of the chunk that has begun, those not yet written; each is whole frames
        self._in_write = 0  # bytes handed over and not taken
        self._data_in_write = 0  # those of them that count in data_bytes; the others count in reply_bytes
        self._messages_in_write = 0
        self._dropped_untold = 0
        self._turn_is_due = False  # `_on_turn` is in the loop's queue
        self._blocked = False
        self._stall_deadline: Deadline | None = None  # it may run on when nothing is blocked any more
        self._progress_at = 0.0
        self._closed = False
        self._replies_gone: Future[None] | None = None

    @property
    def blocked(self) -> bool:
        """True while the client's connection does not take what was handed to it."""
        return self._blocked

    @property
    def messages_waiting(self) -> int:
        """Profiling messages that wait, one that has begun included."""
        begun = self._begun.messages if self._begun and self._begun_is_data and self._runs else 0
        return self._messages_in_write + begun + sum(chunk.messages for chunk in self._data)

    @property
    def bytes_waiting(self) -> int:
        """Bytes that the client's connection has not taken yet, with those of the message under way."""
        return self.data_bytes + self.reply_bytes

    @property
    def replies_waiting(self) -> int:
        """Replies and notices of which nothing has been written yet."""
        return len(self._replies)

    def send_reply(self, chunk: Chunk) -> None:
        """Queue a reply, ahead of all profiling data that waits."""
        self._send_first(object(), chunk)

    def send_notice(self, kind: str, chunk: Chunk, *, keeps_place: bool = False) -> None:
        """Queue a notice as a reply is queued; it replaces one of its kind that still waits.

        Args:
            kind: of the notice.
            chunk: the notice.
            keeps_place: put it where the one that it replaces was, so that it is not delayed again and again. Without,
                it comes after all replies that are older.
        """
        replaced = self._replies.get(kind)
        if replaced is not None:
            self.reply_bytes -= replaced.size
            if not keeps_place:
                del self._replies[kind]
        self._send_first(kind, chunk)

    def add_missed(self, messages: int) -> None:
        """Count messages that were lost before they came here as dropped ones: the client is told of both together."""
        if not self._closed:
            self._dropped_untold += messages
            self._tell_dropped()

    def send_data(self, chunks: Sequence[Chunk]) -> None:
        """Queue profiling data, dropping the oldest that waits where the bound would be passed."""
        if self._closed or not chunks:
            return
        self._data.extend(chunks)
        self.data_bytes += sum(chunk.size for chunk in chunks)
        self._flush_unless_due()
        while self._data and self._is_over_the_bound and not (self._blocked or self._runs):
            self._flush()  # nothing is dropped that the client would take
        self._keep_the_bound()

    async def replies_gone(self) -> None:
        """Return once the client's connection has taken every reply, or the outbox is closed."""
        while self.reply_bytes:
            if self._replies_gone is None:
                self._replies_gone = Future()
            await self._replies_gone

    def close(self) -> None:
        """Let go of all that waits and write nothing more. May be called twice."""
        self._closed = True
        self.messages_dropped += self.messages_waiting
        self._replies.clear()
        self._data.clear()
        self._runs.clear()
        self.data_bytes = self.reply_bytes = self._messages_in_write = 0
        self._blocked = False
        if self._stall_deadline is not None:
            self._stall_deadline.cancel()
            self._stall_deadline = None
        self._wake_waiters()

    def _send_first(self, key: object, chunk: Chunk) -> None:
        if not self._closed:
            self._replies[key] = chunk
            self.reply_bytes += chunk.size
            self._flush_unless_due()

    @property
    def _is_over_the_bound(self) -> bool:
        return self.data_bytes + _ENTRY_COST * (len(self._data) - 1) > self._max_backlog

    def _keep_the_bound(self) -> None:
        """Drop the oldest until the rest is within the bound, but for one message larger than it, which passes."""
        under_way = 0
        if self._begun is not None and self._begun_is_data and self._begun.size > self._max_backlog:
            under_way = sum(len(buffer) for run in self._runs for buffer in run)
        while self._data:
            passes = not under_way and self._data[0].size > self._max_backlog
            exempt = self._data[0].size if passes else under_way
            cost = self.data_bytes - exempt + _ENTRY_COST * (len(self._data) - 1)
            if cost <= self._max_backlog or len(self._data) == int(passes):
                return
            oldest = self._data[int(passes)]
            del self._data[int(passes)]
            self._drop(oldest)

    def _drop(self, chunk: Chunk) -> None:
        self.data_bytes -= chunk.size
        self.messages_dropped += chunk.messages
        self._dropped_untold += chunk.messages

    def _flush_unless_due(self) -> None:
        if not (self._turn_is_due or self._blocked):
            self._flush()

    def _flush(self) -> None:
        """Hand over what is next and arrange for the rest to follow. Nothing handed over before may be stuck."""
        if self._closed:
            return
        try:
            blocked_on = self._write(self._next_buffers())
        except (StreamClosedError, StreamBufferFullError):
            self.close()  # the handler learns of it from Tornado
            return
        if blocked_on is not None:
            self._blocked = True
            self._progress_at = time.monotonic()
            if self._stall_deadline is None:
                self._watch_progress(self._stall_timeout)
            self._stream.io_loop.add_future(blocked_on, self._on_unblocked)
            return
        self._account_taken()
        self._flush_next_turn()

    def _flush_next_turn(self) -> None:
        """Go on with what is left, if anything, once everybody else had a turn."""
        if not self._turn_is_due and (self._replies or self._data or self._runs):
            self._turn_is_due = True
            self._stream.io_loop.add_callback(self._on_turn)

    def _on_turn(self) -> None:
        self._turn_is_due = False
        if not self._blocked:
            self._flush()

    def _on_unblocked(self, future: Future[None]) -> None:
        self._blocked = False
        if future.exception() is not None:
            self.close()
        if not self._closed:
            self._account_taken()
            self._flush_unless_due()

    def _account_taken(self) -> None:
        self.bytes_sent += self._in_write
        self.data_bytes -= self._data_in_write
        self.reply_bytes -= self._in_write - self._data_in_write
        self.messages_sent += self._messages_in_write
        self._in_write = self._data_in_write = self._messages_in_write = 0
        if not self.reply_bytes:
            self._wake_waiters()
        self._tell_dropped()

    def _tell_dropped(self) -> None:
        """Report dropped messages once no data waits; what is dropped while a report waits is in the next one."""
        if self._dropped_untold and not (self._data or self._runs or DROPPED in self._replies):
            dropped, self._dropped_untold = self._dropped_untold, 0
            self._on_caught_up(dropped)

    def _next_buffers(self) -> list[Buffer]:
        """Take off the queues what is written in one go: up to `_write_size`, or one run of a large message."""
        buffers: list[Buffer] = []
        while self._in_write < self._write_size and self._begin():
            if buffers and len(self._runs) > 1:
                break  # a large message has its writes to itself
            run = self._runs.popleft()
            buffers += run
            self._account_written(sum(map(len, run)))
            if self._runs:
                break
        return buffers

    def _begin(self) -> bool:
        """Make sure that a chunk has begun, if one waits."""
        if not self._runs:
            if self._replies:
                _, self._begun = self._replies.popitem(last=False)
                self._begun_is_data = False
            elif self._data:
                self._begun, self._begun_is_data = self._data.popleft(), True
            else:
                return False
            self._runs.extend(self._begun.runs)
        return True

    def _account_written(self, size: int) -> None:
        assert self._begun is not None
        self._in_write += size
        if not self._begun_is_data:
            return
        self._data_in_write += size
        if not self._runs:
            self._messages_in_write += self._begun.messages

    def _write(self, buffers: list[Buffer]) -> Future[None] | None:
        """Write whole frames: the kernel takes what it can, and the stream buffers all the rest before this returns.

        This is the only function that writes. Pings, pongs and close frames are written to the stream by other code at
        any time, so a frame must never be left half written: whatever fails after its first byte closes the stream.

        Returns:
            A future that completes when the kernel has taken the last byte; None if it has already.
        """
        buffers = _join_small(buffers)
        blocked_on: Future[None] | None = None
        written = self._send(buffers)
        try:
            for rest in _without(buffers, written):
                for at in range(0, len(rest), JOIN_LIMIT):
                    piece = rest[at : at + JOIN_LIMIT]
                    blocked_on = self._stream.write(piece)
                    blocked_on.add_done_callback(self._on_progress)
                    written += len(piece)
        except BaseException:  # closed; or `max_write_buffer_size` of the stream is reached
            self._stream.close()
            raise
        assert written == sum(map(len, buffers)), "a frame was cut"
        return blocked_on

    def _send(self, buffers: Sequence[Buffer]) -> int:
        """Have the kernel take what it takes now; return how many bytes that is.

        `IOStream.write` makes a Future and a queue entry for each buffer, and a system call too. Not with TLS: OpenSSL
        wants a write that would block to be tried again with the same bytes, which only the stream can do.
        """
        stream = self._stream
        if not buffers or stream.writing() or stream.closed() or self._is_tls:
            return 0
        try:
            return stream.socket.sendmsg(buffers) if _GATHERS else stream.write_to_fd(memoryview(buffers[0]))
        except OSError:
            return 0  # would block; or an error that write() meets too, and handles

    def _on_progress(self, future: Future[None]) -> None:
        self._progress_at = time.monotonic()

    def _watch_progress(self, seconds: float) -> None:
        self._stall_deadline = Deadline(seconds, self._check_progress)

    def _check_progress(self) -> None:
        self._stall_deadline = None
        if not self._blocked:
            return
        remaining = self._progress_at + self._stall_timeout - time.monotonic()
        if remaining > 0:
            self._watch_progress(max(remaining, self._stall_timeout / 4))
        else:
            self._on_stalled()

    def _wake_waiters(self) -> None:
        if self._replies_gone is not None:
            self._replies_gone.set_result(None)
            self._replies_gone = None


def _join_small(buffers: list[Buffer]) -> list[Buffer]:
    """Join neighbours up to `JOIN_LIMIT`: there may be more than one system call takes."""
    joined: list[Buffer] = []
    small: list[Buffer] = []
    size = 0
    for buffer in buffers:
        if size + len(buffer) > JOIN_LIMIT and small:
            joined.append(small[0] if len(small) == 1 else b"".join(small))
            small, size = [], 0
        small.append(buffer)
        size += len(buffer)
    if small:
        joined.append(small[0] if len(small) == 1 else b"".join(small))
    return joined


def _without(buffers: Sequence[Buffer], sent: int) -> Iterator[memoryview]:
    """Yield what is left of `buffers` behind the first `sent` bytes."""
    for buffer in buffers:
        if sent < len(buffer):
            yield memoryview(buffer)[sent:]
        sent = max(0, sent - len(buffer))
