"""Gather packed events into event_collections that are ready to be published. This module uses no sockets."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import msgpack

from tornado_rbkit.protocol import EventType, Field

BATCH_EVENTS: Final = 400
"""Events in one event_collection, as in rbkit."""

BATCH_SECONDS: Final = 1.0
"""The longest that an event waits for its batch to fill."""

BACKLOG_EVENTS: Final = 100_000
"""Events that may wait for the server's thread; above this number, producers skip ticks."""

_double = struct.Struct(">d").pack
# The key order 0, 1, 9, 2 is part of the protocol: a bridge reads the counter from the first 23 bytes.
_HEAD: Final = bytes((0x84, Field.EVENT_TYPE, EventType.EVENT_COLLECTION, Field.TIMESTAMP, 0xCB))
_COUNTER_KEY: Final = bytes((Field.MESSAGE_COUNTER,))
_PAYLOAD_KEY: Final = bytes((Field.PAYLOAD,))


def pack(value: Any) -> bytes:
    """Return `value` as MessagePack; surrogate escapes in text are packed as the original bytes.

    Raises:
        UnicodeEncodeError: text has surrogates that are not escapes.
        OverflowError: an integer exceeds 64 bits.
    """
    packed: bytes = msgpack.packb(value, unicode_errors="surrogateescape")
    return packed


def pack_text(text: str) -> bytes:
    """Return `text` as MessagePack; surrogates that are not escapes become question marks. Never raises."""
    try:
        return pack(text)
    except UnicodeEncodeError:
        return pack(text.encode("utf-8", "replace").decode())


def pack_double(value: float) -> bytes:
    """Return `value` as a MessagePack float64."""
    return b"\xcb" + _double(value)


def array_header(length: int) -> bytes:
    """Return the head of a MessagePack array of `length` elements."""
    if length < 16:
        return bytes((0x90 | length,))
    if length < 1 << 16:
        return b"\xdc" + length.to_bytes(2, "big")
    return b"\xdd" + length.to_bytes(4, "big")


class Publisher:
    """Turn packed events into event_collections with a message_counter that starts at 0 and has no gaps.

    `add` may be called on any thread (it is one append to a deque, which the GIL makes atomic); everything else
    belongs to the server's thread.
    """

    def __init__(self) -> None:
        self.counter = 0
        """The message_counter of the next message."""
        self._waiting: deque[bytes] = deque()
        self._last_flush = 0.0

    def add(self, event: bytes) -> None:
        """Queue one packed event. Any thread."""
        self._waiting.append(event)

    @property
    def backlog(self) -> int:
        """The number of waiting events. Any thread."""
        return len(self._waiting)

    def take(self, now: float, *, flush: bool = False) -> list[bytes]:
        """Return the messages that are due: each full batch, and the rest once a second.

        Args:
            now: seconds since the Unix epoch.
            flush: True to return all waiting events, whatever their age.
        """
        messages = []
        while len(self._waiting) >= BATCH_EVENTS:
            messages.append(self.collection(self._next(BATCH_EVENTS), now))
        if flush or not 0 <= now - self._last_flush < BATCH_SECONDS:  # also if the clock was set back
            self._last_flush = now
            if self._waiting:
                messages.append(self.collection(self._next(len(self._waiting)), now))
        return messages

    def collection(self, events: Sequence[bytes], now: float) -> bytes:
        """Return `events` as one event_collection, ahead of waiting events; `now` is seconds since the Unix epoch."""
        counter = self.counter
        self.counter += 1
        head = (_HEAD, _double(now * 1000.0), _COUNTER_KEY, pack(counter), _PAYLOAD_KEY, array_header(len(events)))
        return b"".join((*head, *events))

    def _next(self, count: int) -> list[bytes]:
        return [self._waiting.popleft() for _ in range(count)]
