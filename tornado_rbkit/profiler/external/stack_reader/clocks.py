"""Reads what the system counts for the threads of a process."""

from __future__ import annotations

import os
from io import FileIO

from .output import integer

_FILES = 512  # that are kept open; a process may have 1,024
_IDLE = b"\x08"


class Clocks:
    """Reads what threads have used of the processors, and whether they sleep, from files in /proc.

    A thread that the system calls running may still wait for a processor. It does so at the place where it has slept
    if since then its CPU time, the time that it has waited for a processor and the number of times that it was given
    one, which schedstat has, are the same. Without schedstat, which some systems lack, this is not known.

    Args:
        folder: /proc/PID/task.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files: dict[str, FileIO] = {}
        self._asleep: dict[int, bytes] = {}  # what the thread had used when it was seen asleep

    def __call__(self, native_id: int) -> bytes:
        """Return, as events of the output, what a thread has used, and that it sleeps."""
        used = self._read(f"{native_id}/schedstat")
        is_known = used.strip(b"0 \n") != b""
        encoded = b"\x0d" + b"".join(integer(int(number)) for number in used.split()) if is_known else b""
        if is_known and used == self._asleep.get(native_id):
            return _IDLE + encoded
        if self._read(f"{native_id}/stat").rpartition(b") ")[2][:1] == b"R":
            return encoded
        self._asleep[native_id] = used
        return _IDLE + encoded

    def _read(self, name: str) -> bytes:
        """Return the content of a file, nothing if the thread has ended or the system has no such file."""
        try:
            if name not in self._files:
                if len(self._files) >= _FILES:  # of threads that have ended, mostly
                    self.close()
                self._files[name] = FileIO(f"{self._folder}/{name}")
            return os.pread(self._files[name].fileno(), 512, 0)
        except OSError:
            if name in self._files:
                self._files.pop(name).close()
            return b""

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._asleep.clear()
