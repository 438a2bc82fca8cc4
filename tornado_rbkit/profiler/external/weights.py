"""Makes the samples of each thread follow the thread's own CPU clock.

A helper outside sees a thread at some moments. On a busy machine it sees most threads that want to compute wait for a
processor, and the helper itself comes late. So the looks do not count as they come: a thread gets as many samples as
its clock has counted CPU time, and only the looks that found it on a processor share them, each alike, however late
they were. Where a thread waits for a processor says nothing about where it computes: one that was woken waits where
it slept. CPU time for which there is no such look, or from longer before a look than the sampler makes up for, is
reported without a stack. What going to sleep and waking up takes is too short to be seen; it is shared by the looks
that saw the thread asleep.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tornado_rbkit.profiler.external.engine import Frame, Stack, Use

MAX_UNSEEN: Final = 0.25
"""CPU seconds of a thread that wait for a look that finds it on a processor, and are then reported without a stack."""

WAKE_SECONDS: Final = 4e-6
"""CPU seconds that a thread takes to go to sleep and to wake up, and that looks do not see.

They see the rest. 2 to 7 µs were measured for a lock or a nap, 10 µs for a file.
"""

_TICK: Final = 0.004
"""Seconds of running after which a thread's clock is brought up to date, with the usual 250 ticks per second."""

_LATE: Final = 0.01
"""Seconds by which a thread's clock may move at once, with 100 ticks per second."""

_ABSENCE: Final = 0.25
"""Seconds without a look after which a thread has ended; a look may miss some threads while others begin or end."""


@dataclass(frozen=True)
class Look:
    """The stack of one thread at one tick.

    Attributes:
        stack: the stack, which has frames.
        count: the number of samples for which it stands, from the time since the last tick.
        moment: the time of the last of them (Unix epoch, seconds).
        payload: the stack as it is published; empty for a thread that sleeps, with the CPU clock, which is rarely.
    """

    stack: Stack
    count: int
    moment: float
    payload: bytes


Sample = tuple[Look, int]
"""A look, and the number of samples to publish for it."""


class _Account:
    """The CPU time of one thread that has not been reported, and the looks that share it.

    Attributes:
        use: the last reading of its clocks.
        seconds: its CPU time that has not been reported.
        unseen: its CPU time for which no look stands, and that has not been reported.
        seen: the time of the last look at it.
        running: looks that found it on a processor, and after which its clock has moved.
        unclocked: looks that found it on a processor, after which its clock has not moved.
        waking: CPU time that it took to go to sleep and to wake up, and that has not been reported.
        asleep: looks that saw it asleep for the first time since it ran, by their frames, with their numbers.
        owed: fractions of samples, of computing and of waking.
    """

    __slots__ = ("asleep", "owed", "running", "seconds", "seen", "unclocked", "unseen", "use", "waking")

    def __init__(self, use: Use, seconds: float) -> None:
        self.use = use
        self.seconds = seconds
        self.seen = self.unseen = 0.0
        self.running: list[Look] = []
        self.unclocked: list[Look] = []
        self.waking = 0.0
        self.asleep: dict[tuple[Frame, ...], tuple[Look, int]] = {}
        self.owed = [0.0, 0.0]

    def add(self, look: Look, use: Use, passed: float) -> None:
        """Add a look that stands for `passed` seconds, and a reading of the clocks."""
        ran, switches = use.seconds - self.use.seconds, use.switches - self.use.switches
        if ran or switches:
            if ran > passed + _LATE:
                self.unseen += ran - passed
                ran = passed
            waking = min(ran, WAKE_SECONDS * switches)
            self.waking += waking
            self.seconds += ran - waking
            self._settle()
            if look.stack.is_idle:
                self.asleep[look.stack.frames] = look, self.asleep.get(look.stack.frames, (look, 0))[1] + 1
        self.use = use
        self.seen = look.moment
        if use.is_running:
            self.unclocked.append(look)

    def _settle(self) -> None:
        self.running += self.unclocked
        self.unclocked.clear()

    def close(self, pace: float) -> None:
        """Estimate what a thread that has ended has used after its clock was brought up to date for the last time."""
        self.seconds += min(_TICK, pace * sum(look.count for look in self.unclocked))
        self._settle()

    def report(self, pace: float, is_last: bool, chance: random.Random) -> Iterator[Sample]:
        """Give the samples of the CPU time that has not been reported, in any order, if looks can share it."""
        if self.running:
            if not self.asleep:  # it was switched while it computed
                self.seconds, self.waking = self.seconds + self.waking, 0.0
            running = [(look, 1.0) for look in self.running]
            yield from self._share(0, self.seconds / pace / len(running), running, chance)
            self.seconds = 0.0
            self.running = []
        if self.asleep and (is_last or self.waking >= pace):
            asleep = [(look, float(number)) for look, number in self.asleep.values()]
            yield from self._share(1, self.waking / pace / sum(number for _, number in asleep), asleep, chance)
            self.waking = 0.0
            self.asleep.clear()

    def _share(
        self, kind: int, factor: float, weights: list[tuple[Look, float]], chance: random.Random
    ) -> Iterator[Sample]:
        """Give whole samples, in a random order because what is left of one look is added to the next."""
        chance.shuffle(weights)
        for look, weight in weights:
            self.owed[kind] += factor * weight
            count = int(self.owed[kind])
            self.owed[kind] -= count
            yield look, count

    def report_unseen(self, pace: float) -> int:
        """Return the number of samples without a stack."""
        count = int(self.unseen / pace)
        self.unseen -= count * pace
        return count


class CPUWeights:
    """Weighs the looks of one run of an engine. For use by one thread."""

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}
        self._has_begun = False
        self._chance = random.Random(0)  # noqa: S311 - no secret

    def weigh(self, ticks: Sequence[Sequence[Look]], pace: float) -> tuple[list[Sample], dict[int, int]]:
        """Return the samples for these looks or earlier ones, and for each thread the number of those without a stack.

        Looks without a reading of the clocks count as they are.

        Args:
            ticks: the looks of each tick since the last call, one for each thread.
            pace: seconds of CPU time for which one sample stands.
        """
        samples: list[Sample] = []
        now = 0.0
        for tick in ticks:
            for look in tick:
                now = look.moment
                if look.stack.use is not None:
                    passed = pace * look.count
                    self._account(look.stack, look.stack.use, passed).add(look, look.stack.use, passed)
                elif not look.stack.is_idle:
                    samples.append((look, look.count))
            self._has_begun = self._has_begun or bool(tick)
        unseen: dict[int, int] = {}
        for thread, account in list(self._accounts.items()):
            has_ended = now - account.seen > _ABSENCE
            if has_ended:
                account.close(pace)
                del self._accounts[thread]
            samples += account.report(pace, has_ended, self._chance)
            if has_ended or account.seconds >= MAX_UNSEEN:
                account.unseen, account.seconds = account.unseen + account.seconds, 0.0
            unseen[thread] = account.report_unseen(pace)
        samples = sorted((each for each in samples if each[1]), key=lambda each: each[0].moment)
        return samples, {thread: count for thread, count in unseen.items() if count}

    def _account(self, stack: Stack, use: Use, passed: float) -> _Account:
        """Return the account of a thread; a new thread has computed at most since the last tick, `passed` seconds."""
        account = self._accounts.get(stack.thread_id)
        if account is None or use.seconds < account.use.seconds:  # another thread has its identifier
            seconds = min(use.seconds, passed) if self._has_begun else 0.0
            account = self._accounts[stack.thread_id] = _Account(use, seconds)
        return account
