"""Converts the CPU samples of a recording to formats of other tools, and all events to JSON. Pure functions.

Suspended asyncio tasks are in the JSON only: the other formats have the samples of threads.

The output is valid for any events: Unicode without surrogates, JSON without NaN, one line for each stack, and no
terminal control characters. The dashboard exports the same bytes (``dashboard/src/model/cpu/exports.js``).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from tornado_rbkit.protocol import CPUSample, Event, HeapObject, StackFrame, SuspendedTasks, TaskGroup

_MAX_DEPTH: Final = 50
"""Levels of an unknown event's payload that are written as JSON; parsers have limits too."""

_BLOCKS: Final = ("block in ", "block (", "rescue in ", "ensure in ")
"""The prefixes of Ruby's labels for blocks. Ruby sends the line of the definition, Python the current line."""


def speedscope(events: Iterable[Event], name: str) -> Iterator[str]:
    """Yield a speedscope file (https://www.speedscope.app/file-format-schema.json) with a profile for each thread.

    Each sample has the weight 1: rbkit sends no durations, and between two samples the process may have been idle.
    """
    frames: dict[tuple[str, str, int], int] = {}
    threads: dict[int, list[list[int]]] = {}
    names: dict[int, str] = {}
    for sample in _samples(events):
        _note_name(sample, names)
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
                    "name": _text(_thread_title(thread, names)),
                    "unit": "none",
                    "startValue": 0,
                    "endValue": len(stacks),
                    "samples": stacks,
                    "weights": [1] * len(stacks),
                }
                for thread, stacks in threads.items()
            ],
        },
        separators=(",", ":"),
    )


def collapsed(events: Iterable[Event], name: str) -> Iterator[str]:
    """Yield the sorted lines that flamegraph.pl and similar tools read: frames from the outside in, and a count."""
    stacks: Counter[tuple[int, tuple[str, ...]]] = Counter()
    names: dict[int, str] = {}
    for sample in _samples(events):
        _note_name(sample, names)
        stacks[sample.frames[0].thread_id, folded(sample)] += 1
    lines: Counter[str] = Counter()
    for (thread, stack), count in stacks.items():
        lines[";".join((_word(_thread_title(thread, names)), *stack))] += count
    for line, count in sorted(lines.items()):
        yield f"{line} {count}"


def folded(sample: CPUSample) -> tuple[str, ...]:
    """Return the labels of a stack from the outside in, for a flame graph, which merges equal labels into one bar.

    Blocks and lambdas have the same label as others in their method; their file and line are added.
    """
    return tuple(_one_word(frame) for frame in reversed(sample.frames))


def json_lines(events: Iterable[Event], name: str) -> Iterator[str]:
    """Yield a line with one JSON object for each event, with its type and its fields by name.

    In an unknown event's payload, a value that has no JSON type is written as its Python repr, a non-finite number as
    null, and a map with keys that would collide in JSON as a list of pairs.
    """
    for event in events:
        fields = {field: _plain(value) for field, value in event._asdict().items()}
        yield json.dumps({"event": type(event).__name__, **fields}, allow_nan=False)


def _samples(events: Iterable[Event]) -> Iterator[CPUSample]:
    return (event for event in events if isinstance(event, CPUSample) and event.frames)


def _note_name(sample: CPUSample, names: dict[int, str]) -> None:
    """Keep the latest name of the sample's thread, if the profiler sends names."""
    if sample.thread_name is not None:
        names[sample.frames[0].thread_id] = sample.thread_name


def _thread_title(thread: int, names: dict[int, str]) -> str:
    """Return the thread's id, which is unique, and its name if it is known."""
    return f"thread {thread} ({names[thread]})" if thread in names else f"thread {thread}"


def _one_word(frame: StackFrame) -> str:
    """Return the label, with file and line for Ruby's blocks and lambdas, which share labels."""
    is_one_of_many = frame.label.startswith(_BLOCKS) or frame.label.endswith("<lambda>")
    label = f"{frame.label} ({frame.file}:{frame.line})" if is_one_of_many else frame.label
    return _word(label)


def _word(text: str) -> str:
    """Return a text without the separator of stacks and without characters that are not printable."""
    text = _text(text).replace(";", ":")
    return "".join(character if character.isprintable() else " " for character in text).strip() or "?"


def _text(text: str) -> str:
    """Return a text that can be encoded; bytes that were not UTF-8 are escaped."""
    return text.encode(errors="backslashreplace").decode()


def _plain(value: object, depth: int = 0) -> object:
    """Return a value converted to JSON types."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == _MAX_DEPTH:
        return "..."
    if isinstance(value, HeapObject | StackFrame | SuspendedTasks | TaskGroup):
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
