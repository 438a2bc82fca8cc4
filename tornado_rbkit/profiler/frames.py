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
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain, compress, filterfalse, islice, repeat, starmap, takewhile
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.profiler.tasks import read_tasks, thread_of_loop
from tornado_rbkit.profiler.threads import original
from tornado_rbkit.profiler.uninterrupted import ONCE, RepeatedCalls, run_uninterrupted

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


def read_stacks() -> dict[int, list[Place]]:
    """Return the stacks of all other threads that run Python code, innermost frame first. Any thread.

    On Python 3.10 a stack of the caller's own would hold the frame that holds it, until a collection.

    Raises:
        SamplingError: the stacks cannot be read safely.
    """
    return StackReader().read()


class StackReader:
    """Reads the stacks of all other threads any number of times. For use by the thread that creates it.

    After an error, create another.

    Attributes:
        reads_tasks: True if asyncio was imported when this object was created.
        known_loops: the event loops whose running tasks are read from Python 3.14 on.
        tasks: by thread, the name of the asyncio task that ran on it at the last `read`.
    """

    def __init__(self) -> None:
        self.known_loops: list[weakref.ref[Any]] = []
        self.tasks: dict[int, str] = {}
        self._own = original("get_ident")()
        self._skipped: set[int] = set()
        self._unknown: list[Any] = []
        self._threads: list[int] = []
        self._stacks: list[list[Place]] = []
        self._loops: list[Any] = []
        self._names: list[str] = []
        frames: dict[int, FrameType] = {}
        tasks = read_tasks(self.known_loops, self._loops, self._names)
        self.reads_tasks = bool(tasks)
        listing, current = _frames_if_known(self._unknown)
        others = map(filterfalse, repeat(self._skipped.__contains__), repeat(frames))
        self._calls = RepeatedCalls(
            [
                listing,
                *tasks,
                map(frames.update, current),
                map(self._threads.extend, others),
                map(self._stacks.extend, _follow(map(map, repeat(frames.get), repeat(self._threads)))),
                starmap(frames.clear, repeat(())),
            ]
        )

    def read(self, skipped: Iterable[int] = ()) -> dict[int, list[Place]]:
        """Return the stack of each other thread that runs Python code and is not skipped, innermost frame first.

        Raises:
            SamplingError: the stacks cannot be read safely.
        """
        self._skipped.update(skipped)
        self._skipped.add(self._own)
        self._unknown.append(None)
        while self._unknown:
            self._unknown.clear()
            _check_gil()
            self._calls.run()
            _learn(self._unknown)
        stacks = dict(zip(self._threads, self._stacks, strict=True))
        self.tasks = dict(zip(map(thread_of_loop, self._loops), self._names, strict=True)) if self._loops else {}
        for each in (self._skipped, self._threads, self._stacks, self._loops, self._names):
            each.clear()
        return stacks


def with_frames(calls: Callable[[Iterator[dict[int, FrameType]]], list[Iterator[None]]]) -> None:
    """Run calls uninterrupted that consume an iterator of the result of `sys._current_frames`.

    The iterator is empty, or yields an empty dict, if an interpreter is not known to share this interpreter's GIL.

    Raises:
        SamplingError: such an interpreter has another GIL, or there is no GIL.
    """
    unknown: list[Any] = [None]
    while unknown:
        unknown.clear()
        _check_gil()
        listing, current = _frames_if_known(unknown)
        run_uninterrupted([islice(listing, 1), *calls(islice(current, 1))])
        _learn(unknown)


def _frames_if_known(unknown: list[Any]) -> tuple[Iterator[None], Iterator[dict[int, FrameType]]]:
    """Return an endless iterator that lists the unknown interpreters, and one of the current frames, if none is."""
    each: Iterator[tuple[()]] = repeat(())
    found: Any = map(filterfalse, repeat(_known.__contains__), starmap(_list_interpreters, each))
    read: Any = map(operator.getitem, repeat((sys._current_frames, dict)), map(bool, repeat(unknown)))
    return map(unknown.extend, found), map(next, map(starmap, read, repeat(ONCE)))


def _learn(unknown: list[Any]) -> None:
    """Note that interpreters share this interpreter's GIL.

    Raises:
        SamplingError: one has another GIL.
    """
    if not unknown:
        return
    if not all(map(_shares_gil, unknown)):
        raise SamplingError("the process has a sub-interpreter with another GIL, whose threads cannot be read")
    _known.update(unknown)


def _check_gil() -> None:
    """Check that this interpreter has a GIL.

    Raises:
        SamplingError: it has none.
    """
    if not has_gil():
        raise SamplingError("this interpreter runs without a GIL, so its threads run on; PYTHON_GIL=1 enables the GIL")


def has_gil() -> bool:
    """Return False in a free-threaded build whose GIL is disabled."""
    return _is_gil_enabled is None or _is_gil_enabled()


def has_other_interpreters() -> bool:
    """Return whether the process has sub-interpreters, whatever their GIL. Any thread."""
    module = _INTERPRETERS
    if module is None:
        try:
            module = importlib.import_module("_xxsubinterpreters")
        except ImportError:
            return False
    return len(module.list_all()) > 1


def allocated_blocks() -> int | None:
    """Return the number of blocks that the allocator has handed out, None beside sub-interpreters. Any thread.

    From Python 3.12 on `sys.getallocatedblocks` also counts those of the other interpreters, without their GIL: it
    reads memory that they are giving back to the system, which ends the process. No bytecode, and so no thread that
    creates an interpreter, runs between the look at the interpreters and the call.
    """
    is_alone: Any = map((2).__gt__, map(len, starmap(_list_interpreters, ONCE)))
    counts: Any = map(starmap, compress((sys.getallocatedblocks,), is_alone), (ONCE,))
    return next(chain.from_iterable(counts), None)


def _shares_gil(interpreter: Any) -> bool:
    if sys.version_info < (3, 13):  # cannot be looked up
        return False
    try:
        return bool(_INTERPRETERS.get_config(interpreter[0]).gil == "shared")
    except Exception:  # noqa: BLE001 - it has ended: InterpreterNotFoundError
        return True


def _follow(looks: Iterator[Iterator[FrameType | None]]) -> Iterator[Iterator[list[Place]]]:
    """Return an endless iterator that reads the stacks of each look's frames without running bytecode."""
    apply: Any = map  # the iterators of iterators exceed what type checkers know of map
    return apply(map, repeat(list), apply(map, repeat(map), repeat(repeat(read_place)), _walks(looks)))  # type: ignore[no-any-return]


def walks(frames: Iterable[FrameType | None]) -> Iterator[Iterator[FrameType]]:
    """Return an iterator of iterators over each frame and its callers; none of them runs bytecode."""
    return next(_walks(iter([iter(frames)])))


def _walks(looks: Iterator[Iterator[FrameType | None]]) -> Iterator[Iterator[Iterator[FrameType]]]:
    """Return the `walks` of the frames of each look."""
    apply: Any = map
    backs = map(repeat, repeat("f_back"), repeat(MAX_DEPTH - 1))
    steps = apply(map, repeat(chain), map(zip, looks), repeat(backs))
    walked = apply(map, repeat(accumulate), steps, repeat(repeat(getattr)))
    return map(map, repeat(takewhile), repeat(repeat(operator.truth)), walked)
