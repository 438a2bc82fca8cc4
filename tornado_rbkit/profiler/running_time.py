"""Measures how long this process has waited for another one, without the pauses of the machine."""

from __future__ import annotations

from typing import Final

from tornado_rbkit.profiler import real_time

_LONGEST_STEP: Final = 0.5
"""Seconds that count between two looks; in a longer time this process was paused, and the other one, too."""


class RunningTime:
    """The time for which this process has run. For use by one thread, which looks several times a second.

    Attributes:
        seconds: the time until the last look; the owner sets it to 0 to begin anew.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._looked = real_time.monotonic()

    def look(self) -> None:
        """Count the time since the last look."""
        now = real_time.monotonic()
        self.seconds += min(now - self._looked, _LONGEST_STEP)
        self._looked = now
