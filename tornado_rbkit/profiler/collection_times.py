"""Records when garbage collections run, and on which thread."""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable
from types import CodeType
from typing import Any, Final

from tornado_rbkit.profiler import memory
from tornado_rbkit.profiler.objects import without_annotations
from tornado_rbkit.profiler.threads import original

_KEPT: Final = 100  # collections between two ticks; of more, the last are kept

_FILES: Final = (__file__, memory.__file__)


class CollectionTimes:
    """The garbage collections since the last call of `forget`. The sampler's thread, except the collector's callback.

    The sampler rarely sees a collection, because it waits for the GIL meanwhile; it takes the missed ones from here.
    """

    def __init__(self) -> None:
        # Thread, begin, end, thread, ...: tuples would be reported as objects of the program.
        self._ended: deque[float] = deque(maxlen=3 * _KEPT)
        self._running: dict[int, float] = {}
        self._callback = _callback(self._ended, self._running)

    def start(self) -> None:
        """Start to record."""
        gc.callbacks.append(self._callback)

    def stop(self) -> None:
        """Stop recording. May be called twice, and in a forked child."""
        memory.release_callback(self._callback)

    def of(self, thread_id: int) -> list[tuple[float, float]]:
        """Return the begin and the end of each collection of a thread, in seconds since the Unix epoch."""
        if not self._ended and not self._running:
            return []
        ended = iter(list(self._ended))
        spans = [(began, end) for thread, began, end in zip(ended, ended, ended, strict=True) if thread == thread_id]
        began = self._running.get(thread_id)
        return spans if began is None else [*spans, (began, float("inf"))]

    def forget(self) -> None:
        """Forget the collections that have ended."""
        self._ended.clear()


def is_callback(code: CodeType) -> bool:
    """Return True for the code of the profiler's callbacks of the collector, which are left out of stacks."""
    return code.co_name == "on_collection" and code.co_filename in _FILES


def _callback(ended: deque[float], running: dict[int, float]) -> Callable[[str, dict[str, Any]], None]:
    """Return the collector's callback, which only records the thread and the time, on any thread."""
    clock, this_thread = time.time, original("get_ident")

    def on_collection(phase: str, info: dict[str, Any]) -> None:
        thread = this_thread()
        if phase == "start":
            running[thread] = clock()
        else:
            began = running.pop(thread, None)
            if began is not None:
                ended.extend((thread, began, clock()))  # at once: no other thread runs in between

    return without_annotations(on_collection)
