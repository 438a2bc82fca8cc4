"""Find out whether a thread computes, waits for a lock or sleeps, by the system call that it is in. Linux.

A thread that computes in Python and lost the GIL to the sampler waits in a system call too, futex(2). Its address
tells it from a thread that waits for a lock of the program: the GIL's condition variable and mutex lie side by side in
the interpreter's runtime state, at addresses that one measurement finds. A thread that waits for work waits for a lock
too; its innermost Python function tells (see `WAITING_FILES`).

The files in /proc are read by C functions that keep the GIL (`ctypes.PyDLL`): `os.read` would release it, and the
threads would run on meanwhile.
"""

from __future__ import annotations

import opcode
import os
import threading
from array import array
from functools import lru_cache
from types import CodeType
from typing import Any, Final

from tornado_rbkit.profiler.threads import Flag, InternalThread

RUNNING: Final = "running"
WAITING: Final = "waiting"
LOCK: Final = "lock"

_LIBRARY: Final = os.path.dirname(threading.Condition.wait.__code__.co_filename)
WAITING_FILES: Final = frozenset(
    os.path.join(_LIBRARY, *parts)
    for parts in (("threading.py",), ("queue.py",), ("concurrent", "futures", "thread.py"))
)
"""Files of the standard library whose functions wait, for work, an event or the end of a thread, by waiting for a
lock."""

_JUMPS: Final = ("JUMP_ABSOLUTE", "JUMP_BACKWARD", "POP_JUMP_IF_FALSE", "POP_JUMP_IF_TRUE", "RESUME")
_TESTS: Final = tuple(f"POP_JUMP_BACKWARD_IF_{test}" for test in ("FALSE", "TRUE", "NONE", "NOT_NONE"))
_NEVER_WAIT: Final = frozenset(opcode.opmap[name] for name in (*_JUMPS, *_TESTS) if name in opcode.opmap)

_RUNNING: Final = b"running"  # the content of /proc/self/task/TID/syscall, proc(5)
_OUTSIDE: Final = b"-1"  # its beginning for a thread that is blocked in no system call, as while its memory is read
_NEAR: Final = 256  # bytes, more than the GIL's fields take
_ATTEMPTS: Final = 400
"""Looks at the other thread, each after it has computed. On a busy machine it often waits for a processor then."""

_HOLD_MICROSECONDS: Final = 200
_SET_TIMER_SLACK: Final = 29  # sys/prctl.h


def can_wait(code: CodeType, lasti: int) -> bool:
    """Return False for an instruction that calls nothing: a thread that is stopped there waits at most for the GIL.

    The interpreter takes the GIL from a thread that computes at such an instruction, or after a call.
    """
    return lasti >= 0 and code.co_code[lasti] not in _NEVER_WAIT


class RunStates:
    """Reads the states of threads. For use by one thread.

    Raises:
        OSError: the system does not tell the system calls of threads.
        ImportError: there is no ctypes.
        RuntimeError: the interpreter is shutting down.
    """

    def __init__(self) -> None:
        self._libc = libc = _library()
        self._buffer = array("b", bytes(256))  # a buffer of ctypes would be of a new class
        self._address = self._buffer.buffer_info()[0]
        self._open, self._read, self._close, self._usleep = libc.open, libc.read, libc.close, libc.usleep
        self._prctl = libc.prctl
        self._futex, self._gil = self._find_gil()

    def wake_on_time(self) -> None:
        """Let the system wake the calling thread without the 50 microseconds by which it delays timers by default."""
        self._prctl(_SET_TIMER_SLACK, 1, 0, 0, 0)  # a sandbox may refuse it

    def state(self, native_id: int) -> str:
        """Return `RUNNING` of a thread that computes, waits for the GIL or has ended, else `LOCK` or `WAITING`.

        A thread that is blocked outside of system calls computes: it waits for memory, or for a processor.
        """
        call = self._call(native_id)
        if call is None or call[0] in (_RUNNING, _OUTSIDE):
            return RUNNING
        if call[0] != self._futex:
            return WAITING
        return RUNNING if self._is_gil(int(call[1], 16)) else LOCK

    def _is_gil(self, address: int) -> bool:
        return abs(address - self._gil) < _NEAR

    def _call(self, native_id: int) -> list[bytes] | None:
        """Return the number and the arguments of a thread's system call; None if it cannot be read."""
        descriptor = self._open(b"/proc/self/task/%d/syscall" % native_id, os.O_RDONLY | os.O_CLOEXEC)
        if descriptor < 0:
            return None
        size = self._read(descriptor, self._address, len(self._buffer))
        self._close(descriptor)
        return None if size <= 0 else self._buffer.tobytes()[:size].split()

    def _find_gil(self) -> tuple[bytes, int]:
        """Return the system call, and the address, where a thread waits for the GIL while this thread holds it."""
        stop = Flag()
        turns = [0]

        def compute() -> None:
            while not stop.is_set():
                turns[0] += 1

        thread = InternalThread(compute, "rbkit-calibration")
        try:
            attempts = seen = 0
            while attempts < _ATTEMPTS and thread.is_alive():
                stop.wait(0.0005)  # the thread starts, or continues
                if turns[0] == seen:  # it waits for a processor
                    continue
                attempts, seen = attempts + 1, turns[0]
                self._usleep(_HOLD_MICROSECONDS)  # holds the GIL
                call = self._call(thread.native_id)
                if call is None:
                    break
                if len(call) > 2 and call[0] != _OUTSIDE:
                    return call[0], int(call[1], 16)
        finally:
            stop.set()
            thread.join()
        raise OSError("the system calls of threads cannot be read")


@lru_cache(maxsize=1)
def _library() -> Any:
    """Return the C library, whose functions are of a new class, and so of the host's, each time that it is loaded."""
    import ctypes  # only here, because many profiled processes never need it

    libc = ctypes.PyDLL(None)
    libc.read.restype = ctypes.c_ssize_t
    libc.read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return libc


@lru_cache(maxsize=1)
def run_states() -> RunStates:
    """Return the reader of this process, which is made once: the addresses stay, and a new one would be the host's."""
    return RunStates()
