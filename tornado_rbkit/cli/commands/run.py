"""``run``: a Python program under the profiler, and a web server in a process beside it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Final

from tornado_rbkit.cli.address import add_page_options
from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.program import prepare
from tornado_rbkit.profiler.arguments import ENGINE_VARIABLE, ENGINES
from tornado_rbkit.profiler.folder import check_chosen_folder

_FLAGS: Final = ("--open", "--cpu", "--memory")
_WITH_VALUE: Final = ("--host", "--port", "--cpu-engine")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="sample stacks, every 10 ms, from the start (default: when a client asks for it)",
    )
    parser.add_argument(
        "--memory", action="store_true", help="profile memory from the start (default: when a client asks for it)"
    )
    parser.add_argument(
        "--cpu-engine",
        choices=ENGINES,
        help="what samples stacks: a process outside (Linux), a thread of the program, or "
        "the former where it works, else a thread (default: RBKIT_CPU_ENGINE, else auto)",
    )
    add_page_options(parser)
    parser.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="MODULE",
        help="module to run, with its arguments, as `python -m` does (default: a script is run)",
    )
    parser.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT", help="script to run, with its arguments")


def _normalize(arguments: list[str]) -> list[str]:
    """Remove ``--`` before the program, and make two arguments of ``-mMODULE``.

    The arguments of the program are unchanged.
    """
    plain = list(arguments)
    at = 0
    while plain[at : at + 1] and plain[at].partition("=")[0] in (*_FLAGS, *_WITH_VALUE):
        at += 2 if plain[at] in _WITH_VALUE else 1
    if plain[at : at + 1] == ["--"]:
        del plain[at]
    elif at < len(plain) and plain[at].startswith("-m"):
        plain[at : at + 1] = ["-m", *filter(None, [plain[at][2:]])]
    return plain


def _run(options: argparse.Namespace) -> Callable[[], object]:
    check_chosen_folder()
    if options.cpu_engine is not None:
        os.environ[ENGINE_VARIABLE] = options.cpu_engine  # for the child processes too
    return prepare(options)


COMMAND = Command(
    name="run",
    help="run a Python program under the embedded profiler, and serve it",
    example="tornado-rbkit run --open script.py --its-own-option\ntornado-rbkit run -m package.module",
    add_options=_add_options,
    run=_run,
    normalize=_normalize,
    usage="%(prog)s [-h] [--cpu] [--memory] [--cpu-engine ENGINE] [--open] [--host HOST] [--port PORT] "
    "(SCRIPT | -m MODULE) [ARGUMENT ...]",
    is_program=True,
)
