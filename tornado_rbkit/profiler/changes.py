"""The objects created and destroyed between two comparisons of the memory profile, and their events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from tornado_rbkit.profiler.batcher import BATCH_EVENTS, EventBatcher
from tornado_rbkit.profiler.objects import in_slices
from tornado_rbkit.profiler.packing import pack_class, pack_created, pack_destroyed, pack_time

_PARTS_PER_SECOND: Final = 10
"""Different times that the changes found by one comparison get, for each second since the comparison before."""

_SPREAD_SECONDS: Final = 100.0
"""The longest time over which changes are spread; the dashboard takes older events for a clock that was set back."""


class Changes:
    """The changes that one comparison found, with times spread evenly over the time since the comparison before.

    Objects are created and destroyed at unknown times in between. With the time of the comparison, a steady rate would
    be shown as one peak for each comparison.

    Args:
        since: when the comparison before listed the objects, in seconds since the Unix epoch.
        until: when this comparison listed them, likewise.
    """

    def __init__(self, since: float, until: float) -> None:
        self._since = min(max(since, until - _SPREAD_SECONDS), until)  # the clock may have been set back
        self._seconds = until - self._since
        self._created: list[int] = []
        self._kinds: list[str] = []
        self._replaced: set[int] = set()
        self._destroyed: list[int] = []

    def note_created(self, ids: Iterable[int], kinds: Iterable[str]) -> None:
        """Note objects that were created, and the names of their classes."""
        self._created.extend(ids)
        self._kinds.extend(kinds)

    def note_replaced(self, ids: Iterable[int]) -> None:
        """Note that created objects have the ids of objects that were destroyed."""
        self._replaced.update(ids)

    def note_destroyed(self, ids: Iterable[int]) -> None:
        """Note objects that were destroyed, and whose ids no other object has."""
        self._destroyed.extend(ids)

    def events(self, batcher: EventBatcher) -> Iterator[None]:
        """Add the events to a batcher in the order of their times, slice by slice."""
        return in_slices(self._add_to(batcher))

    def _add_to(self, batcher: EventBatcher) -> Iterator[None]:
        for events, count in self._runs():
            batcher.add_run(events, count)
            yield

    def _runs(self) -> Iterator[tuple[bytes, int]]:
        """Yield joined events and their number."""
        classes = {kind: pack_class(kind) for kind in dict.fromkeys(self._kinds)}
        parts = max(1, round(self._seconds * _PARTS_PER_SECOND))
        for part in range(parts):
            timestamp = pack_time(self._since + self._seconds * (part + 0.5) / parts)
            for start, end in _chunks(len(self._created), part, parts):
                created = self._created[start:end]
                replaced = list(filter(self._replaced.__contains__, created)) if self._replaced else []
                if replaced:
                    yield pack_destroyed(timestamp, replaced), len(replaced)
                yield pack_created(timestamp, created, map(classes.__getitem__, self._kinds[start:end])), len(created)
            for start, end in _chunks(len(self._destroyed), part, parts):
                yield pack_destroyed(timestamp, self._destroyed[start:end]), end - start


def _chunks(total: int, part: int, parts: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of up to `BATCH_EVENTS` items, which together are one part of a number of items."""
    last = total * (part + 1) // parts
    for start in range(total * part // parts, last, BATCH_EVENTS):
        yield start, min(last, start + BATCH_EVENTS)
