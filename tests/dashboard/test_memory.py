"""The Memory view with known events: figures, charts, gaps, and the time range in view."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import pytest
from selenium.webdriver.common.action_chains import ActionChains

from tests.dashboard.conftest import Page, Script, Serve
from tests.fake_rbkit import collection, recorded
from tornado_rbkit.protocol import EventCollection, EventType, GCStats, ObjCreated, ObjDestroyed, decode

CREATED, DESTROYED = EventType.OBJ_CREATED, EventType.OBJ_DESTROYED
GC_START, GC_END_M, GC_END_S = EventType.GC_START, EventType.GC_END_M, EventType.GC_END_S
GC_STATS = EventType.GC_STATS

START = 1_795_388_400.0
"""A whole second, so that the seconds of the charts are those of the events."""


@pytest.fixture
def script(script: Script) -> Script:
    script.start = START
    return script


@pytest.fixture
def memory(page: Page, site: Serve, script: Script) -> Page:
    """The view of a profiler that has published nothing yet."""
    page.open(site(script.rbkit).url, "memory")
    page.until_live()
    return page


def born(at: float, *ids: int) -> list[tuple[float, int, Any]]:
    return [(at, CREATED, {3: each, 4: "Thing"}) for each in ids]


def dead(at: float, *ids: int) -> list[tuple[float, int, Any]]:
    return [(at, DESTROYED, {3: each}) for each in ids]


def stats(at: float, heap: int, **others: int | str) -> tuple[float, int, Any]:
    return (at, GC_STATS, {"total_heap_size": heap, "total_memsize": heap // 2, "heap_live_slots": 1234, **others})


def tiles(page: Page) -> dict[str, str]:
    parts = "[...tile.children].map(part => part.innerText)"
    return dict(page.script(f"return [...document.querySelectorAll('#view-memory .tile')].map(tile => {parts})"))


def charts(page: Page) -> dict[str, str]:
    """Return the texts of the charts for screen readers."""
    words = "[figure.querySelector('figcaption').innerText, figure.querySelector('.unseen').innerText]"
    return dict(page.script(f"return [...document.querySelectorAll('#view-memory .chart')].map(figure => {words})"))


def drawn(page: Page, chart: int, variable: str) -> int:
    """Return how many pixels of a chart have a colour of the style sheet."""
    return page.script(  # type: ignore[no-any-return]
        """
        const [number, name] = arguments;
        const canvas = document.querySelectorAll('#view-memory .chart canvas')[number];
        const read = (paint) => {
          const copy = new OffscreenCanvas(canvas.width, canvas.height);
          const context = copy.getContext('2d', { willReadFrequently: true });
          paint(context);
          return context.getImageData(0, 0, copy.width, copy.height).data;
        };
        const wanted = read((context) => {
          context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name);
          context.fillRect(0, 0, 1, 1);
        });
        const pixels = read((context) => context.drawImage(canvas, 0, 0));
        let count = 0;
        for (let i = 0; i < pixels.length; i += 4) {
          count += [0, 1, 2, 3].every((part) => Math.abs(pixels[i + part] - wanted[part]) <= 4);
        }
        return count;
        """,
        chart,
        variable,
    )


def legends(page: Page, chart: int, shares: list[float], told_by: int | None = None) -> list[list[str]]:
    """Return what a chart says, its time and its figures, while a chart is pointed at, at shares of its width."""
    return page.script(  # type: ignore[no-any-return]
        """
        const [shares, pointed, told] = arguments;
        const charts = document.querySelectorAll('#view-memory .chart');
        const plot = charts[pointed].querySelector('.u-over');
        const { left, top, width } = plot.getBoundingClientRect();
        return shares.map((share) => {
          const at = { clientX: left + share * (width - 1), clientY: top + 20, bubbles: true };
          plot.dispatchEvent(new MouseEvent('mousemove', at));
          return [...charts[told].querySelectorAll('.u-value')].map((value) => value.innerText);
        });
        """,
        shares,
        chart,
        chart if told_by is None else told_by,
    )


PERCENT = [share / 100 for share in range(101)]


def test_nothing_is_shown_as_zero_before_there_is_data(memory: Page) -> None:
    memory.until(lambda: "The memory profile is off." in memory.text, "it says how to begin")
    assert not memory.all(".tile, .chart")


def test_tiles_and_charts_show_the_figures(memory: Page, script: Script) -> None:
    script.publish(
        stats(0, 10 << 20),
        *born(0.5, *range(100)),
        (1.1, GC_START, None),
        (1.125, GC_END_M, None),
        (1.5, GC_END_S, None),  # the lazy sweep is no pause
        *dead(1.6, *range(40)),
        *born(1.7, *range(100, 107)),
        (2.1, GC_START, None),
        (2.175, GC_END_S, None),  # without a mark's end, as CPython has it
        *dead(3.2, 50, 51),
        *born(3.3, 200, 201, 202),
        stats(4, 20 << 20),
    )
    memory.until(lambda: tiles(memory)["heap size"] == "20.0 MiB", "the last figure is shown")
    assert tiles(memory) == {
        "heap size": "20.0 MiB",
        "memory size": "10.0 MiB",
        "live objects": "1,234",
        "allocated": "3/s",
        "freed": "2/s",
        "GC runs": "2",
        "longest GC": "75 ms",
        "GC share": "2.5 %",  # 100 ms of four seconds; the fifth is not over
    }
    assert charts(memory) == {
        "Memory": "heap size: 20.0 MiB, memory size: 10.0 MiB",
        "Live": "live objects: 1,234",
        "Objects allocated and freed": "allocated: 3/s, freed: 2/s",
        "Garbage collection: share of the time": "share of time: 0.0 %",
        "Garbage collection: length of each run": "pause: 75 ms",
    }


def test_a_value_that_ruby_has_not_is_a_dash(memory: Page, script: Script) -> None:
    script.publish(stats(0, 10 << 20), stats(1, 0, total_heap_size="", heap_swept_slots="", count=0))
    memory.until(lambda: tiles(memory)["memory size"] == "0 B", "the figures are there")
    assert tiles(memory)["heap size"] == "–"
    memory.press("summary")
    assert memory.row("All figures of the collector", "heap_swept_slots") == ["–"]
    assert memory.row("All figures of the collector", "count") == ["0"]


def test_missing_messages_are_reported_and_shaded(memory: Page, script: Script) -> None:
    script.publish(stats(0, 1 << 20), *born(0.5, 1))
    memory.until(lambda: tiles(memory)["heap size"] == "1.0 MiB", "the first is shown")
    assert [drawn(memory, chart, "--gap") for chart in range(4)] == [0, 0, 0, 0]
    script.lose(3)
    script.publish(stats(10, 2 << 20), *born(20.5, 2))
    memory.until(lambda: "3 messages are missing in one place, which is shaded" in memory.text, "they are counted")
    assert "3 missing" in memory.text_of("footer")
    # From second 0.5 of 20.5 to the tenth, of at least half a minute, in a plot over a hundred pixels high.
    assert all(drawn(memory, chart, "--gap") > 10_000 for chart in range(4))


def test_what_the_server_dropped_is_reported(memory: Page, script: Script, tmp_path: Path) -> None:
    session = tmp_path / "slow.rbkit"
    records = [[0.0, 1, None, collection(0)], [1.0, 0, None, b"dropped:17"], [2.0, 1, None, collection(18)]]
    session.write_bytes(b"".join(msgpack.packb(record) for record in records))
    assert "dropped" not in memory.text_of("footer")
    memory.upload("Open session…", session)
    told = "17 missing; 17 of them reported by the server: this page was too slow, or they were lost before it"
    memory.until(lambda: told in memory.text_of("footer"), "they are counted")


def test_a_restart_is_drawn_and_its_figures_are_not_those_of_the_process_before(memory: Page, script: Script) -> None:
    script.publish(stats(0, 1 << 20), *born(0.5, 1), *born(3, 2))
    memory.until(lambda: tiles(memory)["heap size"] == "1.0 MiB", "the old process is shown")
    assert drawn(memory, 0, "--restart") == 0
    script.rbkit.counter = 0
    script.publish(*born(6, 3))
    memory.until(lambda: tiles(memory)["heap size"] == "–", "nothing is known of the new one")
    memory.until(lambda: drawn(memory, 0, "--restart") > 50, "a line is where it was restarted")
    assert len([text for text in memory.alerts if "was restarted" in text]) == 1
    assert len(memory.script("return [...document.querySelector('select[aria-label=Process]').options]")) == 2


def test_silence_while_profiling_is_zero_and_otherwise_unknown(memory: Page, script: Script) -> None:
    script.publish(*born(0, 1), *born(5, 2), *born(40, 3, 4), *born(42, 5))
    memory.until(lambda: tiles(memory)["allocated"] == "0/s", "all are shown")
    figures = {int(time[-2:]): created for time, created, _ in legends(memory, 2, PERCENT)}
    begin = min(figures)
    assert {second - begin: created for second, created in figures.items()} == {
        **dict.fromkeys(range(42), "–"),
        0: "1/s",
        **dict.fromkeys(range(1, 5), "0/s"),
        5: "1/s",
        40: "2/s",
        41: "0/s",
    }


def test_the_cursor_is_shared_by_the_charts(memory: Page, script: Script) -> None:
    script.publish(*(stats(at, (at + 1) << 20) for at in range(0, 40, 5)), *born(36, 1))
    memory.until(lambda: tiles(memory)["heap size"] == "36.0 MiB", "all are shown")
    ActionChains(memory.driver).move_to_element_with_offset(memory.all(".chart .u-over")[1], 2, 0).perform()
    memory.until(lambda: legend(memory, 0)[0] == legend(memory, 1)[0] != "–", "both tell of the same moment")
    assert legend(memory, 0)[1] in ("16.0 MiB", "21.0 MiB")
    assert legend(memory, 2)[1:] == ["0/s", "0/s"]


def legend(page: Page, chart: int) -> list[str]:
    return page.script(  # type: ignore[no-any-return]
        """
        const values = document.querySelectorAll('#view-memory .chart')[arguments[0]].querySelectorAll('.u-value');
        return [...values].map((value) => value.innerText);
        """,
        chart,
    )


def seconds_in_view(page: Page) -> tuple[int, int]:
    """Return which seconds since the start are at the edges of the first chart."""
    begin = page.script("return new Date(arguments[0] * 1000).toLocaleTimeString('en-GB')", START)
    seconds = [seconds_of(time) for time, *_ in legends(page, 0, [0.0, 1.0])]
    return seconds[0] - seconds_of(begin), seconds[1] - seconds_of(begin)


def seconds_of(time: str) -> int:
    hours, minutes, seconds = map(int, time.split(":"))
    return hours * 3600 + minutes * 60 + seconds


def test_the_range_can_be_chosen_held_and_marked(memory: Page, script: Script) -> None:
    script.publish(*(stats(at, (at + 1) << 20) for at in range(0, 601, 5)))
    memory.until(lambda: tiles(memory)["heap size"] == "601 MiB", "all are shown")
    assert memory.button("5 min").get_attribute("aria-pressed") == "true"
    assert seconds_in_view(memory) == (300, 600)
    memory.click("1 min")
    memory.until(lambda: seconds_in_view(memory) == (540, 600), "it is a minute")
    memory.click("all")
    memory.until(lambda: seconds_in_view(memory) == (0, 600), "it is everything")

    memory.click("Pause")
    script.publish(stats(605, 606 << 20))
    memory.until(lambda: "2 messages" in memory.text_of("footer"), "more has come")
    held = memory.script("return performance.now()")
    memory.until(lambda: memory.script("return performance.now()") > held + 1100, "it would have been drawn")
    assert seconds_in_view(memory) == (0, 600)
    assert tiles(memory)["heap size"] == "601 MiB"
    memory.click("Go on")
    memory.until(lambda: seconds_in_view(memory) == (0, 605), "it goes on")
    memory.until(lambda: tiles(memory)["heap size"] == "606 MiB", "the figures do too")


def test_a_range_marked_in_one_chart_is_zoomed_to_in_all(memory: Page, script: Script) -> None:
    script.publish(*(stats(at, (at + 1) << 20) for at in range(0, 201, 5)))
    memory.until(lambda: tiles(memory)["heap size"] == "201 MiB", "all are shown")
    assert seconds_in_view(memory) == (0, 200)
    plot = memory.all(".chart .u-over")[1]
    quarter = plot.size["width"] // 4
    drag = ActionChains(memory.driver).move_to_element_with_offset(plot, -quarter, 0).click_and_hold()
    drag.move_by_offset(2 * quarter, 0).release().perform()
    memory.until(lambda: memory.button("Go on").get_attribute("aria-pressed") == "true", "a range is held")
    memory.until(lambda: seconds_in_view(memory)[0] > 0, "it is drawn")
    first, last = seconds_in_view(memory)  # by the nearest of the figures that come each five seconds
    assert 45 <= first <= 55
    assert 145 <= last <= 155
    assert memory.button("5 min").get_attribute("aria-pressed") == "false"
    assert tiles(memory)["heap size"] in ("146 MiB", "151 MiB")  # the last within the range
    ActionChains(memory.driver).double_click(memory.all(".chart .u-over")[0]).perform()
    memory.until(lambda: seconds_in_view(memory) == (0, 200), "all is in view again")
    assert memory.button("5 min").get_attribute("aria-pressed") == "true"


def test_recorded_ruby_traffic_gives_the_figures_that_python_counts(memory: Page, script: Script) -> None:
    messages = [payload for _, channel, _, payload in recorded("allocations") if channel == 1]
    collections = [decode(payload) for payload in messages]
    events = [event for each in collections if isinstance(each, EventCollection) for event in each.events]
    created = Counter(int(event.timestamp // 1000) for event in events if isinstance(event, ObjCreated))
    destroyed = Counter(int(event.timestamp // 1000) for event in events if isinstance(event, ObjDestroyed))
    figures = next(event.stats for event in reversed(events) if isinstance(event, GCStats))
    for payload in messages:
        script.rbkit.publish(payload)
    memory.until(lambda: f"{len(messages)} messages" in memory.text_of("footer"), "all have come")
    live = f"{figures['heap_live_slots']:,}"
    memory.until(lambda: tiles(memory)["live objects"] == live, "the figures are shown")
    seen = {time: rates for time, *rates in legends(memory, 2, PERCENT)}
    seconds = sorted(created)[:-1]
    assert [seen[time] for time in sorted(seen)] == [
        [f"{created[second]:,}/s", f"{destroyed[second]:,}/s"] for second in seconds
    ]
    memory.press("summary")
    shown = dict(memory.rows("All figures of the collector"))
    assert shown == {name: f"{value:,}" if isinstance(value, int) else "–" for name, value in figures.items()}


def last_values(page: Page, chart: int) -> list[str]:
    """Return the figures of a chart's legend."""
    values = page.script("return [...document.querySelectorAll('#view-memory .chart')][arguments[0]].innerText", chart)
    return [line for line in values.split("\n") if any(character.isdigit() for character in line)]


def test_the_legend_has_the_last_value_while_nothing_is_pointed_at(memory: Page, script: Script) -> None:
    script.publish(stats(0, 10 << 20), *born(0.5, *range(7)), stats(5, 12 << 20))
    memory.until(lambda: any("12.0 MiB" in line for line in last_values(memory, 0)), "the last size is shown")
    script.publish(stats(10, 13 << 20))
    memory.until(lambda: any("13.0 MiB" in line for line in last_values(memory, 0)), "the next one is shown")


def test_a_point_between_unknown_values_is_drawn(memory: Page, script: Script) -> None:
    many: list[tuple[float, int, Any]] = [(at / 10, GC_STATS, {"total_memsize": 5 << 20}) for at in range(2000)]
    many[1000] = stats(100, 10 << 20)
    script.publish(*many)
    memory.until(lambda: len(memory.all(".chart canvas")) == 5, "charts are drawn")
    memory.until(lambda: drawn(memory, 0, "--c1") > 5, "the only heap size is seen")


def test_a_snapshot_is_marked_in_the_charts(memory: Page, script: Script) -> None:
    script.publish(stats(0, 10 << 20), stats(5, 10 << 20))
    memory.until(lambda: len(memory.all(".chart canvas")) == 5, "charts are drawn")
    memory.until(lambda: drawn(memory, 0, "--c1") > 5, "sizes are shown")
    before = drawn(memory, 1, "--accent")
    thing = {3: 1, 4: "Thing", 5: [], 6: None, 7: None, 8: 40}
    script.publish_raw([{0: 5, 1: (script.start + 2) * 1000, 2: [thing], 10: 1, 11: 1}], 5)
    memory.until(lambda: drawn(memory, 1, "--accent") > before + 100, "there is a line")


def test_the_value_axis_can_fit_the_values_and_its_labels_differ(memory: Page, script: Script) -> None:
    memory.script(
        """
        window.labels = [];
        const plain = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...where) {
            window.labels.push(text);
            return plain.call(this, text, ...where);
        };
        """
    )
    base = 1_000_000
    script.publish(*(stats(5 * at, 10 << 20, heap_live_slots=base + at) for at in range(6)))

    def labels() -> list[str]:
        texts = memory.script("const all = window.labels; window.labels = []; return all")
        return [
            text for text in texts if text.replace(",", "").replace(".", "").isdigit() and text.startswith("1,000,00")
        ]

    memory.until(lambda: memory.texts("label"), "there is the choice")
    assert len(set(labels())) < 2, "the axis begins at 0"
    memory.press("#view-memory label input")
    found: set[str] = set()

    def look() -> bool:
        found.update(labels())
        return len(found) >= 3

    memory.until(look, "the values are told apart")
