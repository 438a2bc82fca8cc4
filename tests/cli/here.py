"""A command line that is run in the test's own process, which takes no time to start."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess

from tornado_rbkit.cli.main import main

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
