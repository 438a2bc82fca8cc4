"""Lists the objects that the collector tracks, without keeping a reference to a tuple that is still being filled.

Up to Python 3.13 `tuple(generator)` and ``f(*generator)`` fill a tuple that the collector already tracks, and resize
it meanwhile (Objects/abstract.c, PySequence_Tuple). Resizing raises SystemError in the host's code if anything else
refers to the tuple (_PyTuple_Resize, CPython issue 107137). Such a tuple has a single reference, so no tuple with a
single reference is kept when another thread runs again: the list is created and sorted without interruption (see
`uninterrupted`), and only the ids and the referents of these tuples are kept.

This holds the GIL for several times as long as `gc.get_objects` alone, and for less time than a full collection.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Container, Iterable, Iterator
from itertools import chain, compress, count, repeat, starmap
from operator import add, and_, contains, floordiv, getitem, is_, le, not_, rshift, setitem
from typing import Any, Final, NamedTuple

from tornado_rbkit.profiler.uninterrupted import ONCE, run_uninterrupted

TUPLES_ARE_RESIZED: Final = sys.version_info < (3, 14)

_find_true: Final = re.compile(b"\1").finditer

_PART: Final = 1024
"""Objects that are copied to a list, and so brought into the processor's cache, before their classes are compared.

The copy waits for many objects at once, a comparison for one: memory is slow. It takes a third off the comparison of
a million objects (40 to 26 ms on Python 3.11).
"""

_REFERENCES: Final = 4
"""The result of `sys.getrefcount` for a tuple with a single reference: it also counts a reference from each of two
lists, and the argument of the call."""


class ClassesById(list[dict[int, int]]):
    """Ids of classes by the ids of objects, in many dicts: the dict of an object is at ``id >> 16 & LAST``.

    Rehashing a single dict of a million ids would hold the GIL for 50 ms. Neighbours in memory share a dict, and so
    the processor's cache.
    """

    LAST: Final = 255

    def __init__(self) -> None:
        super().__init__({} for _ in range(self.LAST + 1))

    def put(self, ids: Iterable[int], classes: Iterable[int]) -> None:
        """Add objects."""
        ids = list(ids)
        any(map(setitem, self._dicts(ids), ids, classes))

    def take(self, ids: Iterable[int]) -> list[int | None]:
        """Remove objects; return their classes, None for each object that is not there."""
        ids = list(ids)
        return list(map(dict.pop, self._dicts(ids), ids, repeat(None)))

    def take_one(self, object_id: int, cls: int) -> bool:
        """Remove an object if it has this class; return whether it did."""
        objects = self[object_id >> 16 & self.LAST]
        if objects.get(object_id) != cls:
            return False
        del objects[object_id]
        return True

    def _dicts(self, ids: list[int]) -> Iterator[dict[int, int]]:
        return map(self.__getitem__, map(and_, map(rshift, ids, repeat(16)), repeat(self.LAST)))


class Tracked(NamedTuple):
    """The objects that the collector tracks at one moment. The user of the lists empties them."""

    internal: set[int]
    """The ids of these lists, and of all objects that created them."""

    objects: list[Any]
    """All objects, with None for each tuple that has a single reference."""

    known_ids: list[int]
    """The ids of the tuples with a single reference that were known before."""

    new_ids: list[int]
    """The ids of the tuples with a single reference that were not known before."""

    lengths: list[int]
    """The lengths of the new tuples."""

    counts: list[int]
    """How many objects each new tuple refers to: fewer than its length if it is still being filled."""

    content: list[Any]
    """The objects that the new tuples refer to, in the order of the tuples."""

    def take_new(self, most: int) -> list[tuple[int, list[Any]]]:
        """Remove up to `most` new tuples from the lists; return the id and the content of each filled tuple."""
        taken = []
        for _ in range(min(most, len(self.new_ids))):
            object_id, count = self.new_ids.pop(), self.counts.pop()
            start = len(self.content) - count
            if count == self.lengths.pop():
                taken.append((object_id, self.content[start:]))
            del self.content[start:]
        return taken


def list_tracked(known: Container[int] | None = None) -> Tracked:
    """List the objects that the collector tracks. Any thread.

    Args:
        known: the ids of tuples whose content is not needed; None if no content is needed.
    """
    listed: list[list[Any]] = []  # the one list that gc.get_objects returns
    single: list[tuple[Any, ...]] = []
    found: Tracked = Tracked(set(), [], [], [], [], [], [])  # not the result, which would be in its own list
    internal = found.internal
    calls: list[Iterator[None]] = [map(listed.extend, [starmap(gc.get_objects, ONCE)])]
    if TUPLES_ARE_RESIZED:
        calls += _take_out(listed, single)
    if known is not None:
        calls += _look_into(single, known, found)
    calls.append(starmap(single.clear, ONCE))
    internal.update(map(id, found), (id(found),))
    run_uninterrupted(calls, internal)
    return found._replace(objects=listed.pop())


def _take_out(listed: list[list[Any]], single: list[tuple[Any, ...]]) -> list[Iterator[None]]:
    """Move the tuples with a single reference to `single`."""
    flags = bytearray()  # one for each object; numbers would each be created, and traced by tracemalloc
    at: list[int] = []
    tuples: list[tuple[Any, ...]] = []
    is_single: list[bool] = []
    # Each iterator over the list is exhausted at the end, which releases the list. The list contains these iterators,
    # because the collector tracks them.
    number: Any = map(add, map(floordiv, map(len, listed), repeat(_PART)), repeat(1))
    each_time: Any = chain.from_iterable(map(repeat, listed, number))
    parts = map(getitem, each_time, map(slice, count(0, _PART), count(_PART, _PART)))
    is_tuple: Any = map(is_, map(type, chain.from_iterable(parts)), repeat(tuple))
    found = chain.from_iterable(starmap(_find_true, [(flags,)]))
    source: Any = chain.from_iterable(map(repeat, listed, map(len, [at])))
    target: Any = chain.from_iterable(map(repeat, listed, map(sum, [is_single])))
    return [
        map(flags.extend, [is_tuple]),
        map(at.extend, [map(re.Match.start, found)]),
        map(tuples.extend, [map(getitem, source, at)]),
        map(is_single.extend, [map(le, map(sys.getrefcount, tuples), repeat(_REFERENCES))]),
        map(single.extend, [compress(tuples, is_single)]),
        starmap(tuples.clear, ONCE),
        map(setitem, target, compress(at, is_single), repeat(None)),
    ]


def _look_into(single: list[tuple[Any, ...]], known: Container[int], found: Tracked) -> list[Iterator[None]]:
    """Separate the known tuples from the new tuples, and list the objects that the new tuples refer to."""
    ids: list[int] = []
    is_known: list[bool] = []
    new: list[tuple[Any, ...]] = []
    content: list[list[Any]] = []
    return [
        map(ids.extend, [map(id, single)]),
        map(is_known.extend, [map(contains, repeat(known), ids)]),
        map(found.known_ids.extend, [compress(ids, is_known)]),
        map(found.new_ids.extend, [compress(ids, map(not_, is_known))]),
        map(new.extend, [compress(single, map(not_, is_known))]),
        map(found.lengths.extend, [map(len, new)]),
        map(content.extend, [map(gc.get_referents, new)]),
        map(found.counts.extend, [map(len, content)]),
        map(found.content.extend, [chain.from_iterable(content)]),
        starmap(content.clear, ONCE),
        starmap(new.clear, ONCE),
    ]
