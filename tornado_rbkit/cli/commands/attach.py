"""``attach``: a running Python process, sampled from outside, and a web server in a process beside this one."""

from __future__ import annotations

import argparse
import asyncio
import re
from typing import Final

from tornado_rbkit.cli.address import add_page_options
from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.injecting import serve_injected
from tornado_rbkit.cli.output import say
from tornado_rbkit.cli.program import show_page
from tornado_rbkit.cli.stopping import pause, stop_signals
from tornado_rbkit.profiler.external.profile import Attachment, attach
from tornado_rbkit.profiler.folder import check_chosen_folder

_LOOK_SECONDS: Final = 0.2


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pid", type=_pid, metavar="PID", help="pid of the process; Linux, CPython 3.10 to 3.15")
    parser.add_argument(
        "--inject",
        action="store_true",
        help="run the full profiler (memory, snapshots, stacks) inside the process until this command ends; Linux, "
        "CPython 3.14 and newer, as soon as its main thread executes Python code (default: sample it from outside)",
    )
    add_page_options(parser)


def _pid(text: str) -> int:
    pid = int(text) if re.fullmatch(r"[0-9]{1,10}", text) else 0
    if not 0 < pid < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is not a pid; allowed: 1 to {(1 << 31) - 1}")
    return pid


async def _run(options: argparse.Namespace) -> int:
    check_chosen_folder()
    stopped, _ = stop_signals()
    if options.inject:
        return await serve_injected(options, stopped)
    with attach(options.pid) as attachment:
        show_page(attachment.server, options)
        children = attachment.process.describe_children()
        if children:  # such as the workers of a web server
            say(f"{attachment.process}: {children}")
        await _watch(attachment, stopped)
    return 0


async def _watch(attachment: Attachment, stopped: asyncio.Event) -> None:
    """Wait for a signal or the end of the process.

    Raises:
        EngineError: the process runs, but can no longer be sampled.
    """
    reported: str | None = None
    while not stopped.is_set():
        if not attachment.process.is_alive():
            say(f"{attachment.process} has ended")
            return
        if attachment.failure is not None:
            raise attachment.failure
        if attachment.trouble and not reported:
            reported = attachment.trouble
            say(reported)
        await pause(stopped, _LOOK_SECONDS)


COMMAND = Command(
    name="attach",
    help="sample a running Python process that was not prepared, and serve it",
    example="tornado-rbkit attach --open 4711",
    add_options=_add_options,
    run=_run,
)
