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

FLUSH_SECONDS: Final = 0.05
"""The shortest time between two looks whether a message is due, while events wait: looking costs CPU time, too."""

BACKLOG_EVENTS: Final = 100_000
"""Events that may wait for the server's thread; above this number, producers skip ticks."""


class EventBatcher:
    """Turns packed events into event_collections with a message_counter that starts at 0 and has no gaps.

    `add` may be called on any thread (it is one append to a deque, which the GIL makes atomic); everything else
    belongs to the server's thread, except `backlog`.
    """

    def __init__(self) -> None:
        self.counter = 0
        """The message_counter of the next message."""
        self._waiting: deque[bytes | tuple[int, bytes]] = deque()  # events, and runs of events with their number
        self._in_runs = 0  # waiting events, less the number of runs
        self._last_flush = 0.0
        self._taken = 0.0  # the time of the last call of `take`
        self._left = 0  # waiting events after it
        self._rate = 0.0  # events a second before it

    def add(self, event: bytes) -> None:
        """Queue one packed event. Any thread."""
        self._waiting.append(event)

    def add_run(self, events: bytes, count: int) -> None:
        """Queue a number of packed events that were joined, from 1 to `BATCH_EVENTS`."""
        self._in_runs += count - 1
        self._waiting.append((count, events))

    @property
    def backlog(self) -> int:
        """The number of waiting events. Any thread."""
        return len(self._waiting) + self._in_runs

    def take(self, now: float, *, flush: bool = False) -> list[bytes]:
        """Return the messages that are due: each full batch, and the rest once a second.

        Args:
            now: seconds since the Unix epoch.
            flush: True to return all waiting events, whatever their age.
        """
        messages = []
        arrived, passed = self.backlog - self._left, now - self._taken
        self._rate = arrived / passed if arrived > 0 and passed > 0 else 0.0
        while self.backlog >= BATCH_EVENTS:
            messages.append(self._next(now))
        if flush or not 0 <= now - self._last_flush < BATCH_SECONDS:  # also if the clock was set back
            self._last_flush = now
            while self._waiting:
                messages.append(self._next(now))
        self._taken, self._left = now, self.backlog
        return messages

    def wait(self, now: float) -> float | None:
        """Return the seconds until a message will be due if events arrive as before, None if no event waits.

        Args:
            now: seconds since the Unix epoch.
        """
        backlog = self.backlog
        if not backlog:
            return None
        seconds = BATCH_SECONDS - max(0.0, now - self._last_flush)
        if self._rate:
            seconds = min(seconds, (BATCH_EVENTS - backlog) / self._rate)
        return max(FLUSH_SECONDS, seconds)

    def collection(self, events: Sequence[bytes], now: float, count: int | None = None) -> bytes:
        """Return events as one event_collection, ahead of waiting events.

        Args:
            events: packed events; some may be joined.
            now: seconds since the Unix epoch.
            count: the number of events; None if none are joined.
        """
        counter = self.counter
        self.counter += 1
        return pack_collection(events, counter, now, len(events) if count is None else count)

    def _next(self, now: float) -> bytes:
        """Return the next message: at most `BATCH_EVENTS` events, and one that exceeds `BATCH_BYTES`."""
        events: list[bytes] = []
        total = size = 0
        while self._waiting and size < BATCH_BYTES:
            head = self._waiting[0]
            count, event = (1, head) if isinstance(head, bytes) else head
            if total + count > BATCH_EVENTS:
                break
            self._waiting.popleft()
            self._in_runs -= count - 1
            events.append(event)
            total += count
            size += len(event)
        return self.collection(events, now, total)
