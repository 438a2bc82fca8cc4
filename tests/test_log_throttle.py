"""Repeated events are logged the 1st, 10th and 100th time, and again after a minute without one."""

from __future__ import annotations

import logging

import pytest

from tornado_rbkit.log_throttle import LogThrottle, LogThrottleFilter


def test_each_power_of_ten_is_to_be_logged() -> None:
    events = LogThrottle()
    assert [count for count in (events.add("lost") for _ in range(1000)) if count] == [1, 10, 100, 1000]


def test_a_warning_says_how_often_it_was_repeated(caplog: pytest.LogCaptureFixture) -> None:
    events = LogThrottle()
    for _ in range(10):
        events.warn(logging.getLogger("tests"), "lost", "lost %s at %d", "it", 5)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["lost it at 5", "lost it at 5 (10 times in short succession)"]


def test_what_comes_after_a_quiet_minute_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    events = LogThrottle()
    assert [events.add("lost") for _ in range(3)] == [1, 0, 0]
    now = 61.0
    assert events.add("lost") == 1


def test_strangers_cannot_fill_the_memory() -> None:
    events = LogThrottle()
    for number in range(5000):
        assert events.add(number) == 1
    assert len(events._counts) <= 1000


def test_the_filter_counts_warnings_by_what_they_are_about_and_lets_the_rest_pass() -> None:
    chosen = LogThrottleFilter()

    def passes(level: int, *args: object) -> str | None:
        record = logging.LogRecord("tornado.access", level, "", 0, "%d %s", args, None)
        return record.getMessage() if chosen.filter(record) else None

    said = [passes(logging.WARNING, 403, f"/{number}") for number in range(10)]
    assert said[0] == "403 /0"
    assert said[1:9] == [None] * 8
    assert said[9] == "403 /9 (10 times in short succession)"
    assert passes(logging.WARNING, 404, "/") == "404 /"
    assert [passes(logging.INFO, 200, "/") for _ in range(3)] == ["200 /"] * 3


def test_the_filter_takes_arguments_by_name() -> None:
    chosen = LogThrottleFilter()

    def passes(**arguments: str) -> str | None:
        record = logging.LogRecord("tests", logging.WARNING, "", 0, "%(what)s", (arguments,), None)
        return record.getMessage() if chosen.filter(record) else None

    assert [passes(what="lost") for _ in range(10)] == ["lost", *[None] * 8, "lost (10 times in short succession)"]
