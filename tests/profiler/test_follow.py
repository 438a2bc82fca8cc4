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
