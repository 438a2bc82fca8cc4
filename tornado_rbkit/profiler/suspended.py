"""Reads where the suspended asyncio tasks wait, without running any of the host's code.

A coroutine, generator or asynchronous generator that is suspended refers to the awaitable that it waits for (cr_await,
gi_yieldfrom, ag_await). So the chain from a task's coroutine to the innermost awaitable is the stack of the task.

A look is read without interruption (see `uninterrupted`), and holds no task, coroutine or frame when other threads run
again: if the profiler had the last reference to a suspended coroutine, the host's ``finally`` clauses would run on the
profiler's thread. (On Python 3.10 frames are kept until they are packed, as in `frames`.) An awaitable is handled by
the identity of its class, and only attributes that are written in C are read.

Tasks are read whose classes are derived from one of asyncio's own two: that written in C, and that written in Python
(`asyncio.tasks._PyTask`, which nest_asyncio uses), of whose tasks only the instance dicts are read. asyncio keeps weak
references to all tasks up to Python 3.13, and later to those written in Python. From Python 3.14 on it lists those
written in C for a given event loop. The loops are found in the local variables of the threads' stacks: a function that
runs a loop has the loop or its main task there.

Not read are tasks of other classes, and from Python 3.14 on those derived from the class written in C while a subclass
overrides a method that `all_tasks` calls (`done`, `get_loop`, ``__hash__``, ``__eq__``); `TaskReader.trouble` says so.
From Python 3.14 on `all_tasks` also runs the Python code of tasks of other classes that `asyncio._register_task` has
registered. If listing the tasks takes longer than the interpreter's switch interval, another thread may run meanwhile,
and a task that ends in this moment is released by the profiler.

Reading the frame of a coroutine creates a frame object of about 300 bytes, which lives as long as the coroutine.
"""

from __future__ import annotations

import gc
import operator
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, compress, filterfalse, islice, repeat, starmap, takewhile
from types import (
    AsyncGeneratorType,
    CoroutineType,
    FrameType,
    GeneratorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    NoneType,
)
from typing import Any, Final, NamedTuple

from tornado_rbkit.profiler.frames import Place, walks, with_frames
from tornado_rbkit.profiler.objects import class_name, type_dict, type_qualname, type_subclasses
from tornado_rbkit.profiler.threads import Flag
from tornado_rbkit.profiler.uninterrupted import ONCE, run_uninterrupted

MAX_TASKS: Final = 200
"""The most tasks that are read in one look, during which no other thread can run."""

MAX_CHAIN: Final = 100
"""The most awaitables that are read of one task; the inner awaitables of a longer chain are left out."""

_SHORT: Final = 1e-6  # seconds
_WHOLE: Final = slice(None)
_KEEPS_FRAMES: Final = sys.version_info < (3, 11)
_LISTS_BY_LOOP: Final = sys.version_info >= (3, 14)
_WRAPPERS: Final = {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow", "anext_awaitable"}
_COROUTINE: Final = ("cr_frame", "cr_await", "cr_running", "__qualname__")
_READ_BY_C: Final = (GetSetDescriptorType, MemberDescriptorType)
_VALUES: Final = {id(kind): kind.values for kind in (dict, type((lambda: sys._getframe().f_locals)()))}
"""By the id of the class of a frame's f_locals: what returns the values. Another mapping is the host's own."""

_CALLED: Final = {"done", "get_loop", "__hash__", "__eq__"}
"""The methods that `all_tasks` calls from Python 3.14 on."""

_is_none: Final = partial(operator.is_, None)
_ignore: Final[Callable[[Any], Any]] = deque[Any](maxlen=0).append
_no_values: Final = partial(repeat, times=0)
_type_module: Final[Callable[[Any], Any]] = type.__dict__["__module__"].__get__


class SuspendedTask(NamedTuple):
    """A task that is neither done nor running.

    Attributes:
        number: the id of the task object.
        name: the name of the task.
        awaits: the name of the class of the future that it waits for; None if it waits for the event loop to run it.
        chain: the places of its coroutine and of the awaitables within, outermost first; a text stands for an
            awaitable without a frame.
        awaited_by: the numbers of the tasks that wait for it; empty up to Python 3.13.
    """

    number: int
    name: str
    awaits: str | None
    chain: list[Place | str]
    awaited_by: list[int]


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
        trouble: which tasks the last look has not read, and why; None if it has read all. Any thread may read it.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._loops: dict[int, weakref.ref[Any]] = {}  # by the id of the reference
        self._never = Flag()

    def find_loops(self) -> None:
        """Find the event loops that run; does nothing up to Python 3.13.

        Raises:
            SamplingError: the stacks of this process cannot be read safely.
        """
        kind = _task_class()
        if not _LISTS_BY_LOOP or kind is None:
            return
        is_loop = _ids(_with_subclasses(sys.modules["asyncio.events"].AbstractEventLoop)).__contains__
        is_task = _ids(_with_subclasses(kind)).__contains__
        innermost: list[FrameType] = []
        scopes: list[Any] = []
        values: list[Any] = []
        found: list[weakref.ref[Any]] = []
        known = list(self._loops.values())
        gone: list[bool] = []

        def chosen(is_wanted: Callable[[int], bool]) -> Iterator[Any]:
            return compress(values, map(is_wanted, map(id, map(type, values))))

        def calls(current: Iterator[dict[int, FrameType]]) -> list[Iterator[None]]:
            values_of = map(_VALUES.get, map(id, map(type, scopes)), repeat(_no_values))
            return [
                map(innermost.extend, map(dict[int, FrameType].values, current)),
                map(scopes.extend, [map(getattr, chain.from_iterable(walks(innermost)), repeat("f_locals"))]),
                map(values.extend, map(next, map(starmap, values_of, zip(zip(scopes))))),
                map(found.extend, [map(weakref.ref, chain(chosen(is_loop), map(kind.get_loop, chosen(is_task))))]),
                map(gone.extend, [map(_is_none, map(weakref.ref.__call__, known))]),
                *(starmap(each.clear, ONCE) for each in (innermost, scopes, values)),
            ]

        with_frames(calls)
        self._loops = {id(ref): ref for ref in (*compress(known, map(operator.not_, gone)), *found)}

    @property
    def loops(self) -> list[weakref.ref[Any]]:
        """The event loops that `find_loops` has found; empty up to Python 3.13."""
        return list(self._loops.values())

    def look(self, skip: int = 0, step: int = 1) -> Look | None:
        """Read every `step`-th task from number `skip` on, at most `MAX_TASKS`; None if tasks cannot be read.

        asyncio lists the tasks in an arbitrary order, which hardly changes between two looks.
        """
        families = _families()
        if not families:
            return None
        overriding = _overriding()
        every: list[Any] = []
        tasks: list[Any] = []
        others: list[type] = []
        total: list[int] = []
        chains = _Chains()
        is_other = map(operator.not_, map(_class_ids(families).__contains__, map(id, map(type, every))))
        calls: list[Iterator[None]] = [
            map(every.extend, self._registered(lists_all=overriding is None)),
            map(others.extend, [map(type, compress(every, is_other))]),
            *(call for family in families for call in family.select(every, tasks)),
            map(total.append, map(len, [tasks])),
            map(tasks.__setitem__, [_WHOLE], [islice(islice(tasks, skip, None, step), MAX_TASKS)]),
            *(map(family.tasks.__setitem__, [_WHOLE], [family.members(tasks)]) for family in families),
            *chains.read(families),
            *(starmap(each.clear, ONCE) for each in (every, tasks, *(family.tasks for family in families))),
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
        loops = filterfalse(_is_none, map(weakref.ref.__call__, list(self._loops.values())))
        return chain(map(sys.modules["_asyncio"].all_tasks, loops), registered)


class _Family:
    """How the tasks of asyncio's class that is written in C, and of its subclasses, are read.

    Args:
        kind: the class.

    Attributes:
        tasks: the tasks that are read, during a look.
    """

    def __init__(self, kind: Any) -> None:
        self.tasks: list[Any] = []
        self.kind = kind
        self.class_ids = _ids(_with_subclasses(kind))

    def members(self, tasks: list[Any]) -> Iterator[Any]:
        """Return an iterator over the tasks of this family among others."""
        return compress(tasks, map(self.class_ids.__contains__, map(id, map(type, tasks))))

    def select(self, every: list[Any], tasks: list[Any]) -> list[Iterator[None]]:
        """Return calls that add the tasks of this family that are not done to `tasks`."""
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


class _PythonFamily(_Family):
    """The tasks of asyncio's class that is written in Python: their instance dicts are read."""

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


class _Kinds:
    """Functions, all written in C, that read an awaitable, by the id of its class."""

    def __init__(self) -> None:
        self.frame: dict[int, Callable[[Any], Any]] = {}
        self.running: dict[int, Callable[[Any], Any]] = {}
        self.awaited: dict[int, Callable[[Any], Any]] = {id(list): operator.itemgetter(0)}
        self.name: dict[int, Callable[[Any], Any]] = {}
        self._learned: list[type] = []  # kept, so that no other class gets their ids
        self._add(CoroutineType, "cr", "cr_await")
        self._add(GeneratorType, "gi", "gi_yieldfrom")
        self._add(AsyncGeneratorType, "ag", "ag_await")

    def _add(self, kind: type, prefix: str, awaited: str) -> None:
        attributes = type_dict(kind)
        self.frame[id(kind)] = attributes[f"{prefix}_frame"].__get__
        self.running[id(kind)] = attributes[f"{prefix}_running"].__get__
        self.awaited[id(kind)] = attributes[awaited].__get__

    def learn(self, kind: type) -> None:
        """Note how to read a class that ended a chain: a wrapper of Python or Cython, or a coroutine of Cython."""
        attributes = type_dict(kind)
        module = _type_module(kind)
        is_of_python = type(module) is str and (module == "builtins" or module.startswith("_cython_"))
        if is_of_python and type_qualname(kind) in _WRAPPERS:
            self.awaited[id(kind)] = gc.get_referents  # a list whose first item is the wrapped awaitable
            self._learned.append(kind)
        elif all(type(attributes.get(name)) in _READ_BY_C for name in _COROUTINE) and (
            type(attributes["cr_frame"]) is GetSetDescriptorType  # a class written in Python has a slot instead
        ):
            self._add(kind, "cr", "cr_await")
            self.name[id(kind)] = attributes["__qualname__"].__get__
            self._learned.append(kind)


_KINDS: Final = _Kinds()
"""The same for all readers, so that none of it is created, and shown by a snapshot, when a server starts."""


class _Chains:
    """The results of reading some tasks. Lists by task have an item for each task, others one for each task and level.

    An awaitable of level 1 is the coroutine of the task, one of level 2 is what that awaits, and so on.
    """

    def __init__(self) -> None:
        # by task
        self.numbers: list[int] = []
        self._names: list[str] = []
        self._awaits: list[type] = []
        self._running: list[bool | None] = []
        self._awaited_by: list[list[int]] = []
        # by level and task
        self._classes: list[type] = []
        self._codes: list[Any] = []
        self._instructions: list[Any] = []
        self._globals: list[Any] = []
        self._frames: list[Any] = []
        self._labels: list[str | None] = []

    def read(self, families: list[_Family]) -> list[Iterator[Any]]:
        """Return calls for `run_uninterrupted` that read the tasks that are in the lists of the families by then."""
        awaitables: list[Any] = []
        awaiting: list[Any] = []
        running = map(_KINDS.running.get, map(id, map(type, awaitables)), repeat(_ignore))
        calls: list[Iterator[Any]] = []
        for family in families:
            calls += [
                map(self.numbers.extend, [map(id, family.tasks)]),
                map(self._names.extend, [family.names()]),
                map(self._awaits.extend, [map(type, family.futures())]),
                map(awaitables.extend, [family.coroutines()]),
            ]
            if _LISTS_BY_LOOP:
                calls.append(map(awaiting.extend, [family.awaiters()]))
        calls.append(map(self._running.extend, [map(next, map(starmap, running, zip(zip(awaitables))))]))
        if _LISTS_BY_LOOP:
            sets = map(chain.from_iterable, map(filter, repeat(None), zip(awaiting)))  # of a set or None
            calls += [
                map(self._awaited_by.extend, [map(list, map(map, repeat(id), sets))]),
                starmap(awaiting.clear, ONCE),
            ]
        return [*calls, self._read_levels(awaitables), starmap(awaitables.clear, ONCE)]

    def _read_levels(self, awaitables: list[Any]) -> Iterator[None]:
        """Return an iterator that reads one level after the other, to the end of the longest chain.

        Each step is an endless iterator that is advanced once for each level. It makes new iterators of the lists of
        the level, which are replaced in each.
        """
        classes: list[type] = []
        ids: list[int] = []
        known: list[bool] = []
        frames: list[Any] = []

        def put(target: list[Any], values: Iterator[Any]) -> Iterator[None]:
            return map(target.__setitem__, repeat(_WHOLE), values)

        def each(function: Callable[..., Any], *lists: Any) -> Iterator[Any]:
            return map(map, repeat(function), *map(repeat, lists))

        def read_by(functions: dict[int, Callable[[Any], Any]]) -> Iterator[Any]:
            chosen = each(functions.get, ids, repeat(_ignore))
            return map(map, repeat(next), map(map, repeat(starmap), chosen, map(zip, map(zip, repeat(awaitables)))))

        def attribute(name: str) -> Iterator[Any]:
            return each(getattr, frames, repeat(name), repeat(None))

        steps = [
            put(classes, each(type, awaitables)),
            put(ids, each(id, classes)),
            put(known, each(_KINDS.awaited.__contains__, ids)),
            map(self._classes.extend, repeat(classes)),
            put(frames, read_by(_KINDS.frame)),
            map(self._codes.extend, attribute("f_code")),
            map(self._instructions.extend, attribute("f_lasti")),
            map(self._globals.extend, attribute("f_globals")),
            *([map(self._frames.extend, repeat(frames))] if _KEEPS_FRAMES else ()),
            *([map(self._labels.extend, read_by(_KINDS.name))] if _KINDS.name else ()),
            put(awaitables, read_by(_KINDS.awaited)),
            starmap(frames.clear, repeat(())),
        ]
        levels = takewhile(operator.itemgetter(-1), zip(*steps, map(any, repeat(known)), strict=False))
        return map(_ignore, islice(levels, MAX_CHAIN))

    def suspended(self) -> Iterator[SuspendedTask]:
        """Yield the tasks that do not run."""
        awaited_by: Iterable[list[int]] = self._awaited_by or repeat([])
        by_task = zip(self.numbers, self._names, self._awaits, self._running, awaited_by, strict=False)
        for at, (number, name, awaits, is_running, awaiters) in enumerate(by_task):
            if not is_running:
                future = None if awaits is NoneType else type_qualname(awaits)
                yield SuspendedTask(number, name, future, list(self._chain(at)), awaiters)

    def _chain(self, task: int) -> Iterator[Place | str]:
        for at in range(task, len(self._classes), len(self.numbers)):
            kind, code = self._classes[at], self._codes[at]
            if kind is NoneType:
                return
            if code is not None:
                frame = (self._frames[at],) if _KEEPS_FRAMES else ()
                yield (code, self._instructions[at], self._globals[at], *frame)
            elif id(kind) in _KINDS.frame:
                label = self._labels[at] if self._labels else None
                yield label if type(label) is str else type_qualname(kind)
            elif id(kind) not in _KINDS.awaited:
                _KINDS.learn(kind)
                if _type_module(kind) not in ("builtins", "_asyncio"):
                    yield type_qualname(kind)


def _task_class() -> Any:
    """Return asyncio's class of tasks, None if asyncio is not imported or not written in C."""
    return getattr(sys.modules.get("_asyncio"), "Task", None) if "asyncio.tasks" in sys.modules else None


def _families() -> list[_Family]:
    """Return asyncio's classes of tasks; none if it is not imported."""
    if "asyncio.tasks" not in sys.modules:
        return []
    kind, of_python = _task_class(), getattr(sys.modules["asyncio.tasks"], "_PyTask", None)
    return [
        *([] if kind is None else [_Family(kind)]),
        *([] if of_python is None else [_PythonFamily(of_python)]),
    ]


def _class_ids(families: list[_Family]) -> set[int]:
    return {number for family in families for number in family.class_ids}


def _overriding() -> type | None:
    """Return a class of tasks because of which `all_tasks` would run the host's code; None if there is none."""
    kind = _task_class()
    if not _LISTS_BY_LOOP or kind is None:
        return None
    subclasses = (each for each in _with_subclasses(kind) if each is not kind)
    return next((each for each in subclasses if _CALLED & type_dict(each).keys()), None)


def _ids(classes: Iterable[type]) -> set[int]:
    return set(map(id, classes))


def _with_subclasses(kind: type) -> list[type]:
    """Return a class and its direct and indirect subclasses, perhaps more than once."""
    found = [kind]
    for each in found:
        found += type_subclasses(each)
    return found
