"""Puts the profiler into a running process, and serves it until a signal arrives or the process ends."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Final

from tornado_rbkit.cli.output import say
from tornado_rbkit.cli.program import show_page
from tornado_rbkit.cli.stopping import pause
from tornado_rbkit.profiler.folder import DIRECTORY_VARIABLE, runtime_folder
from tornado_rbkit.profiler.injection import Injected, Injection, inject

_LOOK_SECONDS: Final = 0.1

_PATIENCE: Final = 3.0
"""Seconds after which a process that has not executed the script is reported."""


async def serve_injected(options: argparse.Namespace, stopped: asyncio.Event) -> int:
    """Put the profiler into a process and serve it; return the exit status: 1 if it was stopped before that worked.

    Args:
        options: the options of `attach`.
        stopped: ends the command.

    Raises:
        ProcessError: there is no such process, or it cannot run the profiler.
        ServerFailedError: the web server did not start.
    """
    with inject(options.pid) as injection:
        try:
            server = await _wait_for_server(injection, stopped)
            if server is not None:
                _report_server(injection, server)
                show_page(server, options)
                await _watch(injection, stopped)
        finally:
            if not injection.close():
                say(f"{injection.process} has not removed the profiler yet; it does as soon as it runs again")
    return 1 if server is None else 0


async def _wait_for_server(injection: Injection, stopped: asyncio.Event) -> Injected | None:
    """Return the server in the process; None if the command was stopped before."""
    deadline: float | None = time.monotonic() + _PATIENCE
    while not stopped.is_set():
        server = injection.poll()
        _report_messages(injection)
        if server is not None:
            return server
        if deadline is not None and time.monotonic() > deadline and not injection.has_begun:
            deadline = None
            say(
                f"{injection.process} has not run the profiler after {_PATIENCE:g} s: {injection.obstacle()}. It does "
                "before the next step of its main thread; waiting (Ctrl-C withdraws the profiler)"
            )
        await pause(stopped, _LOOK_SECONDS)
    say(f"the profiler was withdrawn from {injection.process} before it ran")
    return None


def _report_server(injection: Injection, server: Injected) -> None:
    if not server.is_new:
        say(f"{injection.process} has a profiler already, which is used and left as it is")
    if server.folder not in ("", str(runtime_folder())):
        say(f"it is announced in {server.folder}; `list` and `serve` look there with {DIRECTORY_VARIABLE} set to it")


def _report_messages(injection: Injection) -> None:
    for message in injection.messages:
        say(f"{injection.process}: {message}")
    injection.messages.clear()


async def _watch(injection: Injection, stopped: asyncio.Event) -> None:
    """Wait for a signal, the end of the process, or another program in it."""
    while not stopped.is_set():
        is_connected = injection.is_connected()
        _report_messages(injection)
        if not is_connected:
            lost = "has lost the profiler: it executed another program, or closed its descriptors"
            say(f"{injection.process} {lost if injection.process.is_alive() else 'has ended'}")
            return
        await pause(stopped, _LOOK_SECONDS)
