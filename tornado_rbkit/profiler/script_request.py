"""Tells whether the main thread of a process has taken the script that `sys.remote_exec` has asked it to execute.

Linux, CPython 3.14 and 3.15. `sys.remote_exec` writes the path of the script into the state of the main thread, behind
a number that the thread sets to 0 when it takes the path (Include/cpython/pystate.h, _PyRemoteDebuggerSupport).
"""

from __future__ import annotations

import os
from typing import Final

from tornado_rbkit.profiler.external.stack_reader.layouts import Layout, chain
from tornado_rbkit.profiler.external.stack_reader.memory import Memory, ReadError

_LARGEST: Final = 65_536  # bytes of the state of a thread; more means that the offsets are others
_FLAG: Final = 4  # bytes


class ScriptRequest:
    """A script that a process is asked to execute.

    Args:
        pid: the process.
        script: the path of the script, which `sys.remote_exec` has written.
    """

    def __init__(self, pid: int, script: str) -> None:
        self._memory: Memory | None = None
        self._flag = 0
        try:
            self._memory = Memory(pid)
            self._flag = _flag(self._memory, os.fsencode(script) + b"\0")
        except (OSError, ReadError):  # it has ended, or its memory may not be read
            self.close()

    def was_taken(self) -> bool:
        """Return whether the main thread has begun to execute the script; False if that cannot be determined."""
        if self._memory is None or not self._flag:
            return False
        try:
            return not any(self._memory.read(self._flag, _FLAG))
        except ReadError:
            return False

    def close(self) -> None:
        """Close the memory. May be called twice."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _flag(memory: Memory, path: bytes) -> int:
    """Return the address of the number before the path, 0 if the path is not there."""
    layout = Layout(memory)
    offset, size = layout.at.get("interpreter.main_thread"), layout.at.get("thread.size", _LARGEST)
    interpreters = chain(memory, memory.word(layout.first), layout.at["interpreter.next"])
    if offset is None or not interpreters:
        return 0
    thread = memory.word(interpreters[-1] + offset)  # of the first interpreter
    at = memory.read(thread, size).find(path) if size < _LARGEST else -1
    return thread + at - _FLAG if at >= _FLAG else 0
