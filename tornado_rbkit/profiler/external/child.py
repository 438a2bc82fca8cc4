"""Runs the program `stack_reader` as a child of this process, for another process that is sampled."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.process import RunningProcess
from tornado_rbkit.profiler.external.program import NAME, Program, ProgramEngine

_PATIENCE: Final = 10.0  # seconds for one look


class ChildEngine(ProgramEngine):
    """The program as a child of this process."""

    _child: subprocess.Popen[bytes] | None = None

    @property
    def has_ended_well(self) -> bool:
        return self._child is not None and self._child.returncode == 0

    def _start(self, command: list[str]) -> int:
        """Start the program, and return the descriptor of its output."""
        with _accepting_sigterm():
            self._child = subprocess.Popen(  # noqa: S603 - the command is ours
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C must reach only this process
            )
        if sys.platform == "linux":
            self._pidfd = os.pidfd_open(self._child.pid)
        assert self._child.stdout is not None
        with self._child.stdout as output:
            return os.dup(output.fileno())

    def _kill(self, number: int) -> None:
        if self._child is not None:
            self._child.send_signal(number)

    def _wait(self, timeout: float | None = None) -> None:
        """Wait for the end of the program, for at most `timeout` seconds."""
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout)


def check(process: RunningProcess, program: Program) -> None:
    """Let the program look at a process once.

    Raises:
        EngineError: it cannot read the stacks, or cannot be run.
    """
    command = program.check_command(process.pid)
    try:
        looked = subprocess.run(  # noqa: S603 - the command is ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_PATIENCE,
            check=False,
        )
    except OSError as error:
        raise EngineError(f"{NAME} cannot be run: {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{NAME} did not read {process} within {_PATIENCE:g} s") from error
    if looked.returncode:
        if not process.is_alive():
            raise EngineError(f"{process} has ended")
        text = " ".join(looked.stderr.decode("utf-8", "replace").split())[-300:]
        raise EngineError(f"{process} cannot be read: {text or f'exit status {looked.returncode}'}")


@contextlib.contextmanager
def _accepting_sigterm() -> Iterator[None]:
    """Let children begin with the signal that ends them; this thread blocks it, and children inherit that."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
