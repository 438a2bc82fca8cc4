"""The figures of a kernel: of which target and process they are, and what they are if nothing answers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.fake_rbkit import FakeRbkit
from tornado_rbkit.jupyter.kernels import find_target, kernel_figures

KERNEL = "1a2b3c4d-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["web-1", "My-Analysis-1a2b3c4d"], "My-Analysis-1a2b3c4d"),
        (["Analysis-1a2b3c4d-4711"], "Analysis-1a2b3c4d-4711"),
        (["1a2b3c4d", "Analysis-1a2b3c4d5", "Analysis-1a2b3c4d-copy", "Analysis-ffffffff"], None),
    ],
)
def test_a_kernel_s_target_has_the_first_digits_of_its_id(names: list[str], found: str | None) -> None:
    assert find_target(KERNEL, names) == found


async def test_what_is_recorded_is_the_profiler_s_answer(rbkit: FakeRbkit) -> None:
    figures = await kernel_figures(None, rbkit.req)
    assert (figures["records_memory"], figures["records_cpu"]) == (False, False)
    assert rbkit.received == [b"handshake"]


async def test_figures_that_cannot_be_read_are_none(rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    monkeypatch.setattr("tornado_rbkit.jupyter.kernels._REPLY_MS", 1)
    rbkit.answering.clear()
    for pid, req in [(None, None), (ended.pid, rbkit.req)]:
        figures = await kernel_figures(pid, req)
        shown = {name: value for name, value in figures.items() if name not in ("pid", "time")}
        assert set(shown.values()) == {None}
    assert (await kernel_figures(os.getpid(), None))["memory_bytes"] > 10_000_000
