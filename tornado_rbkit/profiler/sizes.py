"""Finds the sizes of objects without running the host's Python code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import MethodDescriptorType
from typing import Any, Final

from tornado_rbkit.profiler.attributes import slots_of
from tornado_rbkit.profiler.objects import HEAP_TYPE, type_dict, type_flags, type_itemsize, type_mro

_INLINE_VALUES: Final = 1 << 2 if sys.version_info >= (3, 13) else 1 << 4 if sys.version_info >= (3, 11) else 0
"""The flag of a class whose instances have their attributes in an array: Py_TPFLAGS_INLINE_VALUES, and before
Python 3.13 Py_TPFLAGS_MANAGED_DICT."""

_OBJECT_SIZE: Final = object.__dict__["__sizeof__"]


def size_function(cls: type) -> Callable[[Any], int]:
    """Return a function that gives the size of the class's instances in bytes.

    It is `sys.getsizeof`. For a class whose ``__sizeof__`` is written in Python, it is the ``__sizeof__`` of the
    nearest base class that has one written in C.
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
            size: int = method(item) if not header else method(item) + header
            return size if type(size) is int else int(size)
        except Exception:  # noqa: BLE001 - as above
            return None

    return size_of, size_of(item) if method is _OBJECT_SIZE and type_itemsize(cls) == 0 else None


def has_values(cls: type) -> bool:
    """Return True if instances of a class may have an array of attributes, and no other references but the class."""
    is_plain = all(base is object or type_flags(base) & HEAP_TYPE for base in type_mro(cls))
    return bool(type_flags(cls) & _INLINE_VALUES) and is_plain and not any(True for _ in slots_of(cls))


def size_of_values(held: list[Any]) -> int:
    """Return the bytes of an instance's array of attributes, which no ``__sizeof__`` includes.

    That is Objects/dictobject.c, new_values, and from Python 3.13 on _PyInlineValuesSize, with room for one attribute
    more. The first 30 instances of a class have room for more. It is 0 if the instance has a dict, or one in its only
    attribute.

    Args:
        held: the references of the instance, of a class that `has_values`.
    """
    if len(held) == 2 and type(held[0]) is dict:
        return 0
    room = len(held)  # one of them is the class
    if sys.version_info >= (3, 13):
        return 8 * (room + 1) + (room + 7) // 8 * 8
    return 8 * room + (room + 9) // 8 * 8


def _method(cls: type) -> tuple[bool, Any]:
    """Return whether the class uses a ``__sizeof__`` that is written in C, and the nearest one that is."""
    is_own = True
    for base in type_mro(cls):
        found = type_dict(base).get("__sizeof__")
        if type(found) is MethodDescriptorType:
            return is_own, found
        is_own = is_own and found is None
    return False, _OBJECT_SIZE
