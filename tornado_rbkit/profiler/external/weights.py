"""Makes the samples of each thread follow the thread's own CPU clock.

A helper outside sees that a thread runs or sleeps. One that runs may in fact wait for a processor, and mostly does so
just after a nap or a lock, when its stack is still that of the wait. And on a busy machine the helper gets a processor
most easily while the program computes on none. So samples are weighed: the CPU time that a thread's clock has counted
is the number of samples that it deserves, and it is shared out between two kinds of places.

Waiting places are those where threads were seen asleep while no thread of the process ran, mostly; so they do not wait
for the GIL. Their part of the CPU time is what going to sleep and waking up costs. The rest belongs to the computing
places at which the thread was seen running, and carries over to the next look that sees it at one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from tornado_rbkit.profiler.external.engine import Frame, Stack

MAX_UNSEEN: Final = 0.25
"""CPU seconds that carry over to the next look at a computing thread; an engine's output may come 0.15 s late."""

WAKE_SECONDS: Final = 7e-6
"""CPU seconds that a thread takes to go to sleep and to wake up; 6 µs for a lock and 14 µs for a nap were measured."""

_SPARE: Final = 0.02  # CPU seconds kept for waiting places
_SMOOTH: Final = 200  # looks
_CLOCK_SECONDS: Final = 1.0  # between two readings of the clock of a thread that sleeps
_RUNS: Final = 0.25  # the share of the looks at a place above which it computes
_MEMORY: Final = 4096  # looks at one place after which older ones count half
_PLACES: Final = 65_536


class Use(NamedTuple):
    """What the system has counted for one thread.

    Attributes:
        seconds: its CPU time.
        switches: how often it was given a processor.
    """

    seconds: float
    switches: int


@dataclass(frozen=True)
class Look:
    """The stack of one thread at one tick.

    Attributes:
        stack: the stack, which has frames.
        count: the number of samples for which it stands, from the time since the last tick.
        moment: the time of the last of them (Unix epoch, seconds).
        payload: the stack as it is published; empty for a thread that sleeps, with the CPU clock.
    """

    stack: Stack
    count: int
    moment: float
    payload: bytes


class _Place:
    """How often threads were seen running at one place, and asleep there while no thread ran."""

    __slots__ = ("asleep", "running")

    def __init__(self) -> None:
        self.running = self.asleep = 0

    def add(self, is_running: bool) -> None:
        self.running += is_running
        self.asleep += not is_running
        if self.running + self.asleep > _MEMORY:
            self.running //= 2
            self.asleep //= 2

    @property
    def is_waiting(self) -> bool:
        return self.running < _RUNS * (self.running + self.asleep)


class _Account:
    """The CPU time of one thread, in seconds, that has not been reported: at computing and at waiting places.

    Attributes:
        used: the last reading of its clock.
        read: when the clock was read.
        total: its CPU time at computing places since it was first seen.
        seen: the seconds for which looks saw it running there.
        owed: fractions of samples, at computing and at waiting places.
    """

    __slots__ = ("computing", "owed", "read", "seen", "total", "used", "waiting")

    def __init__(self, used: Use, now: float) -> None:
        self.used = used
        self.read = now
        self.computing = self.waiting = self.total = self.seen = 0.0
        self.owed = [0.0, 0.0]

    def update(self, used: Use, now: float) -> None:
        seconds = used.seconds - self.used.seconds
        waking = min(seconds, (used.switches - self.used.switches) * WAKE_SECONDS)
        spare = max(0.0, self.waiting + waking - _SPARE)  # of a thread that was switched while it computed
        self.waiting += waking - spare
        self.computing += seconds - waking + spare
        self.total += seconds - waking + spare
        self.used, self.read = used, now

    def report_computing(self, seconds: float, smooth: float) -> float:
        """Return the CPU time to report for looks at computing places that stand for some seconds.

        They get what such looks got on average so far, and the rest that is due only bit by bit, over `smooth` seconds
        of looks: within a short time, looks may all fall on the same part of what the program repeats.
        """
        self.seen += seconds
        average = seconds * self.total / self.seen
        if self.seen > smooth:
            self.total, self.seen = self.total / 2, self.seen / 2
        reported = min(self.computing, average + (self.computing - average) * min(1.0, seconds / smooth))
        self.computing -= reported
        return reported

    def report_waiting(self, seconds: float) -> float:
        """Return the CPU time to report for looks at waiting places that stand for some seconds."""
        reported = min(seconds, self.waiting)
        self.waiting -= reported
        return reported

    def report_unseen(self) -> float:
        """Return the CPU time to report although no look saw the thread computing."""
        if self.computing < MAX_UNSEEN:
            return 0.0
        reported, self.computing, self.total, self.seen = self.computing, 0.0, 0.0, 0.0
        return reported


class CPUWeights:
    """Weighs the looks of one run of an engine. For use by one thread.

    Args:
        use: returns what a thread has used; None if it has ended.
    """

    def __init__(self, use: Callable[[int], Use | None]) -> None:
        self._use = use
        self._places: dict[Frame, _Place] = {}
        self._accounts: dict[int, _Account] = {}

    def weigh(self, ticks: Sequence[Sequence[Look]], pace: float, now: float) -> tuple[list[int], dict[int, int]]:
        """Return the number of samples for each look, and for each thread the number of samples without a stack.

        The looks at a thread that is new or has ended, whose CPU time is not known, count as they are.

        Args:
            ticks: the looks of each tick since the last call.
            pace: seconds of CPU time for which one sample stands.
            now: the time, in seconds.
        """
        for tick in ticks:
            self._learn(tick)
        looks = [look for tick in ticks for look in tick]
        threads: dict[int, list[int]] = {look.stack.thread_id: [] for look in looks}
        for index, look in enumerate(looks):
            if not look.stack.is_idle:
                threads[look.stack.thread_id].append(index)
        accounts, self._accounts = self._accounts, {}
        counts = [0 if look.stack.is_idle else look.count for look in looks]
        unseen: dict[int, int] = {}
        for thread, indexes in threads.items():
            account = accounts.get(thread)
            if account is None or indexes or now - account.read >= _CLOCK_SECONDS:
                used = self._use(thread)
                if used is None:
                    continue
                if account is None or used.seconds < account.used.seconds:  # or another thread has its identifier
                    self._accounts[thread] = _Account(used, now)
                    continue
                account.update(used, now)
            self._accounts[thread] = account
            unseen[thread] = self._share_out(account, looks, indexes, counts, pace)
        return counts, {thread: count for thread, count in unseen.items() if count}

    def _learn(self, tick: Sequence[Look]) -> None:
        runs = any(not look.stack.is_idle for look in tick)
        for look in tick:
            if not look.stack.is_idle or not runs:
                self._place(look.stack).add(runs)

    def _place(self, stack: Stack) -> _Place:
        frame = stack.frames[-1]
        place = self._places.get(frame)
        if place is None:
            if len(self._places) >= _PLACES:
                self._places.clear()
            place = self._places[frame] = _Place()
        return place

    def _share_out(
        self, account: _Account, looks: Sequence[Look], indexes: Sequence[int], counts: list[int], pace: float
    ) -> int:
        """Set the counts of a thread's running looks to its CPU time; return the number of samples without a stack."""
        waits = [self._place(looks[index].stack).is_waiting for index in indexes]
        seen = [0.0, 0.0]
        for index, is_waiting in zip(indexes, waits, strict=True):
            seen[is_waiting] += looks[index].count * pace
        computing, waiting = seen
        reported = [0.0, account.report_waiting(waiting)]
        if computing:
            reported[False] = account.report_computing(computing, _SMOOTH * pace)
        rest = account.report_unseen()
        if indexes:
            reported[not computing] += rest
        for index, is_waiting in zip(indexes, waits, strict=True):
            account.owed[is_waiting] += looks[index].count * reported[is_waiting] / seen[is_waiting]
            counts[index] = int(account.owed[is_waiting])
            account.owed[is_waiting] -= counts[index]
        return 0 if indexes else int(rest / pace)
