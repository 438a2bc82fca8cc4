"""Reads the chain of awaitables of each suspended task, from its coroutine to the innermost one.

A coroutine, generator or asynchronous generator that is suspended refers to the awaitable that it waits for (cr_await,
gi_yieldfrom, ag_await). So the chain is the stack of the task. An awaitable is handled by the identity of its class,
and only attributes that are written in C are read.

Reading the frame of a coroutine creates a frame object of about 300 bytes, which lives as long as the coroutine.
"""

from __future__ import annotations

import gc
import operator
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, repeat, starmap, takewhile
from types import (
    AsyncGeneratorType,
    CoroutineType,
    GeneratorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    NoneType,
)
from typing import Any, Final, NamedTuple

from tornado_rbkit.profiler.frames import Place
from tornado_rbkit.profiler.objects import type_dict, type_qualname
from tornado_rbkit.profiler.task_classes import TaskClass
from tornado_rbkit.profiler.uninterrupted import ONCE

MAX_CHAIN: Final = 100
"""The most awaitables that are read of one task; the inner awaitables of a longer chain are left out."""

_WHOLE: Final = slice(None)
_KEEPS_FRAMES: Final = sys.version_info < (3, 11)
_KEEPS_AWAITERS: Final = sys.version_info >= (3, 14)
_WRAPPERS: Final = {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow", "anext_awaitable"}
_COROUTINE: Final = ("cr_frame", "cr_await", "cr_running", "__qualname__")
_READ_BY_C: Final = (GetSetDescriptorType, MemberDescriptorType)

_ignore: Final[Callable[[Any], Any]] = deque[Any](maxlen=0).append
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


class Chains:
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

    def read(self, classes: list[TaskClass]) -> list[Iterator[Any]]:
        """Return calls for `run_uninterrupted` that read the tasks that are in the lists of the classes by then."""
        awaitables: list[Any] = []
        awaiting: list[Any] = []
        running = map(_KINDS.running.get, map(id, map(type, awaitables)), repeat(_ignore))
        calls: list[Iterator[Any]] = []
        for each in classes:
            calls += [
                map(self.numbers.extend, [map(id, each.tasks)]),
                map(self._names.extend, [each.names()]),
                map(self._awaits.extend, [map(type, each.futures())]),
                map(awaitables.extend, [each.coroutines()]),
            ]
            if _KEEPS_AWAITERS:
                calls.append(map(awaiting.extend, [each.awaiters()]))
        calls.append(map(self._running.extend, [map(next, map(starmap, running, zip(zip(awaitables))))]))
        if _KEEPS_AWAITERS:
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
