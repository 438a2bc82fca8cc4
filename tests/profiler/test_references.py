"""The names under which objects hold others: each is looked for at a place where it was put, and none may be wrong."""

from __future__ import annotations

import functools
import gc
import sys
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiler.python import python
from tornado_rbkit.profiler.attributes import _LOOKS, InstanceReader
from tornado_rbkit.profiler.references import MAX_NAME, defined_at, namer, reader, running_frames
from tornado_rbkit.protocol import Field


class Plain:
    number = 0
    note = None

    def __init__(self, *items: object) -> None:
        self.items = items
        self.note = ["an attribute that the class has too"]


class Nested(Plain):
    def __init__(self) -> None:
        super().__init__()

        def later() -> None:
            self.late = ["set by a function within a method"]

        later()


@dataclass
class Record:
    parts: list[int] = field(default_factory=list)
    other: Any = None


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


class Decorated:
    @wrapped
    def __init__(self) -> None:
        self.inside = ["set in a decorated function"]


class Slotted:
    __slots__ = ("_private", "items", "unset")

    def __init__(self) -> None:
        self.items, self._private = ["one"], ["two"]


class Mixed(Slotted):
    def __init__(self) -> None:
        super().__init__()
        self.own = ["three"]


class Guarded:
    """Each of its attributes runs code of the host's."""

    def __init__(self) -> None:
        object.__setattr__(self, "kept", ["four"])

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was looked up")

    __getattr__ = __getattribute__

    @property
    def computed(self) -> Any:
        raise AssertionError("computed")

    def use(self) -> None:
        self.kept = self.computed


class Touchy(dict):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        raise AssertionError("iterated")

    __getitem__ = keys = values = items = __iter__  # type: ignore[assignment]


class Key:
    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")


def set_from_elsewhere() -> Plain:
    item = Plain()
    item.fitted = ["by a function of the module"]  # type: ignore[attr-defined]
    return item


def closure(context: object) -> FunctionType:
    second = ["two"]

    def finish() -> object:
        return context, second

    return finish  # type: ignore[return-value]


def named(item: Any) -> dict[Any, Any]:
    """Return the objects that an object holds under names; of a list or tuple, by position."""
    read = reader(type(item))
    assert read is not None
    held, kind, names = read(item)
    if kind == Field.KEYS and names == 0:
        return dict(enumerate(held))
    if not kind:
        return {}
    assert isinstance(names, list)
    return {name: other for name, other in zip(names, held, strict=False) if name is not None}


def test_attributes_have_their_names() -> None:
    for item, names in [
        (Plain(1), {"items", "note"}),
        (Nested(), {"items", "note", "late"}),
        (Record([1], [2]), {"parts", "other"}),
        (Decorated(), {"inside"}),
        (Slotted(), {"items", "_private"}),
        (set_from_elsewhere(), {"items", "note", "fitted"}),
    ]:
        found = named(item)
        found = named(found["__dict__"]) if "__dict__" in found else found
        assert set(found) == names, type(item)
        for name, value in found.items():
            assert getattr(item, name) is value


def test_slots_and_attributes_of_one_object_have_their_names() -> None:
    item = Mixed()
    found = named(item)
    found |= named(found.pop("__dict__", {}))
    assert {"items", "_private", "own"} >= set(found) >= {"items", "_private"}
    assert all(getattr(item, name) is value for name, value in found.items())


def test_a_dict_that_the_interpreter_has_made_of_the_attributes_is_known() -> None:
    item = Plain()
    members = vars(item)
    members.update({f"attribute_{number}": [number] for number in range(40)})  # more than fit in the instance
    assert named(item)["__dict__"] is members


@pytest.mark.parametrize("content", [{}, {"items": 1}, {"note": ["x"]}, {1: 2}])
def test_a_dict_in_an_attribute_is_not_taken_for_the_attributes(content: dict[Any, Any]) -> None:
    item: Any = type("Holder", (), {})()
    item.anything = content
    found = named(item)
    if found.get("__dict__") is not None:  # Python 3.10 always has one
        assert found["__dict__"] is not content
        found = found["__dict__"]
    assert found.get("anything", content) is content


def test_reading_attributes_makes_no_dict() -> None:
    item = Plain()
    before = gc.get_referents(item)
    named(item)
    assert list(map(id, gc.get_referents(item))) == list(map(id, before))


def test_none_of_the_hosts_code_runs() -> None:
    guarded = Guarded()
    found = named(guarded)
    assert "computed" not in found
    touchy = Touchy({"a": ["one"]})
    assert named(touchy)["a"] == ["one"]
    named({Key(): 1})
    same = dict.__new__(dict)
    assert named(same) == {}


@pytest.mark.parametrize("make", [dict, OrderedDict, Counter, lambda items: defaultdict(list, items)])
def test_keys_of_dicts_are_names_and_references(make: Callable[[Any], Any]) -> None:
    text = "".join(["a key of ", "its own"])
    item = make({text: ["one"], 5: ["two"], (1, 2): ["three"], b"x": ["four"]})
    assert named(item) == {text: ["one"], 5: ["two"]}
    read = reader(type(item))
    assert read is not None
    held = set(map(id, read(item)[0]))
    assert held >= set(map(id, item)) | set(map(id, dict.values(item)))
    assert held >= set(map(id, gc.get_referents(item)))


def test_long_and_odd_keys_are_cut_to_what_can_be_packed() -> None:
    found = named({"x" * 1000: 1, "\ud800": 2, 2**60: 3, True: 4})
    assert found == {"x" * (MAX_NAME - 1) + "…": 1, "?": 2}


@given(
    st.dictionaries(st.one_of(st.text(max_size=5), st.integers(), st.tuples(st.integers())), st.text(), max_size=30)
)
def test_a_name_leads_to_the_value_of_its_key(content: dict[Any, str]) -> None:
    for key, value in list(content.items())[::2]:
        content[key] = content.pop(key)  # the order of a dict that was changed
        assert content[key] == value
    for name, value in named(content).items():
        assert name in content or name.endswith("?") or "?" in str(name)
        if name in content:
            assert content[name] is value


def test_a_dict_that_changes_while_it_is_read_gives_no_wrong_name() -> None:
    """Each value is its key, whatever another thread does meanwhile."""
    shared: dict[int, int] = {}
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            shared[number % 100] = number % 100
            shared.pop((number * 7 + 3) % 100, None)
            number += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(20_000):
            assert all(name == value for name, value in named(shared).items())
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def test_lists_and_tuples_have_positions() -> None:
    items = [["one"], ["two"], ["three"]]
    assert list(named(items).values()) == items
    assert list(named(tuple(items)).values()) == items


def test_closures_have_variables() -> None:
    context = ["one"]
    finish = closure(context)
    found = named(finish)
    assert named(found["context"])["cell_contents"] is context
    assert found["__closure__"] is finish.__closure__
    assert found["__globals__"] is globals()
    assert defined_at(finish) == (__file__, finish.__code__.co_firstlineno)


def test_modules_classes_methods_have_names() -> None:
    assert named(sys) == {"__dict__": vars(sys)}
    assert named(named(Plain)["__dict__"])["note"] is None
    method = Plain().__init__  # type: ignore[misc]
    assert named(method) == {"__self__": method.__self__, "__func__": method.__func__}


def test_functions_classes_modules_and_coroutines_have_names_of_their_own() -> None:
    async def wait() -> None: ...

    waiting = wait()
    for item, expected in [
        (closure(1), f"{__name__}.closure.<locals>.finish"),
        (Plain, f"{__name__}.Plain"),
        (sys, "sys"),
        (waiting, wait.__qualname__),
    ]:
        name = namer(type(item))
        assert name is not None
        assert name(item) == expected
    waiting.close()
    assert namer(Plain) is None


def test_variables_of_running_functions_have_names() -> None:
    """In another thread. On Python 3.10 they have no names."""
    ready, leave = threading.Event(), threading.Event()
    kept = b"in a variable"

    def work() -> None:
        blob = kept
        ready.set()
        leave.wait()
        del blob

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    try:
        frames = [frame for frame in running_frames() if frame.f_code is work.__code__]
        assert len(frames) == 1
        for frame in frames:
            name = namer(type(frame))
            assert name is not None
            qualname = work.__qualname__ if sys.version_info >= (3, 11) else work.__name__  # codes have none before
            assert name(frame) == f"{__name__}.{qualname}"
            read = reader(type(frame))
            assert read is not None
            assert any(other is kept for other in read(frame)[0])
            assert sys.version_info < (3, 11) or named(frame)["blob"] is kept
    finally:
        del frames
        leave.set()
        thread.join()


def test_arrays_hold_their_base_and_their_objects() -> None:
    base = numpy.zeros((3, 4))
    assert named(base[1:])["base"] is base
    text = "".join(["not ", "interned"])
    for shape in [(2,), (2, 1), ()]:
        objects = numpy.empty(shape, dtype=object)
        objects.fill(text)
        read = reader(type(objects))
        assert read is not None
        assert any(other is text for other in read(objects)[0])


def test_classes_that_hold_nothing_have_no_reader() -> None:
    assert reader(str) is None
    assert reader(int) is None


class Sometimes:
    def __init__(self, *, has_note: bool) -> None:
        self.items = ["always"]
        if has_note:
            self.note = ["sometimes"]
        self.last = ["always"]


def test_instances_with_the_same_attributes_share_the_list_of_names() -> None:
    """tracemalloc would trace another list for each instance."""
    full, less = Sometimes(has_note=True), Sometimes(has_note=False)
    read = InstanceReader(Sometimes)
    for item in [full, less]:
        for _ in range(2 * _LOOKS):
            read(item)
    shared = read(full)[2]
    assert read(Sometimes(has_note=True))[2] is shared
    before = list(shared)
    assert read(less)[2] != before or shared == ["__dict__"]
    assert shared == before
    assert read(full)[2] == before


def test_a_snapshot_leads_to_a_leak_by_names() -> None:
    """From the module on, step by step, to the value that a closure keeps."""
    output = python(
        """
from tornado_rbkit.profiler.heap import Snapshot
import msgpack

AUDIT = {}

class Context:
    __slots__ = ("body",)

def remember(number):
    context = Context()
    context.body = b"x" * 1000
    def finish():
        return context
    AUDIT[f"request {number}"] = finish

for number in range(10):
    remember(number)
snapshot = Snapshot(1, [])
for _ in snapshot.walk():
    pass
rows = {}
for events in snapshot.messages():
    for event in events:
        rows |= {row[3]: row for row in msgpack.unpackb(event, strict_map_key=False)[2]}
(row,) = [row for row in rows.values() if row[4] == "module" and row.get(13) == "__main__"]
for name in ["__dict__", "AUDIT", "request 7", "context", "cell_contents", "body"]:
    names = row.get(16) or row.get(17)
    row = rows[row[5][names.index(name)]]
    print(name, row[4], row.get(13), row[7])
"""
    )
    assert output.split("\n") == [
        "__dict__ dict None None",
        "AUDIT dict None None",
        "request 7 function __main__.remember.<locals>.finish 13",
        "context cell None None",
        "cell_contents __main__.Context None None",
        "body bytes None None",
        "",
    ]


def test_the_attribute_names_of_a_class_are_learned_from_few_instances() -> None:
    read = InstanceReader(Plain)
    for _ in range(50):
        item = object.__new__(Plain)
        setattr(item, "".join(["never ", "in the code"]), ["x"])
        read(item)
    assert read._looks == (0 if gc.get_referents(item)[0] is not vars(item) else _LOOKS)


@given(
    slots=st.lists(st.sampled_from(["a", "b", "c", "_d", "__e"]), unique=True),
    more=st.lists(st.sampled_from(["f", "g", "__dict__"]), unique=True),
    attributes=st.lists(st.lists(st.sampled_from("abcfghijkl"), unique=True, max_size=6), min_size=1, max_size=4),
)
def test_no_name_is_wrong_whatever_the_order_of_slots_and_attributes(
    slots: list[str], more: list[str], attributes: list[list[str]]
) -> None:
    base = type("Base", (), {"__slots__": tuple(slots), "__static_attributes__": tuple("fghijkl")})
    cls = type("Derived", (base,), {"__slots__": tuple(more)})
    read = InstanceReader(cls)
    for names in attributes:
        item = cls()
        for name in names:
            if hasattr(item, "__dict__") or name in (*slots, *more):
                setattr(item, name, [name])
        if names and hasattr(item, names[0]):
            delattr(item, names[0])
        held, _, found = read(item)
        assert len(found) <= len(held)
        for label, value in zip(found, held, strict=False):
            assert label is None or (label == "__dict__") == (type(value) is dict)
            assert label in (None, "__dict__") or value == [label]
        of_slots = {name for name in (*slots, *more) if name != "__dict__" and hasattr(item, name)}
        assert of_slots <= set(found)
