"""Look at the host's objects without running any of its code, and know the profiler's own."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

SLICE_SECONDS: Final = 0.003
"""What a slice of a walk aims at. Single calls of the interpreter may take longer, as `heap` and `memory` say."""

_PACKAGE: Final = "tornado_rbkit.profiler."
_DEMO: Final = "tornado_rbkit.profiler.workload"
"""The workload of the demo, which is no part of the profiler."""

# `type`'s own descriptors: attribute access on a class would ask its metaclass, which may be the host's
type_dict: Final[Callable[[Any], Any]] = type.__dict__["__dict__"].__get__
type_qualname: Final[Callable[[Any], str]] = type.__dict__["__qualname__"].__get__
type_mro: Final[Callable[[Any], tuple[type, ...]]] = type.__dict__["__mro__"].__get__

_CONTAINERS: Final = (dict, list, set, tuple, deque)
_LARGE: Final = 10_000


def class_name(cls: type) -> str:
    """Return ``module.Class``, without the module for builtins. Calls nothing of the host's, never raises."""
    qualname = type_qualname(cls)
    module = type_dict(cls).get("__module__")
    if type(module) is str and module != "builtins":
        return f"{module}.{qualname}"
    return qualname


def is_own(name: str) -> bool:
    """Return True for the name of a module or a class of the profiler."""
    return name.startswith(_PACKAGE) and not name.startswith(_DEMO)


class ClassNames:
    """Names of classes by the class's id, for as long as one walk: it keeps the classes alive."""

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
    """How many objects fit in a slice of `SLICE_SECONDS`, by how long the last one took."""

    def __init__(self, count: int = 2000, most: int = 50_000) -> None:
        self.count = count
        self._most = most
        self._began = 0.0

    def __enter__(self) -> int:
        self._began = time.perf_counter()
        return self.count

    def __exit__(self, *_: object) -> None:
        took = time.perf_counter() - self._began
        if took > SLICE_SECONDS:
            self.count = max(100, int(self.count * SLICE_SECONDS / took))
        elif took < SLICE_SECONDS / 2:
            self.count = min(self._most, self.count * 5 // 4)


def own_ids(roots: Iterable[object]) -> set[int]:
    """Return the ids of the profiler's own objects: the roots, and what they hold in attributes and containers."""
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        item = waiting.pop()
        if id(item) in found:
            continue
        found.add(id(item))
        if type(item) in _CONTAINERS:
            if len(item) < _LARGE:  # type: ignore[arg-type]
                waiting.extend(other for other in gc.get_referents(item) if _is_own(other))
        else:
            waiting.extend(other for other in gc.get_referents(item) if _is_own(other))
    return found


def _is_own(item: object) -> bool:
    cls = type(item)
    if cls in _CONTAINERS:
        return True
    module = type_dict(cls).get("__module__")
    return type(module) is str and is_own(module)
