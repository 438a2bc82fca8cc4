"""The profile of one cell: its lines, its functions and its flame graph, as text, HTML and SVG."""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tornado_rbkit.jupyter.flamegraph import ZOOM_STYLE, flame_graph, zoomable
from tornado_rbkit.jupyter.tables import STYLE, source_table, table
from tornado_rbkit.protocol import CPUSample
from tornado_rbkit.recording.export import folded, speedscope

_FUNCTIONS: Final = 10


class CellProfile:
    """The result of ``%%rbkit``, which is shown and stored by ``-o NAME``.

    Attributes:
        seconds: the duration of the cell.
        samples: the number of samples of all threads.
    """

    def __init__(self, samples: Iterable[tuple[CPUSample, int]], seconds: float, file: str | None) -> None:
        """Count the samples.

        Args:
            samples: each stack, and how often it was seen.
            seconds: the duration of the cell.
            file: the name under which IPython compiled the cell, None if it is not known.
        """
        self._counted = list(samples)
        self.seconds = seconds
        self.samples = sum(count for _, count in self._counted)
        self._file = file
        self._stacks: Counter[tuple[str, ...]] = Counter()
        self._own: Counter[str] = Counter()
        self._all: Counter[str] = Counter()
        self._line_own: Counter[int] = Counter()
        self._line_all: Counter[int] = Counter()
        for sample, count in self._counted:
            self._add(sample, count)
        self._title = f"{seconds:.2f} s, {self.samples:,} samples"

    def __repr__(self) -> str:
        top = self._own.most_common(5)
        return "\n".join([self._title, *(f"{self._share(n):5.1f} %  {label}" for label, n in top)])

    def _repr_svg_(self) -> str:
        return flame_graph(self._stacks, self._title)

    def _repr_html_(self) -> str:
        flames = zoomable(self._stacks, self._title)
        return f'<div class="rbkit"><style>{STYLE}{ZOOM_STYLE}</style>{self._lines()}{self._functions()}{flames}</div>'

    def speedscope(self, path: str | Path) -> None:
        """Write the samples as a file for https://www.speedscope.app, replacing it if it exists.

        Raises:
            OSError: the file cannot be written.
        """
        samples = (sample for sample, count in self._counted for _ in range(count))
        Path(path).write_text("".join(speedscope(samples, self._title)), encoding="utf-8")

    def _add(self, sample: CPUSample, count: int) -> None:
        labels = folded(sample)
        self._stacks[labels] += count
        self._own[labels[-1]] += count
        for label in set(labels):
            self._all[label] += count
        if sample.frames[0].file == self._file:
            self._line_own[sample.frames[0].line] += count
        for line in {frame.line for frame in sample.frames if frame.file == self._file}:
            self._line_all[line] += count

    def _share(self, count: int) -> float:
        return 100 * count / max(1, self.samples)

    def _lines(self) -> str:
        """Return the cell's own lines, with the time in each line itself and with the functions that it called."""
        source = linecache.getlines(self._file) if self._file else []
        if not self._line_all or not source:
            return ""

        def cells(number: int) -> list[str]:
            return [self._percent(self._line_all[number]), self._percent(self._line_own[number])]

        return source_table(source, ["total", "self"], cells, lambda n: self._share(self._line_all[n]) >= 10)

    def _functions(self) -> str:
        top = self._own.most_common(_FUNCTIONS)
        rows = [[self._percent(self._all[label]), self._percent(own), label] for label, own in top]
        return table(["total", "self", "function"], rows)

    def _percent(self, count: int) -> str:
        return f"{self._share(count):.1f} %" if count else ""
