"""Finds known objects in a new listing by comparing runs of neighbours, instead of looking up each object.

The collector appends to its lists and removes from them; a full collection moves some of the objects. So most objects
have the same neighbours in two listings. Comparing their ids takes a few nanoseconds for each object, looking it up in
a dict a hundred. Ids are stored in arrays, because the collector would look at each item of a list or a dict.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import compress, count
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    Ids = array[int]

_EVERY: Final = 16
"""The place of every 16th known object is stored."""

_FIRST_STEP: Final = 32
_LAST_STEP: Final = 4096
"""Objects that are compared at once, at the beginning of a run and later."""


def id_array(ids: Iterable[int] = ()) -> Ids:
    return array("Q", ids)


class KnownObjects:
    """The ids of objects and of their classes, in the order in which they were listed."""

    def __init__(self) -> None:
        self.ids = id_array()
        self.classes = id_array()
        self.places: dict[int, int] = {}
        """The index of every 16th object by its id."""

    def extend(self, ids: Ids, classes: Ids) -> None:
        """Append objects."""
        length = len(self.ids)
        first = -length % _EVERY
        self.places.update(zip(ids[first::_EVERY], count(length + first, _EVERY), strict=False))
        self.ids.extend(ids)
        self.classes.extend(classes)


class Alignment:
    """Aligns a listing with the objects that are known from the listing before, slice by slice."""

    def __init__(self, known: KnownObjects) -> None:
        self._known = known
        self._next = 0  # the index of the known object that is expected next
        self._found = bytearray(len(known.ids))  # 1 for each known object that is listed again

    def unaligned(self, ids: Ids, classes: Ids) -> list[slice]:
        """Align the next objects of the listing; return the runs of objects that were not aligned.

        An object that is not aligned may be known, unless it has another class than the known object with its id.
        """
        unaligned: list[slice] = []
        at, end = 0, len(ids)
        while at < end:
            length = self._run(ids, classes, at)
            if length:
                self._found[self._next : self._next + length] = b"\1" * length
                at += length
                self._next += length
                continue
            place = self._place(ids, at)
            if place == at and self._known.places[ids[at]] == self._next:  # which has another class
                place = self._place(ids, at + 1)
            start = place
            if place < end:
                self._next = self._known.places[ids[place]]
                back = self._run_before(ids, classes, place, at)
                start -= back
                self._next -= back
            if start > at:
                unaligned.append(slice(at, start))
            at = start
        return unaligned

    def missing(self) -> Iterator[tuple[Ids, Ids]]:
        """Yield the ids and the classes of the known objects that were not aligned, in runs."""
        start = self._found.find(0)
        while start >= 0:
            end = self._found.find(1, start)
            stop = len(self._found) if end < 0 else end
            yield self._known.ids[start:stop], self._known.classes[start:stop]
            start = self._found.find(0, stop)

    def _run(self, ids: Ids, classes: Ids, at: int) -> int:
        """Return how many objects from index `at` on are the known objects that are expected."""
        known, place, step = self._known, self._next, _FIRST_STEP
        most = min(len(ids) - at, len(known.ids) - place)
        length = 0
        while length < most:
            size = min(step, most - length)
            equal = _equal(ids, at + length, known.ids, place + length, size)
            equal = _equal(classes, at + length, known.classes, place + length, equal)
            length += equal
            if equal < size:
                break
            step = min(2 * step, _LAST_STEP)
        return length

    def _run_before(self, ids: Ids, classes: Ids, at: int, start: int) -> int:
        """Return how many objects before index `at`, from `start` on, precede the expected known object, too."""
        known, place = self._known, self._next
        length = 0
        most = min(at - start, place, _EVERY)
        while length < most:
            here, there = at - length - 1, place - length - 1
            if ids[here] != known.ids[there] or classes[here] != known.classes[there]:
                break
            length += 1
        return length

    def _place(self, ids: Ids, at: int) -> int:
        """Return the index of the first object from `at` on whose place is stored, or the end."""
        step = _FIRST_STEP
        is_stored = self._known.places.__contains__
        while at < len(ids):
            place = next(compress(count(at), map(is_stored, ids[at : at + step])), None)
            if place is not None:
                return place
            at += step
            step = min(2 * step, _LAST_STEP)
        return len(ids)


def _equal(ours: Ids, at: int, theirs: Ids, place: int, size: int) -> int:
    """Return the length of the equal runs of two arrays from two indices on, at most `size`."""
    if ours[at : at + size] == theirs[place : place + size]:
        return size
    low, high = 0, size  # the first `low` items are equal, the first `high` items are not
    while high - low > 1:
        middle = (low + high) // 2
        if ours[at + low : at + middle] == theirs[place + low : place + middle]:
            low = middle
        else:
            high = middle
    return low
