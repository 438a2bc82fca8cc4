"""Finds the event loops that run, from Python 3.14 on, where asyncio lists the tasks of a given loop only.

The loops are found in the local variables of the threads' stacks: a function that runs a loop has the loop or its main
task there.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, compress, repeat, starmap
from types import FrameType
from typing import Any, Final

from tornado_rbkit.profiler.frames import walks, with_frames
from tornado_rbkit.profiler.task_classes import c_task_class, ids_of_family
from tornado_rbkit.profiler.uninterrupted import ONCE

FIND_SECONDS: Final = 1.0
"""Seconds after which `EventLoops.find` is to be called again."""

_VALUES: Final = {id(kind): kind.values for kind in (dict, type((lambda: sys._getframe().f_locals)()))}
"""By the id of the class of a frame's f_locals: what returns the values. Another mapping is the host's own."""

_no_values: Final = partial(repeat, times=0)


class EventLoops:
    """The event loops of this process. For use by one thread.

    Attributes:
        references: the loops that `find` has found; empty up to Python 3.13.
    """

    def __init__(self) -> None:
        self.references: list[weakref.ref[Any]] = []

    def find(self) -> None:
        """Find the running event loops, and drop the references to deleted loops; do nothing up to Python 3.13.

        Raises:
            SamplingError: the stacks of this process cannot be read safely.
        """
        kind = c_task_class()
        if sys.version_info < (3, 14) or kind is None:
            return
        is_loop = ids_of_family(sys.modules["asyncio.events"].AbstractEventLoop).__contains__
        is_task = ids_of_family(kind).__contains__
        innermost: list[FrameType] = []
        scopes: list[Any] = []
        values: list[Any] = []
        found: list[weakref.ref[Any]] = []
        known = self.references
        gone: list[bool] = []

        def chosen(is_wanted: Callable[[int], bool]) -> Iterator[Any]:
            return compress(values, map(is_wanted, map(id, map(type, values))))

        def calls(current: Iterator[dict[int, FrameType]]) -> list[Iterator[None]]:
            values_of = map(_VALUES.get, map(id, map(type, scopes)), repeat(_no_values))
            return [
                map(innermost.extend, map(dict[int, FrameType].values, current)),
                map(scopes.extend, [map(getattr, chain.from_iterable(walks(innermost)), repeat("f_locals"))]),
                map(values.extend, map(next, map(starmap, values_of, zip(zip(scopes))))),
                map(found.extend, [map(weakref.ref, chain(chosen(is_loop), map(kind.get_loop, chosen(is_task))))]),
                map(gone.extend, [map(partial(operator.is_, None), map(weakref.ref.__call__, known))]),
                *(starmap(each.clear, ONCE) for each in (innermost, scopes, values)),
            ]

        with_frames(calls)
        kept = (*compress(known, map(operator.not_, gone)), *found)
        self.references = list({id(ref): ref for ref in kept}.values())
