"""The times of looks whose stacks are read later."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tornado_rbkit.profiler import real_time


class Moments:
    """Dates the looks of one run of an engine. For use by one thread.

    Where this process has to wait for a processor, the stacks wait in the pipe. So the looks are not dated by the time
    at which their stacks are read, but by the times between the looks, and the look that was read soonest.
    """

    def __init__(self) -> None:
        self._elapsed = 0.0
        self._began = math.inf

    def date(self, passed: Iterable[float]) -> list[float]:
        """Return the times of looks (Unix epoch, seconds), the last of which has just been read.

        Args:
            passed: the seconds between each look and the one before it.
        """
        elapsed = []
        for seconds in passed:
            self._elapsed += seconds
            elapsed.append(self._elapsed)
        now = real_time.monotonic()
        self._began = min(self._began, now - self._elapsed)
        began = real_time.time() - now + self._began
        return [began + each for each in elapsed]
