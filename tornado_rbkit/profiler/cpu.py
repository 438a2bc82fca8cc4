"""Samples the stacks of the process's threads.

A sampler thread asks the interpreter for every thread's frame once per interval. This needs the GIL, and a thread that
computes in Python releases the GIL only after the interpreter's switch interval. With the default of 5 ms the sampler
would reach a fifth of its ticks. So during sampling the switch interval is lowered for the whole process: to
`MIN_SWITCH_INTERVAL` while several threads compute; to `LEAD` while one thread computes without a pause, and the
sampler waits for the GIL so much earlier; else to `ALONE_SWITCH_INTERVAL`. It is restored afterwards unless the host
has changed it. `CPUSampler.status` reports the achieved rate.

The time between two ticks varies at random by half an interval, so that a program that repeats the same work is not
always sampled at the same point of it. If a tick costs so much that the sampler would exceed its budget (see `Pace`),
as with hundreds of threads or very deep stacks, the ticks become less frequent, and the status says so.

If the sampler wakes late because another thread held the GIL, the stacks it sees are repeated once per missed tick,
with that tick's timestamp, for at most `MAKE_UP_SECONDS`, or as long as an extension's call held the GIL by its
thread's CPU clock. Ticks beyond that are lost: the machine kept the sampler waiting. Without the repetition, a thread
that computes for a few milliseconds between waits would be seen computing as little as half as often as it does,
because the sampler gets the GIL most easily during the waits.

A thread that has begun to wait before the sampler got the GIL may have computed when the tick was due. Where, is not
known, so such a tick is reported as a stack of the single frame ``(between samples)`` and never as the wait: of each
burst of computing, the switch interval and the time to wake a thread are reported so (see `clocks`). That is a third
or more of a burst of 0.3 ms, and little of a burst longer than `BURST` intervals. Only Linux has the clocks that
tell which thread computed; elsewhere such a tick is reported as the wait. The external engine (see `start_server`)
needs no GIL and sees all.

Clocks: ``wall`` samples every thread; ``cpu`` samples a thread once for each interval of CPU time that it has used, so
that a thread's samples are proportional to its CPU time. A thread that sleeps at a tick is not sampled for what it
computed before: its CPU time counts for the next ticks that see it computing (see `clocks` and `run_state`), or, if
none does for 50 ms of CPU time, for ``(between samples)``. Per-thread CPU clocks are read on Linux, by the kernel's
thread id; other systems have only ``wall``, and the handshake reports it. Threads unknown to `threading` have no CPU
clock either and are sampled as with ``wall``. Of a thread whose clock stands still, nothing else is read: its stack
and its state are what they were.

The stacks are read as described in `frames`. On Python 3.10 a frame is kept alive while it is packed: if its function
returns in these microseconds, the objects that the frame held are released on the sampler's thread.
"""

from __future__ import annotations

import random
import sys
from itertools import compress, starmap
from typing import Any, Final

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.arguments import check_interval
from tornado_rbkit.profiler.batcher import BACKLOG_EVENTS, EventBatcher
from tornado_rbkit.profiler.clocks import Due, ThreadClocks, thread_name
from tornado_rbkit.profiler.collection_times import CollectionTimes
from tornado_rbkit.profiler.event_loops import FIND_SECONDS, EventLoops
from tornado_rbkit.profiler.frame_cache import FrameCache
from tornado_rbkit.profiler.frames import Place, SamplingError, StackReader, check_sampling
from tornado_rbkit.profiler.packing import pack_facts, pack_frame, pack_sample, pack_stack, pack_time
from tornado_rbkit.profiler.run_state import RUNNING
from tornado_rbkit.profiler.threads import Flag, InternalThread, hiding, internal_logger, internal_threads, original
from tornado_rbkit.profiler.uninterrupted import ONCE

_log = internal_logger(__name__)
_jitter: Final = random.Random()  # noqa: S311 - not the host's generator, which it may have seeded

DEFAULT_INTERVAL: Final = 0.001
"""Seconds, as in rbkit."""

RUN_INTERVAL: Final = 0.01
"""Seconds under ``run`` and ``attach --inject``; it costs the program a tenth of what `DEFAULT_INTERVAL` costs."""

MIN_SWITCH_INTERVAL: Final = 0.0005
"""Seconds; a shorter one would make threads that compute at once switch so often that they get slower."""

ALONE_SWITCH_INTERVAL: Final = 0.00002
"""Seconds, where threads have CPU clocks, while at most one thread computes. The sampler sees a thread that computes
when it has waited for so long: of each burst the first part of this length is not seen."""

LEAD: Final = 0.0002
"""Seconds; the switch interval while one thread computes without a pause."""

MAKE_UP_SECONDS: Final = 0.02
"""The longest delay for which stacks are repeated, unless a thread computed for longer without giving up the GIL. In a
longer one the system keeps the sampler waiting, and one stack would be repeated a hundred times."""

MAKE_UP_SAMPLES: Final = 10_000
"""The most samples that are repeated because one thread has held the GIL."""

SHARE: Final = 0.1
"""The largest share of one processor that the sampler's thread may take, on average."""

BYTES_PER_SECOND: Final = 16e6
"""The largest amount of samples that the sampler may produce, on average."""

BURST: Final = 3
"""Intervals; of a shorter burst of computing, much is reported as ``(between samples)``."""

_PAUSE_SECONDS: Final = 0.001
_SMOOTHING: Final = 0.1
"""The weight of the last tick in the average cost of a tick."""


COLLECTING: Final = "gc"
"""The state of a thread on which a garbage collection runs."""

BETWEEN_SAMPLES: Final = pack_frame("(between samples)", "(between samples)", "", 0, singleton=False)
"""The frame of CPU time that a thread used without being seen computing."""


class CPUSampler:
    """Samples all threads from `start` to `stop`, except the profiler's threads.

    After an unexpected error the sampler starts again once; after a second one, or when sampling has become unsafe, it
    ends. `trouble` says so.

    Call `start` and `stop` and set `clock_type` on one thread; `status` may be called on any thread.

    Args:
        batcher: receives the samples.
    """

    def __init__(self, batcher: EventBatcher) -> None:
        self.clock_type = "wall"
        self.interval = DEFAULT_INTERVAL
        self._batcher = batcher
        self._stopped = Flag()
        self._sampling = original("allocate_lock")()
        self._pause = Flag()  # never set
        self._thread: InternalThread | None = None
        self._frames = FrameCache()
        self._loops = EventLoops()
        self._loops_due = 0.0
        self._clocks: ThreadClocks | None = None
        self._reader: StackReader | None = None
        self._collections = CollectionTimes()
        self._switching = SwitchInterval()
        self._pace = Pace(self.interval)
        self._failure: str | None = None
        self._ticks = self._late = self._samples = 0
        self._began = self._ended = 0.0

    @property
    def enabled(self) -> bool:
        """True from `start` to `stop`, unless the sampler has ended by itself."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def trouble(self) -> str | None:
        """What went wrong since the last `start`, or why the rate is lower than requested; None if nothing is."""
        if self._failure is not None:
            return self._failure
        if self.enabled and self._pace.interval > 1.5 * self.interval:
            return (
                f"the rate is {1 / self._pace.interval:.0f}/s instead of {1 / self.interval:.0f}/s: a sample of all "
                f"threads takes {self._pace.cpu_seconds * 1000:.1f} ms of CPU time and {self._pace.size / 1000:.0f} kB"
            )
        return None

    def start(self, interval: float | None = None) -> None:
        """Start sampling every `interval` seconds; None keeps the current interval.

        Raises:
            ArgumentError: the interval is out of range.
            SamplingError: sampling could crash this process.
        """
        if interval is not None:
            check_interval(interval)
        check_sampling()
        if self.enabled and interval in (None, self.interval):
            return
        self.stop()
        self.interval = interval or self.interval
        self._stopped = Flag()
        self._failure = None
        self._pace = Pace(self.interval)
        self._ticks = self._late = self._samples = 0
        self._began = real_time.monotonic()
        self._thread = InternalThread(self._run, "rbkit-cpu")

    def stop(self) -> None:
        """Stop sampling and wait for its end. May be called twice, also where an interrupt ended `start` or `stop`."""
        self._stopped.set()
        if sys.is_finalizing():  # threads are frozen by now, perhaps while they hold the lock
            return
        while self._sampling.locked():  # by a thread, too, of which an interrupted `start` has not heard
            self._pause.wait(_PAUSE_SECONDS)  # an interrupt may leave a lock taken by ``with`` on Python 3.14
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def watch(self) -> None:
        """Do nothing: the sampler's thread looks after itself."""

    def abandon(self) -> None:
        """Undo, in a forked child, what the parent's sampler changed."""
        self._collections.stop()
        self._switching.restore()

    def status(self) -> dict[str, Any]:
        """Return the requested interval (seconds), the requested and achieved rates (per second), and `trouble`.

        ``shortest_burst`` is the time of computing between two waits (seconds) below which shares are too coarse.
        """
        enabled = self.enabled
        seconds = (real_time.monotonic() if enabled else self._ended) - self._began
        return {
            "enabled": enabled,
            "engine": "in-process",
            "shortest_burst": BURST * self.interval,
            "trouble": self.trouble,
            "clock_type": self.clock_type,
            "interval": self.interval,
            "requested_rate": 1.0 / self.interval,
            "achieved_rate": self._ticks / seconds if seconds > 0 else 0.0,
            "samples": self._samples,
            "skipped_ticks": self._late,
            "switch_interval": sys.getswitchinterval(),
        }

    def _run(self) -> None:
        with self._sampling:
            if not self._stopped.is_set():
                self._sample_at_a_high_rate()

    def _sample_at_a_high_rate(self) -> None:
        # a whole interval would make every other tick late
        self._switching.lower(max(self.interval / 2, MIN_SWITCH_INTERVAL))
        self._collections.start()
        try:
            self._sample_safely("it was started again") or self._sample_safely("CPU sampling is off")
        finally:
            self._collections.stop()
            self._switching.restore()
            self._frames.clear()
            self._ended = real_time.monotonic()

    def _sample_safely(self, consequence: str) -> bool:
        """Sample until `stop`; return False after an unexpected error."""
        try:
            self._sample()
        except SamplingError as error:
            self._failure = f"CPU sampling is off: {error}"
            _log.warning("%s", self._failure)
        except Exception as error:  # noqa: BLE001 - it is logged and reported
            self._failure = f"the CPU sampler failed ({type(error).__name__}: {error}); {consequence}"
            _log.exception("the CPU sampler failed; %s", consequence)
            return False
        return True

    def _sample(self) -> None:
        self._reader = None
        self._clocks = ThreadClocks()
        self._clocks.wake_on_time()
        due = real_time.monotonic() + self._pace.interval
        lead = 0.0
        while not self._wait_for_tick(due, lead):
            interval = self._pace.interval
            late = max(0.0, real_time.monotonic() - due)
            behind = int(late / interval)
            due += (behind + 0.5 + _jitter.random()) * interval
            self._late += behind
            if self._batcher.backlog > BACKLOG_EVENTS:
                self._late += 1
                self._collections.forget()
                continue
            with hiding():
                self._switching.suspend()
                began = real_time.thread_time()
                ticks, size = self._tick(1 + behind, interval, late)
                self._pace.adapt((real_time.thread_time() - began) / ticks, size / ticks)
                lead = self._lower_switch_interval(due)
            self._ticks += 1

    def _wait_for_tick(self, due: float, lead: float) -> bool:
        """Wait until a tick is due and this thread has the GIL; return True after `stop`.

        Args:
            due: the time of the tick, of `real_time.monotonic`.
            lead: seconds before the tick at which to begin to wait for the GIL.
        """
        now = real_time.monotonic()
        if lead:
            if self._stopped.wait(due - lead - now):
                return True
            now = real_time.monotonic()
            if now >= due:
                return False
            with hiding():  # no other thread had the GIL
                if self._clocks is not None:
                    self._clocks.forget_waits()
                self._switching.lower(self._switch_interval())
        return self._stopped.wait(due - now)

    def _lower_switch_interval(self, due: float) -> float:
        """Lower the switch interval until the next tick; return the lead for `_wait_for_tick`, in seconds.

        While one thread computes without a pause, this thread waits for the GIL as long before the tick as the switch
        interval, so the interpreter takes the GIL from the other thread when the tick is due, with fewer wake-ups.
        """
        if self._clocks is not None and self._clocks.steady and due - real_time.monotonic() > 1.5 * LEAD:
            self._switching.lower(LEAD)
            lead = sys.getswitchinterval()
            if lead <= LEAD:  # the host has not changed it
                return lead
        self._switching.lower(self._switch_interval())
        return 0.0

    def _switch_interval(self) -> float:
        """Return the switch interval while this thread waits for a tick."""
        if self._clocks is None or not self._clocks.threads:
            return max(self.interval / 2, MIN_SWITCH_INTERVAL)
        return MIN_SWITCH_INTERVAL if self._clocks.several else ALONE_SWITCH_INTERVAL

    def _tick(self, ticks: int, interval: float, late: float = 0.0) -> tuple[int, int]:
        """Publish a sample of every thread for each of the last ticks; return the number of ticks, and of bytes.

        Args:
            ticks: the number of ticks that are due; those too long ago are left out, see `MAKE_UP_SECONDS`.
            interval: seconds between two ticks.
            late: seconds since the first of these ticks.
        """
        clocks = self._clocks = self._clocks or ThreadClocks()
        by_cpu = self.clock_type == "cpu"
        # before the stacks: a thread that runs in between has run at the next look, too
        unmoved = clocks.look(late, by_cpu)
        held = min(clocks.held_nanoseconds / 1e9, interval * MAKE_UP_SAMPLES / max(1, len(clocks.threads)))
        ticks = min(ticks, 1 + int(max(MAKE_UP_SECONDS, held) / interval))
        stacks = self._read_stacks(internal_threads() | unmoved.keys()) if clocks.stirred else {}
        tasks = {} if self._reader is None else self._reader.tasks
        now = real_time.time()
        size = 0
        for thread in unmoved.values():
            if thread.event is not None and not by_cpu:
                size += self._publish(thread.event, ticks, now, interval)
        for thread_id, stack in stacks.items():
            due = clocks.due(thread_id, stack[0], ticks, interval if by_cpu else None)
            if due.unseen:
                about = pack_facts(thread_name(thread_id), None, RUNNING)
                event = pack_stack([BETWEEN_SAMPLES], thread_id, about)
                size += self._publish(event, due.unseen, now - due.seen * interval, interval)
            if due.seen:
                size += self._publish_stack(thread_id, stack, tasks.get(thread_id), due, now, interval)
        self._collections.forget()
        return ticks, size

    def _read_stacks(self, skipped: set[int]) -> dict[int, list[Place]]:
        """Return the stacks of the other threads; once a second, look for event loops before."""
        if self._reader is None or real_time.monotonic() >= self._loops_due:
            self._loops_due = real_time.monotonic() + FIND_SECONDS
            self._loops.find()
            if self._reader is None or not self._reader.reads_tasks:
                self._reader = StackReader()
            self._reader.known_loops[:] = self._loops.references
        return self._reader.read(skipped)

    def _publish_stack(
        self, thread_id: int, stack: list[Place], task: str | None, due: Due, now: float, interval: float
    ) -> int:
        """Publish the stack of a thread as often as it is due; return the bytes of all samples."""
        frames = self._frames.stack(stack)
        name = thread_name(thread_id)
        event = pack_stack(frames, thread_id, pack_facts(name, task, due.state))
        collections = self._collections.of(thread_id)
        if not collections:
            if due.thread is not None:
                due.thread.name, due.thread.event = name, event
            return self._publish(event, due.seen, now, interval)
        collecting = pack_stack(frames, thread_id, pack_facts(name, task, COLLECTING))
        size = 0
        for before in range(due.seen - 1, -1, -1):
            moment = now - before * interval
            is_collecting = any(began <= moment <= ended for began, ended in collections)
            size += self._publish(collecting if is_collecting else event, 1, moment, interval)
        return size

    def _publish(self, event: bytes, count: int, now: float, interval: float) -> int:
        """Publish a packed stack at the last `count` times an interval apart; return the bytes of the samples."""
        for before in range(count - 1, -1, -1):
            self._batcher.add(pack_sample(pack_time(now - before * interval), event))
        self._samples += count
        return count * len(event)


class Pace:
    """The time between two ticks: the requested interval, or more if a tick costs too much.

    Set by the sampler's thread; its attributes may be read on any thread.

    Attributes:
        interval: seconds between two ticks.
        cpu_seconds: CPU time of a tick, on average.
        size: bytes of the samples of a tick, on average.
    """

    def __init__(self, requested: float) -> None:
        self.interval = requested
        self.cpu_seconds = self.size = 0.0
        self._requested = requested

    def adapt(self, cpu_seconds: float, size: float) -> None:
        """Take the cost of the last tick into account."""
        weight = _SMOOTHING if self.size else 1.0  # the first tick is the average
        self.cpu_seconds += (cpu_seconds - self.cpu_seconds) * weight
        self.size += (size - self.size) * weight
        self.interval = max(self._requested, self.cpu_seconds / SHARE, self.size / BYTES_PER_SECOND)


class SwitchInterval:
    """Lowers the interpreter's switch interval, until the host changes it, and restores it. For use by one thread.

    A child that is forked in the middle of a change can restore it, too.
    """

    def __init__(self) -> None:
        self._before: float | None = None
        self._ours: tuple[float, ...] = ()
        """The value that it has set last; during a change also the value that it is about to set."""

    def lower(self, interval: float) -> None:
        """Set it to `interval` seconds, if that is less than the host's; may be called again with another interval."""
        if self._before is None:
            self._before = sys.getswitchinterval()
            self._ours = (self._before,)
        self._change(min(interval, self._before))

    def suspend(self) -> None:
        """Set it to the host's until the next call of `lower`."""
        if self._before is not None:
            self._change(self._before)

    def restore(self) -> None:
        """Set it to the host's. May be called twice."""
        self.suspend()
        self._before = None

    def _change(self, interval: float) -> None:
        micros = round(1e6 * interval)
        rounded = 1e-6 * micros  # as sys.getswitchinterval() reports it
        if self._ours != (rounded,):
            self._ours = (*self._ours, rounded)
            # no other thread of the host can set it between the comparison and the change
            is_ours = map(self._ours.__contains__, starmap(sys.getswitchinterval, ONCE))
            any(map(sys.setswitchinterval, compress(((micros + 0.5) / 1e6,), is_ours)))
            self._ours = (rounded,)
