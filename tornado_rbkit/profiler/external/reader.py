"""The program `stack_reader`, which samples CPython 3.14 and 3.15, and the interpreter that runs it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from typing import Final

from tornado_rbkit.profiler.external import stack_reader
from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.process import RunningProcess

VERSIONS: Final = stack_reader.VERSIONS


class Reader:
    """`stack_reader` as a `Program`.

    Raises:
        EngineError: the interpreter or the file is not there.
    """

    name = "stack reader"

    def __init__(self) -> None:
        script = os.path.abspath(stack_reader.__file__)
        if not os.path.isfile(script):
            raise EngineError(f"{script} is no file, so no other process can run it; install the package unpacked")
        self._command = [_find_python(), "-I", "-S", script]

    def command(self, pid: int, interval: float, clock_type: str) -> list[str]:
        return [*self._command, str(pid), str(max(1, int(interval * 1e6))), clock_type]

    def delay(self, interval: float) -> float:
        return 2 * interval

    def check_command(self, pid: int) -> list[str]:
        return [*self._command, str(pid)]

    def failure(self, process: RunningProcess, status: int, printed: str) -> str:
        return f"{process} cannot be read: {printed or f'exit status {status}'}"


def _find_python() -> str:
    """Return the path of an interpreter; `sys.executable` is the host where that embeds Python, as uwsgi does."""
    for path in _interpreters():
        if os.path.basename(path).startswith("python") and os.path.isabs(path) and os.access(path, os.X_OK):
            return path
    raise EngineError(f"no interpreter of Python {sys.version_info[0]}.{sys.version_info[1]} is found to run a helper")


def _interpreters() -> Iterator[str]:
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    yield sys.executable or ""
    for prefix in (sys.prefix, sys.base_prefix):
        yield os.path.join(prefix, "bin", name)
    yield shutil.which(name) or shutil.which("python3") or ""
