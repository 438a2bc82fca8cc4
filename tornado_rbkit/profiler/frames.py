"""Reads the stacks of the process's threads while no other thread can run.

A stack is read without interruption (see `uninterrupted`), so it shows a single moment. On Python 3.11 and later no
reference to a frame is kept when other threads run again, so no frame is released on the sampler's thread. (On Python
3.10 frames are kept until the sample is packed, because only the frame gives the class of a method there.)

On Python 3.11 the process would crash otherwise. There a frame object is created when a frame is first accessed
(Python/frame.c, _PyFrame_MakeAndSetFrameObject), and its allocation may start a collection that lets other threads
run. Meanwhile the function may return, and the interpreter then writes to memory that has been reused. Python 3.10 has
an object for every frame, and from Python 3.12 on no collection starts there.

`sys._current_frames` lists the threads of all interpreters of the process. From Python 3.12 on an interpreter may have
a GIL of its own, and reading its threads' frames under this interpreter's GIL corrupts memory. So in the same go the
interpreters are listed, and nothing is read if there is one that may run meanwhile. In a free-threaded build every
thread may.
"""

from __future__ import annotations

import importlib
import operator
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import accumulate, chain, compress, filterfalse, repeat, starmap, takewhile
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.profiler.tasks import read_tasks, thread_of_loop
from tornado_rbkit.profiler.threads import original
from tornado_rbkit.profiler.uninterrupted import ONCE, run_uninterrupted

MAX_DEPTH: Final = 1000
"""The most frames read of one stack; the outer frames of a deeper stack are left out."""

Place: TypeAlias = "tuple[CodeType, int, dict[str, Any]] | tuple[CodeType, int, dict[str, Any], FrameType]"
"""A frame's f_code, f_lasti and f_globals, on Python 3.10 also the frame itself."""

read_place: Final = operator.attrgetter(
    *("f_code", "f_lasti", "f_globals"),
    *(() if sys.version_info >= (3, 11) else ("__str__.__self__",)),
)
"""Return the `Place` of a frame."""


class SamplingError(RbkitError, RuntimeError):
    """The stacks of this process cannot be read safely; the message says why."""


_is_gil_enabled: Final[Callable[[], bool] | None] = getattr(sys, "_is_gil_enabled", None)  # from Python 3.13 on


def _interpreters() -> Any:
    """Return the module that lists the interpreters of the process, None up to Python 3.11, where they share a GIL."""
    if sys.version_info < (3, 12):
        return None
    return importlib.import_module("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")


_INTERPRETERS: Final = _interpreters()
_list_interpreters: Final[Callable[[], list[Any]]] = list if _INTERPRETERS is None else _INTERPRETERS.list_all
_known: Final[set[Any]] = set() if _INTERPRETERS is None else {_INTERPRETERS.get_current()}
"""The interpreters that are known to share this interpreter's GIL. Their ids are never reused."""


def check_sampling() -> None:
    """Check that the stacks of this process can be read. Any thread.

    Raises:
        SamplingError: they cannot be read safely.
    """
    with_frames(lambda _: [])


def frames_of_others() -> list[FrameType]:
    """Return the frames of each thread except the caller's. Any thread.

    The result refers to them when other threads run again; `read_stacks` keeps no frames. The outer frames of a deep
    stack are left out.

    Raises:
        SamplingError: the frames cannot be read safely.
    """
    is_own = original("get_ident")().__eq__
    threads: list[int] = []
    frames: dict[int, FrameType] = {}
    found: list[FrameType] = []
    with_frames(
        lambda current: [
            map(frames.update, current),
            map(threads.extend, map(filterfalse, [is_own], [frames])),
            map(found.extend, walks(map(frames.get, threads))),
            starmap(frames.clear, ONCE),
        ]
    )
    return found


def read_stacks(
    tasks: dict[int, str] | None = None,
    skipped: AbstractSet[int] = frozenset(),
    known_loops: Sequence[weakref.ref[Any]] = (),
) -> dict[int, list[Place]]:
    """Return the stacks of all other threads that run Python code, innermost frame first. Any thread.

    On Python 3.10 a stack of the caller's own would hold the frame that holds it, until a collection.

    Args:
        tasks: receives, by thread, the name of the asyncio task that runs on it.
        skipped: threads whose stacks are not read.
        known_loops: the event loops whose running tasks are read from Python 3.14 on.

    Raises:
        SamplingError: the stacks cannot be read safely.
    """
    is_skipped = {*skipped, original("get_ident")()}.__contains__
    threads: list[int] = []
    frames: dict[int, FrameType] = {}
    stacks: list[list[Place]] = []
    loops: list[Any] = []
    names: list[str] = []
    with_frames(
        lambda current: [
            *(() if tasks is None else read_tasks(known_loops, loops, names)),
            map(frames.update, current),
            map(threads.extend, map(filterfalse, [is_skipped], [frames])),
            map(stacks.extend, [_follow(map(frames.get, threads))]),
            starmap(frames.clear, ONCE),
        ]
    )
    if tasks is not None:
        tasks.update(zip(map(thread_of_loop, loops), names, strict=True))
    return dict(zip(threads, stacks, strict=True))


def with_frames(calls: Callable[[Iterator[dict[int, FrameType]]], list[Iterator[None]]]) -> None:
    """Run calls uninterrupted that consume an iterator of the result of `sys._current_frames`.

    The iterator is empty if there is an interpreter that is not known to share this interpreter's GIL.

    Raises:
        SamplingError: such an interpreter has another GIL, or there is no GIL.
    """
    if not has_gil():
        raise SamplingError("this interpreter runs without a GIL, so its threads run on; PYTHON_GIL=1 enables the GIL")
    unknown: list[Any] = [None]
    while unknown:
        unknown.clear()
        listed = chain.from_iterable(starmap(_list_interpreters, ONCE))
        current = starmap(sys._current_frames, compress(ONCE, map(operator.not_, [unknown])))
        run_uninterrupted(
            [map(unknown.extend, [filterfalse(_known.__contains__, listed)]), *calls(current)],
        )
        if not all(map(_shares_gil, unknown)):
            raise SamplingError("the process has a sub-interpreter with another GIL, whose threads cannot be read")
        _known.update(unknown)


def has_gil() -> bool:
    """Return False in a free-threaded build whose GIL is disabled."""
    return _is_gil_enabled is None or _is_gil_enabled()


def _shares_gil(interpreter: Any) -> bool:
    if sys.version_info < (3, 13):  # cannot be looked up
        return False
    try:
        return bool(_INTERPRETERS.get_config(interpreter[0]).gil == "shared")
    except Exception:  # noqa: BLE001 - it has ended: InterpreterNotFoundError
        return True


def _follow(frames: Iterable[FrameType | None]) -> Iterator[list[Place]]:
    """Return an iterator that reads the stack of each frame without running bytecode."""
    return map(list, map(map, repeat(read_place), walks(frames)))


def walks(frames: Iterable[FrameType | None]) -> Iterator[Iterator[FrameType]]:
    """Return an iterator of iterators over each frame and its callers; none of them runs bytecode."""
    steps: Any = map(chain, zip(frames), map(repeat, repeat("f_back"), repeat(MAX_DEPTH - 1)))
    return map(takewhile, repeat(operator.truth), map(accumulate, steps, repeat(getattr)))
