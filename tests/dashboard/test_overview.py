"""What the page shows on arrival: the figures of the process without anything recorded, and the first answers."""

from __future__ import annotations

from typing import Any

from tests.dashboard.conftest import Page, Script, Serve
from tornado_rbkit.protocol import EventType


def vitals(at: float, rss: int, cpu_ms: float) -> tuple[float, int, Any]:
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
    page.click("Record CPU now")
    page.until(lambda: "Waiting for the first samples." in page.text, "it is on")
    main = {12: "main", 13: "main", 6: "/srv/a.py", 7: 1, 15: 1}
    leaf = {12: "busy", 13: "busy", 6: "/srv/a.py", 7: 5, 15: 1}
    script.publish(*[(0.0, EventType.CPU_SAMPLE, [leaf, main])] * 3, (0.0, EventType.CPU_SAMPLE, [main]))
    page.until(lambda: "75.0 % busy a.py:5" in page.text, "the busiest function is first")


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
