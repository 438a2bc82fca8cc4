"""Run a Python program under the profiler, with a server beside it."""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import webbrowser
from collections.abc import Callable

from tornado_rbkit.profiler import start_server
from tornado_rbkit.protocol import RbkitError


class ServerFailedError(RbkitError):
    """The web server beside the program did not start; it has said why."""


def prepare(module: list[str], script: list[str], port: int, open_browser: bool) -> Callable[[], None]:
    """Start the profiler in this process and a web server in another, and return what runs the program.

    The program has the main thread, its own ``sys.argv`` and ``sys.path``, and this process's signals; its exit status
    is the process's. The web server ends with the process, however that ends.

    Args:
        module: a module and its arguments, or nothing.
        script: a script and its arguments, or nothing.
        port: of the web server; 0 picks a free one.
        open_browser: whether to show the page.

    Raises:
        ValueError: there is neither a module nor a script.
        OSError: the script cannot be read.
        ServerFailedError: the web server did not start.
    """
    program = module or script
    if not program:
        raise ValueError("there is no program to run; allowed: a script, or -m and a module")
    if not module and not os.path.exists(program[0]):
        raise FileNotFoundError(f"there is no script {program[0]!r}")
    server = start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", program[0])
    url = _serve_beside(server.pub, server.req, port)
    print(f"tornado-rbkit: {url}", file=sys.stderr, flush=True)
    if open_browser:
        webbrowser.open(url)

    def run() -> None:
        sys.argv[:] = program
        if module:
            sys.path.insert(0, os.getcwd())
            runpy.run_module(program[0], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, os.path.dirname(os.path.abspath(program[0])))
            runpy.run_path(program[0], run_name="__main__")

    return run


def _serve_beside(pub: str, req: str, port: int) -> str:
    """Start a server that lives as long as this process holds its standard input open; return its page's URL."""
    command = [sys.executable, "-m", "tornado_rbkit", "serve", "--until-eof", "--port", str(port)]
    process = subprocess.Popen(  # noqa: S603 - it is this very package
        [*command, "--pub", pub, "--req", req],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is the program's
    )
    assert process.stdin is not None
    assert process.stdout is not None
    ready = process.stdout.readline().split()
    process.stdout.close()
    if not ready:
        process.stdin.close()
        process.wait()
        raise ServerFailedError("the web server did not start")
    atexit.register(_end, process)
    return ready[1]


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.wait()
