"""Acts on a process with an interpreter of the version that runs in it. Linux, CPython 3.14 and newer."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from tornado_rbkit.profiler.external.process import ProcessError, RunningProcess
from tornado_rbkit.profiler.external.stack_reader.layouts import python_version

_OLDEST: Final = 0x030E0000
_INSTEAD: Final = "leave out --inject to sample it from outside, or start it with `tornado-rbkit run`"
_NEEDS: Final = "--inject needs Python 3.14 or newer"
_SECONDS: Final = 30.0

_REMOTE_EXEC: Final = "import sys; sys.remote_exec(int(sys.argv[1]), sys.argv[2])"

_REASONS: Final = {
    "not enabled in the remote process": "PYTHON_DISABLE_REMOTE_DEBUG or -X disable-remote-debug was set at its start",
    "find the main thread": "its Python starts or ends just now",
}
"""What the errors of `sys.remote_exec` mean."""

_MAIN_FRAME: Final = """
import sys
from _remote_debugging import RemoteUnwinder
pid = int(sys.argv[1])
for part in RemoteUnwinder(pid, all_threads=True).get_stack_trace():  # an interpreter, or before 3.15 a thread
    for thread in getattr(part, "threads", [part]):
        if thread.thread_id == pid:
            frame = next(frame for frame in thread.frame_info if not frame.filename.startswith(("<", "~")))
            line = frame.lineno if hasattr(frame, "lineno") else frame.location.lineno
            print(f"{frame.funcname} ({frame.filename}:{line})")
"""


class Interpreter:
    """An interpreter that runs code about a process: the standard library demands one of the process's version.

    It is this one, or the executable of the process.

    Raises:
        ProcessError: the process is no CPython 3.14 or newer, or there is no interpreter of its version.
    """

    def __init__(self, process: RunningProcess) -> None:
        self._process = process
        version = _version(process)
        if version is None or version < _OLDEST:
            runs = f"Python {_text(version)}" if version else "no CPython that can be recognized"
            instead = _INSTEAD if version else process.describe_children()  # sampling needs a CPython, too
            raise ProcessError("; ".join(filter(None, (f"{process} runs {runs}", _NEEDS, instead))))
        if is_compatible(version, sys.hexversion):
            self._path = sys.executable
            return
        self._path = os.readlink(f"/proc/{process.pid}/exe")
        if not os.path.basename(self._path).startswith("python") or not os.access(self._path, os.X_OK):
            theirs, ours = _text(version), _text(sys.hexversion)
            raise ProcessError(f"{process} runs Python {theirs}, and this command {ours}; run it with Python {theirs}")

    def remote_exec(self, script: str) -> None:
        """Let the main thread of the process execute a script before its next step, instead of an earlier one.

        Raises:
            ProcessError: the process has ended or takes no scripts.
        """
        ended = self._run(_REMOTE_EXEC, script)
        if ended.returncode:
            error = ended.stderr.strip().rpartition("\n")[2]
            reason = next((_REASONS[part] for part in _REASONS if part in error), error)
            raise ProcessError(f"{self._process} takes no scripts: {reason}; {_INSTEAD}")

    def main_frame(self) -> str:
        """Return where the main thread of the process is, an empty string if that cannot be determined.

        This is a private module of the standard library, which may change in any version.
        """
        try:
            ended = self._run(_MAIN_FRAME)
        except ProcessError:
            return ""
        return "" if ended.returncode else ended.stdout.strip()

    def _run(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self._path, "-I", "-S", "-c", code, str(self._process.pid), *arguments]
        try:
            return subprocess.run(  # noqa: S603 - the command is ours
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_SECONDS,
                check=False,
                start_new_session=True,  # Ctrl-C must reach only this process
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProcessError(f"{self._path} cannot act on {self._process}: {error}") from error


def _version(process: RunningProcess) -> int | None:
    try:
        return python_version(process.pid)
    except OSError:  # it has ended
        return None


def is_compatible(version: int, other: int) -> bool:
    """Return whether two versions have the same structures: one minor version, or exactly one if it is no release."""
    return version == other or (version >> 16 == other >> 16 and version & other & 0xF0 == 0xF0)


def _text(version: int) -> str:
    return f"{version >> 24}.{version >> 16 & 0xFF}"
