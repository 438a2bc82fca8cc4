"""The page explains three programs, each on one screen and in a sentence; these are the pictures of the README.

`pytest tests/dashboard --screenshots` takes the pictures again.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.dashboard.conftest import Page
from tests.dashboard.test_cpu import flame
from tests.patient import PATIENT

PICTURES = Path(__file__).parent / "screenshots"
PROGRAMS = Path(__file__).parent / "programs"
SIZE = (1140, 880)
PATIENCE = 120.0
"""Seconds until an answer has to be there, on a busy machine."""

PAUSE = {True: "20", False: "3"}
"""Seconds between two snapshots, for a picture and for a test."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Return a function that starts `tornado-rbkit run` with a program, and returns its URL."""
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", str(tmp_path / "runtime"))
    started: list[subprocess.Popen[str]] = []

    def start(name: str) -> str:
        command = [sys.executable, *PATIENT, "run", str(PROGRAMS / name)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/"))
        assert started[0].stderr is not None
        return started[0].stderr.readline().removeprefix("tornado-rbkit: ").strip()

    yield start
    for process in started:
        process.terminate()
        process.communicate()


@pytest.fixture
def take(page: Page, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], None]]:
    """Return a function that takes a picture of the page, for the README if it is asked for."""
    folder = PICTURES if is_for_readme(request) else tmp_path
    page.driver.set_window_size(*SIZE)

    def save(name: str) -> None:
        path = folder / f"{name}.png"
        page.script("scrollTo(0, 0)")
        page.driver.save_screenshot(str(path))
        assert 10_000 < path.stat().st_size < 200_000

    yield save
    page.driver.get("about:blank")  # it would say in the console that its server went away


def is_for_readme(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--screenshots"))


def first_suspect(
    page: Page, url: str, pause: str, figure: Callable[[psutil.Process], float], more: float
) -> list[str]:
    """Press one button, and return the sentence of the first suspect and its evidence.

    The second snapshot is taken once a figure of the process is larger by `more`: by then it has done its work.
    """
    page.open(url, "snapshots")
    page.until_live()
    process = psutil.Process(int(page.facts["pid"]))
    page.type("Seconds between the snapshots", pause)
    with page.held():
        page.click("Find what grows")
        page.until(lambda: "Letting the program run" in page.text, "the first snapshot is taken", PATIENCE)
        before = figure(process)
        page.until(lambda: figure(process) > before + more, "the program has done its work", PATIENCE)
    page.until(lambda: page.texts(".suspects li"), "it is said what grows", PATIENCE)
    page.until(lambda: page.rows("Classes, compared"), "the classes are listed")
    return page.texts(".suspects li")[0].split("\n", 1)


def test_a_service_that_keeps_its_requests_is_explained(
    page: Page, run: Callable[[str], str], take: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    sentence, evidence = first_suspect(
        page,
        run("shop_web.py"),
        PAUSE[is_for_readme(request)],
        lambda process: process.num_ctx_switches().voluntary,  # each request waits some times
        200,
    )
    kept = r"[\d,]+ closures in __main__\.AUDIT, [\d.]+ [KM]iB retained, \+[\d.]+/s, made at shop_web\.py:\d+"
    assert re.fullmatch(kept, sentence)
    assert re.search(r"__main__\.AUDIT\['\w+'\] → remember\.<locals>\.finish → context → OrderContext\.body", evidence)
    take("snapshots")


def test_a_program_that_keeps_arrays_is_explained(
    page: Page, run: Callable[[str], str], take: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    sentence, evidence = first_suspect(
        page,
        run("frames.py"),
        PAUSE[is_for_readme(request)],
        lambda process: process.memory_info().rss,
        2 * 4_000_000,  # two reports
    )
    assert re.match(r"\d+ Report objects in __main__\.RESULTS, [\d.]+ MiB retained, \+[\d.]+", sentence)
    assert re.search(r"__main__\.RESULTS\['report \d+'\] → Report\.frame → ndarray 3\.8 MiB", evidence)
    take("frames")


def messages(page: Page) -> int:
    return int(page.text_of("footer").split()[0].replace(",", ""))


def share(page: Page, function: str) -> float:
    """Return the share of a function in the CPU time that the Overview tells; fail while it tells none."""
    found = re.search(rf"([\d.]+) % __main__\.{function} worker\.py:\d+", page.text)
    assert found is not None
    return float(found[1])


def test_a_worker_that_waits_for_a_lock_is_explained(
    page: Page, run: Callable[[str], str], take: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    page.open(run("worker.py"))
    page.until_live()
    lock = r"threads wait (for a lock in|at the same line of) __main__\.index worker\.py:\d+.* held over line \d+"
    with page.held():
        page.click("Find what is slow")
        page.until(lambda: "waits at __main__.index" in page.text, "there are samples by the wall clock", PATIENCE)
        page.until(lambda: messages(page) > 20, "of enough time", PATIENCE)
    page.until(lambda: re.search(lock, page.text), "the lock is named", PATIENCE)
    page.until(lambda: share(page, "normalise"), "and what computes", PATIENCE)
    if is_for_readme(request):  # a test may run on a machine that is too busy for true figures
        page.until(lambda: 1.8 < share(page, "normalise") / share(page, "score") < 2.2, "as it is planted", PATIENCE)
    take("overview")
    page.click("Flame graph")
    page.until(lambda: page.row("Functions", "__main__.normalise"), "functions are there")
    page.choose("Graph", "Callers first")

    def is_above_all() -> bool:
        frame = (flame(page) or {}).get("__main__.normalise")
        return frame is not None and frame.depth == 1

    page.until(is_above_all, "a function that computes is not below what calls it")
    take("cpu")
