"""The CPU samples of a recording in the forms that other tools read, and all of it as JSON. Pure functions.

What they write is valid whatever the events hold: Unicode without surrogates, JSON without NaN, one line for each
stack, and nothing that moves a terminal.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from tornado_rbkit.protocol import CPUSample, Event, HeapObject, StackFrame

_MAX_DEPTH: Final = 50
"""Levels of an unknown event's payload that JSON shows; parsers have limits too."""


def speedscope(events: Iterable[Event], name: str) -> Iterator[str]:
    """Yield a speedscope file (https://www.speedscope.app/file-format-schema.json), with a profile for each thread.

    Each sample weighs one: rbkit gives no durations, and the time between two samples may be one in which nothing
    ran.
    """
    frames: dict[tuple[str, str, int], int] = {}
    threads: dict[int, list[list[int]]] = {}
    for sample in _samples(events):
        stack = [frames.setdefault((f.label, f.file, f.line), len(frames)) for f in reversed(sample.frames)]
        threads.setdefault(sample.frames[0].thread_id, []).append(stack)
    yield json.dumps(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "exporter": "tornado_rbkit",
            "name": _text(name),
            "shared": {
                "frames": [{"name": _text(label), "file": _text(file), "line": line} for label, file, line in frames]
            },
            "profiles": [
                {
                    "type": "sampled",
                    "name": f"thread {thread}",
                    "unit": "none",
                    "startValue": 0,
                    "endValue": len(stacks),
                    "samples": stacks,
                    "weights": [1] * len(stacks),
                }
                for thread, stacks in threads.items()
            ],
        }
    )


def collapsed(events: Iterable[Event], name: str) -> Iterator[str]:
    """Yield the lines that flamegraph.pl and its kin read: frames from the outside in, and how often."""
    stacks = Counter((f"thread {sample.frames[0].thread_id}", *folded(sample)) for sample in _samples(events))
    for stack, count in stacks.items():
        yield f"{';'.join(stack)} {count}"


def folded(sample: CPUSample) -> tuple[str, ...]:
    """Return the labels of a stack from the outside in: those that are alike are one bar of a flame graph."""
    return tuple(_one_word(frame) for frame in reversed(sample.frames))


def json_lines(events: Iterable[Event], name: str) -> Iterator[str]:
    """Yield one JSON object a line for each event, with its type and its fields by name.

    Of an unknown event's payload, what JSON has no type for is written as Python does, a number that is not finite as
    null, and a map whose keys would be the same in JSON as a list of pairs.
    """
    for event in events:
        fields = {field: _plain(value) for field, value in event._asdict().items()}
        yield json.dumps({"event": type(event).__name__, **fields}, allow_nan=False)


def _samples(events: Iterable[Event]) -> Iterator[CPUSample]:
    return (event for event in events if isinstance(event, CPUSample) and event.frames)


def _one_word(frame: StackFrame) -> str:
    label = _text(frame.label).replace(";", ":")
    return "".join(character if character.isprintable() else " " for character in label).strip() or "?"


def _text(text: str) -> str:
    """Return a text as it can be encoded; the bytes that were not UTF-8 are shown escaped."""
    return text.encode(errors="backslashreplace").decode()


def _plain(value: object, depth: int = 0) -> object:
    """Return a value of types that JSON has."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == _MAX_DEPTH:
        return "..."
    if isinstance(value, HeapObject | StackFrame):
        value = value._asdict()
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        pairs = [
            (_text(key if isinstance(key, str) else repr(key)), _plain(item, depth + 1)) for key, item in value.items()
        ]
        named = dict(pairs)
        return named if len(named) == len(pairs) else pairs
    return repr(value)  # bytes, and MessagePack's timestamps and extension types
