"""Runs the program austin on a process, and reads the stacks that it writes.

Austin (https://github.com/P403n1x87/austin, GPL-3.0-or-later) reads another process's memory without stopping it. It
is executed as a program of its own, from the PyPI package austin-dist (extra ``attach``); nothing of it is imported or
part of this package. Its options are those of ``austin --help``.

Supported are 3.7 and later versions before 4. Version 4 writes another format.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
from typing import Any, Final

from tornado_rbkit.profiler.external.engine import EngineError, Stack
from tornado_rbkit.profiler.external.mojo import MojoParser
from tornado_rbkit.profiler.external.process import RunningProcess

MAX_INTERVAL: Final = 0.001
"""Seconds. Austin writes its output in blocks of 4 KiB, which a longer interval would hold back for seconds; of its
looks those are published that are an interval apart."""

_CHUNK: Final = 1 << 16  # the capacity of a pipe
_EXIT_SECONDS: Final = 1.0
_poll: Final[Any] = getattr(select, "poll", None)  # here, because gevent and eventlet remove it; Windows has none
_INSTALL: Final = "pip install 'tornado_rbkit[attach]'"


class Austin:
    """An `Engine` that runs austin; its subclasses start and end the program.

    Args:
        process: the process to sample.
        path: the program, from `find_austin`.
    """

    def __init__(self, process: RunningProcess, path: str) -> None:
        self._process = process
        self._path = path
        self._output: int | None = None
        self._pidfd: int | None = None
        self._data = b""
        self._is_stopping = False
        self._parser = MojoParser()

    @property
    def name(self) -> str:
        return f"austin {self._parser.version}".rstrip()

    @property
    def has_ended_well(self) -> bool:
        return True  # the exit status of a process that is not a child cannot be read

    def start(self, interval: float, clock_type: str) -> None:
        microseconds = max(1, int(min(interval, MAX_INTERVAL) * 1e6))
        mode = "-Pbgs" if clock_type == "cpu" else "-Pbg"
        command = [self._path, mode, f"-i{microseconds}", f"-p{self._process.pid}"]
        try:
            self._output = self._start(command, environment())
        except OSError as error:
            raise EngineError(f"austin cannot be run: {self._path}: {error.strerror}") from error

    def _start(self, command: list[str], environment: dict[str, str]) -> int:
        """Start austin, and return the descriptor of its output; on Linux set `_pidfd`."""
        raise NotImplementedError

    def _kill(self, number: int) -> None:
        """Send a signal to austin, if it runs."""
        raise NotImplementedError

    def _wait(self, timeout: float | None = None) -> None:
        """Wait for the end of austin, for at most `timeout` seconds, where that is possible."""

    def wait(self) -> bool:
        self._data = self._next_output()
        if not self._data:
            self._wait(_EXIT_SECONDS)  # it has closed its output, and exits now
        return bool(self._data)

    def _next_output(self) -> bytes:
        """Wait for output and return it; return nothing once austin has closed it, or has ended.

        Its end alone does not close the pipe: a process that was forked while the pipe was made has a copy.
        """
        assert self._output is not None
        if self._pidfd is not None:
            events = _poll()
            events.register(self._output, select.POLLIN)
            events.register(self._pidfd, select.POLLIN)
            if all(descriptor != self._output for descriptor, _ in events.poll()):
                return b""
        return os.read(self._output, _CHUNK)

    def read(self) -> list[Stack]:
        data, self._data = self._data, b""
        return self._parser.feed(data)

    def stop(self) -> None:
        self._kill(signal.SIGKILL if self._is_stopping else signal.SIGTERM)
        self._is_stopping = True

    def close(self) -> None:
        if self._output is not None:
            self._kill(signal.SIGKILL)
            self._wait()
            self.abandon()

    def abandon(self) -> None:
        descriptors, self._output, self._pidfd = (self._output, self._pidfd), None, None
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)


def find_austin() -> str:
    """Return the path of austin beside this interpreter, else on the PATH.

    Raises:
        EngineError: it is in neither.
    """
    path = shutil.which("austin", path=os.path.join(sys.prefix, "bin")) or shutil.which("austin")
    if path is None or not os.path.isabs(path):  # not a program that lies in the current folder
        raise EngineError(f"the sampler austin is not installed; {_INSTALL}")
    return path


def environment() -> dict[str, str]:
    """Return the environment in which austin runs."""
    return {**os.environ, "AUSTIN_NO_LOGGING": "1"}  # else it writes to the system's log
