"""The memory profile: objects created and destroyed, and the collector's pauses.

Objects are found by comparing the objects that the collector tracks (`gc.get_objects`) at two ticks. Objects that live
for less than a tick, and objects that are never tracked (strings, numbers, containers of these alone), are not seen.
An id is an address: if an object dies and another object takes its address between two ticks, this is not noticed if
both have the same class; otherwise one object is reported as destroyed and one as created.

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
continues in slices of some milliseconds, between which the host has the GIL. Until it ends it keeps the objects alive
that it has not yet looked at, except tuples with a single reference. A tick runs every second, or less often, so that
ticks, and the publishing by the server's thread in between, take at most 5 % of the process's time. This does not
count waiting for the GIL: during a tick, a host that computes has the GIL half of the time.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, compress, repeat
from operator import is_not
from types import FrameType
from typing import Any, Final

from tornado_rbkit.profiler.batcher import BACKLOG_EVENTS, EventBatcher
from tornado_rbkit.profiler.changes import Changes
from tornado_rbkit.profiler.objects import (
    DICTS_ARE_UNTRACKED,
    ClassNames,
    SliceSize,
    are_plain,
    internal_ids,
    is_bound_to,
    is_internal,
    may_be_untracked,
    referents,
    without_annotations,
)
from tornado_rbkit.profiler.packing import pack_bare_event, pack_time
from tornado_rbkit.profiler.threads import hiding
from tornado_rbkit.profiler.tracked import KindsById, Tracked, list_tracked
from tornado_rbkit.protocol import EventType

TICK_SECONDS: Final = 1.0
_LEAST_REST: Final = 0.05
"""The shortest time between two comparisons."""

SHARE: Final = 0.05
"""The largest share of the process's time that comparisons may take, on average."""

_LOOKED_AT: Final = 20_000
"""Objects of the last tick that are searched for in one slice."""


class MemoryProfile:
    """Publishes the memory profile from `start` to `stop`.

    For use by the server's thread, except `status`, which any thread may call, and the collector's callback, which
    runs on the thread that collects.

    Args:
        batcher: receives the events.
        internal: returns the roots of the profiler's own objects, which are left out.
    """

    def __init__(self, batcher: EventBatcher, internal: Callable[[], list[object]]) -> None:
        self.enabled = False
        self._batcher = batcher
        self._internal = internal
        self._collections: deque[tuple[str, float]] = deque()
        self._callback = _callback(self._collections)
        self._known = KindsById()
        self._own: set[int] = set()  # ids of the profiler's own objects when the objects were listed
        self._single: set[int] = set()  # ids of the known tuples with a single reference
        self._tracked = 0
        self._aside: set[int] = set()  # ids of objects that gc.freeze hid from the collector
        self._untracked: set[int] = set()  # ids of dicts that are alive but no longer tracked
        self._full_collections = self._frozen = 0
        self._interned: dict[str, str] = {}
        self._tick: Iterator[None] | None = None
        self._tick_due = 0.0
        self._tick_cost = 0.0
        self._tick_spent = 0.0
        self._listed = 0.0  # when the last comparison listed the objects, in seconds since the Unix epoch
        self._began = self._began_cpu = 0.0  # of the last comparison: its start, and this thread's CPU time then
        self._spent = 0.0
        self._ticks = 0

    def start(self) -> None:
        """Start profiling; the objects that exist now are the baseline, and only later changes are reported."""
        if self.enabled:
            return
        self.enabled = True
        self._spent, self._ticks = 0.0, 0
        gc.callbacks.append(self._callback)
        self._began, self._began_cpu = time.monotonic(), time.thread_time()
        self._tick = self._begin(baseline=True)

    def stop(self) -> None:
        """Stop profiling and forget every object. May be called twice."""
        if not self.enabled:
            return
        self.enabled = False
        release_callback(self._callback)
        self._publish_collections()
        self._tick, self._tick_spent, self._tick_due = None, 0.0, 0.0
        self._known, self._interned, self._tracked = KindsById(), {}, 0
        self._single, self._aside, self._untracked = set(), set(), set()

    def abandon(self) -> None:
        """Undo, in a forked child, what the parent's profile changed."""
        release_callback(self._callback)

    def last_comparison(self) -> Iterator[None]:
        """Compare once more, slice by slice, before `stop`, to report the changes since the last tick."""
        if self.enabled:
            if self._tick is not None:
                yield from self._tick
            yield from self._begin()

    def work(self) -> float | None:
        """Do the work that is due, at most one slice; return the seconds until the next call, None when disabled."""
        if not self.enabled:
            return None
        now = time.monotonic()
        self._publish_collections()
        due = max(self._tick_due, self._began + (time.thread_time() - self._began_cpu) / SHARE)
        if self._tick is None and now >= due and self._batcher.backlog < BACKLOG_EVENTS:
            self._began, self._began_cpu = now, time.thread_time()
            self._tick = self._begin()
        if self._tick is not None:
            self._step(self._tick)
        # A wake-up also costs CPU time and so postpones the next tick: waking more often might never reach it.
        return 0.001 if self._tick is not None else max(_LEAST_REST, due - now)

    @property
    def living(self) -> int:
        """The number of objects that the last comparison found, with frozen ones; 0 before the first. Any thread."""
        return self._tracked and self._tracked + self._frozen

    def status(self) -> dict[str, Any]:
        """Return the cost of the last comparison (seconds of CPU time), their number, and the pause between two."""
        return {
            "enabled": self.enabled,
            "tracked_objects": self._tracked,
            "ticks": self._ticks,
            "tick_cost": self._tick_cost,
            "tick_interval": _pause(self._tick_cost),
            "cpu_seconds": self._spent,
        }

    def _step(self, tick: Iterator[None]) -> None:
        began = time.thread_time()
        if next(tick, self) is self:  # the generator, which only yields None, has ended
            self._tick = None
        self._tick_spent += time.thread_time() - began
        if self._tick is None:
            self._tick_cost = self._tick_spent
            self._spent += self._tick_spent
            self._tick_spent = 0.0
            self._ticks += 1
            self._tick_due = time.monotonic() + _pause(self._tick_cost)

    def _begin(self, *, baseline: bool = False) -> Iterator[None]:
        """List the tracked objects, and return a generator that compares them with the objects of the last tick."""
        collections, self._full_collections = self._full_collections, _full_collections()
        frozen, self._frozen = self._frozen, gc.get_freeze_count()
        with hiding():
            tracked = list_tracked(self._single)
            self._own = internal_ids(self._internal())  # now, because another thread lets go of some of them later
        since, self._listed = self._listed, time.time()
        changes = Changes(since, self._listed)
        comparison = self._compare(tracked, changes, collections, frozen)
        return comparison if baseline else self._publish(comparison, changes)

    def _publish(self, comparison: Iterator[None], changes: Changes) -> Iterator[None]:
        """Publish the changes after the comparison, also if it is ended early."""
        events = changes.events(self._batcher)
        try:
            yield from comparison
            for _ in events:
                yield
        finally:
            for _ in events:
                pass

    def _compare(self, tracked: Tracked, changes: Changes, collections: int, frozen: int) -> Iterator[None]:
        """Compare slice by slice and note the differences; the counts are from the start of the last tick."""
        internal = internal_ids([*self._internal(), self, tracked]) | self._own
        names = ClassNames(self._interned)
        before, present = self._known, KindsById()
        own_kinds: dict[str, bool] = {}
        size = SliceSize()
        objects, item = tracked.objects, None
        while objects:
            with size as count:
                part = list(compress(objects[-count:], map(is_not, objects[-count:], repeat(None))))
                del objects[-count:]
                kinds = names.of(list(map(type, part)))
                for item, object_id, kind in zip(part, map(id, part), kinds, strict=True):
                    shard = object_id >> 16 & KindsById.LAST
                    old = before[shard].get(object_id)
                    if old is not kind:
                        if kind not in own_kinds:
                            own_kinds[kind] = is_internal(kind)
                        if own_kinds[kind] or object_id in internal or type(item) is FrameType:
                            continue
                        if is_bound_to(item, internal) or may_be_untracked(item):
                            continue
                        changes.note_created(object_id, kind, replaced=old is not None)
                    present[shard][object_id] = kind
                part, item = [], None
            yield
        yield from self._compare_tuples(tracked, present, internal, changes)
        frozen_now = gc.get_freeze_count()  # this counts the objects one by one
        if not frozen_now:
            self._aside = set()
        yield from self._find_destroyed(
            changes,
            present,
            some_frozen=frozen_now > frozen,
            some_untracked=DICTS_ARE_UNTRACKED and _full_collections() > collections,
        )
        self._known = present
        self._tracked = present.total()

    def _compare_tuples(
        self, tracked: Tracked, present: KindsById, internal: set[int], changes: Changes
    ) -> Iterator[None]:
        """Compare the tuples with a single reference slice by slice, and note the new ones."""
        kind = self._interned.setdefault("tuple", "tuple")
        size = SliceSize()
        self._single = single = set[int]()
        while tracked.known_ids or tracked.new_ids:
            with size as count:
                for object_id in tracked.known_ids[-count:]:
                    present[object_id >> 16 & KindsById.LAST][object_id] = kind
                single.update(tracked.known_ids[-count:])
                del tracked.known_ids[-count:]
                for object_id, content in tracked.take_new(count):
                    shard = object_id >> 16 & KindsById.LAST
                    old = self._known[shard].get(object_id)
                    if old is not kind:
                        if object_id in internal or are_plain(content):
                            continue
                        changes.note_created(object_id, kind, replaced=old is not None)
                    present[shard][object_id] = kind
                    single.add(object_id)
                content = []
            yield

    def _find_destroyed(
        self, changes: Changes, present: KindsById, *, some_frozen: bool, some_untracked: bool
    ) -> Iterator[None]:
        """Note the objects that were destroyed; keep objects as present that are merely no longer tracked."""
        untracked: set[int] = set()
        looked_at = 0
        for before, now in zip(self._known, present, strict=True):
            for object_id in [object_id for object_id in before if object_id not in now]:
                kind = before[object_id]
                if some_frozen or object_id in self._aside:
                    self._aside.add(object_id)
                elif object_id in self._untracked or (some_untracked and kind == "dict"):
                    untracked.add(object_id)
                else:
                    changes.note_destroyed(object_id)
                    continue
                now[object_id] = kind
            looked_at += len(before)
            before.clear()  # here, because clearing all dicts at the end would take long
            if looked_at > _LOOKED_AT:
                looked_at = 0
                yield
        if untracked and some_untracked:
            found: set[int] = set()
            yield from _find_dicts(untracked, found)
            found.difference_update(map(id, present))  # these dicts are new, and may have the address of an old one
            for object_id in untracked - found:
                changes.note_destroyed(object_id)
                del present[object_id >> 16 & KindsById.LAST][object_id]
            untracked = found
        self._untracked = untracked

    def _publish_collections(self) -> None:
        while self._collections:
            phase, seconds = self._collections.popleft()
            timestamp = pack_time(seconds)
            if phase == "start":
                self._batcher.add(pack_bare_event(EventType.GC_START, timestamp))
            else:  # CPython has no separate mark and sweep phases: both end with the collection
                self._batcher.add(pack_bare_event(EventType.GC_END_M, timestamp))
                self._batcher.add(pack_bare_event(EventType.GC_END_S, timestamp))


def _find_dicts(wanted: set[int], found: set[int]) -> Iterator[None]:
    """Find, slice by slice, the dicts with the ids `wanted` that a tracked object refers to; add them to `found`."""
    tracked = list_tracked(frozenset())
    objects, content = tracked.objects, tracked.content
    size = SliceSize()
    while objects or content:
        with size as count:
            for item in chain(referents(objects[-count:]), content[-count:]):
                if id(item) in wanted and type(item) is dict:
                    found.add(id(item))
            del objects[-count:], content[-count:]
            item = None
        yield


def _full_collections() -> int:
    collections: int = gc.get_stats()[2]["collections"]
    return collections


def release_callback(ours: Callable[[str, dict[str, int]], None]) -> None:
    """Remove one of the profiler's callbacks from the collector, if it is there, also in a forked child."""
    for index, callback in enumerate(gc.callbacks):
        if callback is ours:  # list.remove() would call __eq__ of the host's callbacks
            del gc.callbacks[index]  # no other thread runs after the comparison: there is no call and no loop
            return


def _callback(collections: deque[tuple[str, float]]) -> Callable[[str, dict[str, int]], None]:
    """Return the collector's callback, which only records the phase and the time, on any thread."""
    note, clock = collections.append, time.time

    def on_collection(phase: str, info: dict[str, int]) -> None:
        note((phase, clock()))

    return without_annotations(on_collection)


def _pause(cost: float) -> float:
    return max(TICK_SECONDS, cost * (1 - SHARE) / SHARE)
