"""The objects created and destroyed between two comparisons of the memory profile, and their events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.objects import SliceSize
from tornado_rbkit.profiler.packing import pack, pack_created, pack_destroyed, pack_time

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
        self._kinds: list[str | None] = []  # None if the object that had the id before was destroyed
        self._destroyed: list[int] = []

    def note_created(self, object_id: int, kind: str, *, replaced: bool) -> None:
        """Note that an object was created, with the id of a destroyed object if `replaced`."""
        if replaced:
            self._created.append(object_id)
            self._kinds.append(None)
        self._created.append(object_id)
        self._kinds.append(kind)

    def note_destroyed(self, object_id: int) -> None:
        self._destroyed.append(object_id)

    def events(self, batcher: EventBatcher) -> Iterator[None]:
        """Add the events to a batcher in the order of their times, slice by slice."""
        created, kinds, destroyed = self._created, self._kinds, self._destroyed
        parts = max(1, round(self._seconds * _PARTS_PER_SECOND))
        at_created = at_destroyed = 0
        for part in range(1, parts + 1):
            timestamp = pack_time(self._since + self._seconds * (part - 0.5) / parts)
            packed: dict[str, tuple[bytes, bytes]] = {}
            size = SliceSize()
            end = len(created) * part // parts
            while at_created < end:
                with size as count:
                    stop = min(end, at_created + count)
                    for object_id, kind in zip(created[at_created:stop], kinds[at_created:stop], strict=True):
                        if kind is None:
                            batcher.add(pack_destroyed(timestamp, object_id))
                            continue
                        if kind not in packed:
                            packed[kind] = pack_created(timestamp, kind)
                        before, after = packed[kind]
                        batcher.add(before + pack(object_id) + after)
                    at_created = stop
                yield
            end = len(destroyed) * part // parts
            while at_destroyed < end:
                with size as count:
                    for object_id in destroyed[at_destroyed : min(end, at_destroyed + count)]:
                        batcher.add(pack_destroyed(timestamp, object_id))
                    at_destroyed = min(end, at_destroyed + count)
                yield
