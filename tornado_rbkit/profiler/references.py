"""Reads the objects that an object refers to, and their names: attributes, variables, keys or positions.

A name is given only where the interpreter shows that the object holds the value under it at that moment; all other
references have no name. None of the host's code is run, and no ``__dict__`` is created. The sources of the names:

- dicts and their subclasses: the keys and values are read in one call of the interpreter. The keys are references
  too, without a name.
- lists and tuples: the collector's traversal visits them from the last item to the first.
- slots: `type`'s own member descriptors.
- attributes that have no dict (Python 3.11 and newer): the attribute names in the code of the class, or else of its
  module, are looked up with `object.__getattribute__`. Attributes set from elsewhere have no name.
- a dict is an object's ``__dict__`` if the object refers to nothing else, and one of its keys is an attribute of the
  object with the same value.
- functions: the cells of the closure, under the names of the variables. They are references of the function as well
  as of its ``__closure__``.
- functions that run or have ended, of which there is a frame: their variables, from Python 3.11 on (see `variables`).
- NumPy arrays, which the collector does not traverse: ``base``, and the items of an array of objects.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from types import (
    AsyncGeneratorType,
    CellType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
)
from typing import Any, Final, TypeAlias

from tornado_rbkit.profiler.attributes import ATTRIBUTES, InstanceReader
from tornado_rbkit.profiler.frames import SamplingError, frames_of_others
from tornado_rbkit.profiler.objects import (
    HAVE_GC,
    HEAP_TYPE,
    class_name,
    referents,
    type_dict,
    type_flags,
    type_mro,
    without_lines,
)
from tornado_rbkit.profiler.variables import variable_reader
from tornado_rbkit.protocol import Field

MAX_NAME: Final = 80
"""Characters of a name; longer names are cut."""

_MAX_KEY: Final = 2**53 - 1
"""The largest integer that is a name: JavaScript has larger ones only in part."""

_PAIRS: Final = 250
"""The most keys of a dict that are read in pairs, which take a hundred bytes each."""

_KEYS: Final = int(Field.KEYS)
_CO_OPTIMIZED: Final = 1
_dict_iter: Final[Callable[[Any], Iterator[Any]]] = dict.__iter__
_dict_items: Final[Callable[[Any], Iterable[tuple[Any, Any]]]] = dict.items
_dict_values: Final[Callable[[Any], Iterable[Any]]] = dict.values
_FUNCTION_PARTS: Final = ("__closure__", "__globals__", "__defaults__", "__kwdefaults__", "__code__")

Name: TypeAlias = str | int | None


References: TypeAlias = tuple[list[Any], int, list[Name] | int]
"""The references of one object, the field of their names, and a name, or None, for each of the first references.

The field is `Field.ATTRIBUTES` (names of attributes and variables), `Field.KEYS` (of a dict), or 0 if no reference has
a name. ``0`` in place of the names of `Field.KEYS` stands for the position of each reference. This is a plain tuple
because making one is faster than making a named one, and the interpreter reuses its memory, so tracemalloc traces
nothing.
"""

NO_REFERENCES: Final[References] = ([], 0, 0)


def reader(cls: type) -> Callable[[Any], References] | None:
    """Return a function that reads the references of instances of exactly this class, None if they have none."""
    exact = _READERS.get(cls) if type(cls) is type else None  # the host's metaclass may define __hash__
    if exact is not None:
        return exact
    bases = type_mro(cls)
    for base, read in _BASES:
        if any(each is base for each in bases):
            return read
    array = _array_class()
    if array is not None and any(each is array for each in bases):
        return partial(_array, array)
    flags = type_flags(cls)
    if not flags & HAVE_GC:
        return None
    return InstanceReader(cls).__call__ if flags & HEAP_TYPE else _unnamed


def namer(cls: type) -> Callable[[Any], str | None] | None:
    """Return a function that gives the names that instances of a class have of their own, None if they have none.

    Functions, classes, modules, coroutines and running functions have one.
    """
    if cls is FunctionType:
        return _function_name
    if cls is GeneratorType or cls is CoroutineType or cls is AsyncGeneratorType:
        return _qualname
    if cls is FrameType:
        return _frame_name
    bases = type_mro(cls)
    if any(base is ModuleType for base in bases):
        return _module_name
    return class_name if any(base is type for base in bases) else None


def defined_at(item: Any) -> tuple[str, int | None] | None:
    """Return the file and line of a function's ``def``, or the line that a frame has reached; None for other objects.

    A function was created at its ``def``. A frame's object may have been created by whoever looked at it.
    """
    if type(item) is FunctionType:
        return item.__code__.co_filename, item.__code__.co_firstlineno
    return (item.f_code.co_filename, item.f_lineno) if type(item) is FrameType else None


def running_frames() -> list[FrameType]:
    """Return the frames of all other threads, if their variables can be read and their stacks are safe to read."""
    if sys.version_info < (3, 11) or variable_reader() is not None:
        with contextlib.suppress(SamplingError):
            return frames_of_others()
    return []


def as_name(value: Any) -> Name:
    """Return a key or name that can be packed; None if it is neither text nor an integer."""
    cls = type(value)
    if cls is int:
        return value if -_MAX_KEY <= value <= _MAX_KEY else None
    if cls is not str:
        return None
    if len(value) > MAX_NAME:
        value = value[: MAX_NAME - 1] + "…"
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")  # type: ignore[no-any-return]


def _unnamed(item: Any) -> References:
    return gc.get_referents(item), 0, 0


@without_lines
def read_pairs(item: dict[Any, Any]) -> tuple[tuple[Any, Any], ...] | None:
    """Return the keys and values of a dict; None if another thread changed it meanwhile, or if there are many.

    The interpreter takes small tuples from a free list, so tracemalloc traces fewer objects than in `reader`.
    """
    if len(item) > _PAIRS:
        return None
    try:
        return tuple(_dict_items(item))
    except RuntimeError:
        return None


@without_lines
def _read_dict(item: Any) -> tuple[list[Any], list[Any]] | None:
    """Return the values and then the keys of a dict, and the keys; None if another thread changed it meanwhile.

    The iterators exist before the one call that exhausts them, so nothing runs in between, and a dict whose size has
    changed since raises RuntimeError.
    """
    try:
        both = list(chain(iter(_dict_values(item)), _dict_iter(item)))
    except RuntimeError:
        return None
    return both, both[len(both) // 2 :]


@without_lines
def _names_of(keys: list[Any]) -> list[Name]:
    """Return the name of each key: usually the same list, because tracemalloc would trace another."""
    for key in keys:
        if type(key) is not str or len(key) > MAX_NAME or not key.isascii():
            return list(map(as_name, keys))
    return keys


@without_lines
def _dict(item: Any) -> References:
    read = _read_dict(item)
    if read is None:
        return _unnamed(item)
    both, keys = read
    return both, _KEYS, _names_of(keys)


def _dict_subclass(item: Any) -> References:
    read = _read_dict(item)
    held = gc.get_referents(item)
    if read is None:
        return held, 0, 0
    both, keys = read
    known = set(map(id, both))
    others = [other for other in held if id(other) not in known]
    return both + others, _KEYS, _names_of(keys)


@without_lines
def _sequence(item: Any) -> References:
    held = gc.get_referents(item)
    if len(held) != len(item):  # a tuple that is being filled, or a list that another thread changed meanwhile
        return held, 0, 0
    held.reverse()
    return held, _KEYS, 0


def _module(item: Any) -> References:
    held = referents([item])
    return held, ATTRIBUTES, ["__dict__"] * len(held)


def _class(item: Any) -> References:
    (namespace,) = gc.get_referents(type_dict(item))  # type.__dict__ gives a proxy of it
    return _by_identity(gc.get_referents(item), {id(namespace): "__dict__"})


def _function(item: Any) -> References:
    held = gc.get_referents(item)
    names: dict[int, str] = {}
    for name in _FUNCTION_PARTS:
        names[id(getattr(item, name))] = name
    names.pop(id(None), None)
    cells = item.__closure__ or ()
    variables = item.__code__.co_freevars
    if len(cells) == len(variables):
        held.extend(cells)
        names |= dict(zip(map(id, cells), variables, strict=True))
    return _by_identity(held, names)


def _method(item: Any) -> References:
    return _by_identity(gc.get_referents(item), {id(item.__self__): "__self__", id(item.__func__): "__func__"})


def _cell(item: Any) -> References:
    return gc.get_referents(item), ATTRIBUTES, ["cell_contents"]


def _frame(item: Any) -> References:
    read = variable_reader()
    if read is None or not item.f_code.co_flags & _CO_OPTIMIZED:  # other code has a namespace
        return _unnamed(item)
    values, names = read(item)
    return values, ATTRIBUTES, list(map(as_name, names))


def _array(array: type, item: Any) -> References:
    """Read a NumPy array through the descriptors of numpy.ndarray."""
    members = type_dict(array)
    base = members["base"].__get__(item)
    held = gc.get_referents(item)
    if base is not None:
        return [base, *held], ATTRIBUTES, ["base"]
    if members["dtype"].__get__(item).char == "O":
        items: Any = members["tolist"](item)
        for _ in range(members["ndim"].__get__(item) - 1):
            items = chain.from_iterable(items)
        held.extend(items if type(items) is list or type(items) is chain else [items])  # an array without dimensions
    return held, 0, 0


def _array_class() -> type | None:
    module = sys.modules.get("numpy")
    found = vars(module).get("ndarray") if type(module) is ModuleType else None
    return found if type(found) is type else None


def _by_identity(held: list[Any], names: dict[int, str]) -> References:
    return (held, ATTRIBUTES, list(map(names.get, map(id, held)))) if names else (held, 0, 0)


def _function_name(function: Any) -> str:
    module = function.__module__
    return f"{module}.{function.__qualname__}" if type(module) is str else function.__qualname__


def _qualname(item: Any) -> str:
    return item.__qualname__  # type: ignore[no-any-return]


def _module_name(module: Any) -> str | None:
    (namespace,) = referents([module]) or ({},)
    name = dict.get(namespace, "__name__")
    return name if type(name) is str else None


def _frame_name(frame: Any) -> str:
    module = dict.get(frame.f_globals, "__name__")
    name: str = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
    return f"{module}.{name}" if type(module) is str else name


_READERS: Final[dict[type, Callable[[Any], References]]] = {
    dict: _dict,
    list: _sequence,
    tuple: _sequence,
    FunctionType: _function,
    MethodType: _method,
    CellType: _cell,
    FrameType: _frame,
}
_BASES: Final[tuple[tuple[type, Callable[[Any], References]], ...]] = (
    (ModuleType, _module),
    (type, _class),
    (dict, _dict_subclass),
)
