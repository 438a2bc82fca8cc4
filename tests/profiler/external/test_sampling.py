"""When the stack reader looks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import cast

import pytest

from tests.conftest import Clock
from tornado_rbkit.profiler.external.stack_reader import sampling
from tornado_rbkit.profiler.external.stack_reader.clocks import Clocks
from tornado_rbkit.profiler.external.stack_reader.memory import ReadError
from tornado_rbkit.profiler.external.stack_reader.output import Output
from tornado_rbkit.profiler.external.stack_reader.reader import StackReader

LOOKS = 5000
LOOK_SECONDS = 0.00005


class SleepingClock(Clock):
    """A clock on which nothing takes time except looks and sleep."""

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


class Watched:
    """Notes when it looks, and how long it says that this is after the look before."""

    def __init__(self, clock: SleepingClock) -> None:
        self.clock = clock
        self.moments: list[float] = []
        self.told: list[float] = []
        self.output = Output("")

    def look(self, microseconds: int, clocks: object) -> None:
        if len(self.moments) == LOOKS:
            raise ReadError
        self.moments.append(self.clock.now)
        self.told.append(microseconds / 1e6)
        self.clock.now += LOOK_SECONDS

    def check(self) -> None:
        raise ReadError


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    clock = SleepingClock()
    monkeypatch.setattr(sampling, "time", clock)
    watched = Watched(clock)
    monkeypatch.setattr(sampling, "write", lambda output, data: None)
    before = signal.getsignal(signal.SIGTERM)
    with open(os.devnull, "wb") as output, pytest.raises(ReadError):
        sampling.sample(cast(StackReader, watched), 0.001, Clocks("/proc/self/task"), output.fileno())
    yield watched
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("period", [0.001, 0.002, 0.003, 0.000999, 0.0005])
def test_looks_fall_on_every_part_of_what_a_program_repeats(watched: Watched, period: float) -> None:
    parts = [0] * 10
    for moment in watched.moments:
        parts[int(moment % period / period * 10)] += 1
    assert min(parts) > 0.07 * LOOKS
    assert max(parts) < 0.13 * LOOKS


def test_looks_are_as_many_as_intervals(watched: Watched) -> None:
    assert watched.moments[-1] - watched.moments[0] == pytest.approx(0.001 * LOOKS, rel=0.01)
    assert sum(watched.told) == pytest.approx(0.001 * LOOKS, rel=0.01)
