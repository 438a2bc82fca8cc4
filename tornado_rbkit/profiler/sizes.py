"""Finds the sizes of objects without running the host's Python code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import MethodDescriptorType
from typing import Any, Final

from tornado_rbkit.profiler.objects import type_dict, type_itemsize, type_mro

_OBJECT_SIZE: Final = object.__dict__["__sizeof__"]


def size_function(cls: type) -> Callable[[Any], int]:
    """Return a function that gives the size of the class's instances in bytes.

    It is `sys.getsizeof`, or for a class whose ``__sizeof__`` is written in Python, that of its nearest base class
    whose ``__sizeof__`` is not.
    """
    is_own, method = _method(cls)
    return sys.getsizeof if is_own else method


def size_reader(item: Any) -> tuple[Callable[[Any], int | None], int | None]:
    """Return a function that gives the size in bytes of instances of the object's class, and the size if all have it.

    The function returns None if a ``__sizeof__`` fails. Unlike `sys.getsizeof` it creates no object but the result.
    """
    cls = type(item)
    is_own, method = _method(cls)
    if any(base is type for base in type_mro(cls)):  # a class may have a header of the collector, or none
        return size_function(cls), None
    try:
        header = sys.getsizeof(item) - method(item) if is_own else 0
    except Exception:  # noqa: BLE001 - an extension's __sizeof__ may raise anything; rbkit sends nil for it
        header = 0

    def size_of(item: Any) -> int | None:
        try:
            return int(method(item)) + header
        except Exception:  # noqa: BLE001 - as above
            return None

    return size_of, size_of(item) if method is _OBJECT_SIZE and type_itemsize(cls) == 0 else None


def _method(cls: type) -> tuple[bool, Any]:
    """Return the nearest ``__sizeof__`` that is written in C, and before it whether there is none nearer."""
    is_own = True
    for base in type_mro(cls):
        found = type_dict(base).get("__sizeof__")
        if type(found) is MethodDescriptorType:
            return is_own, found
        is_own = is_own and found is None
    return False, _OBJECT_SIZE
