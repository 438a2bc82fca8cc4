"""The instruments of one process, and the commands that control them."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tracemalloc
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Protocol

from tornado_rbkit import __version__
from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.clocks import HAS_CPU_CLOCK
from tornado_rbkit.profiler.cpu import DEFAULT_INTERVAL, CPUSampler
from tornado_rbkit.profiler.frames import SamplingError, has_other_interpreters
from tornado_rbkit.profiler.heap import Snapshot
from tornado_rbkit.profiler.memory import MemoryProfile
from tornado_rbkit.profiler.packing import pack_event, pack_facts
from tornado_rbkit.profiler.task_waits import TaskWaits
from tornado_rbkit.profiler.threads import internal_logger
from tornado_rbkit.profiler.variables import variable_reader
from tornado_rbkit.profiler.vitals import VITALS_SECONDS, Figures, Vitals
from tornado_rbkit.protocol import EventType

_own_sampler: Callable[[EventBatcher, str], Sampler] | None = None
if sys.platform.startswith("linux"):
    with contextlib.suppress(ImportError, OSError):  # a Python without ctypes, or without dynamic libraries
        from tornado_rbkit.profiler.external.own_process import OwnSampler as _own_sampler

_log = internal_logger(__name__)

PROTOCOL_VERSION: Final = "2.1"
WATCH_SECONDS: Final = 0.25
"""The interval at which the sampler is watched."""

LAST_SECONDS: Final = 2.0
"""The longest time that a memory profile compares before it stops; clients wait 5 s for the reply."""

MAX_PARTS: Final = 10
"""The most parts of one request that are run. Clients send one; rbkit runs any number, however long that takes."""

_OK: Final = b"ok"


class Outlet(Protocol):
    """The part of the server that the commands use."""

    @property
    def has_subscribers(self) -> bool:
        """Whether anybody receives what is published."""

    def send_all(self, events: Sequence[bytes]) -> None:
        """Publish a message of packed events that no subscriber should miss."""

    def flush(self) -> None:
        """Publish all waiting events."""

    def yield_to_host(self) -> bool:
        """Publish what is due and let the host run; return False if the server is being stopped."""


class Sampler(Protocol):
    """Samples the stacks of a process, as `CPUSampler` does; see there."""

    clock_type: str
    interval: float

    @property
    def enabled(self) -> bool:
        """True while stacks are sampled."""

    @property
    def trouble(self) -> str | None:
        """Why sampling has stopped, or why the samples may be misleading; None if there is no trouble."""

    def start(self, interval: float | None = None) -> None:
        """Start sampling every `interval` seconds; None keeps the current interval."""

    def stop(self) -> None:
        """Stop sampling."""

    def watch(self) -> None:
        """Check, from time to time, whether sampling works. The server's thread."""

    def abandon(self) -> None:
        """Release, in a forked child, the resources of the parent's sampler."""

    def status(self) -> dict[str, Any]:
        """Return the state in types that JSON supports."""


class Profile:
    """The instruments of one process and the commands that control them. For use by the server's thread.

    Args:
        name: the process_name of the handshake.
        batcher: receives the events.
        outlet: sends a snapshot's messages.
        cpu_engine: as in `start_server`.
        interval: seconds between two samples, unless `cpu.start` is given others.
    """

    def __init__(
        self,
        name: str,
        batcher: EventBatcher,
        outlet: Outlet,
        cpu_engine: str = "auto",
        interval: float = DEFAULT_INTERVAL,
    ) -> None:
        self.name = name
        self.pid = os.getpid()
        self.batcher = batcher
        self.memory = MemoryProfile(batcher, lambda: self.internal)
        self.internal: list[object] = [self, pack_facts, variable_reader]  # two that keep what they have returned
        self.cpu: Sampler = _sampler(batcher, cpu_engine)
        self.cpu.interval = interval
        self._task_waits = TaskWaits(batcher)
        self.snapshot_objects = 0
        """The number of objects in the last snapshot, or found so far by the running snapshot."""
        self.gc_stats = True
        """Whether the vitals are published."""
        self._vitals = Vitals()
        self._vitals_due = 0.0
        self._memory_failure: str | None = None
        self._vitals_failure: str | None = None
        self._has_started_tracing = False
        self._snapshots = 0
        self._walk: Generator[None, None, None] | None = None
        self._outlet = outlet
        self._commands: dict[bytes, Callable[[], bytes]] = {
            b"handshake": self.handshake,
            b"start_memory_profile": self.start_memory_profile,
            b"stop_memory_profile": self.stop_memory_profile,
            b"trigger_gc": self.trigger_gc,
            b"objectspace_snapshot": self.objectspace_snapshot,
            b"use_cpu_time": self.use_cpu_time,
            b"use_wall_time": self.use_wall_time,
            b"start_cpu_profiling": self.start_cpu_profiling,
            b"stop_cpu_profiling": self.stop_cpu_profiling,
            b"start_allocation_tracing": self.start_allocation_tracing,
            b"stop_allocation_tracing": self.stop_allocation_tracing,
        }

    def answer(self, request: list[bytes]) -> bytes:
        """Run every part of a request and return the reply to the last part (``ok`` if it is not a command).

        The host runs between two parts; the remaining parts are not run if the server is being stopped.
        """
        reply = _OK
        for at in range(len(request)):  # a snapshot would show an iterator of the list
            if at and not self._outlet.yield_to_host():
                break
            command = self._commands.get(request[at].partition(b"\0")[0])  # rbkit reads up to a NUL
            reply = _OK if command is None else command()
        return reply

    def work(self) -> float | None:
        """Do the work that is due; return the seconds until the next call, None to wait for the next command."""
        vitals_due = self.publish_vitals()
        self.cpu.watch()
        samples_waits = self.cpu.enabled and self.cpu.clock_type == "wall"
        tasks_due = self._task_waits.work(is_wanted=samples_waits and self._outlet.has_subscribers)
        try:
            due = self.memory.work()
        except Exception as error:  # noqa: BLE001 - must not affect the host or the CPU sampler
            due = self._restart_memory(error)
        waits = [due, vitals_due, tasks_due, WATCH_SECONDS if self.cpu.enabled else None]
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def publish_vitals(self) -> float | None:
        """Publish the vitals if they are due; return the seconds until they are due, None if nobody receives them."""
        if not self.gc_stats or not self._outlet.has_subscribers:
            return None
        now = real_time.monotonic()
        if now >= self._vitals_due:
            due = self._vitals_due + VITALS_SECONDS
            self._vitals_due = due if due > now else now + VITALS_SECONDS
            try:
                self.batcher.add(pack_event(EventType.GC_STATS, self.read_vitals()))
            except Exception as error:  # noqa: BLE001 - must not affect the host, nor the instruments
                if self._vitals_failure is None:
                    _log.exception("the vitals cannot be read; this is logged once")
                self._vitals_failure = f"the vitals cannot be read ({type(error).__name__}: {error})"
            else:
                self._vitals_failure = None
            self._outlet.flush()
        return self._vitals_due - now

    def read_vitals(self) -> Figures:
        """Return the figures of a gc_stats event."""
        return self._vitals.read(self.memory.living)

    def _restart_memory(self, error: Exception) -> float | None:
        """Start the memory profile again after an unexpected error; stop it after a second one."""
        is_second = self._memory_failure is not None
        consequence = "memory profiling is off" if is_second else "it was started again"
        _log.exception("the memory profile failed; %s", consequence)
        self._memory_failure = f"the memory profile failed ({type(error).__name__}: {error}); {consequence}"
        self.memory.stop()
        if is_second:
            return None
        self.memory.start()
        return 0.0

    def status(self) -> dict[str, Any]:
        """Return the state of the instruments in types that JSON supports. Any thread."""
        return {
            "snapshot_objects": self.snapshot_objects,
            "memory": {**self.memory.status(), "trouble": self._memory_failure},
            "cpu": self.cpu.status(),
            "tasks": {"trouble": self._task_waits.trouble},
            "vitals": {"trouble": self._vitals_failure},
        }

    def handshake(self) -> bytes:
        """Return the facts of this process; ``trouble`` is among them only if an instrument has failed."""
        cpu = self.cpu.status()
        facts = {
            "rbkit_server_version": __version__,
            "rbkit_protocol_version": PROTOCOL_VERSION,
            "process_name": self.name,
            "pwd": self.working_folder(),
            "pid": self.pid,
            "object_trace_enabled": int(self.memory.enabled),
            "cpu_profiling_enabled": int(self.cpu.enabled),
            "clock_type": self.cpu.clock_type,
            "cpu_profiling_mode": "sampling",
            "cpu_interval": cpu.get("interval"),  # seconds of CPU time of a sample, on the CPU clock
            "cpu_engine": cpu.get("engine"),  # what samples, None if it is not chosen yet
            **self.tracing_facts(),
        }
        if cpu.get("engine") and cpu.get("shortest_burst"):  # in seconds; within a shorter one shares are too coarse
            facts["cpu_shortest_burst"] = cpu["shortest_burst"]
        if cpu.get("engine_reason"):
            facts["cpu_engine_reason"] = cpu["engine_reason"]  # why that is not the external engine
        trouble = "; ".join(filter(None, (self._memory_failure, self._vitals_failure, self.cpu.trouble)))
        return pack_event(EventType.HANDSHAKE, {**facts, "trouble": trouble} if trouble else facts)

    def tracing_facts(self) -> dict[str, int]:
        """Return the fact of the handshake that says that allocation tracing can be switched, and whether it is on."""
        return {"allocation_tracing_enabled": int(tracemalloc.is_tracing())}

    def working_folder(self) -> str:
        """Return the current folder of the process, an empty string if it was removed."""
        try:
            return os.getcwd()
        except OSError:
            return ""

    def start_memory_profile(self) -> bytes:
        self._memory_failure = None
        self.memory.start()
        return _OK

    def stop_memory_profile(self) -> bytes:
        """Publish the changes since the last tick, and stop; the reply is sent afterwards."""
        deadline = real_time.monotonic() + LAST_SECONDS
        try:
            self._walk = self.memory.last_comparison()
            for _ in self._walk:
                if real_time.monotonic() > deadline or not self._outlet.yield_to_host():
                    _log.info("the last changes are not reported: comparing takes more than %g s", LAST_SECONDS)
                    break
        finally:
            self._end_walk()
            self.memory.stop()
        self._outlet.flush()
        return _OK

    def trigger_gc(self) -> bytes:
        """Collect every generation. As in rbkit, its events are published while memory profiling is on."""
        gc.collect()
        return _OK

    def objectspace_snapshot(self) -> bytes:
        """Walk the heap and publish the snapshot. As in rbkit, the reply is sent afterwards."""
        self._snapshots += 1
        snapshot = Snapshot(self._snapshots, self.internal)
        self.snapshot_objects = 0
        self._walk = snapshot.walk()
        try:
            for _ in self._walk:
                self.snapshot_objects = snapshot.total
                if not self._outlet.yield_to_host():
                    return _OK  # the server is being stopped
        finally:
            self._end_walk()
        for events in snapshot.messages():
            self._outlet.send_all(events)
        self.snapshot_objects = snapshot.total
        return _OK

    def use_cpu_time(self) -> bytes:
        """Sample by CPU time; if threads have no CPU clocks, log a warning and keep the clock."""
        if HAS_CPU_CLOCK:
            self.cpu.clock_type = "cpu"
        else:
            _log.warning("threads have no CPU clocks on %s: samples follow the wall clock", sys.platform)
        return _OK

    def use_wall_time(self) -> bytes:
        self.cpu.clock_type = "wall"
        return _OK

    def start_cpu_profiling(self) -> bytes:
        """Start sampling; if that could crash this process, the reply is the reason."""
        try:
            self.cpu.start()
        except SamplingError as error:
            return f"CPU sampling is off: {error}".encode()
        return _OK

    def stop_cpu_profiling(self) -> bytes:
        self.cpu.stop()
        return _OK

    def start_allocation_tracing(self) -> bytes:
        """Switch tracemalloc on, with one frame for each allocation; does nothing if it is on.

        From then on creating objects takes 3 to 5 times as long (measured on Python 3.11 and 3.13).

        If the process has sub-interpreters, it stays off, and the reply says so. Up to Python 3.11 tracemalloc waits
        there for the GIL that the same thread holds (tracemalloc_raw_alloc calls PyGILState_Ensure); later ones have a
        GIL each, without which its tables are corrupted. The program must create none while tracemalloc is on.
        """
        if not tracemalloc.is_tracing():
            if has_other_interpreters():
                return b"allocation tracing is off: tracemalloc can end a process that has sub-interpreters"
            tracemalloc.start(1)
            self._has_started_tracing = True
        return _OK

    def stop_allocation_tracing(self) -> bytes:
        """Switch tracemalloc off, which forgets the places; if the program switched it on, the reply says so.

        Forgetting holds the GIL for about 0.1 s per million blocks.
        """
        is_ours = self._has_started_tracing and tracemalloc.get_traceback_limit() == 1
        if tracemalloc.is_tracing() and not is_ours:
            self._has_started_tracing = False
            return b"the program has switched allocation tracing on by itself; it stays on"
        if self._has_started_tracing:
            self._has_started_tracing = False
            tracemalloc.stop()
        return _OK

    def close(self) -> None:
        """Stop measuring. May be called twice."""
        self.memory.stop()
        self.stop_cpu_profiling()
        self.stop_allocation_tracing()

    def _end_walk(self) -> None:
        """Close the walk here: its lists hold it, too, and the collector would close it on a thread of the host."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None


def _sampler(batcher: EventBatcher, cpu_engine: str) -> Sampler:
    if cpu_engine == "external" and _own_sampler is None:
        raise SamplingError("cpu_engine='external' needs the module ctypes")
    if cpu_engine == "in-process" or _own_sampler is None:
        return CPUSampler(batcher)
    return _own_sampler(batcher, cpu_engine)
