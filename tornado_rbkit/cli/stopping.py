"""Stops a running command on a signal, or with the program beside which it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from typing import Final

from tornado_rbkit.profiler.discovery import is_dead, process_started

_POLL_SECONDS: Final = 0.2
_HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed; Windows has no SIGHUP


def stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return an event set by the first SIGTERM, SIGINT or SIGHUP, and one set by another SIGTERM or SIGINT.

    Under nohup, SIGHUP sets neither. It never sets the second event, because a closed terminal may send it twice.
    """
    first, second = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def note(number: int) -> None:
        if not first.is_set():
            first.set()
        elif number != _HANGUP:
            second.set()

    for number in (signal.SIGTERM, signal.SIGINT, _HANGUP):
        if number is not None and (number != _HANGUP or signal.getsignal(number) != signal.SIG_IGN):
            # Not loop.add_signal_handler, which is missing on Windows.
            signal.signal(number, lambda number, _: loop.call_soon_threadsafe(note, number))
    return first, second


async def pause(stopped: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, for at most `seconds`."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(stopped.wait(), seconds)


def stop_with_program(stopped: asyncio.Event, pid: int) -> None:
    """Set the event when a program says on standard input that it ends, or has ended without saying so.

    Standard input also ends when the program closes all its files or calls exec, as reloaders do: then the program is
    watched until it ends. Windows has no exec.
    """
    loop = asyncio.get_running_loop()
    started = process_started(pid)

    def wait() -> None:
        said = b""
        with contextlib.suppress(OSError):  # a standard input that cannot be read counts as ended
            descriptor = sys.stdin.fileno()  # not sys.stdin, whose lock this thread would hold at exit
            while data := os.read(descriptor, 4096):
                said = data
        while not said and os.name != "nt" and not is_dead(pid, started):
            time.sleep(_POLL_SECONDS)
        loop.call_soon_threadsafe(stopped.set)

    threading.Thread(target=wait, daemon=True).start()
