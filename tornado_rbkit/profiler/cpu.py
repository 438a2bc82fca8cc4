"""Sample the stacks of the process's threads.

A sampler thread asks the interpreter for every thread's frame once per interval of an absolute schedule. This needs
the GIL, and a thread that computes in Python releases the GIL only after the interpreter's switch interval. With the
default of 5 ms the sampler would reach a fifth of its ticks. So during sampling the switch interval is lowered to half
the sampling interval (at least 0.5 ms) for the whole process, and restored afterwards unless the host has changed it.
`CPUSampler.status` reports the achieved rate.

If the sampler wakes late because another thread held the GIL, the stacks it sees are repeated once per missed tick,
with that tick's timestamp, for at most `MAKE_UP_SECONDS`. Ticks beyond that are lost: when the machine keeps the
sampler waiting for longer, or an extension's call holds the GIL for longer. Without the repetition, a thread that
computes for a few milliseconds between waits would be seen computing as little as half as often as it does, because
the sampler gets the GIL most easily during the waits. The remaining bias: within a burst of a few milliseconds the end
weighs more than the beginning.

Clocks: ``wall`` samples every thread; ``cpu`` samples a thread once for each interval of CPU time that it has used
since its last sample, so that a thread's samples are proportional to its CPU time. Per-thread CPU clocks are read on
Linux, by the kernel's thread id; other systems have only ``wall``, and the handshake reports it. Threads unknown to
`threading` have no CPU clock either and are sampled as with ``wall``.

The stacks are read as described in `frames`. On Python 3.10 a frame is kept alive while it is packed: if its function
returns in these microseconds, the objects that the frame held are released on the sampler's thread.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any, Final

from tornado_rbkit.profiler.arguments import check_interval
from tornado_rbkit.profiler.batcher import BACKLOG_EVENTS, EventBatcher
from tornado_rbkit.profiler.frames import Place, read_stacks, thread_ids
from tornado_rbkit.profiler.objects import type_dict, type_mro, type_qualname
from tornado_rbkit.profiler.packing import pack_frame, pack_sample, pack_stack, pack_time
from tornado_rbkit.profiler.threads import Flag, InternalThread, internal_threads

DEFAULT_INTERVAL: Final = 0.001
"""Seconds, as in rbkit."""

MIN_SWITCH_INTERVAL: Final = 0.0005

MAKE_UP_SECONDS: Final = 0.02
"""The longest delay for which stacks are repeated. In a longer one the system keeps the sampler waiting, and one stack
would be repeated a hundred times."""

HAS_CPU_CLOCK: Final = sys.platform.startswith("linux")


class CPUSampler:
    """Sample all threads from `start` to `stop`, except the profiler's threads and the threads in `leave_out`.

    Call `start` and `stop` and set `clock_type` on one thread; `status` may be called on any thread.

    Args:
        batcher: receives the samples.
        leave_out: identifiers of threads that are not sampled.
    """

    def __init__(self, batcher: EventBatcher, leave_out: Collection[int] = ()) -> None:
        self.clock_type = "wall"
        self.interval = DEFAULT_INTERVAL
        self._batcher = batcher
        self._leave_out = set(leave_out)
        self._stopped = Flag()
        self._thread: InternalThread | None = None
        self._frames = FrameCache()
        self._clocks = ThreadClocks()
        self._switching = SwitchInterval()
        self._ticks = self._late = self._samples = 0
        self._began = self._ended = 0.0

    @property
    def enabled(self) -> bool:
        """True from `start` to `stop`."""
        return self._thread is not None

    def start(self, interval: float | None = None) -> None:
        """Start sampling every `interval` seconds; None keeps the current interval.

        Raises:
            ArgumentError: the interval is out of range.
        """
        if interval is not None:
            check_interval(interval)
        if self.enabled and interval in (None, self.interval):
            return
        self.stop()
        self.interval = interval or self.interval
        self._stopped = Flag()
        self._ticks = self._late = self._samples = 0
        self._switching.lower(self.interval / 2)  # a whole interval would make every other tick late
        self._began = time.monotonic()
        self._thread = InternalThread(self._run, "rbkit-cpu")

    def stop(self) -> None:
        """Stop sampling and join the thread. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopped.set()
            thread.join()
            self._ended = time.monotonic()
            self._frames.clear()
            self._switching.restore()

    def abandon(self) -> None:
        """Restore, in a forked child, the switch interval that the parent's sampler changed."""
        self._switching.restore()

    def status(self) -> dict[str, Any]:
        """Return the requested interval (seconds) and the requested and achieved rates (ticks per second)."""
        seconds = (time.monotonic() if self.enabled else self._ended) - self._began
        return {
            "enabled": self.enabled,
            "clock_type": self.clock_type,
            "interval": self.interval,
            "requested_rate": 1.0 / self.interval,
            "achieved_rate": self._ticks / seconds if seconds > 0 else 0.0,
            "samples": self._samples,
            "skipped_ticks": self._late,
            "switch_interval": sys.getswitchinterval(),
        }

    def _run(self) -> None:
        self._clocks = ThreadClocks()
        due = time.monotonic() + self.interval
        while not self._stopped.wait(due - time.monotonic()):
            behind = int((time.monotonic() - due) / self.interval)
            due += (behind + 1) * self.interval
            self._late += behind
            if self._batcher.backlog > BACKLOG_EVENTS:
                self._late += 1
                continue
            self._tick(1 + min(behind, self._most))
            self._ticks += 1

    @property
    def _most(self) -> int:
        return int(MAKE_UP_SECONDS / self.interval)

    def _tick(self, ticks: int) -> None:
        """Sample every thread for the last `ticks` ticks, including this one, and publish the samples."""
        now = time.time()
        threads = thread_ids() - self._leave_out - internal_threads()
        if self.clock_type == "cpu":
            samples = self._clocks.burned(threads, self.interval, ticks, self._most)
        else:
            samples = dict.fromkeys(threads, ticks)
        for thread_id, places in read_stacks(samples).items():
            count = samples[thread_id]
            stack = pack_stack(self._frames.stack(places), thread_id)
            for before in range(count - 1, -1, -1):
                self._batcher.add(pack_sample(pack_time(now - before * self.interval), stack))
            self._samples += count


class SwitchInterval:
    """Lowers the interpreter's switch interval and restores it. For use by one thread."""

    def __init__(self) -> None:
        self._before: float | None = None
        self._lowered = 0.0

    def lower(self, interval: float) -> None:
        """Lower it to `interval` seconds (at least `MIN_SWITCH_INTERVAL`), if it is above."""
        before = sys.getswitchinterval()
        wanted = max(interval, MIN_SWITCH_INTERVAL)
        if wanted < before:
            sys.setswitchinterval(wanted)
            self._before, self._lowered = before, sys.getswitchinterval()

    def restore(self) -> None:
        """Restore the interval that `lower` changed, unless it has been changed since. May be called twice."""
        before, self._before = self._before, None
        if before is not None and sys.getswitchinterval() == self._lowered:
            sys.setswitchinterval(before)


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


class FrameCache:
    """Stack frames as MessagePack, without the value of thread_id, which comes last. For use by one thread.

    The entry of a code object is removed when the code object is freed.
    """

    def __init__(self) -> None:
        self._codes: dict[int, tuple[weakref.ref[CodeType], dict[int, bytes]]] = {}

    def clear(self) -> None:
        self._codes.clear()

    def stack(self, places: Iterable[Place]) -> list[bytes]:
        """Return the packed frames of a stack, innermost first."""
        stack: list[bytes] = []
        codes = self._codes
        for place in places:
            code, lasti = place[0], place[1]
            known = codes.get(id(code))
            if known is None:
                known = codes[id(code)] = (weakref.ref(code, self._forget(id(code))), {})
            packed = known[1].get(lasti)
            if packed is None:
                packed = known[1][lasti] = packed_place(*place)
            stack.append(packed)
        return stack

    def _forget(self, key: int) -> Callable[[Any], None]:
        codes = self._codes

        def forget(_: Any) -> None:
            codes.pop(key, None)

        return forget


def packed_place(code: CodeType, lasti: int, namespace: dict[str, Any], frame: FrameType | None = None) -> bytes:
    """Return a `Place` as MessagePack, up to and including the key thread_id."""
    module = dict.get(namespace, "__name__")  # not namespace.get(): a subclass of dict may override it
    qualname = qualified_name(code, frame)
    label = f"{module}.{qualname}" if type(module) is str else qualname
    singleton = _first_argument(code) == "cls"
    return pack_frame(code.co_name, label, code.co_filename, line_number(code, lasti), singleton=singleton)


def line_number(code: CodeType, lasti: int) -> int:
    """Return the line of an instruction, 0 for an instruction that has none."""
    for start, end, line in code.co_lines():
        if start <= lasti < end:
            return line or 0
    return code.co_firstlineno  # the frame has not run an instruction yet


def qualified_name(code: CodeType, frame: FrameType | None) -> str:
    """Return ``Class.method`` or ``function``, from co_qualname or on Python 3.10 from self or cls."""
    if sys.version_info >= (3, 11):
        return code.co_qualname
    owner = None if frame is None else _class_of_first_argument(frame)
    if owner is None:
        return code.co_name
    return f"{type_qualname(owner)}.{code.co_name}"


def _first_argument(code: CodeType) -> str | None:
    return code.co_varnames[0] if code.co_argcount and code.co_varnames else None


def _class_of_first_argument(frame: FrameType) -> type | None:
    """Return the class whose method the frame runs, without running any of the host's code.

    Attribute access and isinstance may run the host's code; `type`'s own descriptors do not. The variables are read as
    the collector reads them: f_locals would leave a copy in the frame, which would keep objects alive that the
    function deletes. Every variable that holds an instance of the class leads to the same method.
    """
    if _first_argument(frame.f_code) not in ("self", "cls"):
        return None
    for found in gc.get_referents(frame):
        for value in gc.get_referents(found) if type(found) is CellType else (found,):
            owner = _owner(value, frame.f_code)
            if owner is not None:
                return owner
    return None


def _owner(value: Any, code: CodeType) -> type | None:
    """Return the class that has `code` as a method, if `value` is that class, a subclass, or an instance."""
    for base in type_mro(value if type in type_mro(type(value)) else type(value)):
        found: Any = type_dict(base).get(code.co_name)
        if type(found) in (classmethod, staticmethod):
            found = found.__func__
        if type(found) is FunctionType and found.__code__ is code:
            return base
    return None
