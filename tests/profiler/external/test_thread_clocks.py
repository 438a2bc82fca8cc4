"""The stack reader knows which threads compute, and what they have used."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tornado_rbkit.profiler.external.stack_reader.clocks import Clocks

STOPPED = 5_000_000  # nanoseconds, when the thread gave up its last processor


class Folder:
    """Folders as in /proc: one of a process with one thread, and one of the reader's own thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        (path / "task" / "9").mkdir(parents=True)
        (path / "own").mkdir()
        self.clocks = Clocks(f"{path}/task", f"{path}/own")

    def set(self, state: str, used: str | None, switches: int | None = None) -> None:
        self.write("task/9/stat", f"9 (a) R) {state} 1")
        if used is not None:
            self.write("task/9/schedstat", f"{used}\n")
        if switches is not None:
            self.write("task/9/sched", sched(STOPPED, switches))

    def set_own(self, *, waited: int, began: int) -> None:
        """Set how long the reader has waited for processors, and when it was given the last one."""
        self.write("own/schedstat", f"1 {waited} 1\n")
        self.write("own/sched", sched(began, 1))

    def write(self, name: str, text: str) -> None:
        (self._path / name).write_text(text)

    def look(self) -> bytes:
        self.clocks.begin()
        return self.clocks.after(9, self.clocks.before(9))


def sched(moment: int, switches: int) -> str:
    return (
        f"python (9, #threads: 1)\n---------\n"
        f"se.exec_start                                :     {moment // 1_000_000}.{moment % 1_000_000:06}\n"
        f"se.sum_exec_runtime                          :           522.368441\n"
        f"nr_switches                                  :                  {switches}\n"
        f"nr_voluntary_switches                        :                    0\n"
    )


def is_running(clock: bytes) -> bool:
    assert clock[-1] in (0, 1)
    return clock[-1] == 1


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path)
    with closing(folder.clocks):
        yield folder


@pytest.mark.parametrize(
    ("asleep", "running", "is_idle"),
    [("5 5 5", "5 5 5", True), ("5 5 5", "6 5 5", False), ("5 5 5", "5 5 6", False), ("0 0 0", "0 0 0", False)],
    ids=["without a processor since then", "ran", "was given a processor", "the system does not count"],
)
def test_a_thread_that_has_slept_computes_once_it_has_had_a_processor(
    folder: Folder, asleep: str, running: str, is_idle: bool
) -> None:
    folder.set("S", asleep)
    assert folder.look().startswith(b"\x08")
    folder.set("R", running)
    clock = folder.look()
    assert clock.startswith(b"\x08") == is_idle
    assert (b"\x0d" in clock) == (running != "0 0 0")
    folder.set("R", "7 7 7")
    assert folder.look()[:1] == b"\x0d"


@pytest.mark.parametrize(
    ("switches", "runs"), [(6, True), (7, False), (8, False)], ids=["runs", "waits", "stopped while it was read"]
)
def test_a_thread_runs_while_it_has_not_given_up_the_last_processor_that_it_was_given(
    folder: Folder, switches: int, runs: bool
) -> None:
    folder.set_own(waited=0, began=9_000_000)
    folder.set("R", "5 5 7", switches)
    assert is_running(folder.look()) == runs


@pytest.mark.parametrize(
    ("began", "waited", "runs"),
    [
        pytest.param(STOPPED, 0, True, id="displaced"),
        pytest.param(STOPPED + 9_000, 50_000, True, id="displaced a moment before"),
        pytest.param(STOPPED + 90_000, 0, False, id="stopped before"),
        pytest.param(STOPPED - 9_000, 0, False, id="slept, and was woken after the reader began"),
        pytest.param(STOPPED, 200_000, False, id="the reader waited for the processor"),
    ],
)
def test_a_thread_has_run_until_the_reader_displaced_it(folder: Folder, began: int, waited: int, runs: bool) -> None:
    folder.set_own(waited=1_000_000, began=1)
    folder.look()
    folder.set_own(waited=1_000_000 + waited, began=began)
    folder.set("R", "5 5 7", 7)
    assert is_running(folder.look()) == runs


def test_a_thread_that_stopped_twice_since_its_stack_was_read_was_not_displaced(folder: Folder) -> None:
    folder.set_own(waited=0, began=STOPPED)
    folder.set("R", "5 5 7", 8)
    assert not is_running(folder.look())


def test_a_thread_that_sleeps_does_not_run(folder: Folder) -> None:
    folder.set_own(waited=0, began=STOPPED)
    folder.set("S", "5 5 7", 7)
    clock = folder.look()
    assert clock.startswith(b"\x08")
    assert not is_running(clock)


def test_the_state_decides_on_a_system_that_does_not_count_how_often_processors_are_given_up(folder: Folder) -> None:
    folder.set("R", "5 5 7")
    assert is_running(folder.look())


def test_a_thread_of_a_system_without_schedstat_computes_as_the_system_says(folder: Folder) -> None:
    folder.set("S", None)
    assert folder.look() == b"\x08"
    folder.set("R", None)
    assert folder.look() == b""


def test_a_thread_that_has_ended_computes_no_more(folder: Folder) -> None:
    assert folder.look() == b"\x08"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_threads_that_come_and_go_leave_no_files_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    clocks = Clocks("/proc/self/task")
    for _ in range(1000):
        thread = threading.Thread(target=lambda: clocks.after(threading.get_native_id(), b""))
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before + 512
    clocks.close()
    assert len(os.listdir("/proc/self/fd")) <= before
