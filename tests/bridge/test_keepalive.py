"""The decisions about pings and pongs, as a table."""

from __future__ import annotations

import pytest

from tornado_rbkit.bridge.keepalive import Keepalive
from tornado_rbkit.frames import JOIN_LIMIT

INTERVAL, TIMEOUT, STALL_TIMEOUT = 15.0, 10.0, 60.0


@pytest.fixture
def keepalive() -> Keepalive:
    return Keepalive(interval=INTERVAL, timeout=TIMEOUT, stall_timeout=STALL_TIMEOUT)


@pytest.mark.parametrize(
    ("answered", "sent", "patience"),
    [
        ([], 0, TIMEOUT),
        ([], JOIN_LIMIT, TIMEOUT),
        ([], JOIN_LIMIT + 1, STALL_TIMEOUT),
        ([JOIN_LIMIT + 1], JOIN_LIMIT + 1, TIMEOUT),  # read already: the ping behind it was answered
        ([1_000_000], 1_000_000 + JOIN_LIMIT, TIMEOUT),
        ([1_000_000], 1_000_001 + JOIN_LIMIT, STALL_TIMEOUT),
        ([1_000_000, 2_000_000], 2_000_000, TIMEOUT),
    ],
)
def test_a_pong_may_take_longer_while_data_is_ahead_of_its_ping(
    keepalive: Keepalive, answered: list[int], sent: int, patience: float
) -> None:
    for bytes_sent in answered:
        keepalive.on_ping(100.0, bytes_sent)
        keepalive.on_pong(101.0)
    assert keepalive.on_ping(200.0, sent) == patience


@pytest.mark.parametrize(("took", "rest"), [(0.0, 15.0), (2.0, 13.0), (15.0, 0.0), (40.0, 0.0)])
def test_pings_are_sent_at_the_interval_however_late_the_pong(keepalive: Keepalive, took: float, rest: float) -> None:
    keepalive.on_ping(100.0, 0)
    assert keepalive.on_pong(100.0 + took) == rest


def test_a_pong_that_nobody_awaits_changes_nothing(keepalive: Keepalive) -> None:
    assert keepalive.on_pong(100.0) is None
    keepalive.on_ping(100.0, 0)
    assert keepalive.on_pong(101.0) is not None
    assert keepalive.on_pong(102.0) is None
    keepalive.on_ping(115.0, 1_000_000)
    assert keepalive.on_timeout(blocked=True) is False
    assert keepalive.on_pong(126.0) is None
    assert keepalive.on_ping(130.0, 1_000_000) == STALL_TIMEOUT, "the late pong does not tell what was read"


@pytest.mark.parametrize(("blocked", "dead"), [(False, True), (True, False)])
def test_a_client_without_a_pong_is_dead_unless_data_is_blocked(
    keepalive: Keepalive, blocked: bool, dead: bool
) -> None:
    keepalive.on_ping(100.0, 0)
    assert keepalive.on_timeout(blocked=blocked) is dead
