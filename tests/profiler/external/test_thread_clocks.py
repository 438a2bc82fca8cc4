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


class Folder:
    """The folder of a process's threads, as in /proc, with one thread."""

    def __init__(self, path: Path, clocks: Clocks) -> None:
        self._path = path
        self._clocks = clocks
        (path / "9").mkdir()

    def set(self, state: str, used: str | None) -> bytes:
        (self._path / "9" / "stat").write_text(f"9 (a) R) {state} 1")
        if used is not None:
            (self._path / "9" / "schedstat").write_text(f"{used}\n")
        return self._clocks(9)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with closing(Clocks(str(tmp_path))) as clocks:
        yield Folder(tmp_path, clocks)


@pytest.mark.parametrize(
    ("asleep", "running", "is_idle"),
    [("5 5 5", "5 5 5", True), ("5 5 5", "6 5 5", False), ("5 5 5", "5 5 6", False), ("0 0 0", "0 0 0", False)],
    ids=["without a processor since then", "ran", "was given a processor", "the system does not count"],
)
def test_a_thread_that_has_slept_computes_once_it_has_had_a_processor(
    folder: Folder, asleep: str, running: str, is_idle: bool
) -> None:
    assert folder.set("S", asleep).startswith(b"\x08")
    clock = folder.set("R", running)
    assert clock.startswith(b"\x08") == is_idle
    assert (b"\x0d" in clock) == (running != "0 0 0")
    assert folder.set("R", "7 7 7")[:1] == b"\x0d"


def test_a_thread_of_a_system_without_schedstat_computes_as_the_system_says(folder: Folder) -> None:
    assert folder.set("S", None) == b"\x08"
    assert folder.set("R", None) == b""


def test_a_thread_that_has_ended_computes_no_more(tmp_path: Path) -> None:
    assert Clocks(str(tmp_path))(9) == b"\x08"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_threads_that_come_and_go_leave_no_files_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    clocks = Clocks("/proc/self/task")
    for _ in range(1000):
        thread = threading.Thread(target=lambda: clocks(threading.get_native_id()))
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before + 512
    clocks.close()
    assert len(os.listdir("/proc/self/fd")) == before
