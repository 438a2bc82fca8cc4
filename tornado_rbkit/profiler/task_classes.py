"""Reads asyncio's tasks by the functions of asyncio's own task classes, never by those of the host's subclasses.

There are two of these classes: one is written in C, the other in Python (`asyncio.tasks._PyTask`, which nest_asyncio
uses).
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from itertools import compress, repeat
from typing import Any, Final

from tornado_rbkit.profiler.objects import type_dict, type_subclasses

_CALLED: Final = {"done", "get_loop", "__hash__", "__eq__"}
"""The methods that `all_tasks` calls from Python 3.14 on."""


class TaskClass:
    """Reads the tasks of asyncio's class that is written in C, and of its subclasses. For one look.

    The methods that return iterators read the tasks that are in `tasks` when the iterator is advanced.

    Args:
        kind: the class.

    Attributes:
        tasks: the tasks to read.
        class_ids: the ids of the class and of its subclasses.
    """

    def __init__(self, kind: Any) -> None:
        self.tasks: list[Any] = []
        self.kind = kind
        self.class_ids = ids_of_family(kind)

    def members(self, tasks: list[Any]) -> Iterator[Any]:
        """Return an iterator over the tasks of these classes among others."""
        return compress(tasks, map(self.class_ids.__contains__, map(id, map(type, tasks))))

    def select(self, every: list[Any], tasks: list[Any]) -> list[Iterator[None]]:
        """Return calls that add the tasks of these classes that are not done to `tasks`."""
        alive = compress(self.tasks, map(operator.not_, self.done()))
        return [map(self.tasks.extend, [self.members(every)]), map(tasks.extend, [alive])]

    def done(self) -> Iterator[bool]:
        return map(self.kind.done, self.tasks)

    def names(self) -> Iterator[str]:
        return map(self.kind.get_name, self.tasks)

    def coroutines(self) -> Iterator[Any]:
        return map(self.kind.get_coro, self.tasks)

    def futures(self) -> Iterator[Any]:
        """Return an iterator over the futures that the tasks wait for, None for a task that does not wait."""
        return map(self.kind._fut_waiter.__get__, self.tasks)

    def awaiters(self) -> Iterator[Any]:
        """Return an iterator over the sets of tasks that wait for the tasks, or None; from Python 3.14 on."""
        return map(self.kind._asyncio_awaited_by.__get__, self.tasks)


class PythonTaskClass(TaskClass):
    """Reads the tasks of asyncio's class that is written in Python from their instance dicts."""

    def done(self) -> Iterator[bool]:
        return map(dict[str, Any].__contains__, self._dicts(), repeat("_state"))  # pending is the class's

    def names(self) -> Iterator[str]:
        return self._values("_name")

    def coroutines(self) -> Iterator[Any]:
        return self._values("_coro")

    def futures(self) -> Iterator[Any]:
        return self._values("_fut_waiter")

    def awaiters(self) -> Iterator[Any]:
        return self._values("_Future__asyncio_awaited_by")

    def _values(self, name: str) -> Iterator[Any]:
        return map(dict[str, Any].get, self._dicts(), repeat(name))

    def _dicts(self) -> Iterator[Any]:
        base: Any = sys.modules["asyncio.futures"]._PyFuture
        return map(type_dict(base)["__dict__"].__get__, self.tasks)


def c_task_class() -> Any:
    """Return asyncio's task class written in C; None if asyncio has only the Python class or is not imported."""
    return getattr(sys.modules.get("_asyncio"), "Task", None) if "asyncio.tasks" in sys.modules else None


def task_classes() -> list[TaskClass]:
    """Return asyncio's classes of tasks; none if asyncio is not imported."""
    if "asyncio.tasks" not in sys.modules:
        return []
    kind, of_python = c_task_class(), getattr(sys.modules["asyncio.tasks"], "_PyTask", None)
    return [
        *([] if kind is None else [TaskClass(kind)]),
        *([] if of_python is None else [PythonTaskClass(of_python)]),
    ]


def overriding_class() -> type | None:
    """Return a subclass that overrides a method called by `all_tasks`, if any; always None up to Python 3.13."""
    kind = c_task_class()
    if sys.version_info < (3, 14) or kind is None:
        return None
    subclasses = (each for each in _with_subclasses(kind) if each is not kind)
    return next((each for each in subclasses if _CALLED & type_dict(each).keys()), None)


def ids_of_family(kind: type) -> set[int]:
    """Return the ids of a class and of its direct and indirect subclasses."""
    return set(map(id, _with_subclasses(kind)))


def _with_subclasses(kind: type) -> list[type]:
    """Return a class and its direct and indirect subclasses, perhaps more than once."""
    found = [kind]
    for each in found:
        found += type_subclasses(each)
    return found
