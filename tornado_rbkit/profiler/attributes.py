"""Finds the names under which the instances of a class hold their attributes, without running any of its code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from operator import itemgetter
from types import CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any, Final

from tornado_rbkit.profiler.objects import HEAP_TYPE, referents, type_dict, type_flags, type_mro, without_lines
from tornado_rbkit.protocol import Field

ATTRIBUTES: Final = int(Field.ATTRIBUTES)
"""The field of an object in a dump that has the names of its references."""

_CANDIDATES: Final = 500
"""Attribute names of a class that are looked up in an instance."""

_LOOKS: Final = 5
"""Instances of a class in which all candidates are looked up; others are read by the names found in these."""

_PROBED: Final = 20
"""Keys of a dict that are compared with the attributes of an instance, to find out whether it is its __dict__."""

_ABSENT: Final = object()
_dict_items: Final[Callable[[Any], Iterable[tuple[Any, Any]]]] = dict.items
_get_attribute: Final = object.__getattribute__


class InstanceReader:
    """Reads the instances of one class that is written in Python: the objects that an instance refers to, and names.

    Usually the collector's traversal visits the slots, then the attributes (or the dict that holds them), then the
    class. Then there is a name for each object in this order. In other cases the objects are
    compared with the slots and attributes, which takes longer.
    """

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self._slots = list(slots_of(cls))
        self._known: dict[str, Any] = {}  # found attribute names, and the class's attribute of the same name
        self._absent: dict[str, bool] = {}  # of names that instances have: whether the class has no such attribute
        self._looks = _LOOKS
        self._last: list[str] = []  # the names of an instance; the list is never changed

    @without_lines
    def __call__(self, item: Any) -> tuple[list[Any], int, list[Any]]:
        """Return the references, the field of their names, 0 if none has one, and the names."""
        held = gc.get_referents(item)
        names = self._in_order(item, held) or self._by_identity(item, held)
        return held, ATTRIBUTES if names else 0, names

    @without_lines
    def _in_order(self, item: Any, held: list[Any]) -> list[str] | None:
        """Return the names of all references but the last, which is the class; None if the order is another one."""
        names = self._last  # usually those of the instance before; tracemalloc would trace another list
        at, last = 0, len(held) - 1
        if last < 0 or held[last] is not self._cls:
            return None
        slots, slot = self._slots, 0
        while slot < len(slots):
            name, get = slots[slot]
            slot += 1
            try:
                value = get(item)
            except AttributeError:
                continue
            if held[at] is not value:
                return None
            if at >= len(names) or names[at] != name:
                names = [*names[:at], name]
            at += 1
        if at == last - 1 and type(held[at]) is dict:
            if not self._is_dict_of(item, held[at]):
                return None
            if at >= len(names) or names[at] != "__dict__":
                names = [*names[:at], "__dict__"]
            at += 1
        elif at < last:
            for name in self._known:
                try:
                    value = _get_attribute(item, name)
                except AttributeError:
                    continue
                if value is not self._known[name]:
                    if held[at] is not value:
                        return None
                    if at >= len(names) or names[at] != name:
                        names = [*names[:at], name]
                    at += 1
        if at != last:
            return None
        self._last = names if len(names) == at else names[:at]
        return self._last

    def _by_identity(self, item: Any, held: list[Any]) -> list[str | None]:
        names: dict[int, str] = {}
        for name, get in self._slots:
            try:
                names[id(get(item))] = name
            except AttributeError:
                continue
        rest = self._unnamed(held, names)
        if len(rest) == 1 and type(rest[0]) is dict and self._is_dict_of(item, rest[0]):
            names[id(rest[0])] = "__dict__"
        elif rest:
            self._look_up(item, self._known, names)
            if self._looks and self._unnamed(held, names):
                self._looks -= 1
                self._learn(item, held, names)
        return list(map(names.get, map(id, held))) if names else []

    def _unnamed(self, held: list[Any], names: dict[int, str]) -> list[Any]:
        return [other for other in held if other is not self._cls and id(other) not in names]

    def _look_up(self, item: Any, wanted: dict[str, Any], names: dict[int, str]) -> None:
        """Add the ids of the attributes that the instance itself has."""
        for name, of_class in wanted.items():
            try:
                value = _get_attribute(item, name)
            except AttributeError:
                continue
            if value is not of_class:
                names[id(value)] = name

    def _learn(self, item: Any, held: list[Any], names: dict[int, str]) -> None:
        for source in (_names_in_class, _names_in_module):
            candidates = {name: of_class for name in source(self._cls) if (of_class := self._plain(name)) is not type}
            found: dict[int, str] = {}
            self._look_up(item, candidates, found)
            for object_id in filter(found.__contains__, map(id, held)):  # in the order of the traversal
                name = found[object_id]
                names.setdefault(object_id, name)
                self._known[name] = candidates[name]
            if not self._unnamed(held, names):
                return

    def _plain(self, name: str) -> Any:
        """Return the class's attribute; `_ABSENT` if there is none, `type` if looking it up may run code."""
        for base in type_mro(self._cls):
            found = type_dict(base).get(name, _ABSENT)
            if found is not _ABSENT:
                kinds = [type_dict(each) for each in type_mro(type(found))]
                return type if any("__get__" in each or "__set__" in each for each in kinds) else found
        return _ABSENT

    def _is_dict_of(self, item: Any, found: dict[Any, Any]) -> bool:
        """Return whether a dict that is the only reference of an instance is its __dict__."""
        left = repeat(None, _PROBED)
        try:
            for name, value in _dict_items(found):
                if type(name) is str and value is not found and self._is_absent(name):
                    return _get_attribute(item, name) is value
                if next(left, self) is self:
                    break
        except (AttributeError, RuntimeError):  # another thread has changed the dict
            return False
        return False

    def _is_absent(self, name: str) -> bool:
        """Return whether the class has no attribute of this name."""
        found = self._absent.get(name)
        if found is None:
            if len(self._absent) == _CANDIDATES:
                self._absent.clear()
            found = self._absent[name] = self._plain(name) is _ABSENT
        return found


def slots_of(cls: type) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Yield the names and getters of the slots; only classes written in Python have ``__slots__``.

    They are in the order in which the collector visits them (Objects/typeobject.c, type_new and subtype_traverse).
    """
    for base in type_mro(cls):
        members = type_dict(base)
        if type_flags(base) & HEAP_TYPE and "__slots__" in members:
            for name, member in sorted(members.items(), key=itemgetter(0)):
                if type(member) is MemberDescriptorType:
                    yield name, member.__get__


def _names_in_class(cls: type) -> list[str]:
    found: dict[str, None] = {}
    for base in type_mro(cls):
        members = type_dict(base)
        for key in ("__static_attributes__", "__annotations__", "__match_args__"):
            listed = members.get(key)
            if type(listed) is tuple or type(listed) is dict:
                found.update((name, None) for name in list(listed) if type(name) is str)
        _add_names(list(members.values()), found)
    return list(found)[:_CANDIDATES]


def _names_in_module(cls: type) -> list[str]:
    found: dict[str, None] = {}
    module = type_dict(cls).get("__module__")
    held = sys.modules.get(module) if type(module) is str else None
    if held is not None and issubclass(type(held), ModuleType):
        for namespace in referents([held]):
            _add_names(list(namespace.values()), found)
    return list(found)[:_CANDIDATES]


def _add_names(values: list[Any], found: dict[str, None]) -> None:
    """Add the names of attributes and globals in the code of functions."""
    waiting: list[Any] = []
    for value in values:
        if type(value) is staticmethod or type(value) is classmethod:
            waiting.append(value.__func__)
        elif type(value) is property:
            waiting += (value.fget, value.fset, value.fdel)
        else:
            waiting.append(value)
    for function in waiting:
        if type(function) is FunctionType:
            cells = [gc.get_referents(cell) for cell in function.__closure__ or ()]  # of a decorator: the function
            inner = [each.__code__ for each in chain.from_iterable(cells) if type(each) is FunctionType]
            for code in _codes([function.__code__, *inner]):
                found.update(dict.fromkeys(code.co_names))


def _codes(codes: list[CodeType]) -> Iterator[CodeType]:
    """Yield codes and the codes of the functions within them."""
    while codes:
        code = codes.pop()
        yield code
        codes += [each for each in code.co_consts if type(each) is CodeType]
