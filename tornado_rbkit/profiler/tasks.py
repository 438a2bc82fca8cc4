"""Finds the running asyncio tasks, without running any of the host's code.

asyncio keeps the running task of each event loop in a dict, up to Python 3.13; from Python 3.14 on it returns the
running task of a given loop, which `event_loops` has found. A loop of asyncio knows its thread; the thread of another
loop, such as uvloop's, is not known, nor is the name of a task whose class is not derived from asyncio's own, which is
written in C.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Iterator
from functools import partial
from itertools import compress, filterfalse, repeat, starmap
from typing import Any, Final

NO_THREAD: Final = 0


def read_tasks(known: list[weakref.ref[Any]], loops: list[Any], names: list[str]) -> list[Iterator[Any]]:
    """Return endless calls for `RepeatedCalls` that list the event loops and the names of their running tasks.

    There are none if asyncio is not imported.

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
        called = map(map, repeat(weakref.ref.__call__), repeat(known))
        found: list[Iterator[Any]] = [
            map(every_loop.extend, map(filterfalse, repeat(partial(operator.is_, None)), called)),
            map(tasks.extend, map(map, repeat(sys.modules["_asyncio"].current_task), repeat(every_loop))),
        ]
    elif type(running) is dict:
        found = [map(every_loop.extend, repeat(running)), map(tasks.extend, starmap(running.values, repeat(())))]
    else:
        return []
    known_kind: Any = map(map, repeat(isinstance), repeat(tasks), repeat(repeat(kind)))
    named: Any = map(compress, repeat(tasks), map(map, repeat(isinstance), repeat(tasks), repeat(repeat(kind))))
    return [
        *found,
        map(loops.extend, map(compress, repeat(every_loop), known_kind)),
        map(names.extend, map(map, repeat(kind.get_name), named)),
        starmap(tasks.clear, repeat(())),
        starmap(every_loop.clear, repeat(())),
    ]


def thread_of_loop(loop: Any) -> int:
    """Return the thread on which a loop of asyncio runs, `NO_THREAD` for another loop."""
    base = sys.modules["asyncio.base_events"].BaseEventLoop
    thread = loop.__dict__.get("_thread_id") if isinstance(loop, base) else None
    return thread if type(thread) is int else NO_THREAD
