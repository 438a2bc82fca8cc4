"""Starts a program that this process never sees as a child: not in `os.wait`, not by SIGCHLD, not in a list. Linux.

The host may wait for any child, and a program that is started by fork, vfork or posix_spawn is a child until it ends.
The exception is a process made by clone(2) without an exit signal, which waits do not report (wait(2), __WCLONE). But
`execve` gives a process the usual exit signal (fs/exec.c, de_thread), so that process must not execute the program: it
starts the program by posix_spawn(3), and ends, and the program is adopted by init.

That process shares this process's memory while the calling thread is suspended, as a child of vfork(2) does, so it
costs the same however large the host is. It runs nothing of the interpreter: setcontext(3) begins it with a call of
posix_spawn, and another context follows with a call of _exit. The program gets a session of its own, default signal
handlers, no blocked signals, and no descriptors but the three standard ones.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.process import yama_rule, yama_scope

_CLONE_VM: Final = 0x100  # sched.h
_CLONE_VFORK: Final = 0x4000
_WCLONE: Final = -0x80000000  # sys/wait.h: 1 << 31, of a C int
_SPAWN_FLAGS: Final = 0x04 | 0x08 | 0x80  # spawn.h: POSIX_SPAWN_SETSIGDEF, _SETSIGMASK, _SETSID
_GET_DUMPABLE: Final = 3  # sys/prctl.h
_GET_CHILD_SUBREAPER: Final = 37

_CONTEXT: Final = 16_384  # bytes for a ucontext_t, which takes 5 KiB at most
_HEAD: Final = struct.Struct("@LPPiN")  # its beginning on 64-bit systems: flags, link, stack, the stack's flags, size
_DESCRIPTION: Final = 1024  # bytes for a posix_spawn_file_actions_t, a posix_spawnattr_t or a sigset_t
_STACK: Final = 262_144

# All functions are looked up here: ctypes makes objects, and a class, which a memory profile would report. With
# `use_errno` it would also make a dict for each thread.
_libc: Final = ctypes.CDLL(None)
prctl: Final = _libc.prctl
_errno_location: Any = _libc.__errno_location
_errno_location.restype = ctypes.c_void_p
_NAMES: Final = (
    *("getcontext", "makecontext", "clone", "sigemptyset", "sigfillset"),
    *(f"posix_spawn_file_actions_{name}" for name in ("init", "adddup2", "addopen", "addclose", "destroy")),
    *(f"posix_spawnattr_{name}" for name in ("init", "setflags", "setsigmask", "setsigdefault", "destroy")),
)
_functions: Final[dict[str, Any]] = {name: getattr(_libc, name, None) for name in _NAMES}
_close_from: Any = getattr(_libc, "posix_spawn_file_actions_addclosefrom_np", None)  # glibc 2.34
_addresses: Final = {
    name: ctypes.cast(function, ctypes.c_void_p).value or 0
    for name in ("posix_spawn", "setcontext", "_exit")
    if (function := getattr(_libc, name, None)) is not None
}


class _Memory:
    """A piece of memory outside the interpreter's heap, whose parts are given away one after the other."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size)
        self._anchor: Any = ctypes.c_char.from_buffer(self._map)
        self._base = ctypes.addressof(self._anchor)
        self._used = 0

    def take(self, size: int) -> int:
        """Return the address of the next `size` bytes, which are zero."""
        address = self._base + self._used
        self._used += -(-size // 64) * 64
        return address

    def put(self, data: bytes) -> int:
        """Return the address of a copy of `data`, with a zero after it."""
        address = self.take(len(data) + 1)
        self.write(address, data)
        return address

    def put_list(self, texts: Sequence[str]) -> int:
        """Return the address of a list of pointers to strings, which ends with NULL."""
        pointers = [self.put(os.fsencode(text)) for text in texts]
        return self.put(struct.pack(f"@{len(pointers) + 1}P", *pointers, 0))

    def write(self, address: int, data: bytes) -> None:
        self._map[address - self._base : address - self._base + len(data)] = data

    def read_int(self, address: int) -> int:
        return int.from_bytes(self._map[address - self._base : address - self._base + 4], sys.byteorder)

    def close(self) -> None:
        self._anchor = None
        self._map.close()


def check_host() -> None:
    """Check that a program that this process starts can be detached from it, and can read its memory.

    Raises:
        EngineError: it cannot; the message says why and what to change.
    """
    adopts = ctypes.c_int(0)
    prctl(_GET_CHILD_SUBREAPER, ctypes.byref(adopts), 0, 0, 0)
    if os.getpid() == 1:
        raise EngineError("this process is PID 1 and would adopt the helper; start the container with --init")
    if adopts.value:
        raise EngineError("this process adopts orphans (PR_SET_CHILD_SUBREAPER), so the helper would become its child")
    if os.geteuid() and prctl(_GET_DUMPABLE, 0, 0, 0, 0) != 1:
        raise EngineError("this process has changed its user, so only root may read its memory")
    if os.geteuid() and yama_scope() in ("2", "3"):
        raise EngineError(yama_rule())


def start(command: Sequence[str], environment: Mapping[str, str], output: int) -> int:
    """Start a program detached from this process; return its pid. Any thread, which waits for about a millisecond.

    Args:
        command: the absolute path of the program, and its arguments.
        environment: its environment.
        output: the descriptor that it gets as its standard output.

    Raises:
        EngineError: the program cannot be executed, or the system does not allow to start it in this way.
    """
    if len(_addresses) < 3 or None in _functions.values() or _HEAD.size != 40:
        raise EngineError("the C library has no functions to start a program unseen; glibc on a 64-bit system has")
    variables = [f"{name}={value}" for name, value in environment.items()]
    memory = _Memory(sum(len(os.fsencode(each)) + 80 for each in (*command, *variables)) + 4 * _STACK)
    actions, attributes = memory.take(_DESCRIPTION), memory.take(_DESCRIPTION)
    try:
        _describe(memory, actions, attributes, output)
        words = memory.put_list(command)
        pid, path = memory.take(4), memory.put(os.fsencode(command[0]))
        last = _context(memory, "_exit", (0,), 0)
        first = _context(
            memory, "posix_spawn", (pid, path, actions, attributes, words, memory.put_list(variables)), last
        )
        top = memory.take(_STACK) + _STACK
        flags = _CLONE_VM | _CLONE_VFORK
        starter = _call("clone", _addresses["setcontext"], top, flags, first)
        if starter < 0:
            raise EngineError(f"the system does not start a process: {last_error()}")
        os.waitpid(starter, _WCLONE)
        found = memory.read_int(pid)
        if not found:
            raise EngineError(f"{command[0]} cannot be executed")
        return found
    finally:
        _call("posix_spawn_file_actions_destroy", actions)
        _call("posix_spawnattr_destroy", attributes)
        memory.close()


def _context(memory: _Memory, function: str, arguments: tuple[int, ...], link: int) -> int:
    """Return the address of a context that calls a function on a stack of its own, and continues with `link`."""
    context, stack = memory.take(_CONTEXT), memory.take(_STACK)
    _call("getcontext", context)
    memory.write(context, _HEAD.pack(0, link, stack, 0, _STACK))
    _call("makecontext", context, _addresses[function], len(arguments), *arguments)
    return context


def _describe(memory: _Memory, actions: int, attributes: int, output: int) -> None:
    """Set the descriptors and the signals of the program."""
    null, signals = memory.put(os.fsencode(os.devnull)), memory.take(_DESCRIPTION)
    _call("posix_spawn_file_actions_init", actions)
    _call("posix_spawn_file_actions_adddup2", actions, output, 1)
    _call("posix_spawn_file_actions_addopen", actions, 0, null, os.O_RDONLY, 0)
    _call("posix_spawn_file_actions_addopen", actions, 2, null, os.O_WRONLY, 0)
    if _close_from is not None:
        _close_from(ctypes.c_void_p(actions), 3)
    else:  # a descriptor that is closed already does no harm
        for entry in Path("/proc/self/fd").iterdir():
            if int(entry.name) > 2:
                _call("posix_spawn_file_actions_addclose", actions, int(entry.name))
    _call("posix_spawnattr_init", attributes)
    _call("posix_spawnattr_setflags", attributes, _SPAWN_FLAGS)
    _call("sigemptyset", signals)
    _call("posix_spawnattr_setsigmask", attributes, signals)
    _call("sigfillset", signals)
    _call("posix_spawnattr_setsigdefault", attributes, signals)


def last_error() -> str:
    """Return why the last call of a C function on this thread failed; the interpreter keeps ``errno``."""
    return os.strerror(ctypes.c_int.from_address(_errno_location()).value)


def _call(name: str, *arguments: int) -> int:
    """Call a function of the C library; numbers and addresses fill a register alike."""
    result: int = _functions[name](*map(ctypes.c_void_p, arguments))
    return result
