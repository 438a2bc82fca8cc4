"""A bounded send queue for one client, written to the client's IOStream."""

from __future__ import annotations

import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tornado.concurrent import Future
from tornado.iostream import IOStream, SSLIOStream, StreamBufferFullError, StreamClosedError

from tornado_rbkit.bridge.backlog import Backlog
from tornado_rbkit.deadline import Deadline
from tornado_rbkit.frames import JOIN_LIMIT, Buffer, Chunk, WriteUnit
from tornado_rbkit.protocol import DROPPED

WRITE_SIZE: Final = 1024 * 1024
"""Bytes written to a stream at a time; a reply never waits behind more data than this."""

_GATHERS: Final = hasattr(socket.socket, "sendmsg")  # not on Windows


class Outbox:
    """One client's send queue. On its stream's loop only.

    Replies and notices are sent first and never dropped. Profiling data is bounded; past the bound the oldest data is
    dropped and counted. A message that has been begun is finished, so a client never gets a partial message.

    Attributes:
        reply_bytes: bytes of replies and notices that wait or are being written.
        bytes_sent: bytes that the client's connection has accepted.
        messages_sent: profiling messages that the connection has accepted completely.
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
        """Create an empty queue.

        Args:
            stream: the client's stream. Other code may write whole frames to it between two writes of this outbox.
            max_backlog_bytes: bound of `data_bytes`. A larger message is sent when nothing else waits, and does not
                count from then on.
            stall_timeout: seconds within which the client must accept some data; `JOIN_LIMIT` bytes are enough.
            on_stalled: called if the client accepted none within `stall_timeout`.
            on_caught_up: called, once no data waits, with the number of messages dropped since the last call; must
                send it as a notice of the kind `DROPPED`.
        """
        self.reply_bytes = self.bytes_sent = self.messages_sent = 0
        self._stream = stream
        self._is_tls = isinstance(stream, SSLIOStream)
        self._backlog = Backlog(max_backlog_bytes)
        self._write_size = min(WRITE_SIZE, max_backlog_bytes)
        self._stall_timeout = stall_timeout
        self._on_stalled = on_stalled
        self._on_caught_up = on_caught_up
        self._replies: OrderedDict[object, Chunk] = OrderedDict()  # notices by kind, replies by unique keys
        self._begun: Chunk | None = None
        self._begun_is_data = False
        self._units: deque[WriteUnit] = deque()  # unwritten units of the begun chunk; each holds whole frames
        self._in_write = 0  # bytes written to the stream and not yet accepted
        self._data_in_write = 0  # the part of `_in_write` that counts in data_bytes; the rest counts in reply_bytes
        self._messages_in_write = 0
        self._turn_is_due = False  # `_on_turn` is in the loop's queue
        self._blocked = False
        self._stall_deadline: Deadline | None = None  # may still run when nothing is blocked
        self._progress_at = 0.0
        self._closed = False
        self._drained: Future[None] | None = None

    @property
    def blocked(self) -> bool:
        """True while the client's connection has not accepted all bytes written to it."""
        return self._blocked

    @property
    def data_bytes(self) -> int:
        """Bytes of profiling data that wait or are being written."""
        return self._backlog.size

    @property
    def messages_dropped(self) -> int:
        """Number of profiling messages that this client did not get, because it was too slow or left."""
        return self._backlog.dropped

    @property
    def messages_waiting(self) -> int:
        """Number of profiling messages that wait, including a begun one."""
        return self._messages_begun + self._backlog.messages

    @property
    def bytes_waiting(self) -> int:
        """Bytes that the client's connection has not accepted yet, including the message being written."""
        return self.data_bytes + self.reply_bytes

    @property
    def replies_waiting(self) -> int:
        """Number of replies and notices that have not been begun."""
        return len(self._replies)

    def send_reply(self, chunk: Chunk) -> None:
        """Queue a reply, ahead of all waiting profiling data."""
        self._send_first(object(), chunk)

    def send_notice(self, kind: str, chunk: Chunk, *, keeps_place: bool = False) -> None:
        """Queue a notice like a reply. It replaces a waiting notice of the same kind.

        Args:
            kind: see `Notice.kind`.
            chunk: the encoded notice.
            keeps_place: put it in the place of the notice that it replaces, so that it is not delayed repeatedly.
                Otherwise it follows all older replies.
        """
        replaced = self._replies.get(kind)
        if replaced is not None:
            self.reply_bytes -= replaced.size
            if not keeps_place:
                del self._replies[kind]
        self._send_first(kind, chunk)

    def add_missed(self, messages: int) -> None:
        """Add messages lost before they reached the outbox to the number of dropped messages in the next notice."""
        if not self._closed:
            self._backlog.unreported += messages
            self._report_dropped()

    def send_data(self, chunks: Sequence[Chunk]) -> None:
        """Queue profiling data; drop the oldest waiting data past the bound."""
        if self._closed or not chunks:
            return
        backlog = self._backlog
        backlog.extend(chunks)
        self._flush_unless_due()
        while backlog and backlog.is_over_the_bound and not (self._blocked or self._units):
            self._flush()  # drop nothing that the connection would accept
        if backlog.is_over_the_bound:
            unsent = sum(len(buffer) for unit in self._units for buffer in unit) if self._begun_is_data else 0
            backlog.trim(self._begun, unsent)

    async def drain(self) -> None:
        """Wait until the client's connection has accepted every reply, or the outbox is closed."""
        while self.reply_bytes:
            if self._drained is None:
                self._drained = Future()
            await self._drained

    def close(self) -> None:
        """Discard everything that waits, and write nothing more. May be called twice."""
        self._closed = True
        self._backlog.close(self._messages_begun)
        self._replies.clear()
        self._units.clear()
        self.reply_bytes = self._messages_in_write = 0
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
    def _messages_begun(self) -> int:
        """Number of profiling messages that were begun and that the connection has not accepted completely."""
        begun = self._begun.messages if self._begun and self._begun_is_data and self._units else 0
        return self._messages_in_write + begun

    def _flush_unless_due(self) -> None:
        if not (self._turn_is_due or self._blocked):
            self._flush()

    def _flush(self) -> None:
        """Write the next buffers and schedule the rest. The stream must not be blocked."""
        if self._closed:
            return
        try:
            blocked_on = self._write(self._next_buffers())
        except (StreamClosedError, StreamBufferFullError):
            self.close()  # Tornado notifies the handler
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
        """Schedule the next write, if anything waits, so that the loop's other callbacks run first."""
        if not self._turn_is_due and (self._replies or self._backlog or self._units):
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
        self._backlog.release(self._data_in_write)
        self.reply_bytes -= self._in_write - self._data_in_write
        self.messages_sent += self._messages_in_write
        self._in_write = self._data_in_write = self._messages_in_write = 0
        if not self.reply_bytes:
            self._wake_waiters()
        self._report_dropped()

    def _report_dropped(self) -> None:
        """Report dropped messages once no data waits; drops while a report waits go into the next report."""
        if self._backlog.unreported and not (self._backlog or self._units or DROPPED in self._replies):
            dropped, self._backlog.unreported = self._backlog.unreported, 0
            self._on_caught_up(dropped)

    def _next_buffers(self) -> list[Buffer]:
        """Take the buffers of the next write from the queues: up to `_write_size`, or one unit of a large message."""
        buffers: list[Buffer] = []
        while self._in_write < self._write_size and self._begin():
            if buffers and len(self._units) > 1:
                break  # the units of a large message are written separately
            unit = self._units.popleft()
            buffers += unit
            self._account_written(sum(map(len, unit)))
            if self._units:
                break
        return buffers

    def _begin(self) -> bool:
        """Begin the next chunk unless one is in progress; return whether one is in progress then."""
        if not self._units:
            if self._replies:
                _, self._begun = self._replies.popitem(last=False)
                self._begun_is_data = False
            elif self._backlog:
                self._begun, self._begun_is_data = self._backlog.take(), True
            else:
                return False
            self._units.extend(self._begun.units)
        return True

    def _account_written(self, size: int) -> None:
        assert self._begun is not None
        self._in_write += size
        if not self._begun_is_data:
            return
        self._data_in_write += size
        if not self._units:
            self._messages_in_write += self._begun.messages

    def _write(self, buffers: list[Buffer]) -> Future[None] | None:
        """Write whole frames: the kernel accepts what it can, and the stream buffers the rest before this returns.

        No other method writes. Other code writes pings, pongs and close frames to the stream at any time, so a frame
        must never be left half written: any failure after its first byte closes the stream.

        Returns:
            A future that completes when the kernel has accepted the last byte; None if it already has.
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
        except BaseException:  # the stream is closed, or its `max_write_buffer_size` is reached
            self._stream.close()
            raise
        assert written == sum(map(len, buffers)), "a frame was cut"
        return blocked_on

    def _send(self, buffers: Sequence[Buffer]) -> int:
        """Write to the socket directly, without blocking; return the number of bytes written.

        `IOStream.write` creates a Future and a queue entry and makes a system call for each buffer. Not with TLS:
        OpenSSL requires a write that would block to be retried with the same bytes, which only the stream can do.
        """
        stream = self._stream
        if not buffers or stream.writing() or stream.closed() or self._is_tls:
            return 0
        try:
            return stream.socket.sendmsg(buffers) if _GATHERS else stream.write_to_fd(memoryview(buffers[0]))
        except OSError:
            return 0  # would block, or an error that write() meets again and handles

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
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None


def _join_small(buffers: list[Buffer]) -> list[Buffer]:
    """Join adjacent buffers up to `JOIN_LIMIT`, because a system call takes a limited number of buffers."""
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
    """Yield the rest of `buffers` after the first `sent` bytes."""
    for buffer in buffers:
        if sent < len(buffer):
            yield memoryview(buffer)[sent:]
        sent = max(0, sent - len(buffer))
