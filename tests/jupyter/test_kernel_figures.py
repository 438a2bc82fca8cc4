"""The figures of a kernel: of which target and process they are, and what they are if nothing answers."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys

import msgpack
import pytest

from tests.fake_rbkit import FACTS, FakeRbkit
from tests.patient import PATIENCE
from tornado_rbkit.jupyter.kernels import find_target, kernel_figures

KERNEL = "1a2b3c4d-0000-4000-8000-000000000000"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for an answer as long as a busy machine may need."""
    monkeypatch.setattr("tornado_rbkit.jupyter.kernels._REPLY_MS", 1000 * PATIENCE)


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


NOT_FIGURES = {"pid": None, "memory_bytes": None, "cpu_seconds": None, "records_memory": None, "records_cpu": None}


@pytest.mark.parametrize("pid", [-1, 0, 1 << 31, 1 << 63])
async def test_a_pid_that_no_process_has_has_no_figures(rbkit: FakeRbkit, pid: int) -> None:
    rbkit.handshake = lambda: msgpack.packb({0: 8, 1: 1.0, 2: {**FACTS, "pid": pid}})  # type: ignore[method-assign]
    figures = await kernel_figures(None, rbkit.req)
    assert (figures["pid"], figures["memory_bytes"], figures["records_cpu"]) == (pid, None, False)


async def test_a_reply_longer_than_any_handshake_is_not_received(
    rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornado_rbkit.jupyter.kernels._REPLY_MS", 300)
    facts = {**FACTS, "pwd": "x" * 1_000_000}
    rbkit.handshake = lambda: msgpack.packb({0: 8, 1: 1.0, 2: facts})  # type: ignore[method-assign]
    assert (await kernel_figures(None, rbkit.req)).items() >= NOT_FIGURES.items()


async def test_without_descriptors_there_are_no_figures(rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch) -> None:
    def require_descriptors() -> None:
        raise OSError(errno.EMFILE, "too few file descriptors are left (ulimit -n)")

    monkeypatch.setattr("tornado_rbkit.jupyter.kernels.require_descriptors", require_descriptors)
    assert (await kernel_figures(None, rbkit.req)).items() >= NOT_FIGURES.items()
    assert not rbkit.received


async def test_requests_at_once_ask_the_profiler_once(rbkit: FakeRbkit) -> None:
    figures = await asyncio.gather(*(kernel_figures(None, rbkit.req) for _ in range(200)))
    assert {each["records_cpu"] for each in figures} == {False}
    assert rbkit.received == [b"handshake"]
    rbkit.enabled.add("cpu_profiling")
    assert (await kernel_figures(None, rbkit.req))["records_cpu"] is True, "a later request asks anew"
