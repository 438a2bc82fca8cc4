"""The tables that a cell's profile and its memory have in common, as HTML for light and dark themes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Final

LINES: Final = 200
WIDTH: Final = 200
"""Lines, and characters of a line or a name, that are saved in a notebook."""

STYLE: Final = (
    ".rbkit{color:inherit}.rbkit table{border-collapse:collapse;margin:4px 0}"
    ".rbkit td,.rbkit th{padding:0 8px;text-align:right;font:12px/1.5 ui-monospace,monospace;white-space:pre;"
    "background:none;border:0;color:inherit}.rbkit td:last-child,.rbkit th:last-child{text-align:left}"
    ".rbkit .hot td{background:rgba(255,120,40,.25)}"
)

_HOT_ROW: Final = ("<tr>", '<tr class="hot">')
_OWN_LINE: Final = "get_ipython().run_line_magic('rbkit', "


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], hot: Callable[[int], bool] = lambda _: False) -> str:
    """Return a table; `hot` returns whether the row with an index is marked."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        _HOT_ROW[hot(index)] + "".join(f"<td>{escape(cell[:WIDTH])}</td>" for cell in row[:-1]) + _text_cell(row[-1])
        for index, row in enumerate(rows)
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def source_table(
    source: Sequence[str], heads: Sequence[str], cells: Callable[[int], Sequence[str]], hot: Callable[[int], bool]
) -> str:
    """Return the lines of a cell, each after its figures, without the line of the magic.

    Args:
        source: the lines of the cell.
        heads: the names of the figures.
        cells: returns the figures of a line number.
        hot: returns whether a line number is marked.
    """
    shown = [
        (n, _indented(text.rstrip())) for n, text in enumerate(source[:LINES], 1) if not text.startswith(_OWN_LINE)
    ]
    rows = [[*cells(number), str(number), text] for number, text in shown]
    left_out = f"<p>{len(source) - LINES} more lines</p>" if len(source) > LINES else ""
    return table([*heads, "line", "code"], rows, lambda index: hot(shown[index][0])) + left_out


def _text_cell(text: str) -> str:
    """Return the last cell of a row and the row's end; Jupyter removes the style sheet in notebooks not trusted."""
    return f'<td style="text-align:left;white-space:pre">{escape(text[:WIDTH])}</td></tr>'


def _indented(line: str) -> str:
    """Return a line with an indentation that is kept where the style sheet is removed, as on GitHub."""
    text = line.lstrip(" ")
    return "\N{NO-BREAK SPACE}" * (len(line) - len(text)) + text


def size(count: int) -> str:
    """Return a number of bytes for people."""
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(amount) >= 1024 and len(units) > 1:
        amount /= 1024
        del units[0]
    return f"{amount:.{0 if units[0] == 'B' else 1}f} {units[0]}"
