"""Following a program into its child processes: the environment of the processes that are not followed."""

from __future__ import annotations

import os

import pytest

from tornado_rbkit.profiler import follow


@pytest.mark.parametrize("paths", [[], ["/one"], ["/one", "/two"]], ids=len)
def test_an_unfollowed_process_has_the_environment_that_the_program_was_given(paths: list[str]) -> None:
    given = {"HOME": "/home/me"}
    if paths:
        given["PYTHONPATH"] = os.pathsep.join(paths)
    followed = {**given, "PYTHONPATH": os.pathsep.join([follow._STARTUP, *paths]), follow.VARIABLE: "[]"}
    assert follow.unfollowed(followed) == given
    assert follow.unfollowed(given) == given


def test_nothing_is_said_of_a_child_that_ends_before_its_server_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def end(*_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(follow, "_start", end)
    follow._start_worker(follow.Followed("family", "web", 0))
    assert not caplog.messages
    monkeypatch.setattr(follow, "_start", fail)
    follow._start_worker(follow.Followed("family", "web", 0))
    assert caplog.messages == [f"process {os.getpid()} of web has no profiler: can't start new thread"]
