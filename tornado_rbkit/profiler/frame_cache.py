"""Turns the places of a stack into packed frames: file, line, label, and the class of a method."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterable
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

from tornado_rbkit.profiler.frames import Place
from tornado_rbkit.profiler.objects import type_dict, type_mro, type_qualname
from tornado_rbkit.profiler.packing import pack_frame


class FrameCache:
    """Stack frames as MessagePack, without the value of thread_id, which comes last. For use by one thread.

    The entry of a code object is removed when the code object is freed.
    """

    def __init__(self) -> None:
        self._codes: dict[int, tuple[weakref.ref[CodeType], dict[int, bytes]]] = {}

    def clear(self) -> None:
        self._codes.clear()

    def stack(self, places: Iterable[Place]) -> list[bytes]:
        """Return the packed frames of a stack, innermost first."""
        stack: list[bytes] = []
        codes = self._codes
        for place in places:
            code, lasti = place[0], place[1]
            known = codes.get(id(code))
            if known is None:
                known = codes[id(code)] = (weakref.ref(code, self._forget(id(code))), {})
            packed = known[1].get(lasti)
            if packed is None:
                packed = known[1][lasti] = packed_place(*place)
            stack.append(packed)
        return stack

    def _forget(self, key: int) -> Callable[[Any], object]:
        codes = self._codes

        return lambda _: codes.pop(key, None)  # Python 3.14 keeps another object for a function with annotations


def packed_place(code: CodeType, lasti: int, namespace: dict[str, Any], frame: FrameType | None = None) -> bytes:
    """Return a `Place` as MessagePack, up to and including the key thread_id."""
    module = dict.get(namespace, "__name__")  # not namespace.get(): a subclass of dict may override it
    qualname = _qualified_name(code, frame)
    label = f"{module}.{qualname}" if type(module) is str else qualname
    return pack_frame(
        *(code.co_name, label, code.co_filename, line_number(code, lasti)),
        singleton=_first_argument(code) == "cls",
        definition_line=code.co_firstlineno,
    )


def line_number(code: CodeType, lasti: int) -> int:
    """Return the line of an instruction, 0 for an instruction that has none."""
    for start, end, line in code.co_lines():
        if start <= lasti < end:
            return line or 0
    return code.co_firstlineno  # the frame has not run an instruction yet


def _qualified_name(code: CodeType, frame: FrameType | None) -> str:
    """Return ``Class.method`` or ``function``, from co_qualname or on Python 3.10 from self or cls."""
    if sys.version_info >= (3, 11):
        return code.co_qualname
    owner = None if frame is None else _class_of_first_argument(frame)
    if owner is None:
        return code.co_name
    return f"{type_qualname(owner)}.{code.co_name}"


def _first_argument(code: CodeType) -> str | None:
    """Return the name of the first argument, without co_varnames, which newer interpreters keep in the code object."""
    if not code.co_argcount:
        return None
    get = getattr(code, "_varname_from_oparg", None)
    return code.co_varnames[0] if get is None else get(0)


def _class_of_first_argument(frame: FrameType) -> type | None:
    """Return the class whose method the frame runs, without running any of the host's code.

    Attribute access and isinstance may run the host's code; `type`'s own descriptors do not. The variables are read as
    the collector reads them: f_locals would leave a copy in the frame, which would keep objects alive that the
    function deletes. Every variable that holds an instance of the class leads to the same method.
    """
    if _first_argument(frame.f_code) not in ("self", "cls"):
        return None
    for found in gc.get_referents(frame):
        for value in gc.get_referents(found) if type(found) is CellType else (found,):
            owner = _owner(value, frame.f_code)
            if owner is not None:
                return owner
    return None


def _owner(value: Any, code: CodeType) -> type | None:
    """Return the class that has `code` as a method, if `value` is that class, a subclass, or an instance."""
    for base in type_mro(value if type in type_mro(type(value)) else type(value)):
        found: Any = type_dict(base).get(code.co_name)
        if type(found) in (classmethod, staticmethod):
            found = found.__func__
        if type(found) is FunctionType and found.__code__ is code:
            return base
    return None
