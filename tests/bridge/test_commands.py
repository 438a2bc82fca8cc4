"""The queue of commands: one in flight, the rest in order, each answered exactly once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

import pytest

from tests.conftest import Clock
from tornado_rbkit.bridge import commands
from tornado_rbkit.bridge.commands import MAX_WAITING, CommandQueue
from tornado_rbkit.protocol import CommandError
from tornado_rbkit.upstream.types import CommandResult

OK = CommandResult(b"ok", None, 0.01)


def failed(reason: str) -> CommandResult:
    error = CommandError(reason, "as the profiler's end has it")
    return CommandResult(error.to_reply(), error, 0.01)


class Desk:
    """A queue whose requests and results are recorded."""

    def __init__(self, timeouts: dict[str, float] | None = None) -> None:
        self.sent: list[tuple[str, float]] = []
        self.answers: list[tuple[str, CommandResult]] = []
        self.settled: list[tuple[str, CommandResult]] = []
        self.finish: Callable[[CommandResult], None] = lambda result: pytest.fail("nothing was sent")
        self.queue = CommandQueue(
            self.request, timeouts or {}, lambda name, result: self.settled.append((name, result))
        )

    def request(self, name: str, timeout: float, on_result: Callable[[CommandResult], None]) -> None:
        self.sent.append((name, timeout))
        self.finish = on_result

    def submit(self, name: str, owner: object = None, *, first: bool = False, expires: float = math.inf) -> None:
        self.queue.submit(
            name, lambda result: self.answers.append((name, result)), owner, first=first, expires=expires
        )

    @property
    def sent_names(self) -> list[str]:
        return [name for name, _ in self.sent]

    @property
    def results(self) -> list[tuple[str, str]]:
        """The results: each command with its reason, or ok."""
        return [(name, result.error.reason if result.error else "ok") for name, result in self.answers]


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.queue.resume()
    return desk


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(commands, "time", clock)
    return clock


def test_a_command_that_the_profiler_does_not_know_is_refused_in_its_turn() -> None:
    desk = Desk()
    known = {"known"}
    desk.queue = CommandQueue(
        desk.request, {}, lambda name, result: known.add("new"), lambda name: None if name in known else "who?"
    )
    desk.queue.resume()
    for name in ("known", *["unknown"] * 200, "new", "unknown"):
        desk.submit(name)
    assert desk.results == []
    desk.finish(OK)
    assert desk.sent_names == ["known", "new"]
    assert desk.results == [("known", "ok"), *[("unknown", "unknown-command")] * 200]
    desk.finish(OK)
    assert desk.results[-2:] == [("new", "ok"), ("unknown", "unknown-command")]
    assert desk.answers[-1][1].reply == b"error:unknown-command unknown: who?"


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


@pytest.mark.parametrize("waits_for", ["the command before it", "the connection"])
def test_a_command_that_expires_while_it_waits_is_refused_in_its_turn_and_never_sent(
    clock: Clock, desk: Desk, waits_for: str
) -> None:
    if waits_for == "the connection":
        desk.queue.pause()
    desk.submit("first")
    desk.submit("late", expires=clock.now + 3)
    desk.submit("in time", expires=clock.now + 4)
    desk.submit("patient")
    clock.now += 3.5
    assert desk.results == []
    if waits_for == "the connection":
        desk.queue.resume()
    desk.finish(OK)
    assert desk.results == [("first", "ok"), ("late", "timeout")]
    text = b"error:timeout late: not sent before its deadline, because other commands were waiting"
    assert desk.answers[-1][1].reply == text
    desk.finish(OK)
    desk.finish(OK)
    assert desk.sent_names == ["first", "in time", "patient"]
    assert len(desk.queue) == 0


def test_a_command_that_has_expired_already_is_not_sent_either(clock: Clock, desk: Desk) -> None:
    desk.submit("late", expires=clock.now - 0.001)
    assert desk.results == [("late", "timeout")]
    assert desk.sent_names == []


def test_the_answer_is_the_outcome_of_that_command(desk: Desk) -> None:
    results = [CommandResult(reply, None, 0.0) for reply in (b"first", b"second")]
    desk.submit("a")
    desk.submit("b")
    for result in results:
        desk.finish(result)
    assert [result for _, result in desk.answers] == results


def test_settled_is_told_before_the_sender(desk: Desk) -> None:
    order: list[str] = []
    desk.queue._record = lambda name, result: order.append(f"settled {name}")
    desk.queue.submit("a", lambda result: order.append("answer"), None)
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


def test_first_is_sent_before_waiting_commands_but_after_the_one_in_flight(desk: Desk) -> None:
    for name in "abc":
        desk.submit(name)
    desk.submit("urgent", first=True)
    for _ in range(4):
        desk.finish(OK)
    assert desk.sent_names == ["a", "urgent", "b", "c"]


def test_an_answer_that_submits_the_next_command_finds_its_place(desk: Desk) -> None:
    desk.queue.submit("a", lambda result: desk.submit("after a"), None)
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
    desk.queue.resume()
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
    desk.queue.pause()
    desk.submit("after hold")
    assert desk.sent_names == []
    desk.queue.resume()
    desk.finish(OK)
    assert desk.sent_names == ["before hold", "after hold"]


def test_a_lost_profiler_fails_waiting_and_new_commands_with_the_text(desk: Desk) -> None:
    for name in ("in flight", "waits"):
        desk.submit(name)
    desk.queue.fail_all("the rbkit server is not connected")
    desk.submit("comes")
    assert desk.results == [("waits", "unavailable"), ("comes", "unavailable")]
    for name, result in desk.answers:
        assert result.error is not None
        assert result.error.text == f"{name}: the rbkit server is not connected"


def test_what_is_in_flight_when_the_profiler_goes_is_answered_once_by_its_outcome(desk: Desk) -> None:
    desk.submit("in flight")
    desk.queue.fail_all("away")
    assert desk.results == []
    desk.finish(failed("unavailable"))
    assert desk.results == [("in flight", "unavailable")]
    desk.queue.resume()
    assert desk.sent_names == ["in flight"], "it is never repeated"


def test_first_is_kept_while_the_profiler_is_away(desk: Desk) -> None:
    desk.queue.fail_all("away")
    desk.submit("urgent", first=True)
    assert desk.results == []
    assert desk.sent_names == []
    desk.queue.resume()
    assert desk.sent_names == ["urgent"]


def test_pause_after_fail_all_keeps_new_commands(desk: Desk) -> None:
    desk.queue.fail_all("away")
    desk.queue.pause()
    desk.submit("a")
    assert desk.results == []
    desk.queue.resume()
    assert desk.sent_names == ["a"]


def test_pause_keeps_commands_behind_the_one_in_flight(desk: Desk) -> None:
    desk.submit("a")
    desk.submit("b")
    desk.queue.pause()
    desk.finish(OK)
    assert desk.sent_names == ["a"]
    desk.queue.resume()
    assert desk.sent_names == ["a", "b"]


def test_open_twice_sends_nothing_twice(desk: Desk) -> None:
    desk.submit("a")
    desk.submit("b")
    desk.queue.resume()
    assert desk.sent_names == ["a"]


# Patience


def test_after_a_timeout_waiting_commands_expire_by_the_time_they_were_submitted(desk: Desk, clock: Clock) -> None:
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


def test_the_text_of_a_timeout_names_the_configured_time(desk: Desk, clock: Clock) -> None:
    desk.submit("in flight")
    desk.submit("expired")
    clock.now += 1.0
    desk.submit("shortened")
    clock.now += 4.0
    desk.finish(failed("timeout"))
    clock.now += 1.0
    desk.finish(failed("timeout"))
    assert [name for name, _ in desk.results] == ["in flight", "expired", "shortened"]
    expired, shortened = (result.error.text for _, result in desk.answers[1:] if result.error is not None)
    assert expired.startswith("expired: not sent within 5 s, ")
    assert shortened.startswith("shortened: no reply within 5 s; ")


def test_a_command_that_waits_through_several_timeouts_keeps_its_own(desk: Desk, clock: Clock) -> None:
    desk.submit("first")
    clock.now += 4.0
    desk.submit("second")
    desk.submit("objectspace_snapshot")
    clock.now += 1.0
    desk.finish(failed("timeout"))
    clock.now += 4.0
    desk.finish(failed("timeout"))
    assert desk.sent == [("first", 5.0), ("second", 4.0), ("objectspace_snapshot", 295.0)]


@pytest.mark.parametrize("result", [OK, failed("unavailable")], ids=["ok", "unavailable"])
def test_nobody_is_given_up_at_another_outcome_than_a_timeout(desk: Desk, clock: Clock, result: CommandResult) -> None:
    desk.submit("objectspace_snapshot")
    desk.submit("patient")
    clock.now += 200.0
    desk.finish(result)
    assert [name for name, _ in desk.results] == ["objectspace_snapshot"]
    assert desk.sent == [("objectspace_snapshot", 300.0), ("patient", 5.0)], "its time-out begins when it is sent"


def test_settled_is_told_only_of_commands_that_were_sent(desk: Desk, clock: Clock) -> None:
    desk.submit("in flight")
    desk.submit("given up")
    clock.now += 5.0
    desk.finish(failed("timeout"))
    desk.queue.fail_all("away")
    desk.submit("refused")
    assert [name for name, _ in desk.answers] == ["in flight", "given up", "refused"]
    assert [name for name, _ in desk.settled] == ["in flight"]


# All together


@pytest.mark.parametrize("seed", range(5))
def test_in_any_order_of_events_each_command_is_answered_once_and_sent_at_most_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random.Random(seed)
    clock = Clock()
    monkeypatch.setattr(commands, "time", clock)
    sent: list[str] = []
    in_flight: dict[str, Callable[[CommandResult], None]] = {}
    answered: dict[str, int] = {}
    forgotten: set[str] = set()
    owners = {name: object() for name in "xyz"}

    def send(name: str, timeout: float, on_result: Callable[[CommandResult], None]) -> None:
        assert not in_flight, f"{name} was sent while {in_flight} is in flight"
        sent.append(name)
        in_flight[name] = on_result

    def count(name: str, result: CommandResult) -> None:
        answered[name] = answered.get(name, 0) + 1

    queue = CommandQueue(send, {}, lambda name, result: None)

    def submit() -> None:
        owner = source.choice("xyz")
        name = f"{owner}{len(submitted)}"
        submitted.append(name)
        queue.submit(name, partial(count, name), owners[owner], first=source.random() < 0.1)

    def result() -> None:
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
    actions: list[Callable[[], None]] = [submit] * 8 + [result] * 6 + [let_time_pass]
    rare: list[Callable[[], None]] = [forget, queue.pause, partial(queue.fail_all, "away"), queue.resume, queue.resume]
    queue.resume()
    for _ in range(3000):
        source.choice(rare if source.random() < 0.03 else actions)()
    queue.resume()
    while in_flight:
        result()
    assert len(queue) == 0
    assert len(sent) == len(set(sent)), "a command was sent twice"
    assert {name: answered.get(name, 0) for name in submitted} == {
        name: 0 if name in forgotten else 1 for name in submitted
    }
