"""Read the stacks of the process's threads while no other thread can run.

Between two bytecodes another thread may take the GIL. So frames are read by a chain of iterators that a single call
exhausts, without running a bytecode: a stack is what it was at one moment, and on Python 3.11 and later no frame is
referred to when other threads run again, so none is released on the sampler's thread. (On Python 3.10 frames are
kept until the sample is packed, because only a frame tells the class of a method there.)

On Python 3.11 that call also disables the collector. There a frame object is created when somebody looks at the frame
(Python/frame.c, _PyFrame_MakeAndSetFrameObject), and its allocation may itself start a collection
(Modules/gcmodule.c, _PyObject_GC_Link). The collection may run Python code (an entry of `gc.callbacks`, a finalizer, a
weakref's callback) and lose the GIL. Until it continues, the function whose frame was looked at may have returned, and
the interpreter then writes to memory that is in use for something else. Python 3.10 has an object for every frame, and
from Python 3.12 on an allocation only schedules a collection, which starts between two bytecodes.

The collector's state is read, changed and restored within the call, with no allocation between reading and changing
it. So no other thread sees the change, or makes one that is then undone. The exception is an audit hook written in
Python (`sys.addaudithook`), because it runs inside the call.
"""

from __future__ import annotations

import gc
import operator
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, repeat, starmap, takewhile
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias

MAX_DEPTH: Final = 1000
"""Frames read of one stack; the outer frames of a deeper stack are left out."""

Place: TypeAlias = "tuple[CodeType, int, dict[str, Any]] | tuple[CodeType, int, dict[str, Any], FrameType]"
"""A frame's f_code, f_lasti and f_globals, on Python 3.10 also the frame itself."""

read_place: Final = operator.attrgetter(
    *("f_code", "f_lasti", "f_globals"),
    *(() if sys.version_info >= (3, 11) else ("__str__.__self__",)),
)
"""Return the `Place` of a frame."""

_COLLECTS_IN_ALLOCATIONS: Final = sys.version_info[:2] == (3, 11)
_ONCE: Final = ((),)
"""For `starmap`: one call without arguments."""


def thread_ids() -> set[int]:
    """Return the identifiers of all threads that run Python code. Any thread."""
    found: set[int] = set()
    _exhaust(map(found.update, starmap(sys._current_frames, _ONCE)))
    return found


def read_stacks(threads: Iterable[int]) -> dict[int, list[Place]]:
    """Return the stacks of these threads, innermost frame first; threads that have ended are left out. Any thread."""
    wanted = list(threads)
    frames: dict[int, FrameType] = {}
    stacks: list[list[Place]] = []
    _exhaust(
        map(frames.update, starmap(sys._current_frames, _ONCE)),
        map(stacks.extend, [_follow(map(frames.get, wanted))]),
        starmap(frames.clear, _ONCE),
    )
    return {thread: stack for thread, stack in zip(wanted, stacks, strict=True) if stack}


def _follow(frames: Iterable[FrameType | None]) -> Iterator[list[Place]]:
    """Return an iterator that reads the stack of each frame, and runs no bytecode."""
    steps: Any = map(chain, zip(frames), map(repeat, repeat("f_back"), repeat(MAX_DEPTH - 1)))
    walks: Any = map(takewhile, repeat(operator.truth), map(accumulate, steps, repeat(getattr)))
    return map(list, map(map, repeat(read_place), walks))


def _exhaust(*calls: Iterator[object]) -> None:
    """Exhaust the iterators in one call, on Python 3.11 with the collector disabled."""
    enabled: list[bool] = []
    if _COLLECTS_IN_ALLOCATIONS:
        restore: Any = map((gc.disable, gc.enable).__getitem__, enabled)
        calls = (
            map(enabled.append, starmap(gc.isenabled, _ONCE)),
            starmap(gc.disable, _ONCE),
            *calls,
            map(operator.call, restore),  # type: ignore[attr-defined]
        )
    try:
        deque(chain(*calls), maxlen=0)
    except BaseException:  # MemoryError
        if True in enabled:
            gc.enable()
        raise
