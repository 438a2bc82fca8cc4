"""Compares the objects that the collector tracks with the objects that it tracked at the previous comparison.

Nearly all that is done for each object is done by iterators of functions written in C: bytecode would take several
times as long. Only objects without a place among the known ones (see `alignment`) are looked up, by their ids: the
comparison no longer refers to the objects by then.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from itertools import compress, repeat, starmap
from operator import and_, is_not, ne, not_
from types import BuiltinMethodType, FrameType, MethodType
from typing import TYPE_CHECKING, Any, Final

from tornado_rbkit.profiler.alignment import Alignment, KnownObjects, id_array
from tornado_rbkit.profiler.changes import Changes
from tornado_rbkit.profiler.objects import (
    DICTS_ARE_UNTRACKED,
    ClassNames,
    SliceSize,
    are_plain,
    in_slices,
    is_bound_to,
    is_internal,
)
from tornado_rbkit.profiler.tracked import TUPLES_ARE_RESIZED, ClassesById, Tracked

if TYPE_CHECKING:
    from tornado_rbkit.profiler.alignment import Ids

_TUPLE: Final = id(tuple)
_FRAME: Final = id(FrameType)
_METHODS: Final = frozenset((id(MethodType), id(BuiltinMethodType)))
_LOOKED_AT: Final = _METHODS | ({_TUPLE, id(dict)} if DICTS_ARE_UNTRACKED else {_TUPLE})
"""Classes of which some objects are left out. By id, because comparing classes could call the host's metaclass."""

_AT_ONCE: Final = 5000
"""Objects that are looked up at once."""


class Comparison:
    """One comparison. For use by one thread.

    Args:
        tracked: the objects; their lists are emptied.
        known: the objects that were known before.
        single: the ids of the tuples with a single reference that were known before; they are removed.
        internal: the ids of the profiler's own objects.
        interned: the names of classes, so that equal names are the same object.
    """

    def __init__(
        self, tracked: Tracked, known: KnownObjects, single: set[int], internal: set[int], interned: dict[str, str]
    ) -> None:
        self.known = KnownObjects()
        """The objects that are known from now on."""
        self.single: set[int] = set()
        """The ids of the tuples with a single reference that are known from now on."""
        self.missing = ClassesById()
        """The objects that were known before and are no longer tracked, with the ids of their classes."""
        self._tracked = tracked
        self._single_before = single
        self._internal = internal
        self._names = ClassNames(interned)
        self._alignment = Alignment(known)
        self._doubtful: set[int] = set()  # ids of classes of which some or all objects are left out
        self._left_out: dict[int, int] = {}  # ids of objects that are not reported if they are new, and of the classes
        self._ids = id_array()  # of the other unaligned objects
        self._classes = id_array()

    def release(self) -> Iterator[None]:
        """Look at each object slice by slice, and drop the references to it."""
        yield from self._align()
        yield from self._take_tuples()

    def compare(self, changes: Changes) -> Iterator[None]:
        """Compare slice by slice after `release`, and note the objects that were created."""
        yield from in_slices(self._find_missing())
        yield from in_slices(self._look_up(changes))
        # these are not reported if they are new, but they are known
        self.keep([each for each in self._left_out.items() if self.missing.take_one(*each)])

    def keep(self, objects: Iterable[tuple[int, int]]) -> None:
        """Keep missing objects as known; `objects` has the id of each one, and the id of its class."""
        kept = list(objects)
        self.known.extend(id_array(object_id for object_id, _ in kept), id_array(cls for _, cls in kept))

    def _align(self) -> Iterator[None]:
        size = SliceSize()
        objects = self._tracked.objects
        while objects:
            with size as count:
                part = objects[: -count - 1 : -1]
                del objects[-count:]
                if TUPLES_ARE_RESIZED:
                    part = list(compress(part, map(is_not, part, repeat(None))))
                ids, classes = id_array(map(id, part)), id_array(map(id, map(type, part)))
                runs = self._alignment.unaligned(ids, classes)
                left_out = self._sort_out(part, runs, ids, classes) if runs else {}
                if left_out:
                    self._left_out.update(left_out)
                    known = list(map(not_, map(left_out.__contains__, ids)))
                    ids, classes = id_array(compress(ids, known)), id_array(compress(classes, known))
                self.known.extend(ids, classes)
                part, runs = [], []
            yield

    def _sort_out(self, part: list[Any], runs: list[slice], ids: Ids, classes: Ids) -> dict[int, int]:
        """Add unaligned objects to those that are looked up; return ids and classes of objects left out."""
        unaligned: list[Any] = []
        its_ids, its_classes = id_array(), id_array()
        for run in runs:
            unaligned.extend(part[run])
            its_ids.extend(ids[run])
            its_classes.extend(classes[run])
        for cls in set(its_classes).difference(self._names.names):
            [kind] = self._names.of([type(unaligned[its_classes.index(cls)])])
            if cls in _LOOKED_AT or cls == _FRAME or is_internal(kind):
                self._doubtful.add(cls)
        doubtful = compress(range(len(unaligned)), map(self._doubtful.__contains__, its_classes))
        left_out = {its_ids[at]: its_classes[at] for at in doubtful if self._is_left_out(unaligned[at])}
        if not self._internal.isdisjoint(its_ids):
            both = zip(its_ids, its_classes, strict=True)
            left_out.update((object_id, cls) for object_id, cls in both if object_id in self._internal)
        if left_out:
            kept = list(map(not_, map(left_out.__contains__, its_ids)))
            its_ids, its_classes = id_array(compress(its_ids, kept)), id_array(compress(its_classes, kept))
        self._ids.extend(its_ids)
        self._classes.extend(its_classes)
        return left_out

    def _is_left_out(self, item: Any) -> bool:
        """Return whether an object of one of the doubtful classes is left out."""
        cls = type(item)
        if id(cls) not in _LOOKED_AT:
            return True
        if id(cls) in _METHODS:
            return is_bound_to(item, self._internal)
        content = gc.get_referents(item)
        if cls is tuple and len(content) < len(item):  # it is still being filled, and its id may change
            return True
        return _are_plain(content)

    def _take_tuples(self) -> Iterator[None]:
        """Take the tuples with a single reference."""
        self._names.of([tuple])
        tracked, size = self._tracked, SliceSize()
        while tracked.known_ids or tracked.new_ids:
            with size as count:
                known = tracked.known_ids[-count:]
                del tracked.known_ids[-count:]
                self.single.update(known)
                self._single_before.difference_update(known)
                for object_id, content in tracked.take_new(count):
                    if object_id in self._internal or _are_plain(content):
                        self._left_out[object_id] = _TUPLE
                        continue
                    self.single.add(object_id)
                    self._ids.append(object_id)
                    self._classes.append(_TUPLE)
                content = []
            yield

    def _find_missing(self) -> Iterator[None]:
        """List the known objects that were not aligned; some of them are found by looking up the unaligned objects."""
        for ids, classes in self._runs_of_missing():
            for start in range(0, len(ids), _AT_ONCE):
                self.missing.put(ids[start : start + _AT_ONCE], classes[start : start + _AT_ONCE])
                yield

    def _runs_of_missing(self) -> Iterator[tuple[Ids, Ids]]:
        yield from self._alignment.missing()
        tuples = self._single_before
        while tuples:
            ids = id_array(starmap(tuples.pop, repeat((), min(_AT_ONCE, len(tuples)))))
            yield ids, id_array([_TUPLE]) * len(ids)

    def _look_up(self, changes: Changes) -> Iterator[None]:
        """Note the unaligned objects that were created; remove known ones from the missing objects."""
        for start in range(0, len(self._ids), _AT_ONCE):
            self._look_up_part(self._ids[start : start + _AT_ONCE], self._classes[start : start + _AT_ONCE], changes)
            yield

    def _look_up_part(self, ids: Ids, classes: Ids, changes: Changes) -> None:
        before = self.missing.take(ids)
        is_new = list(map(ne, before, classes))
        kinds = map(self._names.names.__getitem__, classes)
        changes.note_created(compress(ids, is_new), compress(kinds, is_new))
        changes.note_replaced(compress(ids, map(and_, is_new, map(is_not, before, repeat(None)))))


def _are_plain(content: list[Any]) -> bool:
    """Return the result of `are_plain`, in most cases sooner."""
    for item in content:
        if gc.is_tracked(item) and type(item) is not tuple:
            return False
    return are_plain(content)
