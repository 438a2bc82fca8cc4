"""Known objects are found by their neighbours, whatever was removed, added, moved, or has another class."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from tornado_rbkit.profiler.alignment import Alignment, KnownObjects, id_array

_Objects = list[tuple[int, int]]  # ids of objects and of their classes


def known_objects(objects: _Objects, parts: int) -> KnownObjects:
    known = KnownObjects()
    for part in slices(objects, parts):
        known.extend(id_array(one for one, _ in part), id_array(cls for _, cls in part))
    return known


def slices(objects: _Objects, size: int) -> Iterator[_Objects]:
    for start in range(0, len(objects), size):
        yield objects[start : start + size]


def align(known: KnownObjects, listed: _Objects, size: int) -> tuple[_Objects, _Objects]:
    """Return the objects that are not aligned, and the known objects that are missing."""
    alignment = Alignment(known)
    unaligned = []
    for part in slices(listed, size):
        runs = alignment.unaligned(id_array(one for one, _ in part), id_array(cls for _, cls in part))
        for run in runs:
            unaligned.extend(part[run])
    missing = [pair for run in alignment.missing() for pair in zip(*run, strict=True)]
    return unaligned, missing


@given(
    length=st.integers(0, 300),
    changes=st.lists(st.tuples(st.sampled_from(["remove", "move", "add", "class"]), *[st.integers(0, 300)] * 3)),
    size=st.integers(1, 400),
)
def test_each_known_object_is_either_aligned_or_missing(
    length: int, changes: list[tuple[str, int, int, int]], size: int
) -> None:
    known = [(1 + number * 7919 % 1009, number % 3) for number in range(length)]
    listed, fresh = known.copy(), 2000
    for change, start, count, target in changes:
        part = listed[start : start + count]
        if change == "add":
            listed[start:start] = [(fresh + number, 0) for number in range(count)]
            fresh += count
            continue
        del listed[start : start + count]
        if change == "move":
            listed[target:target] = part
        elif change == "class":
            listed[start:start] = [(one, cls + 3) for one, cls in part]
    unaligned, missing = align(known_objects(known, size), listed, size)
    assert set(unaligned) <= set(listed)
    aligned = set(listed) - set(unaligned)
    assert aligned <= set(known), "an object was taken for another one"
    assert sorted(missing) == sorted(set(known) - aligned)


def test_only_the_neighbours_of_a_change_are_looked_up() -> None:
    """Otherwise comparisons take several times as long."""
    known = [(number, number % 5) for number in range(100_000)]
    new = [(200_000 + number, 1) for number in range(1000)]
    listed = [*new, *known[50_000:], *(each for each in known[:50_000] if each[0] % 1000)]
    unaligned, missing = align(known_objects(known, 2000), listed, 3000)
    assert set(new) <= set(unaligned)
    assert len(unaligned) < len(new) + 20 * 50
    assert len(missing) < 50 + 20 * 50
