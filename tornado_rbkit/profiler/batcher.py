"""Collects packed events in event_collections that are ready to be published. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from tornado_rbkit.profiler.packing import pack_collection

BATCH_EVENTS: Final = 400
"""Events in one event_collection, as in rbkit."""

BATCH_BYTES: Final = 1 << 20
"""Bytes after which no event is added to an event_collection: a deep stack can have 100 kB."""

BATCH_SECONDS: Final = 1.0
"""The longest time that an event waits for its batch to fill."""

BACKLOG_EVENTS: Final = 100_000
"""Events that may wait for the server's thread; above this number, producers skip ticks."""


class EventBatcher:
    """Turns packed events into event_collections with a message_counter that starts at 0 and has no gaps.

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
            messages.append(self.collection(self._next(), now))
        if flush or not 0 <= now - self._last_flush < BATCH_SECONDS:  # also if the clock was set back
            self._last_flush = now
            while self._waiting:
                messages.append(self.collection(self._next(), now))
        return messages

    def collection(self, events: Sequence[bytes], now: float) -> bytes:
        """Return `events` as one event_collection, ahead of waiting events; `now` is seconds since the Unix epoch."""
        counter = self.counter
        self.counter += 1
        return pack_collection(events, counter, now)

    def _next(self) -> list[bytes]:
        """Remove the events of the next message: at most `BATCH_EVENTS`, and one that exceeds `BATCH_BYTES`."""
        events: list[bytes] = []
        size = 0
        while self._waiting and len(events) < BATCH_EVENTS and size < BATCH_BYTES:
            events.append(self._waiting.popleft())
            size += len(events[-1])
        return events
