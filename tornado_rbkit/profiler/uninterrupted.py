"""Calls the interpreter's own functions without letting another thread run in between.

Another thread may take the GIL between two bytecodes, and up to Python 3.11 wherever an object that the collector
tracks is allocated: the allocation may start a collection (Modules/gcmodule.c, _PyObject_GC_Link), which may run the
host's Python code (an entry of `gc.callbacks`, a finalizer, a weakref's callback). From Python 3.12 on an allocation
only schedules a collection, which starts between two bytecodes.

So the calls are iterators of `itertools` over functions written in C, one call runs them all, and up to
Python 3.11 the collector is disabled within that call. Nothing that the collector tracks is allocated between reading
its state and changing it, so no other thread sees the change or makes a change that is then undone. The exception is
an audit hook written in Python (`sys.addaudithook`): it runs inside the call.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, compress, count, filterfalse, islice, repeat, starmap, takewhile
from operator import getitem
from types import BuiltinMethodType
from typing import Any, Final

ONCE: Final = ((),)
"""For `starmap`: one call without arguments."""

_PARTS: Final[tuple[type, ...]] = (
    *(accumulate, chain, compress, count, filterfalse, islice, map, repeat, starmap, takewhile, zip),
    *(dict, list, set, tuple, type(iter([])), type(iter(())), BuiltinMethodType),
)
_SET_ENABLED: Final = (gc.disable, gc.enable)
_ALLOCATIONS_COLLECT: Final = sys.version_info < (3, 12)


def run_uninterrupted(calls: list[Iterator[None]], internal: set[int] | None = None) -> None:
    """Exhaust each iterator in turn. Any thread.

    Args:
        calls: iterators that yield only None.
        internal: receives the ids of the iterators and of the lists they work on, for a call that lists all objects.
    """
    if _ALLOCATIONS_COLLECT:
        enabled: list[bool] = []
        restore: Any = map(getitem, repeat(_SET_ENABLED), enabled)
        calls.insert(0, map(enabled.append, starmap(gc.isenabled, ONCE)))
        calls.insert(1, starmap(gc.disable, ONCE))
        calls.append(chain.from_iterable(map(starmap, restore, [ONCE])))
    everything = chain.from_iterable(calls)
    if internal is not None:
        parts_of([everything], found=internal)
    try:
        any(everything)
    except BaseException:  # MemoryError
        if _ALLOCATIONS_COLLECT and True in enabled:
            gc.enable()
        raise


class RepeatedCalls:
    """Calls that are run uninterrupted any number of times. For use by one thread.

    Creating the iterators takes longer than most calls, so they are created once.

    Args:
        calls: endless iterators; each is advanced once by each `run`.

    Attributes:
        internal: the ids of the iterators and of the containers they work on, which are empty between two runs.
    """

    __slots__ = ("_calls", "_enabled", "internal")  # a snapshot would list a dict

    def __init__(self, calls: list[Iterator[Any]]) -> None:
        self._enabled: list[bool] = []
        if _ALLOCATIONS_COLLECT:
            each = repeat(())
            restore: Any = map(getitem, repeat(_SET_ENABLED), starmap(self._enabled.pop, each))
            calls.insert(0, map(self._enabled.append, starmap(gc.isenabled, each)))
            calls.insert(1, starmap(gc.disable, each))
            calls.append(map(next, map(starmap, restore, repeat(ONCE))))
        self._calls = zip(*calls, strict=False)
        self.internal = parts_of([self._calls])
        self.internal.add(id(self._enabled))

    def run(self) -> None:
        """Advance each iterator in turn. After an error, do not call it again."""
        try:
            next(self._calls)
        except BaseException:  # MemoryError
            if True in self._enabled:
                gc.enable()
            raise


def parts_of(roots: Iterable[object], kinds: Sequence[type] = _PARTS, found: set[int] | None = None) -> set[int]:
    """Return the ids of iterators, and of their parts, before the iterators have started.

    Args:
        roots: the iterators.
        kinds: the classes of the parts that are followed.
        found: a set that receives the ids; another one would leave its own id behind, which an object of the host
            may get.

    Returns:
        `found`, or a new set, with the ids and its own id.
    """
    found = set() if found is None else found
    found.add(id(found))
    waiting = list(roots)
    while waiting:
        item = waiting.pop()
        if id(item) not in found and type(item) in kinds:
            found.add(id(item))
            waiting.extend(gc.get_referents(item))
    return found
