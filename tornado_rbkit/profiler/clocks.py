"""Reads the CPU clocks and the states of the process's threads."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from tornado_rbkit.profiler.frames import Place
from tornado_rbkit.profiler.run_state import LOCK, RUNNING, WAITING, WAITING_FILES, RunStates, run_states

HAS_CPU_CLOCK: Final = sys.platform.startswith("linux")


UNSEEN_SECONDS: Final = 0.05
"""CPU time that a thread may use without being seen computing; then it is reported without a stack."""

_MAX_COUNT: Final = 1000  # samples of one thread at one tick
_MOST: Final = 0.9  # of the time between two looks: a thread that used as much runs


class Burned(NamedTuple):
    """The whole intervals of CPU time for which threads are due to be sampled."""

    seen: dict[int, int]
    """By thread, for threads that compute now (or of which nothing is known): the current stack is sampled."""

    unseen: dict[int, int]
    """By thread, for threads that computed between two ticks and sleep now: the current stack did not compute."""


class ThreadClocks:
    """The CPU time that each thread has used and was not sampled for yet. For use by one thread; Linux.

    The time that a thread used is charged to its stack at the next tick that sees it computing. As ticks see a
    function computing in proportion to its CPU time, this is right on average, also for functions that compute for
    less than an interval between two waits.
    """

    def __init__(self) -> None:
        self.computing: set[int] = set()
        """The threads that were seen computing in the last call of `burned`."""
        self._looked = 0
        self._known_places: dict[int, int] = {}
        self._known_states: dict[int, str] = {}
        self._native_ids: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._owed: dict[int, int] = {}
        self._states: RunStates | None = None
        with contextlib.suppress(OSError, ImportError, RuntimeError):  # then every thread counts as computing
            self._states = run_states()

    def burned(self, threads: Iterable[int], interval: float, ticks: int, most: int) -> Burned:
        """Return the samples that are due; remainders of an interval, and of threads that sleep now, carry over.

        A thread without a clock counts `ticks`. Where states of threads cannot be read, a count is at most `most` + 1.
        """
        threads = list(threads)
        self._forget_ended(threads)
        self.computing.clear()
        enough = int(interval * 1e9)
        burned = Burned({}, {})
        for thread_id in threads:
            now = self._read(thread_id)
            if now is None:
                burned.seen[thread_id] = ticks
                continue
            owed = self._owed.get(thread_id, 0) + now - self._seen.get(thread_id, now)
            self._seen[thread_id] = now
            count = owed // enough
            if count and self._states is None:
                burned.seen[thread_id] = min(count, most + 1)
                owed %= enough
            elif count and self._states is not None:
                is_computing = self._states.is_runnable(self._native_ids[thread_id])
                if is_computing:
                    self.computing.add(thread_id)
                if is_computing or owed > UNSEEN_SECONDS * 1e9:
                    count = min(count, _MAX_COUNT)
                    (burned.seen if is_computing else burned.unseen)[thread_id] = count
                    owed -= count * enough
            self._owed[thread_id] = owed
        return burned

    def states(self, stacks: Mapping[int, Sequence[Place]]) -> dict[int, str]:
        """Return the states of threads, by their stacks (innermost first); an unknown state is left out.

        Reading a state takes many times as long as reading a clock, so it is read only where the clock does not tell:
        a thread that used no CPU time and is at the same place waits on.
        """
        if self._states is None:
            return {}
        self._forget_ended(stacks)
        states: dict[int, str] = {}
        looked = time.monotonic_ns()
        most = _MOST * (looked - self._looked)
        self._looked = looked
        for thread_id, stack in stacks.items():
            now = self._read(thread_id)
            if now is None:
                continue
            used = now - self._seen.get(thread_id, 0)
            self._seen[thread_id] = now
            code, at = stack[0][:2]
            place = id(code) << 32 | at
            before = self._known_states.get(thread_id, RUNNING)
            if used >= most:
                state = RUNNING
            elif not used and self._known_places.get(thread_id) == place and before != RUNNING:
                state = before
            else:
                state = self._states.state(self._native_ids[thread_id])
                if state == LOCK and code.co_filename in WAITING_FILES:
                    state = WAITING
            # Not a tuple, which would be reported as an object of the program.
            self._known_places[thread_id], self._known_states[thread_id] = place, state
            states[thread_id] = state
        return states

    def _read(self, thread_id: int) -> int | None:
        native_id = self._native_ids.get(thread_id) or self._find(thread_id)
        if native_id is None:
            return None
        used = cpu_nanoseconds(native_id)
        if used is None:
            self._drop(thread_id)  # its identifier may already be reused
        return used

    def _find(self, thread_id: int) -> int | None:
        thread = threading._active.get(thread_id)  # type: ignore[attr-defined]  # enumerate() takes the host's lock
        native_id: int | None = getattr(thread, "_native_id", None)
        if native_id is not None:
            self._native_ids[thread_id] = native_id
        return native_id

    def _forget_ended(self, threads: Iterable[int]) -> None:
        for thread_id in self._native_ids.keys() - threads:
            self._drop(thread_id)

    def _drop(self, thread_id: int) -> None:
        for table in (self._native_ids, self._seen, self._owed, self._known_places, self._known_states):
            table.pop(thread_id, None)


def cpu_nanoseconds(native_id: int) -> int | None:
    """Return the CPU time of a thread of this process by its kernel's id, None if it has ended. Any thread; Linux."""
    # Not pthread_getcpuclockid(): it reads the memory of a thread that may have ended. Reading the clock made of the
    # kernel's thread id (include/linux/posix-timers.h: ~tid << 3 | CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED) only raises an
    # error if the thread has ended.
    try:
        return time.clock_gettime_ns(~native_id << 3 | 6)
    except OSError:
        return None


def thread_name(thread_id: int) -> str | None:
    """Return the name of a thread, None of a thread that `threading` does not know. Any thread."""
    name = getattr(threading._active.get(thread_id), "_name", None)  # type: ignore[attr-defined]
    return name if type(name) is str else None
