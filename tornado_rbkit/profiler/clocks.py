"""Reads the CPU clocks and the states of the process's threads."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
from typing import Final, NamedTuple

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.frames import Place
from tornado_rbkit.profiler.run_state import LOCK, RUNNING, WAITING, WAITING_FILES, RunStates, can_wait, run_states

if sys.platform.startswith("linux"):
    import resource

HAS_CPU_CLOCK: Final = sys.platform.startswith("linux")

_chance: Final = random.Random()  # noqa: S311 - not the host's generator, which it may have seeded
UNSEEN_SECONDS: Final = 0.05
"""CPU time that a thread may use without being seen computing; then it is reported without a stack."""

_MAX_THREADS: Final = 1 << 22  # PID_MAX_LIMIT of include/linux/threads.h
_MAX_COUNT: Final = 1000  # samples of one thread at one tick
_SPREAD: Final = 8  # ticks over which the CPU time of a thread is spread
_MAX_BLIND_COUNT: Final = 21  # where states of threads cannot be read
_SEVERAL: Final = 0.1  # of the CPU time between two looks: if one thread used all but less than it, it computes alone
_PROMPT: Final = 3.0  # times the usual delay: a later tick had to wait for a processor
_STEADY: Final = 3  # looks in a row
_NEVER_WAITS: Final = 20  # looks in a row
_STIR: Final = 20_000  # nanoseconds of CPU time; threads without a clock that used less need not be looked for
_CREEP: Final = 1e-7  # seconds; the usual delay is the shortest, which may become longer by this at each tick


class ThreadClock:
    """The CPU time of one thread, and what is known of it as long as it does not run again.

    Args:
        native_id: the kernel's id of the thread.
        most: nanoseconds since the last look if the thread may have started since then, else 0. It is charged for what
            it used, up to this.
    """

    __slots__ = ("clock", "event", "name", "native_id", "owed", "runs", "seen", "state", "ticks", "used")

    def __init__(self, native_id: int, most: int) -> None:
        self.native_id = native_id
        self.clock = _clock(native_id)
        self.seen = real_time.clock_gettime_ns(self.clock)
        self.used = self.owed = min(self.seen, most)
        """Nanoseconds of CPU time: between the last two looks, and not reported yet."""
        self.ticks = 0
        """Ticks at which it had CPU time to report, at most `_SPREAD`."""
        self.state: str | None = None
        self.runs = 0
        """Times in a row that its state was found to be running, on the CPU clock."""
        self.name: str | None = None
        self.event: bytes | None = None
        """The packed stack of the thread, with its name, while it does not run."""


class Due(NamedTuple):
    """The samples of a thread that are due."""

    thread: ThreadClock | None
    state: str | None
    seen: int
    """Samples of its current stack."""
    unseen: int
    """Samples of other stacks, which are not known: it computed and waits now."""


class ThreadClocks:
    """Finds the threads that ran since the last look, and whether they compute or wait. For use by one thread.

    Only Linux has these clocks; elsewhere no thread has one.

    Attributes:
        threads: the threads that have a clock, by identifier.
        several: more than one of them computed between the last two looks.
        stirred: since the last look at which it was true, a thread has run, other than the calling one.
    """

    def __init__(self) -> None:
        self.threads: dict[int, ThreadClock] = {}
        self.several = False
        self.stirred = True
        self._foreign = True  # a thread without a clock was seen at the last look
        self._others = self._all_but_own()  # nanoseconds of CPU time of all threads but the calling one, as last read
        self._unknown = 0  # nanoseconds of it that threads without a clock used before it was last read
        self._has_read_others = False  # at this look
        self._total = self._most = 1  # nanoseconds of CPU time between the last two looks: of all threads, of one
        self._delay = 0  # nanoseconds for which the last look waited for the GIL or a processor
        self._usual_delay = 1.0  # seconds
        self._switches = 0
        self._had_to_wait = 0  # looks in a row at which the calling thread had to wait for the GIL
        self._looks = 0
        self._looked = 0  # nanoseconds, of the last look
        self._passed = 1  # nanoseconds between the last two looks
        self._states: RunStates | None = None
        if HAS_CPU_CLOCK:
            with contextlib.suppress(OSError, ImportError, RuntimeError):  # then every thread counts as computing
                self._states = run_states()

    def wake_on_time(self) -> None:
        """Let the system wake the calling thread as exactly as it can."""
        if self._states is not None:
            self._states.wake_on_time()

    def look(self, late: float, by_cpu: bool) -> dict[int, ThreadClock]:
        """Read the clocks; return the threads that did not run since, so nothing else of them need be read.

        On the wall clock their `event` is still true. What was known of the other threads is forgotten.

        Args:
            late: seconds since the calling thread should have been woken for this look.
            by_cpu: True for the CPU clock.
        """
        unmoved: dict[int, ThreadClock] = {}
        if not HAS_CPU_CLOCK:
            return unmoved
        self._find_delay(late)
        now = real_time.monotonic_ns()
        self._passed, self._looked = max(1, now - self._looked), now
        self._looks += 1
        ended: list[int] = []
        total = most = 0
        read = real_time.clock_gettime_ns
        for thread_id, thread in self.threads.items():
            try:
                now = read(thread.clock)
            except OSError:
                ended.append(thread_id)  # its identifier may already be reused
                continue
            thread.used = used = now - thread.seen
            if used < 0:
                ended.append(thread_id)  # another thread has got its kernel's id
            elif used:
                thread.seen = now
                thread.owed += used
                thread.state = thread.event = None
                total += used
                most = max(most, used)
            elif by_cpu or (thread.event is not None and thread_name(thread_id) == thread.name):
                unmoved[thread_id] = thread
        for thread_id in ended:
            del self.threads[thread_id]
        self._total, self._most = max(1, total), max(1, most)
        self.several = total - most > _SEVERAL * total
        self._others += total
        self._has_read_others = False
        self.stirred = bool(total or self._foreign or len(unmoved) < len(self.threads)) or self._others_ran()
        if self.stirred:
            self._foreign = False
        return unmoved

    @property
    def steady(self) -> bool:
        """One thread computed at each of the last looks."""
        return self._had_to_wait >= _STEADY and not self.several

    @property
    def held_nanoseconds(self) -> int:
        """The CPU time for which one thread kept the last look waiting for the GIL."""
        return min(self._most, self._delay) if self._had_to_wait else 0

    def forget_waits(self) -> None:
        """Do not count what the calling thread has waited for since the last look."""
        self._switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw

    def _others_ran(self) -> bool:
        """Return True if threads without a clock have run since this was last true."""
        if self._all_but_own() - self._others <= _STIR:
            return False
        self._others = self._all_but_own()
        return True

    def _used_by_others(self) -> int:
        """Return the CPU time of threads without a clock, the profiler's too, since it was last read: nanoseconds."""
        if not self._has_read_others:
            everything = self._all_but_own()
            self._unknown, self._others = max(0, everything - self._others), everything
            self._has_read_others = True
        return self._unknown

    @staticmethod
    def _all_but_own() -> int:
        return real_time.process_time_ns() - real_time.thread_time_ns()

    def _find_delay(self, late: float) -> None:
        """Find out whether another thread kept the calling thread waiting, for the GIL or for a processor."""
        before = self._switches
        self.forget_waits()
        if self._switches - before > 1:  # the first was the wait for the tick
            self._had_to_wait += 1
            self._delay = int(late * 1e9)
            return
        self._had_to_wait = 0
        self._usual_delay = min(late, self._usual_delay + _CREEP)
        self._delay = int(late * 1e9) if late > _PROMPT * self._usual_delay else 0

    def due(self, thread_id: int, innermost: Place, ticks: int, interval: float | None) -> Due:
        """Return the samples of a thread that are due, by the innermost place of its stack.

        On the CPU clock, the time that a thread used is spread over the next ticks that see it computing.

        Args:
            thread_id: the thread; one without a clock is due at every tick.
            innermost: the innermost place of its stack.
            ticks: the number of ticks.
            interval: seconds of CPU time between two samples, None on the wall clock.
        """
        thread = self._find(thread_id)
        if thread is None:
            self._foreign = True
            return Due(None, None, ticks, 0)
        if interval is None:
            thread.owed = 0
            state = self._state(thread, innermost)
            unseen = 0 if state in (None, RUNNING) else self._unseen(thread, ticks, self._most)
            return Due(thread, state, ticks - unseen, unseen)
        enough = int(interval * 1e9)
        if thread.owed < enough:
            return Due(thread, None, 0, 0)
        seen = unseen = 0
        is_new = thread.ticks < _SPREAD  # it may end before its time is spread
        thread.ticks = min(_SPREAD, thread.ticks + ticks)
        part = 1.0 if is_new else min(1.0, ticks / _SPREAD)
        state = self._state(thread, innermost)
        thread.runs = thread.runs + 1 if state == RUNNING else 0
        if state is None:
            seen = min(thread.owed // enough, _MAX_BLIND_COUNT)
            thread.owed %= enough
        elif state == RUNNING:
            share = _share(thread.owed / enough, part)
            computed = self._computed(thread, innermost)
            seen, unseen = (share, 0) if computed else (0, 0) if computed is False else (0, share)
        elif self._unseen(thread, 1, self._total):
            unseen = _share(thread.owed / enough, part)
        elif thread.owed > UNSEEN_SECONDS * 1e9:
            unseen = min(thread.owed // enough, _MAX_COUNT)
        if state is not None:
            thread.owed -= (seen + unseen) * enough
        return Due(thread, state, seen, unseen)

    def _state(self, thread: ThreadClock, innermost: Place) -> str | None:
        """Return the state of a thread, None if states cannot be read.

        Reading a state takes longer than the rest of a sample, so it is read only where neither the clock tells (a
        thread that did not run is in the same state as before) nor the instruction.
        """
        if thread.state is None and self._states is not None:
            code, lasti = innermost[0], innermost[1]
            thread.state = self._states.state(thread.native_id) if can_wait(code, lasti) else RUNNING
            if thread.state == LOCK and code.co_filename in WAITING_FILES:
                thread.state = WAITING
        return thread.state

    def _computed(self, thread: ThreadClock, innermost: Place) -> bool | None:
        """Return whether a running thread computed at its innermost place, None if there or elsewhere.

        It computes at an instruction that cannot wait. In a call, it was stopped after the call, if it had the GIL
        when the look was due; or it computes without the GIL, if its clock runs on; or it runs only since a wait has
        ended. On a busy machine, where the look or the thread may have waited for a processor since, the former is
        assumed of a thread that was never found waiting of late.
        """
        if not can_wait(innermost[0], innermost[1]):
            return True
        chance = _chance.random()
        never_waits = thread.runs > _NEVER_WAITS
        if self._had_to_wait:
            had_gil = thread.used / (self._total + self._used_by_others())
            sure = had_gil if never_waits else had_gil * self._busy()
            return chance < sure or (None if chance < had_gil else False)
        if never_waits:
            return True
        passed = real_time.monotonic_ns() - self._looked
        if (cpu_nanoseconds(thread.native_id) or 0) - thread.seen > passed / 2:
            return True
        return None if chance < thread.used / self._passed else False

    def _busy(self) -> float:
        """Return the part of the delay of the last look in which threads of this process computed, at most 1."""
        return min(1.0, self._total / self._delay) if self._delay else 1.0

    def _unseen(self, thread: ThreadClock, ticks: int, most: int) -> int:
        """Return at how many of the last ticks a thread computed that may have waited at the others.

        If the look was delayed, some thread computed when it was due. As a thread that computes in Python has the GIL,
        it was one of the threads that ran since the look before, each with the probability of its share of the CPU
        time. On the wall clock, the threads that waited for the GIL count as computing too, so the share is the one of
        the CPU time of the thread that used the most. If the
        look did not wait for the GIL but for a processor, other processes may have computed instead.
        """
        if not self._delay:
            return 0
        if self._had_to_wait:
            share = thread.used / (most + self._used_by_others())
        else:
            share = thread.used / most * self._busy()
        return int(ticks * share + _chance.random())

    def _find(self, thread_id: int) -> ThreadClock | None:
        known = self.threads.get(thread_id)
        if known is None and HAS_CPU_CLOCK:
            thread = threading._active.get(thread_id)  # type: ignore[attr-defined]  # enumerate() takes the host's lock
            kernel_id = None if thread is None else native_id(thread)
            if kernel_id is not None:
                with contextlib.suppress(OSError):  # it has ended
                    known = self.threads[thread_id] = ThreadClock(kernel_id, self._passed if self._looks > 1 else 0)
                    self._total += known.used
                    self._others += known.used
        return known


def _share(samples: float, part: float) -> int:
    """Return how many of the samples that a thread has not been given yet are due now, on average a part of them.

    A thread that is seen computing at several ticks in a row, and at none before, would get few samples at most of
    these ticks, and many at the first. The places of a program must get the same at each tick.
    """
    return min(int(samples * part + _chance.random()), _MAX_COUNT)


def native_id(thread: threading.Thread) -> int | None:
    """Return the kernel's id of a thread of this process, None if it is not known. Any thread; Linux.

    The only thread of a forked child keeps the id that it has in the parent up to Python 3.13, and later if C code has
    forked. It is the child's main thread, to which the kernel has given the child's pid as id.
    """
    known: int | None = getattr(thread, "_native_id", None)
    is_main = thread is threading._main_thread  # type: ignore[attr-defined]
    if is_main and not os.path.exists(f"/proc/self/task/{known}"):
        return os.getpid()
    return known


def cpu_nanoseconds(native_id: int) -> int | None:
    """Return the CPU time of a thread of this process by its kernel's id, None if there is none. Any thread; Linux."""
    try:
        return real_time.clock_gettime_ns(_clock(native_id))
    except OSError:
        return None


def _clock(native_id: int) -> int:
    """Return the CPU clock of a thread by its kernel's id.

    Raises:
        ProcessLookupError: no thread can have this id, which was read from outside while memory was being changed.
    """
    if not 0 < native_id < _MAX_THREADS:
        raise ProcessLookupError(f"no thread has the id {native_id}")
    # Not pthread_getcpuclockid(): it reads the memory of a thread that may have ended. Reading the clock made of the
    # kernel's thread id (include/linux/posix-timers.h: ~tid << 3 | CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED) only raises an
    # error if the thread has ended.
    return ~native_id << 3 | 6


def thread_name(thread_id: int) -> str | None:
    """Return the name of a thread, None of a thread that `threading` does not know. Any thread."""
    name = getattr(threading._active.get(thread_id), "_name", None)  # type: ignore[attr-defined]
    return name if type(name) is str else None
