"""Limits what the comparisons of the memory profile cost."""

from __future__ import annotations

from typing import Final

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.frames import allocated_blocks

SHARE: Final = 0.04
"""The CPU time that comparisons may take, as a share of the CPU time of the rest of the process."""

IDLE_SHARE: Final = 0.02
"""The CPU time that they may take if the process is nearly idle, as a share of the time."""

_FIRST_CREDIT: Final = 0.03
"""Seconds of CPU time: a small program is listed and compared for less, so that its first figures do not wait."""

_FIRST_SHARE: Final = 0.25
"""The cost of a comparison as a share of the cost of the first listing, where each object is looked up."""


class Budget:
    """Decides when the next comparison may begin. For use by the server's thread.

    CPU time accrues while the process runs, and this thread spends it. Publishing, and looking whether a comparison
    may begin, take at most half of it: where memory is slow after a rest, each look costs milliseconds. A comparison
    begins when its expected cost has accrued; no more than that accrues. If it costs more than expected, it pauses as
    soon as it refers to none of the host's objects, until that has accrued, too.
    """

    def __init__(self) -> None:
        self._credit = _FIRST_CREDIT  # seconds of CPU time
        self._cost = 0.0  # of the last comparison, if nothing is new
        self._new_cost = 0.0  # of as many objects again that are new
        self._is_noted = False
        # of the interpreter's memory, when the last comparison listed the objects; None if they cannot be counted
        self._blocks: int | None = None
        self._listed_blocks: int | None = None  # when the current one did
        self._wall, self._cpu, self._own = real_time.monotonic(), real_time.process_time(), real_time.thread_time()

    def accrue(self) -> None:
        """Account for the time since the last call or `charge`, when the memory profile begins to work."""
        wall, cpu, own = real_time.monotonic(), real_time.process_time(), real_time.thread_time()
        others = cpu - self._cpu - (own - self._own)
        accrued = max(SHARE * others, IDLE_SHARE * (wall - self._wall))
        other_work = own - self._own  # this thread's in between; it also publishes CPU samples, and snapshots
        self._credit += max(accrued - other_work, accrued / 2)
        self._wall, self._cpu, self._own = wall, cpu, own

    def charge(self) -> float:
        """Charge this thread's CPU time since `accrue`, for a slice of a comparison; return the seconds."""
        spent = real_time.thread_time() - self._own
        self._credit -= spent
        self._cpu += spent
        self._own += spent
        return spent

    def begin(self) -> None:
        """Note that a comparison lists the objects now; the next one pays for memory that is allocated afterwards."""
        self._listed_blocks = allocated_blocks()

    def note(self, cost: float) -> None:
        """Note the seconds of CPU time that a comparison, or the first listing, has cost; the next one may differ."""
        self._cost = cost if self._is_noted else cost * _FIRST_SHARE
        self._new_cost = cost
        self._is_noted = True
        self._blocks = self._listed_blocks

    def allows(self) -> bool:
        """Return whether the next comparison may begin; it is expected to cost more if the memory has grown."""
        blocks = allocated_blocks() if self._blocks else None
        growth = max(1.0, blocks / self._blocks) if blocks and self._blocks else 1.0
        expected = self._cost + self._new_cost * (growth - 1)
        self._credit = min(self._credit, expected)
        return self._credit >= expected

    def is_overdrawn(self) -> bool:
        """Return whether a comparison has cost more than had accrued, so that the rest of it has to wait."""
        return self._credit < 0
