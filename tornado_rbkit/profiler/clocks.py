"""Read the CPU clocks of the process's threads."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from typing import Final

HAS_CPU_CLOCK: Final = sys.platform.startswith("linux")


class ThreadClocks:
    """The CPU time that each thread has used and was not sampled for yet. For use by one thread; Linux."""

    def __init__(self) -> None:
        self._clocks: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._owed: dict[int, int] = {}

    def burned(self, threads: Iterable[int], interval: float, ticks: int, most: int) -> dict[int, int]:
        """Return how many whole intervals of CPU time each thread used since the last call; remainders carry over.

        A count is at most `most` + 1. A thread without a clock counts `ticks`; a thread with a count of 0 is left out.
        """
        threads = list(threads)
        self._forget_ended(threads)
        enough = int(interval * 1e9)
        burned = {}
        for thread_id in threads:
            now = self._read(thread_id)
            if now is None:
                burned[thread_id] = ticks
                continue
            used = now - self._seen.get(thread_id, now)
            self._seen[thread_id] = now
            count, owed = divmod(self._owed.get(thread_id, 0) + used, enough)
            if count:
                burned[thread_id] = min(count, most + 1)
            self._owed[thread_id] = owed
        return burned

    def _read(self, thread_id: int) -> int | None:
        clock = self._clocks.get(thread_id)
        if clock is None:
            clock = self._find(thread_id)
            if clock is None:
                return None
        try:
            return time.clock_gettime_ns(clock)
        except OSError:  # the thread has ended; its identifier may already be reused
            self._drop(thread_id)
            return None

    def _find(self, thread_id: int) -> int | None:
        # Not pthread_getcpuclockid(): it reads the memory of a thread that may have ended. Reading the clock made of
        # the kernel's thread id (include/linux/posix-timers.h: ~tid << 3 | CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED) only
        # raises an error if the thread has ended.
        for thread in threading.enumerate():
            if thread.ident == thread_id and thread.native_id is not None:
                clock = self._clocks[thread_id] = ~thread.native_id << 3 | 6
                return clock
        return None

    def _forget_ended(self, threads: list[int]) -> None:
        for thread_id in self._clocks.keys() - threads:
            self._drop(thread_id)

    def _drop(self, thread_id: int) -> None:
        for table in (self._clocks, self._seen, self._owed):
            table.pop(thread_id, None)
