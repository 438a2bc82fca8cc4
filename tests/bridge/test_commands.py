"""The queue of commands: one in flight, the rest in order, each answered exactly once."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from tornado_rbkit.bridge import commands
from tornado_rbkit.bridge.commands import MAX_WAITING, CommandQueue
from tornado_rbkit.protocol import CommandError
from tornado_rbkit.upstream.types import Outcome

OK = Outcome(b"ok", None, 0.01)


def failed(reason: str) -> Outcome:
    error = CommandError(reason, "as the profiler's end has it")
    return Outcome(error.to_reply(), error, 0.01)


class Desk:
    """A queue with everything that it says written down."""

    def __init__(self, timeouts: dict[str, float] | None = None) -> None:
        self.sent: list[tuple[str, float]] = []
        self.answers: list[tuple[str, Outcome]] = []
        self.settled: list[tuple[str, Outcome]] = []
        self.finish: Callable[[Outcome], None] = lambda outcome: pytest.fail("nothing was sent")
        self.queue = CommandQueue(
            self.request, timeouts or {}, lambda name, outcome: self.settled.append((name, outcome))
        )

    def request(self, name: str, timeout: float, on_result: Callable[[Outcome], None]) -> None:
        self.sent.append((name, timeout))
        self.finish = on_result

    def submit(self, name: str, owner: object = None, *, first: bool = False) -> None:
        self.queue.submit(name, lambda outcome: self.answers.append((name, outcome)), owner, first=first)

    @property
    def sent_names(self) -> list[str]:
        return [name for name, _ in self.sent]

    @property
    def results(self) -> list[tuple[str, str]]:
        """What was answered: the command and the reason, or ok."""
        return [(name, outcome.error.reason if outcome.error else "ok") for name, outcome in self.answers]


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.queue.open()
    return desk


class Clock:
    """The time, which passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(commands, "time", clock)
    return clock


def test_one_command_is_in_flight_and_the_rest_follow_in_order(desk: Desk) -> None:
    for name in "abc":
        desk.submit(name)
    assert desk.sent_names == ["a"]
    assert len(desk.queue) == 3
    desk.finish(OK)
    assert desk.sent_names == ["a", "b"]
    desk.finish(OK)
    desk.finish(OK)
    assert desk.sent_names == ["a", "b", "c"]
    assert desk.results == [("a", "ok"), ("b", "ok"), ("c", "ok")]
    assert len(desk.queue) == 0


def test_the_answer_is_the_outcome_of_that_command(desk: Desk) -> None:
    outcomes = [Outcome(reply, None, 0.0) for reply in (b"first", b"second")]
    desk.submit("a")
    desk.submit("b")
    for outcome in outcomes:
        desk.finish(outcome)
    assert [outcome for _, outcome in desk.answers] == outcomes


def test_settled_is_told_before_the_sender(desk: Desk) -> None:
    order: list[str] = []
    desk.queue._record = lambda name, outcome: order.append(f"settled {name}")
    desk.queue.submit("a", lambda outcome: order.append("answer"), None)
    desk.finish(OK)
    assert order == ["settled a", "answer"]


@pytest.mark.parametrize("reason", ["unavailable", "timeout"])
def test_a_command_that_failed_is_answered_with_it_and_not_sent_again(desk: Desk, reason: str) -> None:
    desk.submit("a")
    desk.submit("b")
    desk.finish(failed(reason))
    desk.finish(OK)
    assert desk.sent_names == ["a", "b"]
    assert desk.results == [("a", reason), ("b", "ok")]


def test_first_goes_before_all_that_wait_but_not_before_what_is_in_flight(desk: Desk) -> None:
    for name in "abc":
        desk.submit(name)
    desk.submit("urgent", first=True)
    for _ in range(4):
        desk.finish(OK)
    assert desk.sent_names == ["a", "urgent", "b", "c"]


def test_an_answer_that_submits_the_next_command_finds_its_place(desk: Desk) -> None:
    desk.queue.submit("a", lambda outcome: desk.submit("after a"), None)
    desk.submit("b")
    desk.finish(OK)
    desk.finish(OK)
    assert desk.sent_names == ["a", "b", "after a"]


@pytest.mark.parametrize(
    ("timeouts", "name", "expected"),
    [
        ({}, "handshake", 5.0),
        ({}, "objectspace_snapshot", 300.0),
        ({"handshake": 1.5}, "handshake", 1.5),
        ({"objectspace_snapshot": 9.0}, "objectspace_snapshot", 9.0),
        ({"handshake": 1.5}, "objectspace_snapshot", 300.0),
    ],
)
def test_each_command_is_sent_with_its_timeout(timeouts: dict[str, float], name: str, expected: float) -> None:
    desk = Desk(timeouts)
    desk.queue.open()
    desk.submit(name)
    assert desk.sent == [(name, expected)]


# Bounds


def test_one_more_than_256_waiting_is_busy_and_says_so(desk: Desk) -> None:
    assert MAX_WAITING == 256
    desk.submit("in flight")
    for number in range(256):
        desk.submit(f"waits {number}")
    assert desk.results == []
    desk.submit("one more")
    assert desk.results == [("one more", "busy")]
    error = desk.answers[0][1].error
    assert error is not None
    assert "256" in error.text
    assert desk.answers[0][1].reply == error.to_reply()
    desk.finish(OK)
    desk.submit("there is room again")
    assert desk.results == [("one more", "busy"), ("in flight", "ok")]


def test_the_bound_does_not_hold_for_first(desk: Desk) -> None:
    for number in range(1 + 256):
        desk.submit(str(number))
    desk.submit("urgent", first=True)
    assert desk.results == []
    desk.finish(OK)
    assert desk.sent_names == ["0", "urgent"]


# Owners that leave


def test_what_waits_for_an_owner_that_left_is_neither_sent_nor_answered(desk: Desk) -> None:
    one, other = object(), object()
    desk.submit("in flight", other)
    for number in range(3):
        desk.submit(f"one {number}", one)
        desk.submit(f"other {number}", other)
    desk.queue.forget(one)
    assert len(desk.queue) == 4
    for _ in range(4):
        desk.finish(OK)
    assert desk.sent_names == ["in flight", "other 0", "other 1", "other 2"]
    assert [name for name, _ in desk.results] == desk.sent_names


def test_what_is_in_flight_when_its_owner_leaves_still_holds_the_place(desk: Desk) -> None:
    owner = object()
    desk.submit("in flight", owner)
    desk.submit("next")
    desk.queue.forget(owner)
    assert desk.sent_names == ["in flight"]
    desk.finish(OK)
    assert desk.sent_names == ["in flight", "next"]
    assert [name for name, _ in desk.settled] == ["in flight"]


# A profiler that comes and goes


def test_commands_wait_until_the_profiler_is_there() -> None:
    desk = Desk()
    desk.submit("before hold")
    desk.queue.hold()
    desk.submit("after hold")
    assert desk.sent_names == []
    desk.queue.open()
    desk.finish(OK)
    assert desk.sent_names == ["before hold", "after hold"]


def test_a_profiler_that_went_refuses_what_waits_and_what_comes_with_the_text(desk: Desk) -> None:
    for name in ("in flight", "waits"):
        desk.submit(name)
    desk.queue.close("the rbkit server is not connected")
    desk.submit("comes")
    assert desk.results == [("waits", "unavailable"), ("comes", "unavailable")]
    for name, outcome in desk.answers:
        assert outcome.error is not None
        assert outcome.error.text == f"{name}: the rbkit server is not connected"


def test_what_is_in_flight_when_the_profiler_goes_is_answered_once_by_its_outcome(desk: Desk) -> None:
    desk.submit("in flight")
    desk.queue.close("away")
    assert desk.results == []
    desk.finish(failed("unavailable"))
    assert desk.results == [("in flight", "unavailable")]
    desk.queue.open()
    assert desk.sent_names == ["in flight"], "it is never repeated"


def test_first_is_kept_while_the_profiler_is_away(desk: Desk) -> None:
    desk.queue.close("away")
    desk.submit("urgent", first=True)
    assert desk.results == []
    assert desk.sent_names == []
    desk.queue.open()
    assert desk.sent_names == ["urgent"]


def test_hold_after_close_keeps_what_comes_again(desk: Desk) -> None:
    desk.queue.close("away")
    desk.queue.hold()
    desk.submit("a")
    assert desk.results == []
    desk.queue.open()
    assert desk.sent_names == ["a"]


def test_hold_keeps_back_what_follows_the_one_in_flight(desk: Desk) -> None:
    desk.submit("a")
    desk.submit("b")
    desk.queue.hold()
    desk.finish(OK)
    assert desk.sent_names == ["a"]
    desk.queue.open()
    assert desk.sent_names == ["a", "b"]


def test_open_twice_sends_nothing_twice(desk: Desk) -> None:
    desk.submit("a")
    desk.submit("b")
    desk.queue.open()
    assert desk.sent_names == ["a"]


# Patience


def test_at_a_timeout_the_clocks_of_those_behind_count_from_when_they_were_asked(desk: Desk, clock: Clock) -> None:
    for name in ("in flight", "patient", "objectspace_snapshot"):
        desk.submit(name)
    clock.now += 3.0
    desk.submit("newcomer")
    clock.now += 2.0
    desk.finish(failed("timeout"))
    assert desk.results == [("in flight", "timeout"), ("patient", "timeout")]
    text = desk.answers[1][1].error
    assert text is not None
    assert "patient" in text.text
    assert "not sent" in text.text
    assert desk.answers[1][1].seconds == 5.0
    desk.finish(OK)
    desk.finish(OK)
    assert desk.sent == [("in flight", 5.0), ("objectspace_snapshot", 295.0), ("newcomer", 3.0)]


@pytest.mark.parametrize("outcome", [OK, failed("unavailable")], ids=["ok", "unavailable"])
def test_nobody_is_given_up_at_another_outcome_than_a_timeout(desk: Desk, clock: Clock, outcome: Outcome) -> None:
    desk.submit("objectspace_snapshot")
    desk.submit("patient")
    clock.now += 200.0
    desk.finish(outcome)
    assert [name for name, _ in desk.results] == ["objectspace_snapshot"]
    assert desk.sent == [("objectspace_snapshot", 300.0), ("patient", 5.0)], "its time-out begins when it is sent"


def test_settled_is_told_only_of_commands_that_were_sent(desk: Desk, clock: Clock) -> None:
    desk.submit("in flight")
    desk.submit("given up")
    clock.now += 5.0
    desk.finish(failed("timeout"))
    desk.queue.close("away")
    desk.submit("refused")
    assert [name for name, _ in desk.answers] == ["in flight", "given up", "refused"]
    assert [name for name, _ in desk.settled] == ["in flight"]


# All together


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_each_command_is_answered_once_and_sent_once_at_the_most(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random.Random(seed)
    clock = Clock()
    monkeypatch.setattr(commands, "time", clock)
    sent: list[str] = []
    in_flight: dict[str, Callable[[Outcome], None]] = {}
    answered: dict[str, int] = {}
    forgotten: set[str] = set()
    owners = {name: object() for name in "xyz"}

    def send(name: str, timeout: float, on_result: Callable[[Outcome], None]) -> None:
        assert not in_flight, f"{name} was sent while {in_flight} is in flight"
        sent.append(name)
        in_flight[name] = on_result

    def count(name: str, outcome: Outcome) -> None:
        answered[name] = answered.get(name, 0) + 1

    queue = CommandQueue(send, {}, lambda name, outcome: None)

    def submit() -> None:
        owner = source.choice("xyz")
        name = f"{owner}{len(submitted)}"
        submitted.append(name)
        queue.submit(name, partial(count, name), owners[owner], first=source.random() < 0.1)

    def outcome() -> None:
        if in_flight:
            _, on_result = in_flight.popitem()
            on_result(source.choice([OK, failed("timeout"), failed("unavailable")]))

    def forget() -> None:
        owner = source.choice("xyz")
        forgotten.update(
            name for name in submitted if name[0] == owner and name not in answered and name not in in_flight
        )
        queue.forget(owners[owner])

    def let_time_pass() -> None:
        clock.now += source.random() * 4

    submitted: list[str] = []
    actions: list[Callable[[], None]] = [submit] * 8 + [outcome] * 6 + [let_time_pass]
    rare: list[Callable[[], None]] = [forget, queue.hold, partial(queue.close, "away"), queue.open, queue.open]
    queue.open()
    for _ in range(3000):
        source.choice(rare if source.random() < 0.03 else actions)()
    queue.open()
    while in_flight:
        outcome()
    assert len(queue) == 0
    assert len(sent) == len(set(sent)), "a command was sent twice"
    assert {name: answered.get(name, 0) for name in submitted} == {
        name: 0 if name in forgotten else 1 for name in submitted
    }
