"""Sizes of objects, compared with the memory that creating them takes."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from tornado_rbkit.profiler.sizes import has_values, size_function, size_of_values, size_reader

COUNT = 2000
HOLDER = "<holder>"


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def traced() -> int:
    """Return the bytes that this module has allocated, and no other thread."""
    traces = tracemalloc.take_snapshot().traces
    return sum(trace.size for trace in traces if trace.traceback[0].filename in (__file__, HOLDER))


def holder(attributes: int) -> type:
    """Return a class whose instances have so many attributes, after the first instances."""
    lines = "".join(f"    self.a{number} = None\n" for number in range(attributes))
    names: dict[str, Any] = {}
    exec(compile(f"class Holder:\n  def __init__(self):\n    pass\n{lines}", HOLDER, "exec"), names)
    for _ in range(100):
        names["Holder"]()
    return names["Holder"]  # type: ignore[no-any-return]


if sys.version_info >= (3, 11):  # before, instances have dicts

    @pytest.mark.parametrize("attributes", [0, 1, 2, 5, 6, 7, 12, 20])
    def test_the_attributes_of_an_instance_are_in_its_size(tracing: None, attributes: int) -> None:
        cls = holder(attributes)
        assert has_values(cls)
        made: list[Any] = [None] * COUNT
        before = traced()
        for number in range(COUNT):
            made[number] = cls()
        taken = (traced() - before) / COUNT
        size_of, fixed = size_reader(made[0])
        assert fixed == size_of(made[0]) == sys.getsizeof(made[0])
        assert abs(fixed + size_of_values(gc.get_referents(made[0])) - taken) < 1


def test_other_instances_have_no_array_of_attributes() -> None:
    class Slots:
        __slots__ = ("one",)

    class Both(Slots):
        pass

    class Error(Exception):
        pass

    class Items(dict):  # type: ignore[type-arg]
        pass

    assert not any(map(has_values, (Slots, Both, Error, Items, object, int, type, list)))
    instance = holder(3)()
    vars(instance)["more"] = 1  # the interpreter has made a dict
    if len(gc.get_referents(instance)) == 2:
        assert size_of_values(gc.get_referents(instance)) == 0


class Table(dict):  # type: ignore[type-arg]
    def __sizeof__(self) -> int:
        raise AssertionError("the host's code was called")


def test_a_size_method_written_in_python_gives_way_to_that_of_the_base_class() -> None:
    table = Table({number: number for number in range(100)})
    assert size_function(Table)(table) == dict.__sizeof__(table)
    assert size_reader(table)[0](table) == dict.__sizeof__(table)


@pytest.mark.parametrize("value", [1, 2**100, "x", "ä", b"", [], [1], (), (1, 2), {}, {1: 2}, object(), sys, int, 1.5])
def test_sizes_are_those_of_getsizeof(value: object) -> None:
    size_of, fixed = size_reader(value)
    assert size_of(value) == sys.getsizeof(value)
    assert fixed in (None, sys.getsizeof(value))
