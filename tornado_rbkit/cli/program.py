"""Runs a Python program under the profiler, with a web server in a process beside it.

The web server is not a child of the program, which may wait for its children or end them. It ends when the program
says so on its standard input, a pipe whose other end this process holds, or has ended, which closes the pipe.
"""

from __future__ import annotations

import argparse
import atexit
import builtins
import contextlib
import importlib.util
import os
import pkgutil
import re
import runpy
import secrets
import select
import subprocess
import sys
import types
import webbrowser
from collections.abc import Callable
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from tornado_rbkit.cli.output import say
from tornado_rbkit.errors import ServerFailedError
from tornado_rbkit.profiler import Server, real_time
from tornado_rbkit.profiler.follow import follow, unfollowed

if TYPE_CHECKING:
    from tornado_rbkit.profiler.injection import Injected

_PATIENCE: Final = 5.0  # seconds; closing the clients takes the server at most two


def prepare(options: argparse.Namespace) -> Callable[[], None]:
    """Start the profiler in this process and a web server in another; return a function that runs the program.

    The program's child processes are followed: see `tornado_rbkit.profiler.follow`.

    The printed URL contains the token that the web server requires.

    The program has the main thread, its own ``sys.argv``, ``sys.orig_argv`` and ``sys.path``, and this process's
    signals; its exit status is the exit status of the process. The web server ends with the process, even if the
    process is killed.

    Args:
        options: the options of `run`; `module` or `script` is the program and its arguments, the other one is empty.

    Raises:
        SamplingError: with --cpu, sampling the stacks could crash this process.
        ValueError: there is neither a module nor a script.
        OSError: there is no such script.
        ServerFailedError: the web server did not start.
        SystemExit: there is no such module (with the message of ``python -m``), or the server rejected its arguments.
    """
    module, program = options.module, options.module or options.script
    if not program:
        raise ValueError("there is no program to run; allowed: a script, or -m and a module")
    if module:
        sys.path[0] = os.getcwd()
        _check_module(program[0])
    else:
        _check_script(program[0])
    server = follow(program[0], cpu=options.cpu, memory=options.memory)
    show_page(server, options)

    def run() -> None:
        sys.orig_argv[1:] = [*_interpreter_options(), *(["-m"] if module else []), *program]  # for reloaders
        sys.argv[:] = program
        try:
            if module:
                sys.modules["__main__"] = types.ModuleType("__main__")
                runpy._run_module_as_main(program[0])  # type: ignore[attr-defined]  # python -m runs it too
            else:
                _run_script(program[0])
        except BaseException:
            sys.excepthook = _without_our_frames(sys.excepthook)
            raise

    return run


def _interpreter_options() -> list[str]:
    """Return the options of Python itself, such as ``-X dev``, in the command that has started this process."""
    before = sys.orig_argv[1 : max(1, len(sys.orig_argv) - len(sys.argv) + 1)]  # with the script, or -m and the module
    return before[: -2 if before[-2:-1] == ["-m"] else -1]


def _run_script(path: str) -> None:
    """Run what ``python PATH`` runs: a source file, a .pyc file, or a folder or zip file with a __main__ module.

    A file runs in a ``__main__`` that is kept, because its threads and pickle need it.
    """
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if pkgutil.get_importer(path) is not None:
        sys.path[0] = path
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]  # as the interpreter does
        return
    main.__file__ = os.path.abspath(path)
    main.__dict__["__builtins__"] = builtins
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    with open(path, "rb") as file:
        code = pkgutil.read_code(file)  # runpy reads a .pyc file with it
        if code is None:
            file.seek(0)
            code = compile(file.read(), main.__file__, "exec", dont_inherit=True)
    exec(code, main.__dict__)  # noqa: S102 - this is what running a script is


def _check_module(name: str) -> None:
    """Exit as ``python -m`` does if there is no such module, before anything is started."""
    top = name.partition(".")[0]
    if top and importlib.util.find_spec(top) is None:
        sys.exit(f"{sys.executable}: No module named {name}")


def _check_script(path: str) -> None:
    """Raise FileNotFoundError if `path` is no script, for example a command, as `run` takes no commands."""
    name = os.path.basename(path)
    if re.fullmatch(r"python[\d.]*(\.exe)?", name) and not os.path.isdir(path):
        raise FileNotFoundError(f"{path!r} is not a script; leave it out: `run` runs the script in its own Python")
    if not os.path.exists(path):
        module = name if name.isidentifier() else "MODULE"
        raise FileNotFoundError(
            f"there is no script {path!r}; allowed: the path of a script, or a module: -m {module}"
        )
    if os.path.isdir(path) and PathFinder.find_spec("__main__", [path]) is None:
        raise FileNotFoundError(f"there is no script {path!r}: the folder has no __main__.py")


def _without_our_frames(show: Callable[..., object]) -> Callable[..., None]:
    """Return an excepthook that shows the program's tracebacks without the frames of this module."""

    def excepthook(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
        rest = traceback
        while rest is not None:
            if rest.tb_frame.f_code.co_filename == __file__:
                traceback = rest.tb_next
            rest = rest.tb_next
        show(kind, error.with_traceback(traceback), traceback)

    return excepthook


def own_module(name: str) -> list[str]:
    """Return the command that runs a module of this package, ignoring modules in the current directory."""
    if sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-m", name]
    start = (
        f"import sys; sys.path.pop(0); import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-c", start]


_DETACHED: Final = """
import sys
del sys.path[0]
import os
if os.fork():
    os._exit(0)
import runpy
status = 1
try:
    runpy.run_module('tornado_rbkit', run_name='__main__', alter_sys=True)
except SystemExit as end:
    status = int(end.code or 0)
except BaseException:
    sys.excepthook(*sys.exc_info())
finally:
    try:
        sys.stdout.flush()
        os.write(1, b'status %d' % status)
    except OSError:
        pass  # the program was killed
    os._exit(0)
"""
"""Runs the command line in a child of a process that exits immediately, and prints its exit status at the end."""


def show_page(server: Server | Injected, options: argparse.Namespace) -> None:
    """Start a web server for a profiler, which ends with this process, and print the URL of its page.

    Args:
        server: the profiler's server.
        options: the options of `add_page_options`.

    Raises:
        ServerFailedError: the web server did not start.
        SystemExit: the web server has rejected an argument, and printed why.
    """
    url = _serve_beside(server, options.host, options.port)
    say(url)
    if options.open:
        webbrowser.open(re.sub(r"//(0\.0\.0\.0|\[::\]):", "//localhost:", url, count=1))  # all addresses


def _serve_beside(server: Server | Injected, host: str, port: int) -> str:
    """Start a web server that runs until this process ends or calls `_end`; return the URL of its page.

    The URL contains the token that the server requires: RBKIT_TOKEN, else a new one.
    """
    token = os.environ.get("RBKIT_TOKEN", secrets.token_urlsafe(24))
    can_fork = hasattr(os, "fork")
    command = [
        *([sys.executable, "-c", _DETACHED] if can_fork else own_module("tornado_rbkit")),
        *("-q", "serve", f"--beside={os.getpid()}", f"--host={host}", "--port", str(port)),
        *("--pub", server.pub, "--req", server.req),
        *(("--family", server.family, server.name) if server.family else ()),
    ]
    process = subprocess.Popen(  # noqa: S603 - the command is this package
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # so that nothing behind the first line is read with it
        start_new_session=True,  # Ctrl-C must reach only the program
        env={**unfollowed(dict(os.environ)), "RBKIT_TOKEN": token},  # the process list does not show it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    kind, _, text = process.stdout.readline().decode().rstrip().partition(" ")
    if can_fork:
        process.wait()
    if kind != "ready":
        process.stdin.close()
        process.stdout.close()
        if (text if can_fork else str(process.wait())) == "2":
            raise SystemExit(2)  # the server has printed which argument is wrong
        raise ServerFailedError("the web server did not start")
    atexit.register(_end, process, os.getpid())
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=process.stdin.close)  # a child that outlives the program must not hold it
    return f"{text}?token={quote(token, safe='')}"


def _end(process: subprocess.Popen[bytes], pid: int) -> None:
    """End the web server, and wait until it has closed its standard output."""
    if os.getpid() != pid:
        return  # a forked child's exit is not the end of the program
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it was killed
        process.stdin.write(b"end")
    process.stdin.close()
    status = _last_line(process).removeprefix("status ")
    if status != "0":
        reason = {"": "was killed", "running": f"is still running after {_PATIENCE:g} s"}.get(
            status, f"ended with status {status}"
        )
        say(f"the web server {reason}")


def _last_line(process: subprocess.Popen[bytes]) -> str:
    """Return what the web server prints at its end, or its exit status on Windows, where it is a child.

    At the end of the process no thread can be started on Python 3.12.0 and 3.12.1.
    """
    assert process.stdout is not None
    if os.name == "nt":
        with contextlib.suppress(subprocess.TimeoutExpired):
            return str(process.wait(_PATIENCE))
        return "running"
    deadline = real_time.monotonic() + _PATIENCE
    last = b""
    with process.stdout as output:
        while select.select([output], [], [], max(0.0, deadline - real_time.monotonic()))[0]:
            data = os.read(output.fileno(), 4096)
            if not data:
                return last.decode().strip()
            last += data
    return "running"
