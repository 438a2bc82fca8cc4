"""Finds the running asyncio tasks, without running any of the host's code.

asyncio keeps the running task of each event loop in a dict, up to Python 3.13; from Python 3.14 on it returns the
running task of a given loop, which `suspended` has found. A loop of asyncio knows its thread; the thread of another
loop, such as uvloop's, is not known, nor is the name of a task whose class is not derived from asyncio's own, which is
written in C.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import compress, filterfalse, repeat, starmap
from typing import Any, Final

from tornado_rbkit.profiler.uninterrupted import ONCE

NO_THREAD: Final = 0


def read_tasks(known: Sequence[weakref.ref[Any]], loops: list[Any], names: list[str]) -> list[Iterator[None]]:
    """Return calls for `run_uninterrupted` that fill two lists with the loops and the names of their running tasks.

    Args:
        known: the event loops that are looked at from Python 3.14 on.
        loops: receives the loops.
        names: receives the names.
    """
    kind = getattr(sys.modules.get("_asyncio"), "Task", None)
    running = getattr(sys.modules.get("asyncio.tasks"), "_current_tasks", None)
    tasks: list[Any] = []
    every_loop: list[Any] = []
    if kind is None or "asyncio.base_events" not in sys.modules:
        return []
    if sys.version_info >= (3, 14):
        alive = filterfalse(partial(operator.is_, None), map(weakref.ref.__call__, known))
        found = [
            map(every_loop.extend, [alive]),
            map(tasks.extend, [map(sys.modules["_asyncio"].current_task, every_loop)]),
        ]
    elif type(running) is dict:
        found = [map(every_loop.extend, [running]), map(tasks.extend, starmap(running.values, ONCE))]
    else:
        return []
    return [
        *found,
        map(loops.extend, [compress(every_loop, map(isinstance, tasks, repeat(kind)))]),
        map(names.extend, [map(kind.get_name, compress(tasks, map(isinstance, tasks, repeat(kind))))]),
        starmap(tasks.clear, ONCE),
        starmap(every_loop.clear, ONCE),
    ]


def thread_of_loop(loop: Any) -> int:
    """Return the thread on which a loop of asyncio runs, `NO_THREAD` for another loop."""
    base = sys.modules["asyncio.base_events"].BaseEventLoop
    thread = loop.__dict__.get("_thread_id") if isinstance(loop, base) else None
    return thread if type(thread) is int else NO_THREAD
