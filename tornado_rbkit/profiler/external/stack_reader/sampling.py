"""The program: looks at a process again and again, and writes its stacks."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import struct
import sys
import time
from contextlib import closing, suppress

from .clocks import Clocks
from .memory import ReadError
from .output import Output
from .reader import StackReader

_FLUSH_SECONDS = 0.05
_FLUSH_BYTES = 32_768
_PIPE_BYTES = 1 << 20  # by default the most that is permitted; who reads may have to wait for a processor
_REST = 3  # times as long as a look takes, at least, until the next one
_LONGEST_LOOK_MICROSECONDS = 5_000_000  # of real-time priority without a pause (RLIMIT_RTTIME)
_SLICE_NANOSECONDS = 100_000  # the shortest that sched_setattr(2) accepts
_SET_ATTRIBUTES = {"x86_64": 314, "aarch64": 274}  # the numbers of sched_setattr(2)
_LOOKS = 10  # to find one whole stack


def sample(reader: StackReader, interval: float, clocks: Clocks, output: int) -> None:
    """Look once in every `interval` seconds, at a random moment of it, and write to a descriptor, until SIGTERM.

    Moments that are less random would all fall on the same part of what a program repeats with the same period.

    Raises:
        ReadError: the process has ended.
        BrokenPipeError: nobody reads the output any more.
    """
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    watched = select.poll()
    watched.register(output, 0)
    began = due = time.monotonic()
    told = -int(interval * 5e5)
    written = 0.0
    jitter = 1
    try:
        while not stopped:
            now = time.monotonic()
            passed = int((now - began) * 1e6)
            try:
                reader.look(passed - told, clocks)
                told = passed
            except ReadError:
                reader.check()
            after = time.monotonic()
            if after - written >= _FLUSH_SECONDS or len(reader.output.data) > _FLUSH_BYTES:
                write(output, reader.output)
                if watched.poll(0):
                    return
                written = after
            jitter = jitter * 1103515245 + 12345 & 0x7FFFFFFF
            due = max(due + interval, after - interval / 4)
            time.sleep(max(_REST * (after - now), due + interval * (jitter / 0x7FFFFFFF - 0.5) - after))
    finally:
        write(output, reader.output)


def _come_first() -> None:
    """Let the reader be given a processor as soon as it wants one, if that is permitted.

    A reader that has to wait for a processor looks when a thread gives one up, which is no random moment. The niceness
    has no effect here: sessions, and control groups, share the processors whatever the niceness of their processes.
    The kernel ends a reader that computes without a pause, which it never does; the engine reports that.
    """
    try:
        resource.setrlimit(resource.RLIMIT_RTTIME, (_LONGEST_LOOK_MICROSECONDS,) * 2)
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except (OSError, ValueError):  # ValueError if the limit is lower already
        with suppress(ImportError, OSError):
            _ask_for_short_slices()


def _ask_for_short_slices() -> None:
    """Let the calling thread come before the ones that want longer slices of a processor, which anybody may ask for.

    It gets no more of the processor in all. Linux before 6.12 ignores it.
    """
    number = _SET_ATTRIBUTES.get(os.uname().machine)
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    import ctypes  # only here, because the program starts faster without it

    # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, niceness, 0, _SLICE_NANOSECONDS, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, attributes, 0)


def write(output: int, encoded: Output) -> None:
    """Write what is encoded, and forget it."""
    data, encoded.data = encoded.data, bytearray()
    while data:
        del data[: os.write(output, data)]


def look_once(reader: StackReader) -> None:
    """Check that the stacks can be read.

    Raises:
        ReadError: they cannot.
    """
    if not any(reader.look(0) for _ in range(_LOOKS)):
        raise ReadError("its stacks cannot be read; it is not CPython as it is released, or changes too fast")


def main(arguments: list[str]) -> int:
    """Sample a process until it ends; with the process as the only argument, look once. Return the exit status."""
    pid = int(arguments[0])
    try:
        with closing(StackReader(pid)) as reader, closing(Clocks(f"/proc/{pid}/task")) as clocks:
            if len(arguments) == 1:
                look_once(reader)
            else:
                _come_first()
                with suppress(OSError):
                    fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
                sample(reader, int(arguments[1]) / 1e6, clocks, 1)
    except BrokenPipeError:
        return 0
    except (ReadError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
