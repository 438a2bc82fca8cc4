"""The frames of a stream from an agent to a bridge, with its credit and its losses. No I/O.

A stream is a sequence of messages, each with its length in 4 bytes before it, cut into frames. A frame has whole
messages, or a piece of a long one. Its position is the number of bytes of the stream before it, so the receiver
recognizes lost, repeated and late frames. The sender may send up to the position that the receiver has granted: an
absolute number, so that a lost or repeated grant does no harm. The number of the stream is the sender's and random:
frames of an earlier stream, or of an agent that was restarted, are ignored. How many messages were lost is counted
from their own counters, by `tornado_rbkit.upstream.losses`.

Neither end relies on the other: the sender sends at most a window past the position it had when the grant arrived,
and the receiver ignores frames past its grant, so no peer can make the other end hold more than a window and the
message under way.
"""

from __future__ import annotations

import enum
import secrets
import struct
from collections import deque
from collections.abc import Sequence
from typing import Final

from tornado_rbkit.bridge.backlog import Backlog
from tornado_rbkit.frames import LENGTH_SIZE, Buffer, Chunk, WriteUnit

WINDOW: Final = 2 * 1024 * 1024
"""Bytes that may be under way to one bridge from one target. More only fills buffers; less costs throughput only with
long round trips: 2 MiB at 50 ms are 40 MB/s. There is no bound on the sum of a bridge's windows: each target has its
own connection, and a NATS server disconnects a connection (not a bridge) for which more than 64 MiB wait."""

_HEADER: Final = struct.Struct(">BQQI")  # kind, stream, position, state
_MAX_STATE: Final = 0xFFFFFFFE  # even, so that the state's last bit stays right
_SILENT_LEASES: Final = 2
_MESSAGE_COST: Final = 64  # bytes counted for a message that waits, besides its own: an empty one takes memory too


class Kind(enum.IntEnum):
    """What a frame has: whole messages (or none), or a piece of a message."""

    WHOLE = 0
    FIRST = 1
    MIDDLE = 2
    LAST = 3


class StreamSender:
    """The agent's end of the streams to one bridge: the backlog, and its credit. For use by one thread.

    Attributes:
        stream: the number of the stream.
        position: bytes sent in this stream.
        backlog: the messages that wait.
        messages_sent: messages sent completely.
        bytes_sent: bytes sent, in all streams.
    """

    def __init__(self, max_backlog_bytes: int) -> None:
        """Begin the first stream; `max_backlog_bytes` bounds the backlog."""
        self.backlog = Backlog(max_backlog_bytes)
        self.messages_sent = self.bytes_sent = 0
        self._state = 0
        self._begun: Chunk | None = None
        self._units: deque[WriteUnit] = deque()
        self.begin()

    @property
    def state(self) -> int:
        """A number that grows with each change of the profiler's connection; it is odd while it is connected."""
        return self._state

    def begin(self) -> None:
        """Begin another stream, without credit. A message that was sent in part is sent from its beginning."""
        self.stream = secrets.randbits(64) or 1
        self.position = self._granted = 0
        self._units = deque(self._begun.units) if self._begun is not None else deque()
        self._state_is_sent = True  # the reply to the lease has it

    def grant(self, stream: int, position: int) -> None:
        """Allow sending up to a position of a stream; ignore the grant if it is for another stream.

        A receiver never grants more than a window past what it has. If one does, it gets the window.
        """
        if stream == self.stream:
            self._granted = max(self._granted, min(position, self.position + WINDOW))

    def lease(self, stream: int, position: int) -> None:
        """Grant, or begin another stream if the receiver does not know this one."""
        if stream != self.stream:
            self.begin()
        self.grant(stream, position)

    def set_connected(self, connected: bool) -> None:
        """Record the state of the profiler's connection."""
        if connected != bool(self._state % 2):
            self._state = (self._state + 1) % _MAX_STATE
            self._state_is_sent = False

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Add messages, which have the encoding `Encoding.framed`. Call `trim` once nothing more can be sent."""
        self.backlog.extend(chunks)

    def trim(self) -> None:
        """Drop the oldest messages past the bound."""
        self.backlog.trim(self._begun, self._begun.size if self._begun is not None else 0)

    def next_frame(self) -> bytes | None:
        """Return the next frame, None if nothing may be sent."""
        if not self._units and self.backlog:
            self._begun = self.backlog.take()
            self._units.extend(self._begun.units)
        size = sum(map(len, self._units[0])) if self._units else 0
        if self._begun is not None and self._units and self.position + size <= self._granted:
            is_first, is_last = len(self._units) == len(self._begun.units), len(self._units) == 1
            kind = Kind.LAST if is_last else Kind.FIRST if is_first else Kind.MIDDLE
            frame = self._frame(Kind.WHOLE if is_first and is_last else kind, self._units.popleft())
            self.position += size
            self.bytes_sent += size
            if is_last:
                self.messages_sent += self._begun.messages
                self.backlog.release(self._begun.size)
                self._begun = None
            return frame
        return None if self._state_is_sent else self._frame(Kind.WHOLE, ())

    def close(self) -> None:
        """Discard the waiting messages."""
        self.backlog.close(self._begun.messages if self._begun is not None else 0)
        self._begun = None
        self._units.clear()
        self._state_is_sent = True

    def _frame(self, kind: Kind, unit: WriteUnit) -> bytes:
        self._state_is_sent = True
        return b"".join((_HEADER.pack(kind, self.stream, self.position, self._state), *unit))


class StreamReceiver:
    """The bridge's end: complete messages, and the credit that it grants. For use by one thread.

    Attributes:
        stream: the number of the stream, 0 before the first.
        received: the position up to which it has frames.
        state: see `StreamSender.state`.
        broken: frames that were not valid or not granted, or pieces of messages whose other pieces were lost.
    """

    def __init__(self, *, max_message_bytes: int, window: int = WINDOW) -> None:
        """Begin without a stream.

        Args:
            max_message_bytes: a longer message is discarded.
            window: bytes that may be under way, or wait here.
        """
        self.stream = self.received = self.state = self.broken = 0
        self._max_message_bytes = max_message_bytes
        self._window = window
        self._granted = self._silent = self._received_before = 0
        self._messages: deque[Buffer] = deque()
        self._held = 0  # bytes of `_messages`, with `_MESSAGE_COST` for each
        self._partial: bytearray | None = None  # grows as the pieces arrive: the length is only the sender's claim
        self._length = 0  # of the message in `_partial`, when it is complete

    @property
    def grant(self) -> int:
        """The position up to which the sender may send. It never decreases within a stream."""
        self._granted = max(self._granted, self.received - self._held + self._window)
        return self._granted

    @property
    def has_messages(self) -> bool:
        """Whether whole messages wait."""
        return bool(self._messages)

    def on_lease(self, stream: int, sent: int, state: int) -> None:
        """Handle the sender's reply to a lease: its stream, its position in the stream, and its state.

        Begin that stream if it is another one; complete messages of the earlier stream are kept. If the positions
        differ and nothing arrives for `_SILENT_LEASES` leases, the last frames were lost, or one was not the sender's:
        the next lease is for no stream.
        """
        if stream != self.stream:
            self.stream, self.state = stream, state
            self.received = self._granted = self._silent = 0
            self._drop_partial()
        else:
            self.state = max(self.state, state)
            silent = sent != self.received == self._received_before
            self._silent = self._silent + 1 if silent else 0
            if self._silent >= _SILENT_LEASES:
                self.stream = 0
        self._received_before = self.received

    def receive(self, data: bytes) -> None:
        """Handle a frame; ignore it if it is not valid, of another stream, repeated or late."""
        if len(data) < _HEADER.size:
            self.broken += 1
            return
        kind, stream, position, state = _HEADER.unpack_from(data)
        if stream != self.stream or position < self.received or kind > Kind.LAST:
            return
        body = memoryview(data)[_HEADER.size :]
        if position + len(body) > self._granted:
            self.broken += 1
            return
        if position > self.received:
            self._drop_partial()
        self.received = position + len(body)
        self.state = max(self.state, state)
        if kind == Kind.WHOLE:
            self._drop_partial()
            self._take_whole(body)
        else:
            self._take_piece(kind, body)

    def take(self, max_bytes: int, max_messages: int) -> tuple[list[Buffer], bool]:
        """Return whole messages in order, and whether none is left; see `tornado_rbkit.upstream.source.Source`."""
        taken: list[Buffer] = []
        while self._messages and max_bytes > 0 and len(taken) < max_messages:
            taken.append(self._messages.popleft())
            max_bytes -= len(taken[-1])
            self._held -= len(taken[-1]) + _MESSAGE_COST
        return taken, not self._messages

    def _take_whole(self, body: memoryview) -> None:
        messages: list[Buffer] = []
        at = 0
        while at < len(body):
            end = at + LENGTH_SIZE + int.from_bytes(body[at : at + LENGTH_SIZE], "big")
            if end > len(body) or at + LENGTH_SIZE > len(body):
                self.broken += 1
                return
            messages.append(bytes(body[at + LENGTH_SIZE : end]))  # a view would keep the whole frame
            at = end
        for message in messages:
            self._add(message)

    def _take_piece(self, kind: int, body: memoryview) -> None:
        if kind == Kind.FIRST:
            self._drop_partial()
            length = int.from_bytes(body[:LENGTH_SIZE], "big")
            if len(body) < LENGTH_SIZE or length > self._max_message_bytes:
                self.broken += 1
                return
            self._partial, self._length = bytearray(), length
            body = body[LENGTH_SIZE:]
        if self._partial is None or len(self._partial) + len(body) > self._length:
            self._partial = None
            self.broken += 1
            return
        self._partial += body
        if kind == Kind.LAST:
            message, self._partial = self._partial, None
            if len(message) == self._length:
                self._add(memoryview(message))
            else:
                self.broken += 1

    def _add(self, message: Buffer) -> None:
        if len(message) <= self._max_message_bytes:
            self._messages.append(message)
            self._held += len(message) + _MESSAGE_COST
        else:
            self.broken += 1

    def _drop_partial(self) -> None:
        if self._partial is not None:
            self._partial = None
            self.broken += 1
