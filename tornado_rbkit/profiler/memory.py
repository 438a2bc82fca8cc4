"""The memory profile: objects created and destroyed, and the collector's pauses.

Objects are found by comparing the objects that the collector tracks (`gc.get_objects`) at two ticks. Objects that live
for less than a tick, and objects that are never tracked (strings, numbers, containers of these alone), are not seen.
An id is an address: if an object dies and another object takes its address between two ticks, this is not noticed if
both have the same class; otherwise one object is reported as destroyed and one as created. (Classes are compared by
their ids, too.)

The collector stops tracking some objects that live on. None of these objects is reported as destroyed:

- Tuples of plain values (strings, numbers, tuples of these) are not reported at all, nor, up to Python 3.13, dicts
  that hold only plain values when they are first seen.
- Up to Python 3.13 a dict that held other objects, and holds only plain values when a full collection runs, is
  searched for among the objects that tracked objects refer to. It is reported as destroyed only if nothing refers to
  it except a running function's variable or an untracked object.
- Objects that disappear in a tick in which `gc.freeze` was called are not reported before `gc.unfreeze`. Objects that
  were frozen before the start are not seen.

Stopping compares once more, for at most two seconds, before the command is answered. Differences that a longer
comparison would have found are not reported.

The times of the changes that a comparison finds are spread evenly over the time since the comparison before.

Stack frames are not reported either: CPU sampling itself creates frame objects by reading frames.

A tick starts by listing all objects, which holds the GIL for longer the more objects there are (see `tracked`), and
continues in slices of some milliseconds, between which the host has the GIL. It keeps the objects alive that it has
not yet looked at, except tuples with a single reference. A tick runs every second, or less often, so that ticks, and
the publishing by the server's thread in between, take a small share of the process's CPU time (see `budget`). A tick
that costs more than expected pauses as soon as it refers to none of the host's objects. The budget does not count
waiting for the GIL: during a tick, a host that computes has the GIL half of the time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator, Set
from itertools import compress, repeat
from operator import eq
from typing import Any, Final

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.alignment import KnownObjects
from tornado_rbkit.profiler.batcher import BACKLOG_EVENTS, EventBatcher
from tornado_rbkit.profiler.budget import Budget
from tornado_rbkit.profiler.changes import Changes
from tornado_rbkit.profiler.collection_times import START, Collections
from tornado_rbkit.profiler.comparison import Comparison
from tornado_rbkit.profiler.objects import (
    DICTS_ARE_UNTRACKED,
    SliceSize,
    in_slices,
    internal_ids,
    referents,
)
from tornado_rbkit.profiler.packing import pack_bare_event, pack_time
from tornado_rbkit.profiler.threads import hiding
from tornado_rbkit.profiler.tracked import Tracked, list_tracked
from tornado_rbkit.protocol import EventType

TICK_SECONDS: Final = 1.0
_REST: Final = 0.2
"""Seconds between two looks whether the budget allows a comparison; waking up costs CPU time, too."""

_DICT: Final = id(dict)


class MemoryProfile:
    """Publishes the memory profile from `start` to `stop`.

    For use by the server's thread, except `status`, which any thread may call.

    Args:
        batcher: receives the events.
        internal: returns the roots of the profiler's own objects, which are left out.
    """

    def __init__(self, batcher: EventBatcher, internal: Callable[[], list[object]]) -> None:
        self.enabled = False
        self._batcher = batcher
        self._internal = internal
        self._collections = Collections()
        self._known = KnownObjects()
        self._own: set[int] = set()  # ids of the profiler's own objects when the objects were listed
        self._single: set[int] = set()  # ids of the known tuples with a single reference
        self._tracked = 0
        self._aside: set[int] = set()  # ids of objects that gc.freeze hid from the collector
        self._untracked: set[int] = set()  # ids of dicts that are alive but no longer tracked
        self._full_collections = self._frozen = 0
        self._interned: dict[str, str] = {}
        self._budget = Budget()
        self._tick: Generator[None, None, None] | None = None
        self._may_pause = False  # whether the comparison that is under way refers to none of the host's objects
        self._tick_spent = 0.0  # seconds of CPU time, of the comparison that is under way
        self._tick_cost = 0.0  # of the last one
        self._began = 0.0  # when the last one began, on the monotonic clock
        self._interval = TICK_SECONDS
        self._listed = 0.0  # when the last comparison listed the objects, in seconds since the Unix epoch
        self._spent = 0.0
        self._ticks = 0

    def start(self) -> None:
        """Start profiling; the objects that exist now are the baseline, and only later changes are reported."""
        if self.enabled:
            return
        self.enabled = True
        self._spent, self._ticks = 0.0, 0
        self._collections.begin()
        self._budget, self._began, self._interval = Budget(), real_time.monotonic(), TICK_SECONDS
        self._tick = self._begin(baseline=True)
        self._tick_spent = self._budget.charge()

    def stop(self) -> None:
        """Stop profiling and forget every object. May be called twice."""
        if not self.enabled:
            return
        self.enabled = False
        self._collections.end()
        self._publish_collections()
        if self._tick is not None:  # a list that holds it, too, might be released on a thread of the host
            self._tick.close()
            self._tick = None
        self._known, self._interned, self._tracked = KnownObjects(), {}, 0
        self._single, self._aside, self._untracked = set(), set(), set()

    def abandon(self) -> None:
        """Undo, in a forked child, what the parent's profile changed."""
        self._collections.end()

    def last_comparison(self) -> Generator[None, None, None]:
        """Compare once more, slice by slice, before `stop`, to report the changes since the last tick."""
        if self.enabled:
            for _ in self._tick or ():  # not `yield from`, by which the end of this generator would end the tick, too
                yield
            yield from self._begin()

    def work(self) -> float | None:
        """Do the work that is due, at most one slice; return the seconds until the next call, None when disabled."""
        if not self.enabled:
            return None
        self._budget.accrue()
        self._publish_collections()
        now = real_time.monotonic()
        if self._tick is None and self._is_due(now):
            self._began, self._interval = now, now - self._began
            self._tick_spent = 0.0
            self._tick = self._begin()
        if self._tick is None:
            until_due = self._began + TICK_SECONDS - now
            return until_due if until_due > 0 else _REST
        if self._may_pause and self._budget.is_overdrawn():
            return _REST
        self._step(self._tick)
        return 0.001

    @property
    def living(self) -> int:
        """The number of objects that the last comparison found, with frozen ones; 0 before the first. Any thread."""
        return self._tracked and self._tracked + self._frozen

    def status(self) -> dict[str, Any]:
        """Return the cost of the last comparison (seconds of CPU time), their number, and the seconds between two."""
        return {
            "enabled": self.enabled,
            "tracked_objects": self._tracked,
            "ticks": self._ticks,
            "tick_cost": self._tick_cost,
            "tick_interval": self._interval,
            "cpu_seconds": self._spent,
        }

    def _is_due(self, now: float) -> bool:
        is_due = now >= self._began + TICK_SECONDS and self._batcher.backlog < BACKLOG_EVENTS
        return is_due and self._budget.allows()

    def _step(self, tick: Generator[None, None, None]) -> None:
        if next(tick, self) is self:  # the generator, which only yields None, has ended
            self._tick = None
        self._tick_spent += self._budget.charge()
        if self._tick is None:
            self._budget.note(self._tick_spent)
            self._tick_cost = self._tick_spent
            self._spent += self._tick_spent
            self._ticks += 1

    def _begin(self, *, baseline: bool = False) -> Generator[None, None, None]:
        """List the tracked objects, and return a generator that compares them with the objects of the last tick."""
        collections, self._full_collections = self._full_collections, _full_collections()
        frozen, self._frozen = self._frozen, gc.get_freeze_count()
        self._may_pause = False
        self._budget.begin()
        with hiding():
            tracked = list_tracked(self._single)
            self._own = internal_ids(self._internal())  # now, because another thread may release some of them later
        since, self._listed = self._listed, real_time.time()
        changes = Changes(since, self._listed)
        comparison = self._compare(tracked, changes, collections, frozen)
        return comparison if baseline else self._publish(comparison, changes)

    def _publish(self, comparison: Iterator[None], changes: Changes) -> Generator[None, None, None]:
        """Publish the changes after the comparison, also if it is ended early."""
        events = changes.events(self._batcher)
        try:
            yield from comparison
            for _ in events:
                yield
        finally:
            for _ in events:
                pass

    def _compare(
        self, tracked: Tracked, changes: Changes, collections: int, frozen: int
    ) -> Generator[None, None, None]:
        """Compare slice by slice and note the differences; the counts are from the start of the last tick."""
        internal = internal_ids([*self._internal(), self, tracked]) | self._own
        comparison = Comparison(tracked, self._known, self._single, internal, self._interned)
        yield from comparison.release()
        self._may_pause = self._ticks > 0  # the first listing publishes nothing, and figures wait for its end
        yield from comparison.compare(changes)
        frozen_now = gc.get_freeze_count()  # this counts the objects one by one
        if not frozen_now:
            self._aside = set()
        yield from self._note_destroyed(
            changes,
            comparison,
            some_frozen=frozen_now > frozen,
            some_untracked=DICTS_ARE_UNTRACKED and _full_collections() > collections,
        )
        self._known, self._single = comparison.known, comparison.single
        self._tracked = len(self._known.ids) + len(self._single)

    def _note_destroyed(
        self, changes: Changes, comparison: Comparison, *, some_frozen: bool, some_untracked: bool
    ) -> Iterator[None]:
        """Note the objects that were destroyed; keep objects as known that are merely no longer tracked."""
        suspects: dict[int, int] = {}
        yield from in_slices(
            self._note_missing(changes, comparison, suspects, some_frozen=some_frozen, some_untracked=some_untracked)
        )
        found = set(suspects)
        if suspects and some_untracked:
            found = set()
            self._may_pause = False
            yield from _find_dicts(suspects.keys(), found)
            self._may_pause = True
            found.difference_update(map(id, comparison.missing))  # these may have the address of an old dict
            changes.note_destroyed(suspects.keys() - found)
        comparison.keep((object_id, suspects[object_id]) for object_id in found)
        self._untracked = found

    def _note_missing(
        self,
        changes: Changes,
        comparison: Comparison,
        suspects: dict[int, int],
        *,
        some_frozen: bool,
        some_untracked: bool,
    ) -> Iterator[None]:
        """Note the missing objects that were destroyed; add those that may merely be untracked to `suspects`."""
        for missing in comparison.missing:
            if some_frozen:
                self._aside.update(missing)
            aside = missing.keys() & self._aside
            comparison.keep((object_id, missing.pop(object_id)) for object_id in aside)
            untracked = missing.keys() & self._untracked
            if some_untracked:
                untracked.update(compress(missing, map(eq, missing.values(), repeat(_DICT))))
            suspects.update((object_id, missing.pop(object_id)) for object_id in untracked)
            changes.note_destroyed(missing)
            missing.clear()
            yield

    def _publish_collections(self) -> None:
        for phase, seconds, _ in self._collections.take():
            timestamp = pack_time(seconds)
            if phase == START:
                self._batcher.add(pack_bare_event(EventType.GC_START, timestamp))
            else:  # CPython has no separate mark and sweep phases: both end with the collection
                self._batcher.add(pack_bare_event(EventType.GC_END_M, timestamp))
                self._batcher.add(pack_bare_event(EventType.GC_END_S, timestamp))


def _find_dicts(wanted: Set[int], found: set[int]) -> Iterator[None]:
    """Find, slice by slice, the dicts with the ids `wanted` that a tracked object refers to; add them to `found`."""
    tracked = list_tracked(())
    objects, content = tracked.objects, tracked.content
    size = SliceSize()
    while objects or content:
        with size as count:
            for items in (referents(objects[-count:]), content[-count:]):
                for item in compress(items, map(wanted.__contains__, map(id, items))):
                    if type(item) is dict:
                        found.add(id(item))
            del objects[-count:], content[-count:]
            items, item = [], None
        yield


def _full_collections() -> int:
    collections: int = gc.get_stats()[2]["collections"]
    return collections
