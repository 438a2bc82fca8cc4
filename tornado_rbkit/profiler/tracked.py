"""List what the collector tracks, without a reference to a tuple that is still being filled.

Up to Python 3.13 `tuple(generator)` and ``f(*generator)`` fill a tuple that the collector already tracks, and resize
it on the way (Objects/abstract.c, PySequence_Tuple). That raises SystemError in the host's code if anything else
refers to the tuple then (_PyTuple_Resize, CPython issue 107137). Such a tuple has a single reference, so no tuple that
has a single reference is kept when another thread runs again: the list is made and sorted out in one go (see
`uninterrupted`), and of these tuples there are only ids, and what they refer to.

This holds the GIL for several times as long as `gc.get_objects` alone, and for less time than a full collection.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Container, Iterator
from itertools import chain, compress, count, repeat, starmap
from operator import contains, getitem, is_, le, not_, setitem
from typing import Any, Final, NamedTuple

from tornado_rbkit.profiler.uninterrupted import ONCE, run_uninterrupted

TUPLES_ARE_RESIZED: Final = sys.version_info < (3, 14)

_REFERENCES: Final = 4
"""What `sys.getrefcount` returns for a tuple with a single reference: that one, two lists', and the call's own."""


class KindsById(list[dict[int, str]]):
    """The names of classes by their objects' ids, in many dicts: that of an object is at ``id >> 16 & LAST``.

    One dict of a million would be rehashed in one go of 50 ms with the GIL held. Neighbours in memory share one, and
    with it the processor's cache.
    """

    LAST: Final = 255

    def __init__(self) -> None:
        super().__init__({} for _ in range(self.LAST + 1))

    def total(self) -> int:
        """Return the number of objects."""
        return sum(map(len, self))


class Tracked(NamedTuple):
    """What the collector tracks at one moment. The lists are for their user to empty."""

    own: set[int]
    """The ids of these lists, and of all objects that made them."""

    objects: list[Any]
    """All objects, with None for each tuple that has a single reference."""

    known_ids: list[int]
    """The ids of the tuples with a single reference that were known before."""

    new_ids: list[int]
    """The ids of the other tuples with a single reference."""

    lengths: list[int]
    """The lengths of the new tuples."""

    counts: list[int]
    """How many objects each new tuple refers to: fewer than its length if it is still being filled."""

    content: list[Any]
    """The objects that the new tuples refer to, one after the other."""

    def take_new(self, most: int) -> list[tuple[int, list[Any]]]:
        """Take up to `most` new tuples off the lists; return the id and the content of those that are filled."""
        taken = []
        for _ in range(min(most, len(self.new_ids))):
            object_id, count = self.new_ids.pop(), self.counts.pop()
            start = len(self.content) - count
            if count == self.lengths.pop():
                taken.append((object_id, self.content[start:]))
            del self.content[start:]
        return taken


def list_tracked(known: Container[int] | None = None) -> Tracked:
    """List what the collector tracks. Any thread.

    Args:
        known: the ids of tuples of which the content is not needed; None if no content is needed.
    """
    listed: list[list[Any]] = []  # the one list that gc.get_objects returns
    single: list[tuple[Any, ...]] = []
    found: Tracked = Tracked(set(), [], [], [], [], [], [])  # not the result, which would be listed, and list itself
    own = found.own
    calls: list[Iterator[None]] = [map(listed.extend, [starmap(gc.get_objects, ONCE)])]
    if TUPLES_ARE_RESIZED:
        calls += _take_out(listed, single)
    if known is not None:
        calls += _look_into(single, known, found)
    calls.append(starmap(single.clear, ONCE))
    own.update(map(id, found), (id(found),))
    run_uninterrupted(calls, own)
    return found._replace(objects=listed.pop())


def _take_out(listed: list[list[Any]], single: list[tuple[Any, ...]]) -> list[Iterator[None]]:
    """Move the tuples with a single reference to `single`. Other objects are touched only once: memory is slow."""
    at: list[int] = []
    tuples: list[tuple[Any, ...]] = []
    is_single: list[bool] = []
    is_tuple: Any = map(is_, map(type, chain.from_iterable(listed)), repeat(tuple))
    # Each is exhausted, and lets go of the list: as the collector tracks these iterators, the list has them in turn.
    source: Any = chain.from_iterable(map(repeat, listed, map(len, [at])))
    target: Any = chain.from_iterable(map(repeat, listed, map(sum, [is_single])))
    return [
        map(at.extend, [compress(count(), is_tuple)]),
        map(tuples.extend, [map(getitem, source, at)]),
        map(is_single.extend, [map(le, map(sys.getrefcount, tuples), repeat(_REFERENCES))]),
        map(single.extend, [compress(tuples, is_single)]),
        starmap(tuples.clear, ONCE),
        map(setitem, target, compress(at, is_single), repeat(None)),
    ]


def _look_into(single: list[tuple[Any, ...]], known: Container[int], found: Tracked) -> list[Iterator[None]]:
    """Sort the tuples by whether they are known, and put down what the others refer to."""
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
