"""A command line that is run in the test's own process, which takes no time to start."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
from collections.abc import Callable
from unittest.mock import patch

from tornado_rbkit.cli.main import main
from tornado_rbkit.recording.recorder import Recorder
from tornado_rbkit.recording.recording import DATA

_SIGNALS = [number for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", None)) if number]


def run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself, and is not one that turns this process into another program.

    An exception that would be a traceback is raised; what is logged is not in the output.
    """
    output, errors = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = main(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def record_until(is_enough: Callable[[bytes], bool], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `record` with some arguments until it has written a published message that is enough, then press Ctrl-C."""
    write = Recorder.write
    is_over = False

    def note(self: Recorder, channel: int, command: str | None, payload: bytes) -> None:
        nonlocal is_over
        write(self, channel, command, payload)
        if not is_over and channel == DATA and is_enough(payload):
            is_over = True
            signal.raise_signal(signal.SIGINT)

    with patch.object(Recorder, "write", note):
        return run_here("record", *arguments)
