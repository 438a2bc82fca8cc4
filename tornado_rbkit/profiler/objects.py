"""Inspects the host's objects without running any of its code, and recognises the profiler's own objects."""

from __future__ import annotations

import _socket
import gc
import random
import sys
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from types import BuiltinMethodType, CellType, FrameType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any, Final, TypeVar

import msgpack
import zmq

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.collection_times import Collections
from tornado_rbkit.profiler.threads import hiding, original
from tornado_rbkit.profiler.tracked import ClassesById, Tracked
from tornado_rbkit.profiler.uninterrupted import RepeatedCalls

_F = TypeVar("_F", bound=Callable[..., Any])

SLICE_SECONDS: Final = 0.003
"""The intended length of a slice of a walk. Single calls of the interpreter may take longer (see `heap`, `memory`)."""

_PACKAGE: Final = "tornado_rbkit.profiler."
_DEMO: Final = "tornado_rbkit.profiler.workload"
"""The workload of the demo, which is not part of the profiler."""

# `type`'s own descriptors: attribute access on a class would call its metaclass, which may be the host's
type_dict: Final[Callable[[Any], Any]] = type.__dict__["__dict__"].__get__
type_qualname: Final[Callable[[Any], str]] = type.__dict__["__qualname__"].__get__
type_mro: Final[Callable[[Any], tuple[type, ...]]] = type.__dict__["__mro__"].__get__
type_subclasses: Final[Callable[[Any], list[type]]] = type.__dict__["__subclasses__"]

type_flags: Final[Callable[[Any], int]] = type.__dict__["__flags__"].__get__
type_itemsize: Final[Callable[[Any], int]] = type.__dict__["__itemsize__"].__get__
_namespace: Final[Callable[[Any], Any]] = type_dict(ModuleType)["__dict__"].__get__

_CONTAINERS: Final = (dict, list, set, tuple, deque)
_SERVANTS: Final[tuple[type, ...]] = (
    *(CellType, GeneratorType, MethodType, weakref.ref, weakref.WeakSet, array, repeat),
    *(random.Random, type(original("allocate_lock")())),
    *(type(Path()), msgpack.Packer, _socket.socket, zmq.Context, zmq.Poller, zmq.Socket),
)
# by id, because looking up a class in a set would call its metaclass, which may be the host's
_CONTAINER_IDS: Final = frozenset(map(id, _CONTAINERS))
_FOLLOWED_IDS: Final = frozenset(map(id, (*_CONTAINERS, *_SERVANTS)))
_SERVING_MODULES: Final = ("threading", "_thread", "_weakrefset", "ctypes")
"""Modules of the objects and functions that an object of one of the classes `_SERVANTS` holds."""
LARGE: Final = 10_000
"""A container of as many items is not followed: the profiler's own must have fewer, if they hold containers."""
_NESTED: Final = 100
"""The most tuples within a tuple that are examined."""
HAVE_GC: Final = 1 << 14
"""Py_TPFLAGS_HAVE_GC."""
HEAP_TYPE: Final = 1 << 9
"""Py_TPFLAGS_HEAPTYPE."""


def class_name(cls: type) -> str:
    """Return ``module.Class``, without the module for builtins. Runs none of the host's code, never raises."""
    qualname = type_qualname(cls)
    module = type_dict(cls).get("__module__")
    if type(module) is str and module != "builtins":
        return f"{module}.{qualname}"
    return qualname


def is_internal(name: str) -> bool:
    """Return True for the name of a module or a class of the profiler."""
    return name.startswith(_PACKAGE) and not name.startswith(_DEMO)


def without_lines(function: _F) -> _F:
    """Give all instructions of a function its first line, from Python 3.11 on; a decorator.

    tracemalloc looks up the line at which each object is created, entry by entry from the beginning of the function.
    That took a third of the time of a snapshot. An entry without columns covers eight code units
    (Objects/locations.md).
    """
    if sys.version_info >= (3, 11):
        code = function.__code__  # type: ignore[attr-defined]
        eights, rest = divmod(len(code.co_code) // 2, 8)
        table = b"\xef\0" * eights + (bytes((0xE7 + rest, 0)) if rest else b"")
        function.__code__ = code.replace(co_linetable=table)  # type: ignore[attr-defined]
    return function


class ClassNames:
    """Names of classes by the class's id, for the duration of one walk: it keeps the classes alive."""

    def __init__(self, interned: dict[str, str] | None = None) -> None:
        self._classes: dict[int, type] = {}
        self.names: dict[int, str] = {}
        self._interned = {} if interned is None else interned

    def of(self, classes: list[type]) -> list[str]:
        """Return the name of each class; equal names are the same object."""
        for key, cls in dict(zip(map(id, classes), classes, strict=True)).items():
            if key not in self.names:
                name = class_name(cls)
                self._classes[key] = cls
                self.names[key] = self._interned.setdefault(name, name)
        return list(map(self.names.__getitem__, map(id, classes)))


class SliceSize:
    """The number of objects that fit in a slice of `SLICE_SECONDS`, adjusted by the length of the last slice."""

    def __init__(self, count: int = 2000, most: int = 50_000) -> None:
        self.count = count
        self._most = most
        self._began = 0.0

    def __enter__(self) -> int:
        self._began = real_time.perf_counter()
        return self.count

    def __exit__(self, *_: object) -> None:
        took = real_time.perf_counter() - self._began
        if took > SLICE_SECONDS:
            self.count = max(100, int(self.count * SLICE_SECONDS / took))
        elif took < SLICE_SECONDS / 2:
            self.count = min(self._most, self.count * 5 // 4)


def in_slices(pieces: Iterable[object]) -> Iterator[None]:
    """Do the work of an iterator, which gives its pieces, and yield after each slice of `SLICE_SECONDS`."""
    began = real_time.perf_counter()
    for _ in pieces:
        if real_time.perf_counter() - began > SLICE_SECONDS:
            yield
            began = real_time.perf_counter()


def referents(items: Sequence[Any]) -> list[Any]:
    """Return the objects that any objects of the host refer to; for a module, only its namespace.

    The traversal of a module written in C visits its state too, where there may be objects that were deallocated: on
    Python 3.12 asyncio keeps some for reuse (Modules/_asynciomodule.c, module_traverse). A list of them would
    deallocate them once more, after which the next full collection never ends.
    """
    modules = [item for item in items if issubclass(type(item), ModuleType)]
    if not modules:
        return gc.get_referents(*items)
    others = [item for item in items if not issubclass(type(item), ModuleType)]
    return [*gc.get_referents(*others), *filter(None, map(_namespace, modules))]


DICTS_ARE_UNTRACKED: Final = sys.version_info < (3, 14)
"""Whether a full collection stops tracking a dict that holds only plain values by then (CPython issue 127010)."""


def are_plain(content: list[Any]) -> bool:
    """Return True if the collector stops tracking a tuple of these objects, or up to Python 3.13 a dict of them."""
    return all(map(_is_plain, content))


def _is_plain(item: Any) -> bool:
    """Return True if an object can never be part of a cycle (Objects/tupleobject.c, _PyTuple_MaybeUntrack)."""
    if gc.is_tracked(item):
        return type(item) is tuple and _is_plain_tuple(item)
    cls = type(item)
    return cls is tuple or not type_flags(cls) & HAVE_GC or _is_type(cls)


def _is_type(cls: type) -> bool:
    return any(base is type for base in type_mro(cls))


def _is_plain_tuple(item: tuple[Any, ...]) -> bool:
    waiting, seen = [item], 0
    while waiting:
        seen += 1
        if seen > _NESTED:
            return True  # assumed, because there are too many to check
        for other in gc.get_referents(waiting.pop()):
            if type(other) is tuple and gc.is_tracked(other):
                waiting.append(other)
            elif not _is_plain(other):
                return False
    return True


def internal_ids(roots: Iterable[object]) -> set[int]:
    """Return the ids of the profiler's own objects: the roots, and all internal objects that the roots lead to."""
    found: set[int] = set()
    found.add(id(found))
    waiting: list[object] = [*roots, hiding()]
    while waiting:
        item = waiting.pop()
        if id(item) in found:
            continue
        found.add(id(item))
        if type(item) is ClassesById:
            found.update(map(id, item))
        elif type(item) is Tracked or type(item) is RepeatedCalls:  # the objects in their lists are the host's
            found.update(item.internal)
        elif type(item) is Collections:
            found.update(item.internal)
            waiting.extend(filter(_is_internal, gc.get_referents(item)))
        elif type(item) is GeneratorType:  # a walk, whose lists are internal objects but hold the host's
            held = gc.get_referents(item)
            frames = [other for other in held if type(other) is FrameType]  # on Python 3.10 the frame holds the lists
            mine = list(filter(_is_internal, held + gc.get_referents(*frames)))
            found.update(id(other) for other in (*frames, *mine) if type(other) is list or type(other) is FrameType)
            waiting.extend(other for other in mine if type(other) is not list)
        elif type(item) is FunctionType:
            waiting.extend((item.__closure__, item.__defaults__))
        elif id(type(item)) not in _CONTAINER_IDS or len(item) < LARGE:  # type: ignore[arg-type]
            waiting.extend(filter(_is_internal, gc.get_referents(item)))
            found.update(map(id, weakref.getweakrefs(item)))
    return found


def is_bound_to(item: object, internal: set[int]) -> bool:
    """Return True for a method of one of the profiler's own objects; the interpreter holds the running ones."""
    if type(item) is not MethodType and type(item) is not BuiltinMethodType:
        return False
    module = type_dict(type(item.__self__)).get("__module__")
    return id(item.__self__) in internal or (type(module) is str and is_internal(module))


def internal_frames() -> set[int]:
    """Return the ids of the frames of the calling thread, which is one of the profiler's."""
    found: set[int] = set()
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        found.add(id(frame))
        frame = frame.f_back
    return found


def _is_internal(item: object) -> bool:
    """Return True for an object of the profiler's classes, or of a class that only serves its referrer."""
    cls = type(item)
    if id(cls) in _FOLLOWED_IDS:
        return True
    if cls is BuiltinMethodType:
        return type(item.__self__) is not ModuleType  # type: ignore[attr-defined]
    if cls is FunctionType:
        name = dict.get(item.__globals__, "__name__")  # type: ignore[attr-defined]
        return type(name) is str and (is_internal(name) or name in _SERVING_MODULES)
    module = type_dict(cls).get("__module__")
    return type(module) is str and (is_internal(module) or module in _SERVING_MODULES)
