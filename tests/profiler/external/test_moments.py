"""Looks have the times at which they were taken, although they are read later."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tornado_rbkit.profiler.external import moments
from tornado_rbkit.profiler.external.moments import Moments

EPOCH = 1_700_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.stepped = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return EPOCH + self.now + self.stepped


@given(st.lists(st.tuples(st.lists(st.floats(0.0001, 0.1), min_size=1, max_size=20), st.floats(0.0, 3.0))))
def test_looks_are_dated_as_soon_as_those_of_which_one_was_read_at_once(
    reads: list[tuple[list[float], float]],
) -> None:
    """Each read comes some time after its last look, however long, but not before the one before it."""
    clock = Clock()
    dated, taken, looked = Moments(), [], 100.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "real_time", clock)
        for passed, late in [([0.001], 0.0), *reads]:
            for seconds in passed:
                looked += seconds
                taken.append(EPOCH + looked)
            clock.now = max(clock.now, looked + late)
            found = dated.date(passed)
            assert found == pytest.approx(taken[-len(passed) :], abs=1e-4)


def test_a_step_of_the_system_s_clock_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(moments, "real_time", clock)
    dated = Moments()
    assert dated.date([0.001]) == [pytest.approx(EPOCH + 100)]
    clock.now, clock.stepped = 101.0, -3600.0
    assert dated.date([1.0]) == [pytest.approx(EPOCH + 101 - 3600)]


def test_without_looks_there_are_no_times() -> None:
    assert Moments().date([]) == []
