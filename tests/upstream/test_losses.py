"""Gaps, restarts and foreign messages are counted by the profiler's message counters."""

from __future__ import annotations

import pytest

from tests.upstream.pacing import message
from tornado_rbkit.frames import Buffer
from tornado_rbkit.protocol import message_counter
from tornado_rbkit.upstream import losses
from tornado_rbkit.upstream.losses import LossCounter


@pytest.mark.parametrize(
    ("counters", "missed", "restarted", "foreign"),
    [
        ([0, 1, 2], 0, False, 0),
        ([5, 6], 0, False, 0),  # where it begins, nobody knows what was before
        ([0, 3, 4, 9], 6, False, 0),
        ([0, None, 1], 0, False, 1),
        ([0, "look", 1, None, 3], 1, False, 1),  # as many foreign ones as are missed
        ([0, None, None, 3, 4], 2, False, 2),
        ([None], 0, False, 1),
        ([7, 0, 1], 0, True, 0),
        ([7, 0, 2], 1, True, 0),
        ([7, 0, 9], 8, True, 0),
        ([7, "reset", 20], 0, False, 0),
        ([7, "reset", 0], 0, True, 0),
        ([7, "reset", "reset", 0, 1], 0, True, 0),
        ([7, "reset", None, 0, 3], 2, True, 1),
    ],
)
@pytest.mark.parametrize("base", [0, 120, 250, 1000, 0x10000 - 3, 0x10000, 0x100000000 - 3], ids=hex)
@pytest.mark.parametrize("together", [True, False], ids=["together", "one by one"])
def test_losses_are_counted(
    counters: list[int | str | None], missed: int, restarted: bool, foreign: int, base: int, together: bool
) -> None:
    counted = LossCounter()
    waiting: list[Buffer] = []
    for counter in counters:
        if isinstance(counter, str) or not together:
            counted.count(waiting, wanted=True)
            waiting = []
        if counter == "reset":
            counted.reset()
        elif counter != "look":
            waiting.append(
                message(base + counter) if isinstance(counter, int) else b"a foreign message of some length"
            )
    counted.count(waiting, wanted=True)
    assert (counted.missed, counted.restarted, counted.foreign) == (missed, restarted, foreign)


@pytest.mark.parametrize("base", [256, 0x10000], ids=hex)
def test_the_counters_between_the_first_and_the_last_are_compared_and_not_read(
    base: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Buffer] = []

    def count_read(payload: Buffer) -> int | None:
        read.append(payload)
        return message_counter(payload)

    monkeypatch.setattr(losses, "message_counter", count_read)
    counter = LossCounter()
    counter.count([message(base)], wanted=True)
    read.clear()
    payloads: list[Buffer] = [message(base + number) for number in range(1, 100)]
    counter.count(payloads, wanted=True)
    assert read == [payloads[0], payloads[-1]]
