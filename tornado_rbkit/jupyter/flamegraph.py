"""A flame graph as a static SVG picture, without scripts or external resources."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Final

_WIDTH: Final = 960
_ROW: Final = 18
_CHARACTER: Final = 7.3  # width of a character in a monospaced 12 px font
_LEAST_WIDTH: Final = 2.0
_MOST_ROWS: Final = 100
_MOST_BARS: Final = 300
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass
class _Frame:
    """A bar: its label, its number of samples, and the frames that it called."""

    label: str
    count: int = 0
    inner: dict[str, _Frame] = field(default_factory=dict)


def flame_graph(stacks: Mapping[tuple[str, ...], int], title: str) -> str:
    """Return an SVG document: a bar for each frame, above its caller, with a width proportional to its samples.

    Bars too thin to be visible, frames below the hundredth level, and all but the 300 widest bars are left out. Labels
    are shortened at their beginning, because their end names the function.

    Args:
        stacks: the number of samples of each stack; a stack is its labels from the outside in.
        title: the text above the graph.
    """
    root = _Frame("all")
    for stack, count in stacks.items():
        root.count += count
        frame = root
        for label in stack:
            frame = frame.inner.setdefault(label, _Frame(label))
            frame.count += count
    scale = _WIDTH / max(1, root.count)
    bars = sorted(_bars(root, 0, 0.0, scale), key=lambda bar: -bar[0].count)[:_MOST_BARS]
    rows = 1 + max(depth for _, depth, _ in bars)
    height = (rows + 1) * _ROW + 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="100%"'
        ' font-family="ui-monospace, monospace" font-size="12">',
        f"<title>{_text(title)}</title>",
        f'<text x="4" y="{_ROW - 4}" font-weight="bold" fill="#888">{_text(title)}</text>',
        *(_draw(frame, left, (rows - depth) * _ROW, scale, root.count) for frame, depth, left in bars),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _bars(frame: _Frame, depth: int, left: float, scale: float) -> Iterator[tuple[_Frame, int, float]]:
    """Yield the visible frames, with their depth and left edge."""
    yield frame, depth, left
    if depth == _MOST_ROWS:
        return
    for _, inner in sorted(frame.inner.items()):
        if inner.count * scale >= _LEAST_WIDTH:
            yield from _bars(inner, depth + 1, left, scale)
        left += inner.count * scale


def _draw(frame: _Frame, left: float, top: int, scale: float, total: int) -> str:
    width = frame.count * scale
    share = 100 * frame.count / max(1, total)
    tip = f"{frame.label}: {frame.count:,} samples, {share:.1f} %"
    room = int((width - 6) / _CHARACTER)
    shown = frame.label if len(frame.label) <= room else "…" + frame.label[1 - room :]
    label = f'<text x="{left + 3:.1f}" y="{top + _ROW - 5}" fill="#222">{_text(shown)}</text>' if room > 2 else ""
    return (
        f'<g><title>{_text(tip)}</title><rect x="{left:.1f}" y="{top}" width="{max(width - 0.5, 0.3):.1f}"'
        f' height="{_ROW - 1}" rx="2" fill="{_color(frame.label)}"/>{label}</g>'
    )


def _color(label: str) -> str:
    """Return a warm colour, always the same for a label."""
    number = zlib.crc32(label.encode(errors="replace"))
    return f"hsl({number % 45 + 10} {number // 64 % 25 + 70}% {number // 4096 % 15 + 65}%)"


def _text(text: str) -> str:
    return escape(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text))
