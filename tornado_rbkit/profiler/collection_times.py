"""Records when garbage collections run, and on which thread.

The collector calls its callbacks on the thread that collects, which is the host's. A function written in Python would
become a part of the host there: the interpreter runs the handlers of signals in it and drops the exceptions that they
raise (such as KeyboardInterrupt), may let another thread run in the middle of the collection, and shows the function
to the host's debuggers and profilers. So the callback consists of functions written in C and runs no bytecode.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from itertools import repeat, starmap
from operator import methodcaller
from types import MethodType
from typing import Final

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.threads import original
from tornado_rbkit.profiler.uninterrupted import parts_of

START: Final = 0.0
STOP: Final = 1.0

_KEPT: Final = 100  # collections between two ticks; of more, the last are kept
_PARTS: Final[tuple[type, ...]] = (map, zip, repeat, starmap, tuple, MethodType, type(iter([]).__next__))


class Collections:
    """Notes the start and the stop of each collection while it is among the callbacks of the collector.

    For use by one thread; the collector calls it on any thread.

    Attributes:
        start, stop: for the collector. Getting one of them notes this phase of a collection.
        internal: the ids of the objects that note the phases.
    """

    start = property(methodcaller("_note_start"))
    stop = property(methodcaller("_note_stop"))

    def __init__(self) -> None:
        self._noted: deque[float] = deque()  # phase, time, thread, phase, ...: tuples would be the program's objects
        self._note_start, self._note_stop = self._noter(START), self._noter(STOP)
        self._callback = MethodType(getattr, self)  # called with the name of the phase, and a dict as the default
        self.internal = parts_of((self._callback, self._note_start, self._note_stop), _PARTS)

    def _noter(self, phase: float) -> Callable[[], None]:
        clock, thread = starmap(real_time.monotonic, repeat(())), starmap(original("get_ident"), repeat(()))
        return map(self._noted.extend, zip(repeat(phase), clock, thread, strict=False)).__next__

    def begin(self) -> None:
        """Start to record."""
        gc.callbacks.append(self._callback)

    def end(self) -> None:
        """Stop recording. May be called twice, and in a forked child."""
        for index, callback in enumerate(gc.callbacks):
            if callback is self._callback:  # list.remove() would call __eq__ of the host's callbacks
                del gc.callbacks[index]  # no other thread runs after the comparison: there is no call and no loop
                return

    def take(self) -> Iterator[tuple[float, float, int]]:
        """Remove what was noted; give the phase, its time in seconds since the Unix epoch, and the thread."""
        since_epoch = real_time.time() - real_time.monotonic()
        while self._noted:
            yield self._noted.popleft(), since_epoch + self._noted.popleft(), int(self._noted.popleft())


class CollectionTimes:
    """The garbage collections since the last call of `forget`. For use by the sampler's thread.

    The sampler rarely sees a collection, because it waits for the GIL meanwhile; it takes the missed ones from here.
    """

    def __init__(self) -> None:
        self._ended: deque[float] = deque(maxlen=3 * _KEPT)  # thread, begin, end, thread, ...
        self._running: dict[int, float] = {}
        self._collections = Collections()

    def start(self) -> None:
        """Start to record."""
        self._collections.begin()

    def stop(self) -> None:
        """Stop recording. May be called twice, and in a forked child."""
        self._collections.end()

    def of(self, thread_id: int) -> list[tuple[float, float]]:
        """Return the begin and the end of each collection of a thread, in seconds since the Unix epoch."""
        self._take()
        if not self._ended and not self._running:
            return []
        ended = iter(list(self._ended))
        spans = [(began, end) for thread, began, end in zip(ended, ended, ended, strict=True) if thread == thread_id]
        began = self._running.get(thread_id)
        return spans if began is None else [*spans, (began, float("inf"))]

    def forget(self) -> None:
        """Forget the collections that have ended."""
        self._take()
        self._ended.clear()

    def _take(self) -> None:
        for phase, seconds, thread in self._collections.take():
            if phase == START:
                self._running[thread] = seconds
            else:
                began = self._running.pop(thread, None)
                if began is not None:
                    self._ended.extend((thread, began, seconds))
