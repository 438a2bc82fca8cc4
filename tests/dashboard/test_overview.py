"""What the page shows on arrival: the figures of the process without anything recorded, and the first answers."""

from __future__ import annotations

import time
from typing import Any

from tests.dashboard.conftest import Page, Script, Serve
from tornado_rbkit.protocol import EventType

Event = tuple[float, int, Any]


def vitals(at: float, rss: int, cpu_ms: float) -> Event:
    figures = {"process_rss": rss, "process_cpu_ms": cpu_ms, "process_threads": 3, "gc_pause_ms": cpu_ms / 10}
    return (at, EventType.GC_STATS, figures)


def tiles(page: Page) -> dict[str, str]:
    parts = "[...tile.children].map(part => part.innerText)"
    return dict(page.script(f"return [...document.querySelectorAll('#view-overview .tile')].map(tile => {parts})"))


def test_figures_of_the_process_are_shown_before_anything_is_recorded(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url)
    page.until_live()
    for second in range(3):
        script.publish(vitals(second, 2**20 * (100 + second), 400 * second))
    figures = {"RSS": "102 MiB", "CPU": "40.0 %", "threads": "3", "garbage collection": "4.0 %"}
    page.until(lambda: tiles(page) == figures, "the last second is shown")
    described = "return document.querySelector('#view-overview .unseen').textContent"
    page.until(lambda: "RSS: 102 MiB" in page.script(described), "the chart has it, too")
    page.until(lambda: "102 MiB" in page.texts("#view-overview .u-value"), "its legend has the last value")
    assert page.all("#view-overview .chart canvas")
    page.click("Memory")
    page.until(lambda: "The memory profile is off." in page.text, "figures of the process are no memory profile")


def test_a_profiler_without_figures_of_its_process_says_so_and_has_the_buttons(
    page: Page, site: Serve, script: Script
) -> None:
    page.open(site(script.rbkit).url)
    page.until_live()
    page.until(lambda: "for Python only" in page.text, "it says why there are none")
    assert not page.all("#view-overview .tile")
    assert page.button("Find what is slow")


def sampled(ms: float, thread: int, *frames: tuple[str, int], state: str | None = None) -> Event:
    """Return a sample of frames (function and line), innermost first."""
    packed = [{12: name, 13: name, 6: "/srv/worker.py", 7: line, 15: thread} for name, line in frames]
    if state:
        packed[0][21] = state
    return (ms / 1000, EventType.CPU_SAMPLE, packed)


def test_what_is_slow_is_named_by_the_cpu_clock_and_a_lock_by_the_wall_clock(
    page: Page, site: Serve, script: Script
) -> None:
    page.open(site(script.rbkit).url)
    page.until_live()
    with page.held():
        page.click("Find what is slow")
        page.until(lambda: "at where threads wait" in page.text, "the wall clock is first")
        page.until(lambda: "Waiting for the first samples." in page.text, "it is on")
        for ms in range(100):
            script.publish(
                sampled(ms, 1, ("index", 33), ("work", 37)),  # it sleeps, and its state is not known
                *(sampled(ms, thread, ("index", 31), ("work", 37), state="lock") for thread in (2, 3, 4)),
            )
        wait = "3.0 threads wait for a lock in index worker.py:31; it is held over line 33"
        page.until(lambda: wait in page.text, "the wall clock's samples are there")
        assert "By the wall clock, which may count threads that wait." in page.text
    page.until(lambda: page.facts["clock"] == "cpu" and "Looking" not in page.text, "then the CPU clock is chosen")
    at = 1000 * (time.time() - script.start)
    for ms in range(100):
        script.publish(sampled(at + ms, 1 + ms % 4, ("normalise" if ms % 3 else "score", 8), ("work", 37)))
    busiest = ["66.0 % normalise worker.py:8", "34.0 % score worker.py:8", wait]
    page.until(lambda: page.texts("#view-overview .card:nth-child(2) p:not(:empty)") == busiest, "both are said")
    page.click("Flame graph")
    page.until(lambda: page.row("Functions", "normalise"), "the profile by the CPU clock is shown")
    assert [row[0] for row in page.rows("Functions")] == ["normalise", "score", "work"]


def test_where_asyncio_tasks_wait_is_named_and_drawn_with_the_idle_threads(
    page: Page, site: Serve, script: Script
) -> None:
    def frames(*places: tuple[str, str, int]) -> list[dict[int, Any]]:
        return [{12: label, 13: label, 6: file, 7: line, 14: 0, 15: 0} for label, file, line in places]

    def group(tasks: int, *places: tuple[str, str, int]) -> dict[int, Any]:
        return {25: tasks, 28: [], 4: "Future", 2: frames(*places)}

    reserve, locks = ("Shop.reserve", "/srv/shop.py", 12), "/usr/lib/python3.13/asyncio/locks.py"
    groups = [
        group(37, ("asyncio.locks.Lock.acquire", locks, 90), reserve, ("Shop.get", "/srv/shop.py", 9)),
        group(1, ("Shop.store", "/srv/shop.py", 6), (*reserve[:2], 13), ("Shop.get", "/srv/shop.py", 9)),
    ]
    page.open(site(script.rbkit).url)
    page.until_live()
    page.click("Record CPU")
    page.until(lambda: page.facts["recording"] == "CPU", "the profile is on")
    for ms in range(0, 5000, 100):
        script.publish(
            sampled(ms, 1, ("select", 400), state="waiting"), sampled(ms + 50, 1, ("select", 400), state="waiting")
        )
        look = {25: 38, 26: 38, 27: 100.0, 2: groups}
        script.publish_raw([{0: EventType.CPU_SAMPLE, 1: 1000 * script.start + ms, 2: [], 24: look}])
    sentence = (
        "On average 37 asyncio tasks wait in Shop.reserve shop.py:12 for a lock, awaited by Shop.get; "
        "it is held over line 13, in Shop.store shop.py:6"
    )
    page.click("Overview")
    page.until(lambda: sentence in page.text, "the tasks that wait are named")
    page.click("CPU")
    page.until(lambda: "All threads wait" in page.text, "waiting is hidden")
    assert not page.rows("Functions")
    page.press("#view-cpu input[type=checkbox]")
    page.until(lambda: page.row("Functions", "asyncio.locks.Lock.acquire"), "the tasks are among what is idle")


STANDARD = "/usr/lib/python3.11"
BUSIEST = "#view-overview .card:nth-child(2) p:not(:empty)"


def sample_of(ms: float, *frames: tuple[str, int, str], thread: str = "MainThread", state: str = "running") -> Event:
    """Return a sample of a named thread, of frames (function, line and file), innermost first."""
    packed: list[dict[int, Any]] = [{12: name, 13: name, 6: file, 7: line, 15: 1} for name, line, file in frames]
    packed[0] |= {19: thread, 21: state}
    return (ms / 1000, EventType.CPU_SAMPLE, packed)


def test_a_library_is_named_with_the_own_line_that_calls_it_and_a_collection_with_where_it_runs(
    page: Page, site: Serve, script: Script
) -> None:
    page.open(site(script.rbkit).url)
    page.until_live()
    emit = ("StreamHandler.emit", 1098, f"{STANDARD}/logging/__init__.py")
    handle, parse = ("handle", 11, "/srv/app/__init__.py"), ("parse", 7, "/srv/app/parsing.py")
    for ms in range(0, 120, 6):
        script.publish(
            *(sample_of(ms + i, emit, handle) for i in range(3)),
            *(sample_of(ms + i, parse, state="gc") for i in range(3, 5)),
            sample_of(ms + 5, parse),
        )
    expected = [
        "50.0 % handle app/__init__.py:11, in calls from this line, mostly StreamHandler.emit",
        "33.3 % garbage collection, mostly in parse parsing.py:7",
        "16.7 % parse parsing.py:7",
    ]
    page.until(lambda: page.texts(BUSIEST)[:3] == expected, "each is said")


def test_a_program_that_waits_is_told_where(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url)
    page.until_live()
    wait = ("Popen._try_wait", 1900, f"{STANDARD}/subprocess.py")
    for ms in range(0, 100, 4):
        script.publish(
            *(sample_of(ms + i, wait, ("build", 14, "/srv/build.py"), state="waiting") for i in range(3)),
            sample_of(ms + 3, ("query", 17, "/srv/build.py"), state="waiting"),
        )
    script.publish(vitals(1, 2**20, 0), vitals(2, 2**20, 10))
    expected = [
        "75.0 % of the time MainThread waits at build build.py:14, in Popen._try_wait",
        "25.0 % of the time MainThread waits at query build.py:17",
    ]
    page.until(lambda: page.texts(BUSIEST) == expected, "it is said")


def test_a_shared_range_of_time_is_shown(page: Page, site: Serve, script: Script) -> None:
    url = site(script.rbkit).url
    page.open(url, f"overview?from={script.start + 10:.1f}&to={script.start + 50:.1f}")
    page.until_live()
    for second in range(60):
        script.publish(vitals(second, 2**20, 400 * second))
    page.until(lambda: page.all("#view-overview .chart canvas"), "charts are drawn")
    assert page.button("Go on")
    page.click("1 min")
    page.until(lambda: page.driver.current_url.endswith("#overview?seconds=60"), "the address has the new one")
