"""Published messages of any values, for what has to live with all of them."""

from __future__ import annotations

import math
from typing import Any

import msgpack
from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(),
    st.sampled_from(["x\x1b[31m\r\n;  \u202e", "\x85", "", " ", ";", "\udcff", "5", "-1", "NaN", math.nan, math.inf]),
    st.binary(max_size=20),
    st.builds(msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**9 - 1)),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=5)),
)


def nested(depth: int) -> Any:
    """Return lists and maps within each other, that deep."""
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {b"k": value}
    return value


VALUES = st.one_of(
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS, inner, max_size=4),
        max_leaves=10,
    ),
    st.sampled_from([{1: "a", "1": "b"}, {None: 1, "None": 2}, nested(40), nested(60), nested(400)]),
)

FRAME = {12: "f", 13: "M.f", 6: "a.py", 7: 3, 14: 0, 15: 1}
OBJECT = {3: 1, 4: "A", 5: [2], 6: None, 7: None, 8: 40}
EVENTS: list[dict[Any, Any]] = [
    {0: 0, 1: 1.0, 2: {3: 1, 4: "A"}},
    {0: 1, 1: 1.0, 2: {3: 1}},
    {0: 2, 1: 1.0},
    {0: 5, 1: 1.0, 10: 1, 11: 2, 2: [OBJECT, OBJECT]},
    {0: 6, 1: 1.0, 2: {"count": 1, "heap_swept_slots": ""}},
    {0: 77, 1: 1.0, 2: {"new": [1]}},
    {0: 9, 1: 1.0, 2: [FRAME, FRAME]},
]


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """Return a value of rbkit's, or one in which something at any place is something else."""
    if draw(st.integers(0, 3)) == 0:
        return draw(VALUES)
    if isinstance(value, dict) and value:
        key = draw(st.sampled_from(list(value)))
        what = draw(st.integers(0, 5))
        if what == 0:
            return {name: item for name, item in value.items() if name != key}
        if what == 1:
            return {**value, draw(SCALARS): draw(VALUES)}
        return {**value, key: draw(altered(value[key]))}
    if isinstance(value, list) and value:
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(altered(value[at])), *value[at + 1 :]]
    return draw(VALUES)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Return what a profiler may publish: a message of rbkit's, one that is nearly one, or anything."""
    events = draw(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=3))
    message: Any = {0: 7, 1: 1.0, 9: 0, 2: events}
    if draw(st.booleans()):
        message = draw(altered(message))
    elif draw(st.booleans()):  # an unknown event, whose payload may be anything, is right as it is
        message = {**message, 2: [*events, {0: 77, 1: 1.0, 2: draw(VALUES)}]}
    packed: bytes = msgpack.packb(message, unicode_errors="surrogateescape")
    return packed
