"""Reads what the system counts for the threads of a process."""

from __future__ import annotations

import os
import re
from io import FileIO

from .output import integer

_FILES = 512  # that are kept open; a process may have 1,024
_IDLE = b"\x08"
_PROMPT = 100_000  # nanoseconds for which the reader may wait for a processor before a look
_TOGETHER = 30_000  # nanoseconds between the moments at which a thread stops and the reader that displaces it begins
_SCHED = re.compile(rb"se\.exec_start +: +([0-9]+)\.([0-9]{6})\n.*?\nnr_switches +: +([0-9]+)\n", re.DOTALL)


class Clocks:
    """Reads what threads have used of the processors, and whether they run or sleep, from files in /proc.

    A thread that the system calls running may still wait for a processor. It runs if the system has counted that it
    was given a processor once more than that it gave one up, both before and after its stack is read. It has also run
    if it stopped at the moment at which the reader was given a processor, as the reader has displaced it; but not if
    the reader had waited for that processor, as it then begins where threads stop by themselves.

    A thread has slept since it was seen asleep if its CPU time, the time that it has waited for a processor and the
    number of times that it was given one are the same. Where the system lacks these counts, the state of a thread
    decides.

    Args:
        folder: /proc/PID/task.
        own: the folder of the reader's own thread.
    """

    def __init__(self, folder: str, own: str = "/proc/self") -> None:
        self._folder = folder
        self._own = own
        self._files: dict[str, FileIO] = {}
        self._asleep: dict[int, bytes] = {}  # what the thread had used when it was seen asleep
        self._waited = 0
        self._is_prompt = False
        self._began: int | None = None

    def begin(self) -> None:
        """Begin a look: find out whether the reader has waited for a processor since the last one."""
        waited = int((self._read(f"{self._own}/schedstat").split() or [b"0"] * 3)[1])
        self._is_prompt, self._waited = waited - self._waited < _PROMPT, waited
        self._began = None

    def before(self, native_id: int) -> bytes:
        """Return what a thread has used before its stack is read, for `after`."""
        return self._read(f"{self._folder}/{native_id}/schedstat")

    def after(self, native_id: int, used: bytes) -> bytes:
        """Return, as events of the output, what a thread has used, and whether it has run or slept."""
        is_known = used.strip(b"0 \n") != b""
        if is_known and used == self._asleep.get(native_id):
            return _IDLE + _encode(used, is_running=False)
        sched = _SCHED.search(self._read(f"{self._folder}/{native_id}/sched")) if is_known else None
        switches = -1 if sched is None else int(sched[3])
        if is_known and int(used.split()[2]) == switches + 1:
            return _encode(used, is_running=True)
        if self._read(f"{self._folder}/{native_id}/stat").rpartition(b") ")[2][:1] != b"R":
            self._asleep[native_id] = used
            return _IDLE + (_encode(used, is_running=False) if is_known else b"")
        if not is_known:
            return b""
        is_displaced = sched is not None and int(used.split()[2]) == switches and self._has_displaced(sched)
        return _encode(used, sched is None or is_displaced)

    def _has_displaced(self, sched: re.Match[bytes]) -> bool:
        """Return whether a thread that waits for a processor has stopped when the reader was given one.

        Later than the reader was given its processor, it was not displaced: it slept while its stack was read, and has
        been woken since.
        """
        if not self._is_prompt:
            return False
        if self._began is None:
            own = _SCHED.search(self._read(f"{self._own}/sched"))
            self._began = 0 if own is None else int(own[1] + own[2])
        return 0 <= self._began - int(sched[1] + sched[2]) < _TOGETHER

    def _read(self, path: str) -> bytes:
        """Return the content of a file, nothing if the thread has ended or the system has no such file."""
        try:
            if path not in self._files:
                if len(self._files) >= _FILES:  # of threads that have ended, mostly
                    self.close()
                self._files[path] = FileIO(path)
            return os.pread(self._files[path].fileno(), 4096, 0)
        except OSError:
            if path in self._files:
                self._files.pop(path).close()
            return b""

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._asleep.clear()


def _encode(used: bytes, is_running: bool) -> bytes:
    seconds, _, switches = used.split()
    return b"\x0d" + integer(int(seconds)) + integer(int(switches)) + integer(is_running)
