"""A heap snapshot: the objects that the collector tracks, and the untracked values they refer to (strings, numbers).

The heap is walked in slices of some milliseconds, between which the host runs, so a snapshot does not show a single
moment: objects created after its start are included only if they are plain values, and tracked objects that die during
the walk are kept until its end (and are then released on the server's thread). Two single calls of the interpreter
hold the GIL for longer than a slice: listing all tracked objects at the start (50 to 60 ms per million up to
Python 3.13, see `tracked`, 20 to 30 ms from Python 3.14 on), and reading the references of one very large container.

The walk refers to a value only until its row is packed, a slice or two after its container's row: the host can then
resize a NumPy array, which fails while something else refers to the array. (An instance of a subclass that the
collector tracks is kept until the end.) The same holds for the frames of running functions. Up to Python 3.13 a tuple
may be missing if only an expression that is being evaluated refers to it.

The collector does not list objects frozen with `gc.freeze`. If there are any, every reference is followed, from the
modules, classes and running functions on, to find them. The walk then takes longer, keeps the objects that it has yet
to look at, and includes objects that are created meanwhile. Frozen objects are missing if only the interpreter or an
extension module refers to them.

A snapshot leaves out the profiler's own objects, except its modules, their definitions, and a few objects that only
the interpreter holds. Of a module only its namespace is followed (see `objects.referents`). The names under which
objects are held are described in `references`. File and line are known for functions, and for objects created while
tracemalloc traced, except objects that the interpreter takes from a free list and, on Python 3.11, instances with a
``__dict__`` (a bug in its tracemalloc).

None of the host's code is run: classes are read through `type`'s own descriptors, references through the collector's
traversal, and sizes through ``__sizeof__`` only if that is not written in Python.
"""

from __future__ import annotations

import sys
import tracemalloc
from _tracemalloc import _get_object_traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from gc import get_freeze_count, is_tracked
from itertools import repeat
from types import BuiltinMethodType, FrameType, FunctionType, MethodType
from typing import Any, Final, NamedTuple

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.objects import (
    HEAP_TYPE,
    ClassNames,
    SliceSize,
    in_slices,
    internal_frames,
    internal_ids,
    is_bound_to,
    is_internal,
    type_flags,
    type_subclasses,
    without_lines,
)
from tornado_rbkit.profiler.packing import DumpPacker, pack_dump_head, pack_time
from tornado_rbkit.profiler.references import (
    NO_REFERENCES,
    Name,
    References,
    as_name,
    defined_at,
    namer,
    read_pairs,
    reader,
    running_frames,
)
from tornado_rbkit.profiler.sizes import has_values, size_of_values, size_reader
from tornado_rbkit.profiler.threads import hiding
from tornado_rbkit.profiler.tracked import list_tracked
from tornado_rbkit.profiler.vitals import resident_bytes

COLLECTION_DUMPS: Final = 10
"""Dumps in one event_collection: half a megabyte. rbkit sends all dumps in one."""

_KEYS: Final = 2000
"""Keys of dicts that are remembered."""

_SMALL: Final = 250
"""The interpreter has integers up to 256; larger ones would be created."""

_SHARDS: Final = 251  # a prime, because ids are multiples of 16

_PIECE: Final = 5000
"""Objects that are released at once after the walk."""


class _Kind(NamedTuple):
    """How the instances of one class are read."""

    name: str
    """The class's name as text that can be packed; an empty string for the profiler's own classes."""

    read: Callable[[Any], References] | None
    name_of: Callable[[Any], str | None] | None
    size_of: Callable[[Any], int | None]
    fixed_size: int | None
    """The size of every instance in bytes, None if `size_of` tells it."""

    has_values: bool
    """See `sizes.has_values`."""

    is_method: bool

    listed_class: object
    """The class, if the collector lists it, so that references to it need not be followed; else `Snapshot._mark`."""

    class_id: int
    """Its id, so that it is not created for each instance."""


class Snapshot:
    """One walk over the heap. For use by the server's thread.

    Args:
        correlation_id: identifies the dumps of this snapshot.
        internal: the roots of the profiler's own objects, which are left out.
    """

    def __init__(self, correlation_id: int, internal: list[object]) -> None:
        self.correlation_id = correlation_id
        self.total = 0
        """The number of objects found so far; the final number after the walk."""
        self._timestamp = pack_time(real_time.time())
        self._resident = resident_bytes()  # before the walk, which takes memory itself
        self._bodies: list[bytes] = []
        # Rehashing a single set of a million ids would hold the GIL for 50 ms.
        self._seen: list[set[int]] = [set() for _ in range(_SHARDS)]
        self._mark: list[Any] = []
        self._is_new(id(self._mark))  # so that no reference leads to it
        # Each begins with the end of the values, often enough that the list is not resized for each object.
        self._values: list[Any] = [self._mark] * _SMALL
        self._value_ids = [0] * _SMALL
        self._keys: dict[str, tuple[str, int, Name]] = {}  # of dicts: themselves, their ids, and their names
        self._names = ClassNames()
        self._kinds: dict[type | int, _Kind] = {}
        self._packer = DumpPacker()
        self._tracing = tracemalloc.is_tracing()
        self._traced = tracemalloc.get_traced_memory()[0] if self._tracing else None
        self._roots = internal
        self._internal: set[int] = set()
        self._has_frozen = get_freeze_count() > 0

    def walk(self) -> Generator[None, None, None]:
        """Visit every object, and yield after each slice, so that the caller can let the host run."""
        size = SliceSize(500)
        with hiding():
            tracked = list_tracked()
            # now, because another thread of the profiler may release some of them later
            self._internal = internal_ids([*self._roots, self, tracked]) | internal_frames()
        objects = tracked.objects
        listed, is_unfinished = iter(objects), True
        try:
            self._begin_with(frame for frame in running_frames() if not is_internal(_module_of(frame)))
            if self._has_frozen:
                self._begin_with((*sys.modules.values(), *_subclasses_of(object)))  # a module may have two names
            while is_unfinished:
                with size as count:
                    is_unfinished = self._add_some(listed, count)
                yield
            if self._packer.rows or not self._bodies:
                self._cut()
            yield from in_slices(self._release(objects))
        finally:  # also if it is closed early: on Python 3.10 the list holds this frame, and would outlive it
            del tracked, objects, listed

    def messages(self) -> Iterator[list[bytes]]:
        """Yield the events of each message after the walk, and drop them from memory."""
        head = pack_dump_head(self._timestamp, self.correlation_id, self.total, self._resident, self._traced)
        self._bodies.reverse()
        while self._bodies:
            part = self._bodies[-COLLECTION_DUMPS:]
            del self._bodies[-COLLECTION_DUMPS:]
            yield [head + body for body in reversed(part)]

    def _release(self, objects: list[Any]) -> Iterator[None]:
        """Drop what only the walk needs, in pieces: a million ids are a million integers."""
        self._values, self._value_ids, self._keys = [], [], {}
        for shard in self._seen:
            shard.clear()  # the list of all objects refers to the set
            yield
        while objects:
            del objects[-_PIECE:]
            yield

    def _begin_with(self, items: Iterable[Any]) -> None:
        """Remember objects, to pack them before those that are listed."""
        for item in items:
            if self._is_new(id(item)):
                self._values.append(item)
                self._value_ids.append(id(item))

    @without_lines
    def _add_some(self, listed: Iterator[Any], count: int) -> bool:
        """Pack at most `count` objects; return False if there are no more.

        If tracemalloc is on, it traces each object that is created here and in what this calls, even an integer above
        256 or the iterator of a loop, unless the interpreter takes it from a free list. That takes longer than
        everything else, so few are created.
        """
        values, ids, mark = self._values, self._value_ids, self._mark
        for _ in repeat(None, count):
            item = values.pop()  # these first, because the host is not their only owner until then
            if item is not mark:
                self._add(item, ids.pop())
                continue
            values.append(mark)
            item = next(listed, listed)
            if item is listed:
                return False
            if item is not None:  # it replaces a tuple that was taken out
                self._add(item)
        return True

    @without_lines
    def _add(self, item: Any, object_id: int = 0) -> None:
        """Pack one object, and remember the plain values that it refers to; a listed one is given without its id."""
        cls = type(item)
        if not object_id:
            object_id = id(item)
            if (cls is tuple or self._has_frozen) and not self._is_new(object_id):
                return  # a reference has led to it before
        # by id if hashing the class would call its metaclass, which may be the host's
        kind = self._kinds.get(cls if type(cls) is type else id(cls)) or self._learn(item)
        if object_id in self._internal or not kind.name or (kind.is_method and is_bound_to(item, self._internal)):
            return
        if cls is dict and (pairs := read_pairs(item)) is not None:
            self._add_pairs(item, object_id, kind, pairs)
            return
        held, field, names = NO_REFERENCES if kind.read is None else kind.read(item)
        label = None if kind.name_of is None else as_name(kind.name_of(item))
        packer = self._packer
        packer.begin(object_id, kind.name, len(held), (field != 0) + (label is not None))
        self._follow(held, kind)
        size = kind.fixed_size or kind.size_of(item)
        if kind.has_values and size is not None:
            size += size_of_values(held)
        if self._tracing or cls is FunctionType or cls is FrameType:
            self._pack_place(item)
        else:
            packer.add_place(None, None)
        packer.add_size(size)
        if field:
            packer.add_names(field, names)
        if label is not None:
            packer.add_label(label)
        if packer.is_full():
            self._cut()

    @without_lines
    def _add_pairs(self, item: Any, object_id: int, kind: _Kind, pairs: tuple[tuple[Any, Any], ...]) -> None:
        """Pack a dict: its values, its keys, and the names that these are."""
        packer, known, count = self._packer, self._keys, len(pairs)
        pack = packer.pack
        packer.begin(object_id, kind.name, 2 * count, 1)
        at = 0
        while at < count:
            self._follow_one(pairs[at][1])
            at += 1
        at = 0
        while at < count:
            key = pairs[at][0]
            at += 1
            found = known.get(key) if type(key) is str else None
            if found is not None and found[0] is key:
                pack(found[1])
            else:
                self._follow_key(key)
        if self._tracing:
            self._pack_place(item)
        else:
            packer.add_place(None, None)
        packer.add_size(kind.size_of(item))
        packer.begin_names(count)
        at = 0
        while at < count:
            key = pairs[at][0]
            at += 1
            found = known.get(key) if type(key) is str else None
            pack(as_name(key) if found is None else found[2])
        if packer.is_full():
            self._cut()

    @without_lines
    def _follow(self, held: list[Any], kind: _Kind) -> None:
        """Pack the ids of references; remember the objects that only references lead to."""
        if len(held) > _SMALL:
            for other in held:
                self._follow_one(other)
            return
        listed_class, at, count = kind.listed_class, 0, len(held)
        while at < count:
            other = held[at]
            at += 1
            if other is listed_class:
                self._packer.pack(kind.class_id)
            else:
                self._follow_one(other)

    @without_lines
    def _follow_one(self, other: Any) -> None:
        """Follow one reference; in a short function because tracemalloc looks up where in it an object is created."""
        other_id = id(other)  # not all in one call: the host can have the GIL in between
        self._packer.pack(other_id)
        if self._has_frozen or not is_tracked(other) or type(other) is tuple:
            shard = self._seen[other_id % _SHARDS]
            if other_id not in shard:
                shard.add(other_id)
                self._values.append(other)
                self._value_ids.append(other_id)

    @without_lines
    def _follow_key(self, key: Any) -> None:
        """Follow a reference to a dict's key; remember the key for the dicts that have the same one."""
        self._follow_one(key)
        if type(key) is str and len(self._keys) < _KEYS:
            self._keys.setdefault(key, (key, id(key), as_name(key)))

    def _is_new(self, object_id: int) -> bool:
        """Return True the first time that a reference leads to an object."""
        shard = self._seen[object_id % _SHARDS]
        if object_id in shard:
            return False
        shard.add(object_id)
        return True

    def _learn(self, item: Any) -> _Kind:
        cls = type(item)
        (name,) = self._names.of([cls])
        text = "" if is_internal(name) else name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        is_method = cls is MethodType or cls is BuiltinMethodType
        is_listed = type_flags(cls) & HEAP_TYPE and not self._has_frozen
        listed = cls if is_listed else self._mark
        about = (text, reader(cls), namer(cls), *size_reader(item), has_values(cls), is_method)
        kind = _Kind(*about, listed, id(listed))
        self._kinds[cls if type(cls) is type else id(cls)] = kind
        return kind

    @without_lines
    def _pack_place(self, item: Any) -> None:
        """Pack the file and line where the object was created, if they are known."""
        trace = _get_object_traceback(item)  # tracemalloc.get_object_traceback() would create objects
        place = trace[0] if trace and type(item) is not FrameType else defined_at(item)
        if place is None:
            self._packer.add_place(None, None)
            return
        file, line = place
        if not file.isascii():
            file = file.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self._packer.add_place(file, line)

    def _cut(self) -> None:
        self.total += self._packer.rows
        self._bodies.append(self._packer.take())


def _subclasses_of(cls: type) -> list[type]:
    """Return all direct and indirect subclasses; no reference leads to many that are written in C."""
    found = {id(cls): cls}
    waiting = [cls]
    while waiting:
        for each in type_subclasses(waiting.pop()):
            if id(each) not in found:
                found[id(each)] = each
                waiting.append(each)
    return list(found.values())


def _module_of(frame: FrameType) -> str:
    name = dict.get(frame.f_globals, "__name__")
    return name if type(name) is str else ""
