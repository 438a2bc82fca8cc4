"""Runs the program austin on a process, and reads the stacks that it writes.

Austin (https://github.com/P403n1x87/austin, GPL-3.0-or-later) reads another process's memory without stopping it. It
is executed as a program of its own, from the PyPI package austin-dist (extra ``attach``); nothing of it is imported or
part of this package. Its options are those of ``austin --help``.

Supported are 3.7 and later versions before 4. Version 4 writes another format.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from typing import Final

from tornado_rbkit.profiler.external.engine import EngineError, Stack
from tornado_rbkit.profiler.external.mojo import MojoParser
from tornado_rbkit.profiler.external.process import RunningProcess, yama_rule

MAX_INTERVAL: Final = 0.001
"""Seconds. Austin writes its output in blocks of 4 KiB, which a longer interval would hold back for seconds; of its
looks those are published that are an interval apart."""

_CHUNK: Final = 1 << 16  # the capacity of a pipe
_PATIENCE: Final = 10.0  # seconds for one look
_EXIT_SECONDS: Final = 1.0
_NOT_PYTHON: Final = 32  # exit status
_NO_PROCESS: Final = 36
_INSTALL: Final = "pip install 'tornado_rbkit[attach]'"


class Austin:
    """An `Engine` that runs austin as a child process.

    Args:
        process: the process to sample.
        path: the program, from `find_austin`.
    """

    def __init__(self, process: RunningProcess, path: str) -> None:
        self._process = process
        self._path = path
        self._child: subprocess.Popen[bytes] | None = None
        self._output: int | None = None
        self._data = b""
        self._is_stopping = False
        self._parser = MojoParser()

    @property
    def name(self) -> str:
        return f"austin {self._parser.version}".rstrip()

    @property
    def has_ended_well(self) -> bool:
        return self._child is not None and self._child.returncode == 0

    def start(self, interval: float, clock_type: str) -> None:
        microseconds = max(1, int(min(interval, MAX_INTERVAL) * 1e6))
        mode = "-Pbgs" if clock_type == "cpu" else "-Pbg"
        command = [self._path, mode, f"-i{microseconds}", f"-p{self._process.pid}"]
        try:
            self._output = self._start(command, _environment())
        except OSError as error:
            raise EngineError(f"austin cannot be run: {self._path}: {error.strerror}") from error

    def _start(self, command: list[str], environment: dict[str, str]) -> int:
        """Start austin, and return the descriptor of its output."""
        with _accepting_signals():
            self._child = subprocess.Popen(  # noqa: S603 - the command is ours
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C must reach only this process
                env=environment,
            )
        assert self._child.stdout is not None
        with self._child.stdout as output:
            return os.dup(output.fileno())

    def _kill(self, number: int) -> None:
        if self._child is not None:
            self._child.send_signal(number)

    def _wait(self, timeout: float | None = None) -> None:
        """Wait for the end of austin, for at most `timeout` seconds."""
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout)

    def wait(self) -> bool:
        assert self._output is not None
        self._data = os.read(self._output, _CHUNK)
        if not self._data:
            self._wait(_EXIT_SECONDS)  # it has closed its output, and exits now
        return bool(self._data)

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
        output, self._output = self._output, None
        if output is not None:
            os.close(output)


def check(process: RunningProcess, path: str) -> None:
    """Let austin print the stacks of a process once.

    Raises:
        EngineError: it cannot read them, or cannot be run.
    """
    try:
        looked = subprocess.run(  # noqa: S603 - the command is ours
            [path, "-w", str(process.pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_PATIENCE,
            check=False,
            env=_environment(),
        )
    except OSError as error:
        raise EngineError(f"austin cannot be run: {path}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"austin did not read {process} within {_PATIENCE:g} s") from error
    if looked.returncode:
        raise EngineError(_failure(process, looked.returncode, looked.stderr))


def _failure(process: RunningProcess, status: int, printed: bytes) -> str:
    if status == _NO_PROCESS or not process.is_alive():
        return f"{process} has ended"
    if status == _NOT_PYTHON:
        rule = yama_rule() or "austin may not read it (in a container, start it with --cap-add=SYS_PTRACE)"
        return f"{process} does not run CPython 3.8 to 3.13, or {rule}"
    if status < 0:
        return f"austin cannot read {process}: it crashed (signal {-status}); it reads CPython 3.8 to 3.13"
    text = re.sub(r"\x1b\[[0-9;]*m|[^\x20-\x7e]+", " ", printed.decode("utf-8", "replace"))
    return f"austin cannot read {process} (exit status {status}): {' '.join(text.split())[-300:]}"


def find_austin() -> str:
    """Return the path of austin beside this interpreter, else on the PATH.

    Raises:
        EngineError: it is in neither.
    """
    path = shutil.which("austin", path=sysconfig.get_path("scripts")) or shutil.which("austin")
    if path is None or not os.path.isabs(path):  # not a program that lies in the current folder
        raise EngineError(f"the sampler austin is not installed; {_INSTALL}")
    return path


@contextlib.contextmanager
def _accepting_signals() -> Iterator[None]:
    """Let children begin with the signals that end them; this thread blocks them, and children inherit that.

    SIGPIPE ends austin if this process was killed.
    """
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGPIPE, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment() -> dict[str, str]:
    return {**os.environ, "AUSTIN_NO_LOGGING": "1"}  # else it writes to the system's log
