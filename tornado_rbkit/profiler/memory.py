"""The memory profile: objects made and gone, the collector's pauses, and its figures each five seconds.

Objects are found by comparing what the collector tracks (`gc.get_objects`) between two ticks, so what lives for
less than a tick, and what is never tracked (strings, numbers, containers of these alone), is not seen. An id is an
address: when an object dies and another of the same class takes its place between two ticks, that cannot be told
from one object that lives on; of another class, it is reported as destroyed and created.

The collector stops tracking some objects that live on. None of these is told as destroyed:

- Tuples of plain values (strings, numbers, tuples of these) are not told at all, nor, up to Python 3.13, dicts that
  hold nothing else when they are first seen.
- Up to Python 3.13 a dict that held more, and holds only plain values when a full collection comes, is looked for
  among what the tracked objects refer to. It is told as destroyed only if it is held by nothing but a running
  function's variable, or by something that is not tracked.
- What goes in a tick in which `gc.freeze` was called is not told before `gc.unfreeze`. Objects that were frozen before
  the start are not seen.

Stopping compares once more, for two seconds at the most, before the command is answered: what a longer comparison
would have found is not told.

Stack frames are not told either: it is looking at them, as CPU sampling does, that makes objects of them.

A tick begins with the list of all objects, which holds the GIL for longer the more there are (see `tracked`), and
works in slices of some milliseconds, between which the host has the GIL. Until it is done it holds the objects it has
not yet looked at, except tuples with a single reference. Ticks come each second, or as much more seldom as it takes
for them, and for what the server's thread does between them to publish it all, to stay within 5 % of the process's
time. What that does not count is the GIL: while a tick lasts, a host that computes has half of it.

The figures of gc_stats, under rbkit's keys; ``''`` where CPython cannot tell:

========================================  ================================================================
count                                     collections of all generations
minor_gc_count                            collections of generations 0 and 1
major_gc_count                            collections of generation 2 (full ones)
heap_live_slots                           blocks that the allocator has given out (`sys.getallocatedblocks`)
old_objects                               objects that the last comparison found, and frozen ones (``''`` before the
                                          first; to count those of generation 2 would be to list them)
total_freed_objects                       objects freed by the collector; those whose last reference went are not
                                          counted anywhere
total_heap_size                           resident memory in bytes (Linux, else ``''``)
total_memsize                             bytes that tracemalloc has traced (``''`` when it is off)
heap_allocated_pages, heap_eden_pages,    ``''``: the allocator's arenas cannot be counted from within, and have no
heap_tomb_pages, heap_allocatable_pages,  eden, tomb or sorted list
heap_sorted_length
heap_free_slots, heap_final_slots,        ``''``: free blocks are not counted, nothing waits to be finalized or swept
heap_swept_slots
old_objects_limit                         ``''``: the growth that brings on a full collection is not told
total_allocated_objects                   ``''``: allocations are not counted
malloc_increase_bytes,                    ``''``: collections come after a number of objects, not of bytes
malloc_increase_bytes_limit,
oldmalloc_increase_bytes,
oldmalloc_increase_bytes_limit
========================================  ================================================================
"""

from __future__ import annotations

import gc
import os
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, compress, repeat
from operator import is_not
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tornado_rbkit.profiler.objects import (
    DICTS_ARE_UNTRACKED,
    ClassNames,
    SliceSize,
    are_plain,
    is_bound_to,
    is_own,
    may_be_untracked,
    own_ids,
)
from tornado_rbkit.profiler.publisher import BACKLOG_EVENTS, Publisher, pack, pack_double, pack_text
from tornado_rbkit.profiler.tracked import KindsById, Tracked, list_tracked
from tornado_rbkit.protocol import EventType, Field

STATS_SECONDS: Final = 5.0
TICK_SECONDS: Final = 1.0
_LEAST_REST: Final = 0.05
"""The shortest time between two comparisons."""

SHARE: Final = 0.05
"""The most of the process's time that comparisons may take, on average."""

_LOOKED_AT: Final = 20_000
"""Objects of the last tick that are looked for in one slice."""

UNKNOWN: Final = ""
"""What rbkit sends where Ruby has nil."""


class MemoryProfile:
    """Publish the memory profile from `start` to `stop`.

    Everything belongs to the server's thread but `status`, which is any thread's, and the collector's callback,
    which runs on whatever thread collects.

    Args:
        publisher: where the events go.
        own: gives the roots of the profiler's own objects, which are left out.
    """

    def __init__(self, publisher: Publisher, own: Callable[[], list[object]]) -> None:
        self.enabled = False
        self.trace_objects = True
        self.gc_stats = True
        self._publisher = publisher
        self._own = own
        self._collections: deque[tuple[str, float]] = deque()
        self._callback = _callback(self._collections)
        self._known = KindsById()
        self._single: set[int] = set()  # the tuples with a single reference among them
        self._tracked = 0
        self._aside: set[int] = set()  # what gc.freeze took out of the collector's sight
        self._untracked: set[int] = set()  # dicts that live, but are not tracked any more
        self._full_collections = self._frozen = 0
        self._interned: dict[str, str] = {}
        self._tick: Iterator[None] | None = None
        self._tick_due = self._stats_due = 0.0
        self._tick_cost = 0.0
        self._tick_spent = 0.0
        self._began = self._began_cpu = 0.0  # of the last comparison: when, and this thread's CPU time then
        self._spent = 0.0
        self._ticks = 0

    def start(self, *, trace_objects: bool = True, gc_stats: bool = True) -> None:
        """Start; what exists now is the baseline, and only what comes and goes afterwards is told."""
        if self.enabled and (self.trace_objects, self.gc_stats) == (trace_objects, gc_stats):
            return
        self.stop()
        self.enabled = True
        self.trace_objects, self.gc_stats = trace_objects, gc_stats
        self._spent, self._ticks = 0.0, 0
        self._stats_due = time.monotonic()
        gc.callbacks.append(self._callback)
        self._began, self._began_cpu = time.monotonic(), time.thread_time()
        if trace_objects:
            self._tick = self._begin(baseline=True)

    def stop(self) -> None:
        """Stop, and forget every object. May be called twice."""
        if not self.enabled:
            return
        self.enabled = False
        release_callback(self)
        self._publish_collections()
        self._tick, self._tick_spent, self._tick_due = None, 0.0, 0.0
        self._known, self._interned, self._tracked = KindsById(), {}, 0
        self._single, self._aside, self._untracked = set(), set(), set()

    def last_comparison(self) -> Iterator[None]:
        """Compare once more, slice by slice, before `stop`: what has come and gone since the last tick is told."""
        if self.enabled and self.trace_objects:
            if self._tick is not None:
                yield from self._tick
            yield from self._begin()

    def work(self) -> float | None:
        """Do what is due, at most one slice; return the seconds after which there is more, None when disabled."""
        if not self.enabled:
            return None
        now = time.monotonic()
        self._publish_collections()
        if self.gc_stats and now >= self._stats_due:
            self._stats_due = now + STATS_SECONDS
            self._publisher.add(pack(_event(EventType.GC_STATS, gc_stats(self._tracked))))
        if not self.trace_objects:
            return self._stats_due - now
        due = max(self._tick_due, self._began + (time.thread_time() - self._began_cpu) / SHARE)
        if self._tick is None and now >= due and self._publisher.backlog < BACKLOG_EVENTS:
            self._began, self._began_cpu = now, time.thread_time()
            self._tick = self._begin()
        if self._tick is not None:
            self._step(self._tick)
        # A wake-up costs time as well, and so moves what is due: coming back sooner might never get there.
        return 0.001 if self._tick is not None else max(_LEAST_REST, due - now)

    def status(self) -> dict[str, Any]:
        """Return the cost of the last comparison (seconds of CPU), how many there were, and the pause between."""
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
        if next(tick, self) is self:  # a generator's yields are None: it has ended
            self._tick = None
        self._tick_spent += time.thread_time() - began
        if self._tick is None:
            self._tick_cost = self._tick_spent
            self._spent += self._tick_spent
            self._tick_spent = 0.0
            self._ticks += 1
            self._tick_due = time.monotonic() + _pause(self._tick_cost)

    def _begin(self, *, baseline: bool = False) -> Iterator[None]:
        """List what there is now, and return what compares it with what was there at the last tick."""
        collections, self._full_collections = self._full_collections, _full_collections()
        frozen, self._frozen = self._frozen, gc.get_freeze_count()
        return self._compare(list_tracked(self._single), collections, frozen, baseline=baseline)

    def _compare(self, tracked: Tracked, collections: int, frozen: int, *, baseline: bool = False) -> Iterator[None]:
        """Compare slice by slice, and publish the difference; the counts are of before the last tick."""
        timestamp = pack_double(time.time() * 1000.0)
        own = own_ids([*self._own(), self, tracked])
        names = ClassNames(self._interned)
        before, present = self._known, KindsById()
        events: dict[str, tuple[bytes, bytes] | None] = {}
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
                        if kind not in events:
                            events[kind] = None if is_own(kind) else _created(timestamp, kind)
                        event = events[kind]
                        if event is None or object_id in own or type(item) is FrameType:
                            continue
                        if is_bound_to(item, own) or may_be_untracked(item):
                            continue
                        if old is not None:
                            self._publisher.add(_destroyed(timestamp, object_id))
                        if not baseline:
                            self._publisher.add(event[0] + pack(object_id) + event[1])
                    present[shard][object_id] = kind
                part, item = [], None
            yield
        yield from self._compare_tuples(tracked, present, own, timestamp, baseline=baseline)
        frozen_now = gc.get_freeze_count()  # which counts them one by one
        if not frozen_now:
            self._aside = set()
        yield from self._tell_destroyed(
            timestamp,
            present,
            some_frozen=frozen_now > frozen,
            some_untracked=DICTS_ARE_UNTRACKED and _full_collections() > collections,
        )
        self._known = present
        self._tracked = present.total()

    def _compare_tuples(
        self, tracked: Tracked, present: KindsById, own: set[int], timestamp: bytes, *, baseline: bool
    ) -> Iterator[None]:
        """Compare the tuples that have a single reference slice by slice, and publish what is new."""
        kind = self._interned.setdefault("tuple", "tuple")
        before, after = _created(timestamp, kind)
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
                        if object_id in own or are_plain(content):
                            continue
                        if old is not None:
                            self._publisher.add(_destroyed(timestamp, object_id))
                        if not baseline:
                            self._publisher.add(before + pack(object_id) + after)
                    present[shard][object_id] = kind
                    single.add(object_id)
                content = []
            yield

    def _tell_destroyed(
        self, timestamp: bytes, present: KindsById, *, some_frozen: bool, some_untracked: bool
    ) -> Iterator[None]:
        """Tell what has gone, and keep as present what only the collector has lost sight of."""
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
                    self._publisher.add(_destroyed(timestamp, object_id))
                    continue
                now[object_id] = kind
            looked_at += len(before)
            before.clear()  # here, and not all of them at the end in one go
            if looked_at > _LOOKED_AT:
                looked_at = 0
                yield
        if untracked and some_untracked:
            found: set[int] = set()
            yield from _find_dicts(untracked, found)
            found.difference_update(map(id, present))  # which are new, and may be where one has been
            for object_id in untracked - found:
                self._publisher.add(_destroyed(timestamp, object_id))
                del present[object_id >> 16 & KindsById.LAST][object_id]
            untracked = found
        self._untracked = untracked

    def _publish_collections(self) -> None:
        while self._collections:
            phase, seconds = self._collections.popleft()
            timestamp = pack_double(seconds * 1000.0)
            if phase == "start":
                self._publisher.add(_bare(EventType.GC_START, timestamp))
            else:  # CPython has no mark and sweep of their own: both end with the collection
                self._publisher.add(_bare(EventType.GC_END_M, timestamp))
                self._publisher.add(_bare(EventType.GC_END_S, timestamp))


def _find_dicts(wanted: set[int], found: set[int]) -> Iterator[None]:
    """Find, slice by slice, the dicts with these ids that anything tracked refers to."""
    tracked = list_tracked(frozenset())
    objects, content = tracked.objects, tracked.content
    size = SliceSize()
    while objects or content:
        with size as count:
            for item in chain(gc.get_referents(*objects[-count:]), content[-count:]):
                if id(item) in wanted and type(item) is dict:
                    found.add(id(item))
            del objects[-count:], content[-count:]
            item = None
        yield


def _full_collections() -> int:
    collections: int = gc.get_stats()[2]["collections"]
    return collections


def release_callback(profile: MemoryProfile) -> None:
    """Take a profile's callback off the collector; also for a forked child. Does nothing if it is not there."""
    for index, callback in enumerate(gc.callbacks):
        if callback is profile._callback:  # list.remove would ask the host's callbacks whether they equal it
            del gc.callbacks[index]  # no thread is switched to since the comparison: there is no call and no loop
            return


def gc_stats(tracked: int) -> dict[str, int | str]:
    """Return the collector's figures under rbkit's keys, as the module's table has them.

    Args:
        tracked: the objects that the last comparison found, 0 before the first.
    """
    minor, middle, major = gc.get_stats()[:3]
    collections = minor["collections"] + middle["collections"]
    traced = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else UNKNOWN
    return {
        "count": collections + major["collections"],
        "minor_gc_count": collections,
        "major_gc_count": major["collections"],
        "heap_allocated_pages": UNKNOWN,
        "heap_eden_pages": UNKNOWN,
        "heap_tomb_pages": UNKNOWN,
        "heap_allocatable_pages": UNKNOWN,
        "heap_sorted_length": UNKNOWN,
        "heap_live_slots": sys.getallocatedblocks(),
        "heap_free_slots": UNKNOWN,
        "heap_final_slots": UNKNOWN,
        "heap_swept_slots": UNKNOWN,
        "old_objects": tracked + gc.get_freeze_count() if tracked else UNKNOWN,
        "old_objects_limit": UNKNOWN,
        "total_allocated_objects": UNKNOWN,
        "total_freed_objects": minor["collected"] + middle["collected"] + major["collected"],
        "malloc_increase_bytes": UNKNOWN,
        "malloc_increase_bytes_limit": UNKNOWN,
        "oldmalloc_increase_bytes": UNKNOWN,
        "oldmalloc_increase_bytes_limit": UNKNOWN,
        "total_heap_size": _resident_bytes(),
        "total_memsize": traced,
    }


def _resident_bytes() -> int | str:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):  # not Linux
        return UNKNOWN


def _callback(collections: deque[tuple[str, float]]) -> Callable[[str, dict[str, int]], None]:
    """Return what the collector calls: it notes the phase and the time, on any thread, and nothing else."""
    note, clock = collections.append, time.time

    def on_collection(phase: str, info: dict[str, int]) -> None:
        note((phase, clock()))

    return on_collection


def _pause(cost: float) -> float:
    return max(TICK_SECONDS, cost * (1 - SHARE) / SHARE)


def _event(kind: EventType, payload: Any) -> dict[int, Any]:
    return {
        int(Field.EVENT_TYPE): int(kind),
        int(Field.TIMESTAMP): time.time() * 1000.0,
        int(Field.PAYLOAD): payload,
    }


def _bare(kind: EventType, timestamp: bytes) -> bytes:
    return bytes((0x82, Field.EVENT_TYPE, kind, Field.TIMESTAMP)) + timestamp


def _created(timestamp: bytes, name: str) -> tuple[bytes, bytes]:
    """Return what comes before and after the id in an obj_created event."""
    head = bytes((0x83, Field.EVENT_TYPE, EventType.OBJ_CREATED, Field.TIMESTAMP)) + timestamp
    return head + bytes((Field.PAYLOAD, 0x82, Field.OBJECT_ID)), bytes((Field.CLASS_NAME,)) + pack_text(name)


def _destroyed(timestamp: bytes, object_id: int) -> bytes:
    head = bytes((0x83, Field.EVENT_TYPE, EventType.OBJ_DESTROYED, Field.TIMESTAMP)) + timestamp
    return head + bytes((Field.PAYLOAD, 0x81, Field.OBJECT_ID)) + pack(object_id)
