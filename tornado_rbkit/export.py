"""The CPU samples of a recording in the forms that other tools read, and all of it as JSON. Pure functions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tornado_rbkit.protocol import CPUSample, Event, HeapObject, StackFrame


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
            "name": name,
            "shared": {"frames": [{"name": label, "file": file, "line": line} for label, file, line in frames]},
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
    """Yield one JSON object a line for each event, with its type and its fields by name."""
    for event in events:
        yield json.dumps({"event": type(event).__name__, **_fields(event)}, default=repr)


def _samples(events: Iterable[Event]) -> Iterator[CPUSample]:
    return (event for event in events if isinstance(event, CPUSample) and event.frames)


def _one_word(frame: StackFrame) -> str:
    return str(frame.label).replace(";", ":").replace("\n", " ").encode(errors="backslashreplace").decode()


def _fields(event: Event) -> dict[str, Any]:
    return {name: _plain(value) for name, value in event._asdict().items()}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(name): item for name, item in value.items()}
    return [item._asdict() for item in value] if _is_list_of_tuples(value) else value  # type: ignore[attr-defined]


def _is_list_of_tuples(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, HeapObject | StackFrame) for item in value)
