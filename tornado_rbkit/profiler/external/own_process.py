"""Samples this process from a helper process (the external engine), or inside where that does not work.

The helper reads the memory of this process without the GIL, so the program is hardly slowed down, and is seen also
while C code keeps the GIL. It is the program `stack_reader`. It is no child of this process, which may wait for its
children or end them.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import threading
from types import ModuleType
from typing import Any, Final

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.clocks import native_id, thread_name
from tornado_rbkit.profiler.cpu import CPUSampler
from tornado_rbkit.profiler.external.detached import check_host, last_error, prctl, start
from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.process import ProcessError, RunningProcess, check_system, yama_rule
from tornado_rbkit.profiler.external.program import Program, ProgramEngine
from tornado_rbkit.profiler.external.sampler import MAX_ERRORS, ExternalSampler
from tornado_rbkit.profiler.external.stack_reader.layouts import Layout
from tornado_rbkit.profiler.external.stack_reader.memory import Memory, ReadError
from tornado_rbkit.profiler.frames import SamplingError, has_gil
from tornado_rbkit.profiler.running_time import RunningTime
from tornado_rbkit.profiler.threads import internal_logger, internal_native_ids

_log = internal_logger(__name__)

_PATIENCE: Final = 1.0  # seconds without a stack, while this process had a processor
_NO_STACK: Final = "no stack was read within a second"
_NOT_READ: Final = " before it has read a stack; the system may forbid that (in a container, --cap-add=SYS_PTRACE)"
_NAME_SECONDS: Final = 1.0  # between two looks at the imported modules
_PR_SET_PTRACER: Final = 0x59616D61  # prctl(2)
_ANY: Final = -1


class OwnProcess(RunningProcess):
    """This process, as the sampler of another process sees it. Any thread."""

    def __init__(self) -> None:
        check_system()
        self.pid = os.getpid()
        self.name = "this process"
        self._modules: dict[str, str] = {}
        self._modules_due = 0.0

    def is_alive(self) -> bool:
        return True

    def has_new_program(self) -> bool:
        return False

    def thread(self, kernel_id: int) -> tuple[int, str | None] | None:
        if kernel_id in internal_native_ids():
            return None
        for thread in list(threading._active.values()):  # type: ignore[attr-defined]
            if native_id(thread) == kernel_id:
                return thread.ident, thread_name(thread.ident)
        return kernel_id, None

    def module_name(self, file: str) -> str:
        """Return the name under which the program has imported a file."""
        if file not in self._modules and real_time.monotonic() > self._modules_due:
            self._modules_due = real_time.monotonic() + _NAME_SECONDS
            self._modules = _names_of_modules()
        return self._modules.get(file) or super().module_name(file)


def _why_not_read() -> str:
    """Return why the helper has read no stack: what it has found out, if this process finds it out as well."""
    try:
        memory = Memory(os.getpid())
    except OSError:
        return _NOT_READ
    try:
        Layout(memory)
    except (OSError, ReadError) as error:
        return f": {error}"
    finally:
        memory.close()
    return _NOT_READ


def _names_of_modules() -> dict[str, str]:
    """Return the modules' names by file, without running the code of lazily loaded modules."""
    # By type, because some objects, such as the libraries of cffi, only pretend to be modules.
    modules = [(name, module) for name, module in list(sys.modules.items()) if issubclass(type(module), ModuleType)]
    files = ((ModuleType.__getattribute__(module, "__dict__").get("__file__"), name) for name, module in modules)
    return {file: name for file, name in reversed(list(files)) if isinstance(file, str)}


class DetachedEngine(ProgramEngine):
    """The program, sampling this process, as a child of no process that the host knows."""

    def _start(self, command: list[str]) -> int:
        is_restricted = bool(yama_rule())
        if is_restricted:
            allow_tracer(_ANY)  # until the pid is known
        source, target = _pipe()
        try:
            pid = start(command, os.environ, target)
            if is_restricted:
                allow_tracer(pid)
            self._pidfd = os.pidfd_open(pid)  # type: ignore[attr-defined,unused-ignore]  # not on macOS
        except BaseException:
            os.close(source)  # which ends a running program
            raise
        finally:
            os.close(target)
        return source

    def _kill(self, number: int) -> None:
        if self._pidfd is None:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)  # type: ignore[attr-defined,unused-ignore]
        except ProcessLookupError:
            return


def _pipe() -> tuple[int, int]:
    """Return the ends of a pipe; neither takes the number of a standard descriptor that the program has closed."""
    ends = os.pipe()
    try:
        return fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, 3), fcntl.fcntl(ends[1], fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        for end in ends:
            os.close(end)


def allow_tracer(pid: int) -> None:
    """Let a process read the memory of this one where the Yama module restricts that; see prctl(2).

    Raises:
        EngineError: the system refuses.
    """
    if prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid & (1 << 8 * ctypes.sizeof(ctypes.c_ulong)) - 1), 0, 0, 0):
        reason = last_error()  # before another function fails
        raise EngineError(f"{yama_rule()}, and prctl(PR_SET_PTRACER) failed: {reason}")


class OwnSampler:
    """Samples this process by the external engine if that works, else by the internal one.

    For use by the server's thread, except `status`, `trouble` and `enabled`, which any thread may call.

    Args:
        batcher: receives the samples.
        engine: ``"auto"``, or ``"external"``, which does not fall back.
    """

    def __init__(self, batcher: EventBatcher, engine: str) -> None:
        self._engine = engine
        self._inside = CPUSampler(batcher)
        self._batcher = batcher
        self._outside: ExternalSampler | None = None
        self._reason: str | None = None
        self._slow: str | None = None
        self._has_started = False
        self._silence = RunningTime()  # since the last stack
        self._looks = 0

    @property
    def _active(self) -> CPUSampler | ExternalSampler:
        return self._inside if self._outside is None else self._outside

    @property
    def clock_type(self) -> str:
        """``wall`` or ``cpu``."""
        return self._active.clock_type

    @clock_type.setter
    def clock_type(self, clock_type: str) -> None:
        self._inside.clock_type = self._active.clock_type = clock_type
        self._silence.seconds = 0.0

    @property
    def interval(self) -> float:
        """Seconds between two samples; setting it counts from the next `start` on."""
        return self._active.interval

    @interval.setter
    def interval(self, interval: float) -> None:
        self._inside.interval = interval

    @property
    def enabled(self) -> bool:
        """True from `start` to `stop`, or until sampling ends by itself."""
        return self._active.enabled

    @property
    def trouble(self) -> str | None:
        """What went wrong; None if sampling works, whatever the engine."""
        trouble = self._active.trouble
        return f"{self._slow}; {trouble}" if self._slow and trouble else self._slow or trouble

    def start(self, interval: float | None = None) -> None:
        """Start sampling every `interval` seconds; None keeps the current interval.

        Raises:
            ArgumentError: the interval is out of range.
            SamplingError: the engine ``"external"`` cannot be used, or the internal one could crash this process.
        """
        if self.enabled and interval in (None, self._active.interval):
            return
        self.stop()
        self._reason = self._slow = None
        self._has_started = True
        interval = interval or self._inside.interval
        try:
            sampler = self._new_sampler()
            sampler.start(interval)
        except (EngineError, ProcessError) as error:
            self._fall_back(str(error), interval)
            return
        self._outside = sampler
        self._looks, self._silence = 0, RunningTime()
        self._inside.interval = interval

    def stop(self) -> None:
        """Stop sampling. May be called twice."""
        self._inside.stop()
        if self._outside is not None:
            self._outside.stop()

    def abandon(self) -> None:
        """Undo, in a forked child, what the parent's sampler changed."""
        self._inside.abandon()
        if self._outside is not None:
            self._outside.abandon()

    def watch(self) -> None:
        """Fall back on the internal engine if the external one fails; ``"external"`` continues if it is slow."""
        outside = self._outside
        if outside is None:
            return
        status = outside.status()
        reason = None if outside.failure is None else str(outside.failure)
        if reason is not None and reason.endswith("has ended") and not status["looks"]:
            reason += _why_not_read()
        if outside.enabled and status["error_share"] > MAX_ERRORS:
            reason = f"{status['error_share']:.0%} of the stacks changed while they were read"
        self._silence.look()
        if status["looks"] != self._looks:
            self._looks, self._silence.seconds, self._slow = status["looks"], 0.0, None
        elif self.clock_type == "cpu":  # a process that waits has no stacks
            self._silence.seconds = 0.0
        elif outside.enabled and self._silence.seconds > _PATIENCE + 2 * self.interval:
            if self._engine == "external":  # it may be slow on a busy machine
                self._slow = _NO_STACK
                return
            reason = _NO_STACK
        if reason is not None:
            outside.stop()
            try:
                self._fall_back(reason, outside.interval)
            except SamplingError as error:
                self._slow = f"CPU sampling is off: {error}"
                _log.warning("%s", self._slow)

    def status(self) -> dict[str, Any]:
        """Return the state of the engine that samples.

        ``engine`` is its name, None before the first `start`, and ``engine_reason`` why it is not the external one.
        """
        status = {**self._active.status(), "trouble": self.trouble, "engine_reason": self._reason}
        return status if self._has_started else {**status, "engine": None}

    def _new_sampler(self) -> ExternalSampler:
        patched = self._patched()
        if patched:
            raise EngineError(f"{patched} has replaced the functions that wait for a process")
        if not has_gil():
            raise EngineError("this interpreter runs without a GIL, and its stacks cannot be read from outside")
        process, program = OwnProcess(), Program()
        check_host()
        sampler = ExternalSampler(self._batcher, process, lambda: DetachedEngine(process, program), None)
        sampler.clock_type = self._inside.clock_type
        return sampler

    def _patched(self) -> str:
        patches = {"gevent.monkey": "gevent", "eventlet.patcher": "eventlet"}
        return next((name for module, name in patches.items() if module in sys.modules), "")

    def _fall_back(self, reason: str, interval: float) -> None:
        """Sample inside the process.

        Raises:
            SamplingError: the engine ``"external"`` was chosen, or sampling could crash this process.
        """
        if self._outside is not None:
            self._inside.clock_type = self._outside.clock_type
        self._outside = None
        if self._engine == "external":
            raise SamplingError(f"{reason}; cpu_engine='auto' would sample inside the process")
        self._reason = reason
        _log.info("CPU samples are taken inside the process: %s", reason)
        self._inside.start(interval)
