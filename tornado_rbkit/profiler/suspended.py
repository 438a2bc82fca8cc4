"""Reads where the suspended asyncio tasks wait, without running any of the host's code.

`task_classes` reads the tasks, `await_chains` the awaitables that they wait for; `event_loops` finds the loops.

A look is read without interruption (see `uninterrupted`), and holds no task, coroutine or frame when other threads run
again: if the profiler had the last reference to a suspended coroutine, the host's ``finally`` clauses would run on the
profiler's thread. (On Python 3.10 frames are kept until they are packed, as in `frames`.)

Tasks are read whose classes are derived from one of asyncio's own two. asyncio keeps weak references to all tasks up
to Python 3.13, and later to the tasks written in Python. From Python 3.14 on it lists the tasks written in C for a
given event loop.

Not read are tasks of other classes, and from Python 3.14 on those derived from the class written in C while a subclass
overrides a method that `all_tasks` calls (`done`, `get_loop`, ``__hash__``, ``__eq__``); `TaskReader.trouble` says so.
From Python 3.14 on `all_tasks` also runs the Python code of tasks of other classes that `asyncio._register_task` has
registered. If listing the tasks takes longer than the interpreter's switch interval, another thread may run meanwhile,
and a task that ends in this moment is released by the profiler.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, compress, filterfalse, islice, starmap
from typing import Any, Final, NamedTuple

from tornado_rbkit.profiler.await_chains import Chains, SuspendedTask
from tornado_rbkit.profiler.event_loops import EventLoops
from tornado_rbkit.profiler.objects import class_name
from tornado_rbkit.profiler.task_classes import overriding_class, task_classes
from tornado_rbkit.profiler.threads import Flag
from tornado_rbkit.profiler.uninterrupted import ONCE, run_uninterrupted

MAX_TASKS: Final = 200
"""The most tasks that are read in one look, during which no other thread can run."""

_SHORT: Final = 1e-6  # seconds
_WHOLE: Final = slice(None)
_LISTS_BY_LOOP: Final = sys.version_info >= (3, 14)

_is_none: Final = partial(operator.is_, None)


class Look(NamedTuple):
    """The tasks at one moment.

    Attributes:
        total: the number of tasks that are not done.
        read: the number of tasks that were read.
        suspended: the suspended ones among the tasks that were read.
    """

    total: int
    read: int
    suspended: list[SuspendedTask]


class TaskReader:
    """Reads the suspended tasks of all event loops of this process. For use by one thread.

    Attributes:
        loops: the event loops; find them before the first look, and from time to time.
        trouble: which tasks the last look has not read, and why; None if it has read all. Any thread may read it.
    """

    def __init__(self) -> None:
        self.loops = EventLoops()
        self.trouble: str | None = None
        self._never = Flag()

    def look(self, skip: int = 0, step: int = 1) -> Look | None:
        """Read every `step`-th task from number `skip` on, at most `MAX_TASKS`; None if tasks cannot be read.

        asyncio lists the tasks in an arbitrary order, which hardly changes between two looks.
        """
        classes = task_classes()
        if not classes:
            return None
        overriding = overriding_class()
        every: list[Any] = []
        tasks: list[Any] = []
        others: list[type] = []
        total: list[int] = []
        chains = Chains()
        class_ids = set[int]().union(*(each.class_ids for each in classes))
        is_other = map(operator.not_, map(class_ids.__contains__, map(id, map(type, every))))
        calls: list[Iterator[None]] = [
            map(every.extend, self._registered(lists_all=overriding is None)),
            map(others.extend, [map(type, compress(every, is_other))]),
            *(call for each in classes for call in each.select(every, tasks)),
            map(total.append, map(len, [tasks])),
            map(tasks.__setitem__, [_WHOLE], [islice(islice(tasks, skip, None, step), MAX_TASKS)]),
            *(map(each.tasks.__setitem__, [_WHOLE], [each.members(tasks)]) for each in classes),
            *chains.read(classes),
            *(starmap(each.clear, ONCE) for each in (every, tasks, *(kind.tasks for kind in classes))),
        ]
        if _LISTS_BY_LOOP:
            self._never.wait(_SHORT)  # releases the GIL, so that no other thread gets it within the switch interval
        run_uninterrupted(calls)
        self.trouble = None
        if overriding is not None:
            self.trouble = f"tasks are not read, because {class_name(overriding)} overrides a method of asyncio.Task"
        elif others:
            self.trouble = (
                f"tasks of classes not derived from asyncio's, such as {class_name(others[0])}, are not read"
            )
        return Look(total[0], len(chains.numbers), list(chains.suspended()))

    def _registered(self, *, lists_all: bool) -> Iterator[Iterable[Any]]:
        """Return an iterator over collections of tasks, which lists the tasks when it is advanced."""
        tasks: Any = sys.modules["asyncio.tasks"]
        known = tasks._all_tasks if sys.version_info < (3, 12) else tasks._scheduled_tasks
        references = chain.from_iterable([known.__dict__["data"]])  # the set of a WeakSet
        registered = iter([filterfalse(_is_none, map(weakref.ref.__call__, references))])
        if not (_LISTS_BY_LOOP and lists_all) or "_asyncio" not in sys.modules:
            return registered
        loops = filterfalse(_is_none, map(weakref.ref.__call__, self.loops.references))
        return chain(map(sys.modules["_asyncio"].all_tasks, loops), registered)
