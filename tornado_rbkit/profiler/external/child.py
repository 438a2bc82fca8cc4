"""Runs austin as a child of this process, for another process that is sampled."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from tornado_rbkit.profiler.external.austin import Austin, environment
from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.process import RunningProcess, yama_rule

_PATIENCE: Final = 10.0  # seconds for one look
_NOT_PYTHON: Final = 32  # exit status
_NO_PROCESS: Final = 36


class ChildAustin(Austin):
    """Austin as a child of this process."""

    _child: subprocess.Popen[bytes] | None = None

    @property
    def has_ended_well(self) -> bool:
        return self._child is not None and self._child.returncode == 0

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
        if sys.platform == "linux":
            self._pidfd = os.pidfd_open(self._child.pid)
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
            env=environment(),
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
