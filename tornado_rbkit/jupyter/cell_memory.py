"""The memory of one cell: what its lines allocated and freed, and what is kept at its end, as text and HTML.

The figures are tracemalloc's, which traces from the start of the cell to its end: memory of Python objects, and of
extensions that report theirs, as NumPy does. Between two lines of the cell's own code the traced bytes are compared:

- *allocated* is the rise to the highest value within one execution of a line, including the functions outside the cell
  that it calls. Memory that a line allocates and frees again counts by how much was in use at the same time; below
  16 KiB it is not counted.
- *freed* is the fall from that value. Memory from before the cell is not traced, and not counted as freed.
- *kept* is memory that is still in use at the end, for the line that allocated it within 20 levels of calls.

Other threads' memory counts for the line that runs meanwhile. Tracing makes cells that create many objects several
times slower, and the end of the cell takes about a second for each 200,000 objects in the kernel, and for each 50,000
that the cell has created and kept.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import linecache
import sys
import threading
import tracemalloc
from _tracemalloc import _get_object_traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from html import escape
from itertools import compress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias, TypeVar

from tornado_rbkit.jupyter.tables import STYLE, size, source_table, table
from tornado_rbkit.profiler.objects import class_name, referents
from tornado_rbkit.profiler.sizes import size_function
from tornado_rbkit.profiler.tracked import list_tracked
from tornado_rbkit.profiler.vitals import resident_bytes

_FRAMES: Final = 20
"""Levels of calls that tracemalloc stores of an allocation, to find the cell's line."""

_LEAST_RISE: Final = 16 * 1024
"""Bytes; a smaller rise may be the tracer's own."""

_LEAST_FREED: Final = 100
"""Objects of a built-in class; IPython frees some itself while a cell runs."""

_KERNEL: Final = (
    "argparse.",
    "ast.",
    "ipykernel.",
    "IPython.",
    "jupyter_client.",
    "tornado_rbkit.",
    "traitlets.",
    "zmq.",
)
"""The beginnings of names of classes, of which the kernel and the magic create and free objects while a cell runs."""

_LEAST_SHOWN: Final = 1024
"""Bytes of a line; the table shows nothing for less."""

_AT_ONCE: Final = 1000
"""Objects whose referents are listed at once."""

_CLASSES: Final = 15
_T = TypeVar("_T")
_Trace: TypeAlias = "Callable[[FrameType, str, Any], Any] | None"


class TracingError(RuntimeError):
    """tracemalloc traces already, so the memory of the cell cannot be distinguished."""


@dataclass
class LineMemory:
    """Bytes of one line of the cell."""

    allocated: int = 0
    freed: int = 0
    kept: int = 0


@dataclass
class ClassMemory:
    """Objects of one class that a cell created and that are alive at its end, and older objects that have died."""

    kept_objects: int = 0
    kept_bytes: int = 0
    freed_objects: int = 0


@dataclass
class CellMemory:
    """The result of ``%%rbkit memory``, which is shown and stored by ``-o NAME``. All sizes are in bytes.

    Attributes:
        file: the name under which IPython compiled the cell.
        peak: the highest traced memory within the cell.
        resident: the change of the process's resident memory; None where it cannot be read (it can on Linux).
        lines: by line number of the cell.
        classes: by class name. Kept objects are those that the collector tracks, and the values that new objects and
            the notebook's variables refer to. Freed objects are those that the collector tracked. Fewer than 100
            freed objects of a built-in class are not counted, because IPython frees some while a cell runs.
    """

    file: str
    peak: int = 0
    resident: int | None = None
    lines: dict[int, LineMemory] = field(default_factory=dict)
    classes: dict[str, ClassMemory] = field(default_factory=dict)

    @property
    def allocated(self) -> int:
        """The bytes that the cell's lines allocated."""
        return sum(line.allocated for line in self.lines.values())

    @property
    def freed(self) -> int:
        """The allocated bytes that were freed."""
        return sum(line.freed for line in self.lines.values())

    @property
    def kept(self) -> int:
        """The allocated bytes that are in use at the end."""
        return sum(line.kept for line in self.lines.values())

    def __repr__(self) -> str:
        lines = sorted(self.lines.items(), key=lambda item: -item[1].allocated)[:5]
        classes = self._top_classes()[:5]
        return "\n".join(
            [
                self._title,
                *(f"line {n}: {size(m.allocated)} allocated, {size(m.kept)} kept" for n, m in lines if m.allocated),
                *(f"{name}: {m.kept_objects:,} objects, {size(m.kept_bytes)} kept" for name, m in classes),
            ]
        )

    def _repr_html_(self) -> str:
        title = f"<p><b>{escape(self._title)}</b></p>"
        return f'<div class="rbkit"><style>{STYLE}</style>{title}{self._line_table()}{self._class_table()}</div>'

    def csv(self, path: str | Path) -> None:
        """Write the lines and the classes as a CSV file, replacing it if it exists.

        Raises:
            OSError: the file cannot be written.
        """
        with Path(path).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(
                ["line", "class", "allocated_bytes", "freed_bytes", "kept_bytes", "kept_objects", "freed_objects"]
            )
            for number, line in sorted(self.lines.items()):
                rows.writerow([number, "", line.allocated, line.freed, line.kept, "", ""])
            for name, one in sorted(self.classes.items()):
                rows.writerow(["", name, "", "", one.kept_bytes, one.kept_objects, one.freed_objects])

    @property
    def _title(self) -> str:
        sign = "" if (self.resident or 0) < 0 else "+"
        resident = "" if self.resident is None else f"; resident memory {sign}{size(self.resident)}"
        return (
            f"{size(self.allocated)} allocated, {size(self.freed)} freed, {size(self.kept)} kept, "
            f"{size(self.peak)} at the peak{resident}"
        )

    def _line_table(self) -> str:
        source = linecache.getlines(self.file)
        if not self.lines or not source:
            return ""

        def cells(number: int) -> list[str]:
            line = self.lines.get(number, LineMemory())
            return [size(count) if count >= _LEAST_SHOWN else "" for count in (line.allocated, line.freed, line.kept)]

        def is_hot(number: int) -> bool:
            return number in self.lines and self.lines[number].allocated >= max(1, self.allocated / 10)

        return source_table(source, ["allocated", "freed", "kept"], cells, is_hot)

    def _class_table(self) -> str:
        rows = [
            [
                size(one.kept_bytes) if one.kept_objects else "",
                f"{one.kept_objects:,}" if one.kept_objects else "",
                f"{one.freed_objects:,}" if one.freed_objects else "",
                name,
            ]
            for name, one in self._top_classes()
        ]
        return table(["kept", "objects", "freed objects", "class"], rows) if rows else ""

    def _top_classes(self) -> list[tuple[str, ClassMemory]]:
        order = sorted(self.classes.items(), key=lambda item: (-item[1].kept_bytes, -item[1].freed_objects))
        return order[:_CLASSES]


class MemoryTracer:
    """Traces the cell that runs, from `start` to `stop`, both on its thread.

    Args:
        frame: the cell's own frame.
    """

    def __init__(self, frame: FrameType) -> None:
        self._frame = frame
        self._file = frame.f_code.co_filename
        # created now, because later allocations are traced
        self._lines = {line: LineMemory() for line in _lines_of(frame.f_code)}
        self._line = self._start = frame.f_lineno
        self._bytes = self._peak = 0
        self._previous: Any = None  # the host's trace function
        self._names = _Names()
        self._old: dict[int, str] = {}
        self._reused: list[str] = []  # classes of old objects whose addresses new objects have
        self._resident = resident_bytes()

    def start(self) -> None:
        """Start tracing.

        Raises:
            TracingError: tracemalloc traces already.
        """
        if tracemalloc.is_tracing():
            raise TracingError("tracemalloc is on already; tracemalloc.stop() ends it")
        self._old = {id(item): self._names[type(item)] for item in list_tracked().objects if item is not None}
        self._previous = sys.gettrace()
        try:
            tracemalloc.start(_FRAMES)
            self._bytes = tracemalloc.get_traced_memory()[0]
            self._frame.f_trace = self._trace
            sys.settrace(self._enter)
        except BaseException:  # an interrupt
            self._end()
            raise

    def stop(self) -> CellMemory:
        """Stop tracing, and return what was measured. May be called once."""
        try:
            sys.settrace(self._previous)
            self._account(self._line)
            gc.collect()
            objects, created, looked_at = _on_a_new_thread(self._find_created)
            snapshot = tracemalloc.take_snapshot()
            tracemalloc.stop()  # before the rest, which is slow while it is traced
            self._add_kept(snapshot)
            classes = _count(created)
            self._count_freed(set(map(id, objects)) | looked_at, classes)
            not_lines = (0, self._start)  # code without a line, and the magic
            lines = {n: memory for n, memory in self._lines.items() if n not in not_lines and memory != LineMemory()}
            before, after = self._resident, resident_bytes()
            resident = after - before if isinstance(after, int) and isinstance(before, int) else None
            return CellMemory(self._file, self._peak, resident, lines, classes)
        finally:
            self._end()

    def _end(self) -> None:
        sys.settrace(self._previous)
        self._frame.f_trace = None
        tracemalloc.stop()
        self._old = {}

    def _enter(self, frame: FrameType, event: str, argument: Any) -> _Trace:
        """Follow the functions of the cell, and no others."""
        if frame.f_code.co_filename != self._file:
            return None
        self._account(frame.f_lineno)
        return self._trace

    def _trace(self, frame: FrameType, event: str, argument: Any) -> _Trace:
        """Charge the memory since the last event to the line that ran."""
        if event == "line":
            self._account(frame.f_lineno)
        elif event == "return":
            caller = frame.f_back
            while caller is not None and caller.f_code.co_filename != self._file:
                caller = caller.f_back
            self._account(self._line if caller is None else caller.f_lineno)
        return self._trace

    def _account(self, line: int) -> None:
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        highest = max(now, self._bytes)
        if peak - highest > _LEAST_RISE:
            highest = peak
        memory = self._lines.setdefault(self._line, LineMemory())
        memory.allocated += highest - self._bytes
        memory.freed += highest - now
        self._peak = max(self._peak, peak)
        self._line, self._bytes = line, now

    def _add_kept(self, snapshot: tracemalloc.Snapshot) -> None:
        for statistic in snapshot.statistics("traceback"):
            line = next((f.lineno for f in reversed(statistic.traceback) if f.filename == self._file), None)
            if line is not None:
                self._lines.setdefault(line, LineMemory()).kept += statistic.size

    def _find_created(self) -> tuple[list[Any], list[Any], set[int]]:
        """Return all objects, those that the cell created, and the ids of the values that were looked at, too.

        What is done for every object allocates as little as possible, for each allocation is traced.
        """
        objects = list_tracked().objects
        own = {id(self._old), id(self._lines), id(objects)}
        created = [item for item in compress(objects, map(self._is_new, objects)) if id(item) not in own]
        variables = self._frame.f_globals
        holders = [variables, *variables.values(), *created]
        seen: set[int] = set()
        while holders:
            some = holders[-_AT_ONCE:]
            del holders[-_AT_ONCE:]
            for item in referents(some):
                if (type(item) is tuple or not gc.is_tracked(item)) and id(item) not in seen:
                    seen.add(id(item))
                    trace = _get_object_traceback(item)
                    if trace is not None and self._has_cell(trace):
                        created.append(item)
                        if type(item) is dict or type(item) is tuple:  # of plain values, as an instance's dict may be
                            holders.append(item)
        return objects, created, seen

    def _count_freed(self, alive: set[int], classes: dict[str, ClassMemory]) -> None:
        died = Counter(name for object_id, name in self._old.items() if object_id not in alive)
        died.update(self._reused)
        for name, count in died.items():
            if count >= _LEAST_FREED or ("." in name and not name.startswith(_KERNEL)):
                classes.setdefault(name, ClassMemory()).freed_objects = count

    def _is_new(self, item: Any) -> bool:
        """Return whether the cell created an object; without a trace (see `heap`), whether it is at a new address.

        Also note that the old object at its address has died, if this one has a trace or another class.
        """
        trace = _get_object_traceback(item)
        if trace is None and not gc.is_tracked(item):  # items without a trace may be None (see `tracked`)
            return False
        old = self._old.get(id(item))
        if old is not None and (trace is not None or old != self._names[type(item)]):
            self._reused.append(self._old.pop(id(item)))
            old = None
        return old is None if trace is None else self._has_cell(trace)

    def _has_cell(self, trace: Sequence[tuple[str, int]]) -> bool:
        """Return whether the cell is in a traceback; without a generator, whose memory would be traced."""
        for frame in trace:  # noqa: SIM110
            if frame[0] == self._file:
                return True
        return False


def _on_a_new_thread(function: Callable[[], _T]) -> _T:
    """Return the result of a function, or raise its exception.

    tracemalloc stores up to 20 levels of calls for each allocation. A new thread has few; the thread of a cell has all
    calls of the kernel.
    """
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised on the caller's thread
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result()


def _count(created: list[Any]) -> dict[str, ClassMemory]:
    """Return the number and the size of created objects by class."""
    names, sizes = _Names(), _Sizes()
    found: dict[str, ClassMemory] = defaultdict(ClassMemory)
    for item in created:
        name = names[type(item)]
        if not name.startswith(_KERNEL) and type(item) is not FrameType:
            found[name].kept_objects += 1
            with contextlib.suppress(Exception):  # an extension's __sizeof__ may raise anything
                found[name].kept_bytes += sizes[type(item)](item)
    return dict(found)


class _Names(dict[type, str]):
    """The names of classes."""

    def __missing__(self, cls: type) -> str:
        return self.setdefault(cls, class_name(cls))


class _Sizes(dict[type, Callable[[Any], int]]):
    """The functions that return the size of an object, by its class."""

    def __missing__(self, cls: type) -> Callable[[Any], int]:
        return self.setdefault(cls, size_function(cls))


def _lines_of(code: CodeType) -> Iterator[int]:
    """Yield the lines of a cell's code and of the functions in it."""
    yield from (line for _, _, line in code.co_lines() if line)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _lines_of(constant)
