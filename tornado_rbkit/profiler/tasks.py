"""Finds the running asyncio tasks, without running any of the host's code.

asyncio keeps the running task of each event loop in a dict, up to Python 3.13. A loop of asyncio knows its thread; the
thread of another loop, such as uvloop's, is not known, nor is the name of a task whose class is not derived from
asyncio's own, which is written in C.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import compress, repeat, starmap
from typing import Any, Final

from tornado_rbkit.profiler.uninterrupted import ONCE

NO_THREAD: Final = 0


def running_tasks() -> dict[Any, Any] | None:
    """Return asyncio's own dict of the running tasks by event loop, None if there is none."""
    tasks = getattr(sys.modules.get("asyncio.tasks"), "_current_tasks", None)
    return tasks if type(tasks) is dict and hasattr(sys.modules.get("_asyncio"), "Task") else None


def read_tasks(running: dict[Any, Any], loops: list[Any], names: list[str]) -> list[Iterator[None]]:
    """Return calls for `run_uninterrupted` that fill two lists with the loops and the names of their running tasks."""
    kind = sys.modules["_asyncio"].Task
    tasks: list[Any] = []
    every_loop: list[Any] = []
    return [
        map(every_loop.extend, [running]),
        map(tasks.extend, starmap(running.values, ONCE)),
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
