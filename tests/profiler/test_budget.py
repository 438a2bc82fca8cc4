"""Comparisons keep within their share of the CPU time."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Generator
from dataclasses import dataclass

import pytest

from tornado_rbkit.profiler import budget, real_time
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.budget import IDLE_SHARE, SHARE, Budget
from tornado_rbkit.profiler.memory import MemoryProfile


@dataclass
class Clocks:
    """The clocks that a budget reads, and the number of memory blocks."""

    wall: float = 0.0
    cpu: float = 0.0
    own: float = 0.0
    blocks: int = 1000

    def run(self, wall: float, host: float, own: float = 0.0) -> None:
        self.wall += wall
        self.cpu += host + own
        self.own += own


def note(limits: Budget, cost: float) -> None:
    """Note the first listing, and a comparison that spends the first credit."""
    for _ in range(2):
        limits.begin()
        limits.note(cost)
    limits._credit = 0.0


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(real_time, "monotonic", lambda: clocks.wall)
    monkeypatch.setattr(real_time, "process_time", lambda: clocks.cpu)
    monkeypatch.setattr(real_time, "thread_time", lambda: clocks.own)
    monkeypatch.setattr(sys, "getallocatedblocks", lambda: clocks.blocks)
    return clocks


def spent_of(clocks: Clocks, cost: float, *, host: float, seconds: float) -> float:
    """Return the CPU time of comparisons beside a host that uses a share `host` of a processor."""
    limits, spent = Budget(), 0.0
    note(limits, cost)
    end = clocks.wall + seconds
    while clocks.wall < end:
        clocks.run(0.05, 0.05 * host)
        limits.accrue()
        if limits.allows():
            clocks.run(cost, cost * host, cost)
            assert limits.charge() == pytest.approx(cost)
            spent += cost
    return spent


@pytest.mark.parametrize("cost", [0.001, 0.02, 0.3, 5.0])
@pytest.mark.parametrize("host", [1.0, 0.5])
def test_comparisons_take_a_share_of_what_a_busy_host_takes_from_the_first_on(
    clocks: Clocks, cost: float, host: float
) -> None:
    seconds = 1.5 * cost / SHARE / host + 1  # one comparison of the longest kind fits in
    spent = spent_of(clocks, cost, host=host, seconds=seconds)
    assert cost <= spent <= SHARE * clocks.cpu + 0.01


def test_comparisons_of_an_idle_host_take_a_share_of_the_time(clocks: Clocks) -> None:
    spent = spent_of(clocks, 0.1, host=0.0, seconds=100.0)
    assert 0.8 * IDLE_SHARE * 100 <= spent <= IDLE_SHARE * 100 + 0.01


def test_a_comparison_that_cost_more_than_expected_is_paid_for_later(clocks: Clocks) -> None:
    limits = Budget()
    note(limits, 0.01)
    clocks.run(1.0, 1.0)
    limits.accrue()
    assert limits.allows()
    clocks.run(2.0, 0.0, 2.0)
    limits.charge()
    clocks.run(1.9 / SHARE, 1.9 / SHARE)
    limits.accrue()
    assert not limits.allows()
    clocks.run(0.2 / SHARE, 0.2 / SHARE)
    limits.accrue()
    assert limits.allows()


def test_a_grown_heap_is_expected_to_cost_more(clocks: Clocks) -> None:
    limits = Budget()
    note(limits, 0.1)
    clocks.run(0.15 / SHARE, 0.15 / SHARE)
    clocks.blocks *= 2
    limits.accrue()
    assert not limits.allows()
    clocks.blocks //= 2
    assert limits.allows()


def test_unused_time_does_not_accrue_without_end(clocks: Clocks) -> None:
    limits = Budget()
    note(limits, 0.1)
    clocks.run(1000.0, 1000.0)
    limits.accrue()
    assert limits.allows()
    clocks.run(0.1, 0.0, 0.1)
    limits.charge()
    assert not limits.allows()


def test_a_snapshot_on_the_same_thread_hardly_delays_the_next_comparison(clocks: Clocks) -> None:
    limits = Budget()
    note(limits, 0.1)
    clocks.run(60.0, 0.0, 60.0)
    limits.accrue()
    clocks.run(0.12 / SHARE, 0.12 / SHARE)
    limits.accrue()
    assert limits.allows()


@pytest.mark.parametrize("publishing", [0.001, 0.03, 0.9])
def test_publishing_cpu_samples_of_an_idle_host_does_not_end_the_comparisons(
    clocks: Clocks, publishing: float
) -> None:
    limits = Budget()
    note(limits, 0.1)
    for _ in range(210):
        clocks.run(0.1 / IDLE_SHARE / 100, 0.0, 0.1 / IDLE_SHARE / 100 * publishing)
        limits.accrue()
    assert limits.allows()


@pytest.mark.parametrize("look", [0.0, 0.002, 0.005, 0.03])
def test_looks_that_cost_more_than_what_accrues_meanwhile_do_not_end_the_comparisons(
    clocks: Clocks, monkeypatch: pytest.MonkeyPatch, look: float
) -> None:
    """As where the processor's caches are cold after each rest."""
    profile = MemoryProfile(EventBatcher(), list)
    begin = profile._begin

    def begin_at_a_cost(**options: bool) -> Generator[None, None, None]:
        clocks.run(0.06, 0.0, 0.06)
        return begin(**options)

    def count_at_a_cost() -> int:
        clocks.run(look, 0.0, look)
        return clocks.blocks

    monkeypatch.setattr(profile, "_begin", begin_at_a_cost)
    monkeypatch.setattr(budget, "allocated_blocks", count_at_a_cost)
    profile.start()
    try:
        while profile.status()["ticks"] < 5:
            clocks.run(profile.work() or 0.0, 0.0)
            assert clocks.wall < 5 * (0.06 + look) / (IDLE_SHARE / 2) + 10
        assert clocks.wall > 3 * 0.06 / IDLE_SHARE
    finally:
        profile.stop()


def test_a_small_idle_program_is_compared_after_the_first_listing_without_delay(clocks: Clocks) -> None:
    limits = Budget()
    limits.begin()
    clocks.run(0.02, 0.0, 0.02)
    limits.note(limits.charge())
    clocks.run(1.0, 0.0)
    limits.accrue()
    assert limits.allows()


def test_objects_that_are_created_at_once_are_not_compared_before_that_is_paid_for(clocks: Clocks) -> None:
    limits = Budget()
    limits.begin()
    clocks.run(0.02, 0.0, 0.02)
    limits.note(limits.charge())
    clocks.blocks *= 10  # the new objects cost as much each as the first listing, 0.18 s in total
    clocks.run(1.0, 1.0)
    limits.accrue()
    assert not limits.allows()
    clocks.run(0.19 / SHARE, 0.19 / SHARE)
    limits.accrue()
    assert limits.allows()


def test_objects_that_are_created_while_the_first_listing_is_compared_are_paid_for_too(clocks: Clocks) -> None:
    limits = Budget()
    limits.begin()
    clocks.blocks *= 10
    clocks.run(0.02, 0.0, 0.02)
    limits.note(limits.charge())
    clocks.run(1.0, 1.0)
    limits.accrue()
    assert not limits.allows()


def test_a_comparison_is_overdrawn_until_its_cost_has_accrued(clocks: Clocks) -> None:
    limits = Budget()
    note(limits, 0.1)
    assert not limits.is_overdrawn()
    clocks.run(0.1, 0.0, 0.1)
    limits.charge()
    assert limits.is_overdrawn()
    clocks.run(0.11 / SHARE, 0.11 / SHARE)
    limits.accrue()
    assert not limits.is_overdrawn()


def test_comparisons_go_on_when_blocks_can_no_longer_be_counted(
    clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside sub-interpreters; see `frames.allocated_blocks`."""
    limits = Budget()
    counts = itertools.cycle([1000, None, None])
    monkeypatch.setattr("tornado_rbkit.profiler.budget.allocated_blocks", lambda: next(counts))
    for _ in range(10):
        note(limits, 0.1)
        clocks.run(10.0, 10.0)
        limits.accrue()
        assert limits.allows()
