"""Runs the program `stack_reader`, and reads its output, which is in the format MOJO."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
from collections.abc import Iterator
from typing import Any, Final

from tornado_rbkit.profiler.external import stack_reader
from tornado_rbkit.profiler.external.engine import EngineError, Stack
from tornado_rbkit.profiler.external.mojo import MojoParser
from tornado_rbkit.profiler.external.process import RunningProcess

NAME: Final = "stack reader"

_FOLDER: Final = os.path.dirname(stack_reader.__file__)
_CHUNK: Final = 1 << 16  # the capacity of a pipe
_EXIT_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.25  # between two looks whether the program was killed
_epoll: Final[Any] = getattr(select, "epoll", None)  # here, because gevent and eventlet remove it; Linux has it


class Program:
    """The program `stack_reader`, with an interpreter that runs it. Any thread.

    Raises:
        EngineError: the interpreter or the program is not there.
    """

    def __init__(self) -> None:
        folder = os.path.abspath(_FOLDER)
        if not os.path.isdir(folder):
            raise EngineError(f"{folder} is no folder, so no other process can run it; install the package unpacked")
        self._command = [_find_python(), "-I", "-S", folder]

    def command(self, pid: int, interval: float) -> list[str]:
        """Return the command that samples a process every `interval` seconds (see `Engine.start`)."""
        return [*self._command, str(pid), str(max(1, int(interval * 1e6)))]

    def check_command(self, pid: int) -> list[str]:
        """Return the command that looks at a process once."""
        return [*self._command, str(pid)]


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


class ProgramEngine:
    """An `Engine` that runs the program; its subclasses start and end it.

    Args:
        process: the process to sample.
        program: the program.
    """

    def __init__(self, process: RunningProcess, program: Program) -> None:
        self._process = process
        self._program = program
        self._output: int | None = None
        self._pidfd: int | None = None
        self._events: Any = None
        self._data = b""
        self._is_stopping = self._is_killed = False
        self._parser = MojoParser()

    @property
    def name(self) -> str:
        return f"{NAME} {self._parser.version}".rstrip()

    @property
    def has_ended_well(self) -> bool:
        return True  # the exit status of a process that is not a child cannot be read

    def start(self, interval: float) -> None:
        command = self._program.command(self._process.pid, interval)
        try:
            self._events = None if _epoll is None else _epoll()
            self._output = self._start(command)
            self._watch()
        except OSError as error:
            raise EngineError(f"{NAME} cannot be run: {command[0]}: {error.strerror}") from error

    def _start(self, command: list[str]) -> int:
        """Start the program, and return the descriptor of its output; on Linux set `_pidfd`."""
        raise NotImplementedError

    def _watch(self) -> None:
        """Let `_next_output` wait for the end of the program as well as for its output.

        Its end alone does not close the pipe: a process that was forked while the pipe was made has a copy.
        """
        assert self._output is not None
        if self._events is not None and self._pidfd is not None:
            os.set_blocking(self._output, False)
            self._events.register(self._output, select.EPOLLIN)
            self._events.register(self._pidfd, select.EPOLLIN)

    def _kill(self, number: int) -> None:
        """Send a signal to the program, if it runs."""
        raise NotImplementedError

    def _wait(self, timeout: float | None = None) -> None:
        """Wait for the end of the program, for at most `timeout` seconds, where that is possible."""

    def wait(self) -> bool:
        self._data = self._next_output()
        if not self._data:
            self._wait(_EXIT_SECONDS)  # it has closed its output, and exits now
        return bool(self._data)

    def _next_output(self) -> bytes:
        """Wait for output and return it; return nothing once the program has closed it, has ended, or was killed.

        A program that was killed ends when it is given a processor, which may take long.
        Nothing that the collector knows exists while this waits: neither `hiding` nor the class would hide it from the
        memory profile.
        """
        assert self._output is not None
        if self._pidfd is not None:
            while not self._events.poll(_LOOK_SECONDS):  # the list of events is dropped at once
                if self._is_killed:
                    return b""
        try:
            return os.read(self._output, _CHUNK)
        except BlockingIOError:  # only the program's end has come
            return b""

    def read(self) -> list[Stack]:
        data, self._data = self._data, b""
        return self._parser.feed(data)

    def stop(self) -> None:
        self._kill(signal.SIGKILL if self._is_stopping else signal.SIGTERM)
        self._is_killed, self._is_stopping = self._is_stopping, True

    def close(self) -> None:
        if self._output is not None:
            self._kill(signal.SIGKILL)
            self._wait()
            self.abandon()

    def abandon(self) -> None:
        if self._events is not None:
            self._events.close()
        descriptors, self._output, self._pidfd = (self._output, self._pidfd), None, None
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)
