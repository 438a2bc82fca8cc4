"""Read the stacks of the process's threads while no other thread can run.

A stack is read in one go (see `uninterrupted`), so it shows a single moment. On Python 3.11 and later no reference to
a frame is kept when other threads run again, so no frame is released on the sampler's thread. (On Python 3.10 frames
are kept until the sample is packed, because only the frame gives the class of a method there.)

On Python 3.11 the process would crash otherwise. There a frame object is created when a frame is first accessed
(Python/frame.c, _PyFrame_MakeAndSetFrameObject), and its allocation may start a collection that lets other threads
run. Meanwhile the function may return, and the interpreter then writes to memory that has been reused. Python 3.10 has
an object for every frame, and from Python 3.12 on no collection starts there.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, repeat, starmap, takewhile
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias

from tornado_rbkit.profiler.uninterrupted import ONCE, run_uninterrupted

MAX_DEPTH: Final = 1000
"""Frames read of one stack; the outer frames of a deeper stack are left out."""

Place: TypeAlias = "tuple[CodeType, int, dict[str, Any]] | tuple[CodeType, int, dict[str, Any], FrameType]"
"""A frame's f_code, f_lasti and f_globals, on Python 3.10 also the frame itself."""

read_place: Final = operator.attrgetter(
    *("f_code", "f_lasti", "f_globals"),
    *(() if sys.version_info >= (3, 11) else ("__str__.__self__",)),
)
"""Return the `Place` of a frame."""


def thread_ids() -> set[int]:
    """Return the identifiers of all threads that run Python code. Any thread."""
    found: set[int] = set()
    run_uninterrupted([map(found.update, starmap(sys._current_frames, ONCE))])
    return found


def read_stacks(threads: Iterable[int]) -> dict[int, list[Place]]:
    """Return the stacks of these threads, innermost frame first; threads that have ended are left out. Any thread."""
    wanted = list(threads)
    frames: dict[int, FrameType] = {}
    stacks: list[list[Place]] = []
    run_uninterrupted(
        [
            map(frames.update, starmap(sys._current_frames, ONCE)),
            map(stacks.extend, [_follow(map(frames.get, wanted))]),
            starmap(frames.clear, ONCE),
        ]
    )
    return {thread: stack for thread, stack in zip(wanted, stacks, strict=True) if stack}


def _follow(frames: Iterable[FrameType | None]) -> Iterator[list[Place]]:
    """Return an iterator that reads the stack of each frame without running bytecode."""
    steps: Any = map(chain, zip(frames), map(repeat, repeat("f_back"), repeat(MAX_DEPTH - 1)))
    walks: Any = map(takewhile, repeat(operator.truth), map(accumulate, steps, repeat(getattr)))
    return map(list, map(map, repeat(read_place), walks))
