"""The host's tuples can be resized, and its other values have no further owner, whatever the profiler has listed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tornado_rbkit.profiler import memory
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.heap import Snapshot
from tornado_rbkit.profiler.memory import MemoryProfile
from tornado_rbkit.profiler.tracked import TUPLES_ARE_RESIZED, list_tracked
from tornado_rbkit.profiler.uninterrupted import run_uninterrupted


def listing() -> Iterator[object]:
    return iter(list_tracked(frozenset()))


def comparison() -> Iterator[None]:
    profile = MemoryProfile(EventBatcher(), list)
    for _ in profile._begin(baseline=True):
        pass
    return profile._begin()


def walk() -> Iterator[None]:
    return begun(Snapshot(1, []).walk())


def search() -> Iterator[None]:
    return begun(memory._find_dicts(set(), set()))


def begun(steps: Iterator[None]) -> Iterator[None]:
    next(steps, None)
    return steps


def count(*items: object) -> int:
    return len(items)


@pytest.mark.parametrize("use", [lambda items: len(tuple(items)), lambda items: count(*items)], ids=["tuple", "call"])
@pytest.mark.parametrize("begin", [listing, comparison, walk, search])
def test_a_tuple_can_be_filled_from_a_generator(
    frozen: None, begin: Callable[[], Iterator[object]], use: Callable[[Iterator[object]], int]
) -> None:
    def items(total: int, listed_at: int) -> Iterator[object]:
        for number in range(total + 1):
            if number == listed_at:
                steps.append(begin())
            if number < total:
                yield [number]

    steps: list[Iterator[object]] = []
    # the interpreter resizes where 10, 25, 43 and so on are filled, and at the end
    ends = [(total, listed_at) for total in (0, 1, 9, 10, 11, 25, 26) for listed_at in {0, total}]
    for total, listed_at in [*ends, *((60, listed_at) for listed_at in (0, 1, 5, 9, 10, 11, 24, 25, 26, 43, 60))]:
        assert use(items(total, listed_at)) == total
        for step in steps:
            for _ in step:
                pass
        steps.clear()


if TUPLES_ARE_RESIZED:  # else all tuples are among the objects

    def test_a_tuple_with_a_single_reference_is_not_an_object_but_an_id_and_its_content(frozen: None) -> None:
        known: list[Any] = [([], number) for number in range(50)]
        new: list[Any] = [([], number) for number in range(50)]
        twice: list[Any] = [([], 1)] * 2
        tracked = list_tracked(set(map(id, known)))
        objects = set(map(id, tracked.objects))
        assert id(twice[0]) in objects
        assert not objects & {*map(id, known), *map(id, new)}
        assert set(map(id, known)) <= set(tracked.known_ids)
        content = dict(tracked.take_new(len(tracked.new_ids)))
        for item in new:
            assert sorted(map(id, content[id(item)])) == sorted(map(id, item))
        assert not tracked.content


def test_nothing_of_a_listing_refers_to_it(frozen: None) -> None:
    gc.disable()
    try:
        item: list[Any] = []
        before = sys.getrefcount(item)
        tracked = list_tracked(frozenset())
        del tracked
        after = sys.getrefcount(item)
    finally:
        gc.enable()
    assert after == before


def test_a_snapshot_keeps_the_values_of_no_more_than_one_object(frozen: None) -> None:
    holders = [{"key": bytes(100 + number)} for number in range(3000)]
    held = [0]
    for _ in Snapshot(1, []).walk():
        held.append(sum(sys.getrefcount(holder["key"]) > 2 for holder in holders))
    assert len(held) > 3, "it was walked in one slice"
    assert max(held) <= 1


def test_no_id_of_a_released_object_is_left_among_the_internal_ones() -> None:
    """An object of the host that gets its address would be hidden."""
    calls: list[Iterator[None]] = [map([].append, [])]
    internal: set[int] = set()
    run_uninterrupted(calls, internal)
    later = [set[int]() for _ in range(100)]  # the first takes the address of the set that was released last
    assert internal
    assert not internal & set(map(id, later))
