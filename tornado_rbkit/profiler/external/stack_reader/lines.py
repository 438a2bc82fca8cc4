"""The line numbers of code objects."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator

Entries = Callable[[bytes, int], "Iterator[tuple[int, int]]"]
"""Reads a table: gives the end of each range of instructions, in bytes, and its line."""

_NO_LINE = -128


class Lines:
    """The line numbers of a code object.

    Args:
        table: its table of locations.
        line: its first line.
        entries: the function that reads the table: `locations` from CPython 3.11 on, `deltas` for 3.10.

    Attributes:
        first: its first line.
    """

    def __init__(self, table: bytes, line: int, entries: Entries) -> None:
        self.first = line
        self._ends: list[int] = []
        self._lines: list[int] = []
        for end, each in entries(table, line):
            self._ends.append(end)
            self._lines.append(each)

    def line(self, offset: int) -> int:
        """Return the line of the instruction at an offset in bytes, 0 if it has none.

        Before the first instruction it is the first line, as in `PyCode_Addr2Line`.
        """
        if offset < 0:
            return self.first
        entry = bisect_right(self._ends, offset)
        return self._lines[entry] if entry < len(self._lines) else 0


def locations(table: bytes, line: int) -> Iterator[tuple[int, int]]:
    """Give the end of each range of instructions, and its line (Objects/locations.md of CPython 3.11)."""
    at = end = 0
    while at < len(table):
        kind = table[at] >> 3 & 15
        end += 2 * ((table[at] & 7) + 1)
        at += 1
        if kind in (13, 14):
            line += _signed(table, at)
        elif 10 <= kind <= 12:
            line += kind - 10
        while at < len(table) and not table[at] & 128:
            at += 1
        yield end, 0 if kind == 15 else line


def deltas(table: bytes, line: int) -> Iterator[tuple[int, int]]:
    """Give the end of each range of instructions, and its line (PEP 626, Objects/lnotab_notes.txt of CPython 3.10)."""
    end = 0
    for length, delta in zip(table[::2], table[1::2], strict=False):
        end += length
        delta -= 256 * (delta > 127)
        if delta != _NO_LINE:
            line += delta
        yield end, 0 if delta == _NO_LINE else line


def _signed(table: bytes, at: int) -> int:
    value = shift = 0
    while True:
        value |= (table[at] & 63) << shift
        shift += 6
        if not table[at] & 64:
            return -(value >> 1) if value & 1 else value >> 1
        at += 1
