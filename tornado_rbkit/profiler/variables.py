"""Reads the variables of functions, running or ended, without changing anything that the host can see.

From Python 3.13 on ``f_locals`` shows them (PEP 667). On Python 3.11 and 3.12 reading ``f_locals`` would copy them
into a dict that the frame keeps until it ends, and overwrite what a debugger has changed in that dict; so the frame's
slots are read from the interpreter's memory. Whenever the GIL changes hands, each slot is NULL or owns a reference
(Python/ceval.c, SETLOCAL): a frame that ends is taken off its stack first (CPython issue 99729, fixed in 3.11.1) and
leaves its slots to its frame object, if there is one (Python/frame.c, take_ownership). The layout is first compared
with that of a frame whose variables are known, within that frame object's own memory; if it differs, no variables are
read.

On Python 3.10 the collector's traversal of a frame visits the variables, so they are not read here.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain, count
from operator import add, itemgetter
from types import FrameType
from typing import Any, Final, TypeAlias

from tornado_rbkit.profiler.uninterrupted import run_uninterrupted

Variables: TypeAlias = tuple[list[Any], list[str]]
"""The values of the variables that have one, and their names. A variable that functions share has a cell."""

# 64-bit builds of Python 3.11 and 3.12, Include/internal/pycore_frame.h
_FRAME_POINTER: Final = 24
"""Offset of f_frame in a PyFrameObject."""
_OWN_FRAME: Final = 48
"""Offset of _f_frame_data in a PyFrameObject, to which f_frame points once the function has ended."""
_SLOTS: Final = 72
"""Offset of localsplus in an _PyInterpreterFrame."""

_POINTER: Final = struct.Struct("P")
_ABSENT: Final = object()
_ABSENT_SLOT: Final = {0: id(_ABSENT)}


class SlotReader:
    """Reads the variables of frames on Python 3.11 and 3.12.

    Raises:
        ImportError: there is no ctypes.
    """

    def __init__(self) -> None:
        import ctypes  # only here, because many profiled processes never need it

        # Not attributes of pythonapi, whose argument types the host shares, and no new types, which would be seen in
        # snapshots. Unlike ctypes.string_at, neither function calls an audit hook, in which another thread could run.
        copy, new_reference = ctypes.pythonapi["PyBytes_FromStringAndSize"], ctypes.pythonapi["Py_NewRef"]
        copy.argtypes, copy.restype = [ctypes.c_void_p, ctypes.c_ssize_t], ctypes.py_object
        new_reference.argtypes, new_reference.restype = [ctypes.c_void_p], ctypes.py_object
        self._copy: Callable[[int, int], bytes] = copy
        self._object: Callable[[int], Any] = new_reference

    def knows_layout(self) -> bool:
        """Return whether the slots of a function that has ended are where they are expected."""
        if (object.__basicsize__, FrameType.__basicsize__) != (16, _OWN_FRAME + _SLOTS):
            return False
        argument = [0]
        generator: Any = _known(argument)
        frame, (number, function) = generator.gi_frame, next(generator)
        list(generator)  # its end
        start = id(frame) + _OWN_FRAME
        if self._copy(id(frame) + _FRAME_POINTER, _POINTER.size) != _POINTER.pack(start):
            return False
        names = slot_names(frame.f_code)
        slots = self._copy(start + _SLOTS, len(names) * _POINTER.size)
        found = dict(zip(names, map(itemgetter(0), _POINTER.iter_unpack(slots)), strict=True))
        (cell,) = function.__closure__
        return found == {"argument": id(argument), "gone": 0, "number": id(number), "function": 0, "shared": id(cell)}

    def __call__(self, frame: FrameType) -> Variables:
        names = slot_names(frame.f_code)
        copies: list[bytes] = []
        slots: list[int] = []
        values: list[Any] = []
        heads: Any = map(self._copy, [id(frame) + _FRAME_POINTER], [_POINTER.size])
        starts = map(add, map(int.from_bytes, heads, [sys.byteorder]), [_SLOTS])
        unpacked = chain.from_iterable(map(_POINTER.iter_unpack, copies))
        run_uninterrupted(
            [
                map(copies.extend, [map(self._copy, starts, [len(names) * _POINTER.size])]),
                map(slots.extend, [map(itemgetter(0), unpacked)]),
                map(values.extend, [map(self._object, map(_ABSENT_SLOT.get, slots, slots))]),
            ]
        )
        present = [(value, name) for value, name in zip(values, names, strict=True) if value is not _ABSENT]
        return [value for value, _ in present], [name for _, name in present]


def _known(argument: object) -> Iterator[Any]:
    """Yield from a frame that has one variable of each kind, for `SlotReader.knows_layout`."""
    gone: object = argument
    number = 2**70 + id(argument)
    shared = [argument]

    def function() -> object:
        return shared

    yield number, function
    del gone, function


def slot_names(code: Any) -> list[str]:
    """Return the name of each slot; there are as many slots as the interpreter has names for."""
    names: list[str] = []
    with contextlib.suppress(IndexError):
        for at in count():
            names.append(code._varname_from_oparg(at))
    return names


@lru_cache(maxsize=1)
def variable_reader() -> Callable[[FrameType], Variables] | None:
    """Return a function that reads the variables of a frame, None if this Python's cannot be read."""
    if sys.version_info >= (3, 13):
        return _of_proxy
    if sys.version_info < (3, 11, 5) or sys.implementation.name != "cpython":
        return None
    try:
        read = SlotReader()
    except (ImportError, AttributeError):  # no ctypes; no such functions
        return None
    return read if read.knows_layout() else None


def _of_proxy(frame: FrameType) -> Variables:
    pairs = list(frame.f_locals.items())
    return [value for _, value in pairs], [name for name, _ in pairs]
