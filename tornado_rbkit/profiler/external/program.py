"""Runs a program that reads the stacks of a process, and reads the program's output, which is in the format MOJO."""

from __future__ import annotations

import os
import select
import signal
from typing import Any, Final, Protocol

from tornado_rbkit.profiler.external.engine import EngineError, Stack
from tornado_rbkit.profiler.external.mojo import MojoParser
from tornado_rbkit.profiler.external.process import RunningProcess

_CHUNK: Final = 1 << 16  # the capacity of a pipe
_EXIT_SECONDS: Final = 1.0
_epoll: Final[Any] = getattr(select, "epoll", None)  # here, because gevent and eventlet remove it; Linux has it


class Program(Protocol):
    """A program that samples a process. Any thread."""

    @property
    def name(self) -> str:
        """Its name, without the version."""

    def command(self, pid: int, interval: float, clock_type: str) -> list[str]:
        """Return the command that samples a process every `interval` seconds (see `Engine.start`)."""

    def delay(self, interval: float) -> float:
        """Return the seconds that the first output may take."""

    def check_command(self, pid: int) -> list[str]:
        """Return the command that looks at a process once."""

    def failure(self, process: RunningProcess, status: int, printed: str) -> str:
        """Return why that command has failed, from its exit status and the last that it has printed on stderr."""


class ProgramEngine:
    """An `Engine` that runs a program; its subclasses start and end the program.

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
        self._is_stopping = False
        self._parser = MojoParser(program.name)

    @property
    def name(self) -> str:
        return f"{self._program.name} {self._parser.version}".rstrip()

    @property
    def has_ended_well(self) -> bool:
        return True  # the exit status of a process that is not a child cannot be read

    def start(self, interval: float, clock_type: str) -> None:
        command = self._program.command(self._process.pid, interval, clock_type)
        try:
            self._events = None if _epoll is None else _epoll()
            self._output = self._start(command, environment())
            self._watch()
        except OSError as error:
            raise EngineError(f"{self._program.name} cannot be run: {command[0]}: {error.strerror}") from error

    def _start(self, command: list[str], environment: dict[str, str]) -> int:
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
        """Wait for output and return it; return nothing once the program has closed it, or has ended.

        Nothing that the collector knows exists while this waits: neither `hiding` nor the class would hide it from the
        memory profile.
        """
        assert self._output is not None
        if self._pidfd is not None:
            self._events.poll()  # the list of events is dropped at once
        try:
            return os.read(self._output, _CHUNK)
        except BlockingIOError:  # only the program's end has come
            return b""

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
        if self._events is not None:
            self._events.close()
        descriptors, self._output, self._pidfd = (self._output, self._pidfd), None, None
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)


def environment() -> dict[str, str]:
    """Return the environment in which a sampling program runs."""
    return {**os.environ, "AUSTIN_NO_LOGGING": "1"}  # else austin writes to the system's log
