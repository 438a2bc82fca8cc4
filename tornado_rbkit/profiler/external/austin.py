"""The program austin, which samples CPython 3.8 to 3.13.

Austin (https://github.com/P403n1x87/austin, GPL-3.0-or-later) reads another process's memory without stopping it. It
is executed as a program of its own, from the PyPI package austin-dist (extra ``attach``); nothing of it is imported or
part of this package. Its options are those of ``austin --help``.

Supported are 3.7 and later versions before 4. Version 4 writes another format.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final

from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.process import RunningProcess, yama_rule

MAX_INTERVAL: Final = 0.001
"""Seconds. Austin writes its output in blocks of 4 KiB, which a longer interval would hold back for seconds; of its
looks those are published that are an interval apart."""

_LOOKS: Final = 400  # its first output has at most this many looks at one thread
_NOT_PYTHON: Final = 32  # exit status
_NO_PROCESS: Final = 36
_INSTALL: Final = "pip install 'tornado_rbkit[attach]'"


class Austin:
    """Austin as a `Program`.

    Args:
        path: the program, from `find_austin`.
    """

    name = "austin"

    def __init__(self, path: str) -> None:
        self._path = path

    def command(self, pid: int, interval: float, clock_type: str) -> list[str]:
        microseconds = max(1, int(min(interval, MAX_INTERVAL) * 1e6))
        mode = "-Pbgf" if clock_type == "cpu" else "-Pbg"  # all of austin's figures tell also which threads sleep
        return [self._path, mode, f"-i{microseconds}", f"-p{pid}"]

    def delay(self, interval: float) -> float:
        return _LOOKS * min(interval, MAX_INTERVAL)

    def check_command(self, pid: int) -> list[str]:
        return [self._path, "-w", str(pid)]

    def failure(self, process: RunningProcess, status: int, printed: str) -> str:
        if status == _NO_PROCESS:
            return f"{process} has ended"
        if status == _NOT_PYTHON:
            rule = yama_rule() or "austin may not read it (in a container, start it with --cap-add=SYS_PTRACE)"
            return f"{process} does not run CPython 3.8 to 3.15, or {rule}"
        if status < 0:
            return f"austin cannot read {process}: it crashed (signal {-status}); it reads CPython 3.8 to 3.13"
        return f"austin cannot read {process} (exit status {status}): {printed}"


def find_austin() -> str:
    """Return the path of austin beside this interpreter, else on the PATH.

    Raises:
        EngineError: it is in neither.
    """
    path = shutil.which("austin", path=os.path.join(sys.prefix, "bin")) or shutil.which("austin")
    if path is None or not os.path.isabs(path):  # not a program that lies in the current folder
        raise EngineError(f"the sampler austin is not installed; {_INSTALL}")
    return path
