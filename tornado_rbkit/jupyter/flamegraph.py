"""A flame graph as a static SVG picture, and as HTML to zoom in; both without scripts or external resources."""

from __future__ import annotations

import math
import re
import uuid
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
_LABEL: Final = 200
"""Characters of a label in a saved notebook."""
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
    root = _merge(stacks)
    scale = _WIDTH / max(1, root.count)
    bars = _widest(root)
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


def zoomable(stacks: Mapping[tuple[str, ...], int], title: str) -> str:
    """Return an HTML fragment: the same bars, each below its caller. A click on a bar makes it as wide as the graph.

    There is no script: each bar is the label of a radio button, and `ZOOM_STYLE`, which must be in the page, hides the
    bars beside the path to the chosen one. Where Jupyter removes the style sheet, in a notebook that is not trusted,
    the inline styles still lay out the graph; where those are removed too, ``hidden`` leaves the graph out.
    """
    root = _merge(stacks)
    shown = {id(frame) for frame, _, _ in _widest(root)}
    group = f"rbkit-{uuid.uuid4().hex[:12]}"
    nested = _nest(root, root, group, shown, root.count)
    return (
        f'<div class="rbkit-flames" hidden style="display:block;overflow:hidden"><p><b>{_text(title)}</b> '
        f"<span hidden>click on a bar to zoom in, on the first to zoom out</span></p>{nested}</div>"
    )


ZOOM_STYLE: Final = (
    ".rbkit-flames label{cursor:pointer;position:relative;margin:0 1px 1px 0;border-radius:2px;white-space:nowrap;"
    "text-overflow:ellipsis;direction:rtl;text-align:left;font:12px/17px ui-monospace,monospace;padding:0 3px}"
    ".rbkit-flames label:hover{filter:brightness(.9)}.rbkit-flames label:focus-within{outline:2px solid #06f}"
    ".rbkit-flames p>span{display:inline!important;color:#888}"
    "@supports selector(:has(*)){.rbkit-flames div:has(>div :checked,>label :checked){width:100%!important}"
    ".rbkit-flames div:has(>div :checked)>div:not(:has(:checked)){display:none}}"
)
"""The style sheet of `zoomable`."""


def _merge(stacks: Mapping[tuple[str, ...], int]) -> _Frame:
    """Return the root of the tree of frames."""
    root = _Frame("all")
    for stack, count in stacks.items():
        root.count += count
        frame = root
        for label in stack:
            frame = frame.inner.setdefault(label, _Frame(label))
            frame.count += count
    return root


def _widest(root: _Frame) -> list[tuple[_Frame, int, float]]:
    """Return the frames to draw, with their depth and left edge."""
    return sorted(_bars(root, 0, 0.0, _WIDTH / max(1, root.count)), key=lambda bar: -bar[0].count)[:_MOST_BARS]


def _nest(frame: _Frame, caller: _Frame, group: str, shown: set[int], total: int) -> str:
    """Return a frame as a box in its caller's box; boxes float, so a sum of widths above 100 % would break the row."""
    width = math.floor(10_000 * frame.count / max(1, caller.count)) / 100
    inner = "".join(
        _nest(one, frame, group, shown, total) for _, one in sorted(frame.inner.items()) if id(one) in shown
    )
    return (
        f'<div style="float:left;width:{width:g}%"><label title="{_text(_tip(frame, total))}" '
        f'style="display:block;overflow:hidden;height:17px;color:#222;background-color:{_color(frame.label)}">'
        f'<input type="radio" name="{group}" style="position:absolute;opacity:0">'
        f"<bdi>{_text(frame.label[-_LABEL:])}</bdi></label>{inner}</div>"
    )


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
    room = int((width - 6) / _CHARACTER)
    shown = frame.label if len(frame.label) <= room else "…" + frame.label[1 - room :]
    label = f'<text x="{left + 3:.1f}" y="{top + _ROW - 5}" fill="#222">{_text(shown)}</text>' if room > 2 else ""
    tip = _text(_tip(frame, total))
    return (
        f'<g><title>{tip}</title><rect x="{left:.1f}" y="{top}" width="{max(width - 0.5, 0.3):.1f}"'
        f' height="{_ROW - 1}" rx="2" fill="{_color(frame.label)}"/>{label}</g>'
    )


def _tip(frame: _Frame, total: int) -> str:
    return f"{frame.label[-_LABEL:]}: {frame.count:,} samples, {100 * frame.count / max(1, total):.1f} %"


def _color(label: str) -> str:
    """Return a warm colour, always the same for a label."""
    number = zlib.crc32(label.encode(errors="replace"))
    return f"hsl({number % 45 + 10} {number // 64 % 25 + 70}% {number // 4096 % 15 + 65}%)"


def _text(text: str) -> str:
    return escape(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text))
