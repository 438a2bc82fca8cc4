"""The vitals of a process: its memory, its CPU time, its threads and the collector's figures, once a second.

They are one gc_stats event a second from the first subscriber on, whether anything is profiled or not, and none while
nobody subscribes. So a gc_stats does not mean that memory is profiled; the handshake says whether it is. Only
``old_objects`` depends on that: it is a number only while objects are traced.

The keys of our own, each absent if the system or the interpreter does not provide the figure:

========================================  ================================================================
process_rss                               resident memory in bytes (Linux)
process_cpu_ms                            CPU time that all threads have used so far, user and system, in ms
process_threads                           operating system threads (Linux)
gc_pause_ms                               duration of all collections so far, in ms (Python 3.15 and newer)
process_pss, process_private,             proportional, private, anonymous and swapped memory in bytes, from proc(5)'s
process_anonymous, process_swap           smaps_rollup (attach; Linux). Reading it delays the process's memory mapping,
                                          so it is read so rarely that it takes a hundredth of the time
========================================  ================================================================

rbkit's keys; ``''`` if CPython does not provide the figure:

========================================  ================================================================
count                                     collections of all generations
minor_gc_count                            collections of generations 0 and 1
major_gc_count                            collections of generation 2 (full ones)
heap_live_slots                           blocks that the allocator has handed out (``''`` beside sub-interpreters,
                                          where `sys.getallocatedblocks` can end the process). Counting
                                          them takes longer the larger the heap is, with the GIL held, so they are
                                          counted so rarely that it takes a thousandth of the time; the last count is
                                          repeated meanwhile
old_objects                               objects that the last comparison found, and frozen objects (``''`` before the
                                          first; counting the objects of generation 2 would mean listing them)
total_freed_objects                       objects freed by the collector; CPython does not count objects freed with
                                          their last reference
total_heap_size                           resident memory in bytes (Linux, else ``''``)
total_memsize                             bytes that tracemalloc has traced (``''`` when it is off)
heap_allocated_pages, heap_eden_pages,    ``''``: the allocator's arenas cannot be counted from within, and have no
heap_tomb_pages, heap_allocatable_pages,  eden, tomb or sorted list
heap_sorted_length
heap_free_slots, heap_final_slots,        ``''``: free blocks are not counted, nothing waits to be finalized or swept
heap_swept_slots
old_objects_limit                         ``''``: the growth that triggers a full collection is not available
total_allocated_objects                   ``''``: allocations are not counted
malloc_increase_bytes,                    ``''``: collections start after a number of objects, not of bytes
malloc_increase_bytes_limit,
oldmalloc_increase_bytes,
oldmalloc_increase_bytes_limit
========================================  ================================================================
"""

from __future__ import annotations

import gc
import os
import tracemalloc
from typing import Any, Final, TypeAlias

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.discovery import stat_fields
from tornado_rbkit.profiler.frames import allocated_blocks

VITALS_SECONDS: Final = 1.0

_COUNT_SHARE: Final = 0.001
"""The share of the time in which allocated blocks may be counted."""

_MAPPED_SHARE: Final = 0.01
"""The share of the time in which the mapped memory of another process may be read."""

_MAPPED: Final = {
    "Pss": "process_pss",
    "Private_Clean": "process_private",
    "Private_Dirty": "process_private",
    "Anonymous": "process_anonymous",
    "Swap": "process_swap",
}
"""The lines of smaps_rollup, in kB, and their keys."""

UNKNOWN: Final = ""
"""The value that rbkit sends where Ruby has nil."""

Figures: TypeAlias = dict[str, int | str]

_KEYS: Final = (
    *("count", "minor_gc_count", "major_gc_count"),
    *("heap_allocated_pages", "heap_eden_pages", "heap_tomb_pages", "heap_allocatable_pages", "heap_sorted_length"),
    *("heap_live_slots", "heap_free_slots", "heap_final_slots", "heap_swept_slots"),
    *("old_objects", "old_objects_limit", "total_allocated_objects", "total_freed_objects"),
    *("malloc_increase_bytes", "malloc_increase_bytes_limit"),
    *("oldmalloc_increase_bytes", "oldmalloc_increase_bytes_limit"),
    *("total_heap_size", "total_memsize"),
)


class Vitals:
    """The vitals of this process. For use by the server's thread."""

    def __init__(self) -> None:
        self._blocks: int | str = UNKNOWN
        self._count_due = 0.0

    def read(self, tracked: int) -> Figures:
        """Return the figures; `tracked` is the number of objects that the collector tracks, 0 if it is not known."""
        minor, middle, major = statistics = gc.get_stats()[:3]
        collections = minor["collections"] + middle["collections"]
        figures = {
            "count": collections + major["collections"],
            "minor_gc_count": collections,
            "major_gc_count": major["collections"],
            "heap_live_slots": self._allocated_blocks(),
            "old_objects": tracked or UNKNOWN,
            "total_freed_objects": minor["collected"] + middle["collected"] + major["collected"],
            "total_memsize": tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else UNKNOWN,
        }
        own = process_figures("self") | {"process_cpu_ms": int(real_time.process_time() * 1000)}
        durations: list[Any] = [each.get("duration") for each in statistics]
        if None not in durations:  # seconds
            own["gc_pause_ms"] = int(sum(durations) * 1000)
        return with_all_keys(figures, own)

    def _allocated_blocks(self) -> int | str:
        began = real_time.perf_counter()
        if began >= self._count_due:
            self._blocks = allocated_blocks() or UNKNOWN
            ended = real_time.perf_counter()
            self._count_due = ended + (ended - began) / _COUNT_SHARE
        return self._blocks


def with_all_keys(figures: Figures, own: dict[str, int]) -> Figures:
    """Return figures under rbkit's keys with the missing ones unknown, and our own figures (see the module)."""
    resident: Figures = {"total_heap_size": own.get("process_rss", UNKNOWN)}
    return {**dict.fromkeys(_KEYS, UNKNOWN), **figures, **resident, **own}


def process_figures(pid: int | str) -> dict[str, int]:
    """Return the figures of our own that a process's file in /proc has; none if it has no file (not Linux).

    Args:
        pid: its pid, or ``"self"``.
    """
    fields = stat_fields(pid)
    if fields is None:
        return {}
    ticks = int(fields[11]) + int(fields[12])
    return {
        "process_rss": int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        "process_cpu_ms": ticks * 1000 // os.sysconf("SC_CLK_TCK"),
        "process_threads": int(fields[17]),
    }


class MappedMemory:
    """The memory of another process by kinds. For use by one thread; Linux.

    Args:
        pid: its pid.
    """

    def __init__(self, pid: int) -> None:
        self._path = f"/proc/{pid}/smaps_rollup"
        self._figures: dict[str, int] = {}
        self._due = 0.0

    def read(self) -> dict[str, int]:
        """Return the figures, or the previous ones if reading takes long; none if they cannot be read."""
        began = real_time.perf_counter()
        if began < self._due:
            return self._figures
        self._figures = dict.fromkeys(_MAPPED.values(), 0)
        try:
            with open(self._path, encoding="ascii") as file:
                for line in file:
                    key = _MAPPED.get(line.partition(":")[0])
                    if key is not None:
                        self._figures[key] += int(line.split()[1]) * 1024
        except OSError:  # it has ended, or the system has no such file
            self._figures = {}
        ended = real_time.perf_counter()
        self._due = ended + (ended - began) / _MAPPED_SHARE
        return self._figures


def resident_bytes() -> int | str:
    """Return the resident memory of this process in bytes, `UNKNOWN` where it cannot be read (Linux only)."""
    return process_figures("self").get("process_rss", UNKNOWN)
