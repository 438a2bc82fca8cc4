"""CPU samples: the flame graph, the functions, and what is exported, beside what Python counts of them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.dashboard.conftest import TICKED, Page, Script, Serve
from tests.fake_rbkit import FakeRbkit, recorded
from tests.patient import PATIENT
from tornado_rbkit.protocol import CPUSample, EventCollection, decode
from tornado_rbkit.recording.export import collapsed, speedscope

CPU_SAMPLE = 9


def ruby_samples() -> list[CPUSample]:
    """Return the samples of the real traffic."""
    messages = [decode(record[3]) for record in recorded("cpu") if record[1] == 1]
    events = [event for message in messages if isinstance(message, EventCollection) for event in message.events]
    return [event for event in events if isinstance(event, CPUSample) and event.frames]


def counts(page: Page, samples: int) -> bool:
    """Return whether the page says, in the title of the summary, that it has so many samples."""
    return bool(page.all(f"#view-cpu .controls span[title^='{samples:,} sample']"))


def show_idle(page: Page) -> None:
    """Show the samples of idle threads as well."""
    page.until(lambda: page.all("#view-cpu input[type=checkbox]"), "there are samples")
    page.press("#view-cpu input[type=checkbox]")


def open_ruby(page: Page, site: Serve, rbkit: FakeRbkit) -> list[CPUSample]:
    """Show the real traffic; return its samples."""
    page.open(site(rbkit).url, "cpu")
    page.until_live()
    for record in recorded("cpu"):
        if record[1] == 1:
            rbkit.publish(record[3])
    samples = ruby_samples()
    page.until(lambda: counts(page, len(samples)), "all samples are counted")
    show_idle(page)
    own, whole = counted(samples)
    until_shown(page, {label: (own[label], whole[label]) for label in whole})
    return samples


def counted(samples: list[CPUSample]) -> tuple[Counter[str], Counter[str]]:
    """Return how often each function was innermost, and how often it was anywhere in a stack."""
    own, whole = Counter[str](), Counter[str]()
    for sample in samples:
        own[sample.frames[0].label] += 1
        whole.update({frame.label for frame in sample.frames})
    return own, whole


def shown(page: Page) -> dict[str, tuple[int, int]]:
    """Return the self and total samples of each function in the table."""
    return {row[0]: (number(row[1]), number(row[2])) for row in page.rows("Functions", exact=True)}


def until_shown(page: Page, functions: dict[str, tuple[int, int]]) -> None:
    """Wait until the table, which is drawn after the graph, has these self and total samples and no others."""
    page.until(lambda: shown(page) == functions, f"the functions are {functions}")


def number(samples: str) -> int:
    """Return the number of "12 samples"."""
    return int(samples.split()[0].replace(",", ""))


def stack(*labels: str, thread: int = 1) -> list[dict[int, Any]]:
    """Return the frames of a stack given from the outside in."""
    return [
        {12: label, 13: label, 6: "/srv/shop.rb", 7: number, 14: 0, 15: thread} for number, label in enumerate(labels)
    ][::-1]


def publish(script: Script, *stacks: list[dict[int, Any]]) -> None:
    script.publish(*((0.01 * number, CPU_SAMPLE, frames) for number, frames in enumerate(stacks)))


class Frame(NamedTuple):
    """A frame of the flame graph, as it is seen."""

    name: str
    figures: str
    depth: int
    x: float
    width: int
    found: bool
    lines: list[str]


def flame(page: Page) -> dict[str, Frame]:
    """Return the frames by name once they are drawn: what the tooltip says at each patch of one colour."""
    code = """
        const [graph, tip] = ['.flame', '.tip'].map(selector => document.querySelector(selector));
        if (graph.ariaBusy) return null; // the tooltips describe frames that are not painted yet
        const canvas = graph.querySelector('canvas');
        if (!canvas.checkVisibility() || !canvas.height) return [];
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {willReadFrequently: true});
        copy.drawImage(canvas, 0, 0);
        const frames = [];
        for (let y = 1; y < canvas.height; y += 18) { // above the text
            const pixels = copy.getImageData(0, y, canvas.width, 1).data;
            const colour = x => pixels.slice(4 * x, 4 * x + 4).join();
            for (let x = 0, end; x < canvas.width; x = end) {
                for (end = x + 1; end < canvas.width && colour(end) === colour(x); end++);
                if (pixels[4 * x + 3]) frames.push({x, y, width: end - x, found: colour(x) === '230,0,230,255'});
            }
        }
        const {left, top} = canvas.getBoundingClientRect();
        const point = (type, x, y) => graph.dispatchEvent(
            new PointerEvent(type, {bubbles: true, clientX: left + x, clientY: top + y}));
        const rows = frames.map(({x, y, width, found}) => {
            point('pointermove', x + width / 2, y);
            const [name, ...lines] = [...tip.children].map(line => line.textContent);
            return [name, lines.at(-1), (y - 1) / 18, x + width / 2, width, found, lines];
        });
        point('pointerleave', 0, 0);
        return rows;
        """
    return {frame[0]: Frame(*frame) for frame in page.found(lambda: page.script(code), "the graph is drawn")}


def until_drawn(page: Page, *names: str) -> dict[str, Frame]:
    """Wait until these frames are drawn and no others; return them as they were then."""

    def look() -> dict[str, Frame] | None:
        frames = flame(page)
        return frames if set(frames) == {"all", *names} else None

    drawn: dict[str, Frame] = page.found(look, f"the frames are {names}")
    return drawn


def click(page: Page, name: str) -> None:
    """Click a frame."""
    frame, canvas = flame(page)[name], page.one(".flame canvas")
    size = canvas.size
    ActionChains(page.driver).move_to_element_with_offset(
        canvas, round(frame.x - size["width"] / 2), round(18 * frame.depth + 9 - size["height"] / 2)
    ).click().perform()


def test_functions_have_the_samples_that_python_counts(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    _, whole = counted(open_ruby(page, site, rbkit))
    # A function that recurses is counted once a sample.
    assert max(whole.values()) <= len(ruby_samples())


def test_of_a_thread_for_each_request_the_list_has_the_busiest(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, *[stack("main", "loop", thread=1)] * 40)
    publish(script, *(stack("handle", f"request{number % 7}", thread=10 + number) for number in range(3000)))
    page.until(lambda: counts(page, 3040), "all are counted")
    menu = next(menu for menu in page.all("select") if menu.get_attribute("aria-label") == "Thread")
    names = page.script("return [...arguments[0].options].map(option => option.text)", menu)
    assert len(names) == 52
    assert names[:2] == ["all", "1 (1.3 %)"]
    assert names[-1].startswith("(others) (")
    page.choose("Thread", "(others)")
    page.until(lambda: shown(page)["handle"][1] == 3000 - 49, "the others are together")
    page.choose("Thread", "1 ")
    page.until(lambda: shown(page) == {"loop": (40, 40), "main": (0, 40)}, "it has its own")


def test_a_thread_s_functions_are_its_own(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    samples = open_ruby(page, site, rbkit)
    for thread in {sample.frames[0].thread_id for sample in samples}:
        own, whole = counted([sample for sample in samples if sample.frames[0].thread_id == thread])
        page.choose("Thread", str(thread))
        expected = {label: (own[label], whole[label]) for label in whole}
        page.until(lambda want=expected: shown(page) == want, f"those of thread {thread}")  # type: ignore[misc]


def test_the_flame_graph_has_each_stack_s_frames(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "a", "b"), stack("main", "a"), stack("main", "c", thread=2))
    frames = until_drawn(page, "main", "a", "b", "c")
    assert {name: (frame.depth, frame.figures) for name, frame in frames.items()} == {
        "all": (0, "total 30 ms, 100.0 % of all"),
        "main": (1, "total 30 ms, 100.0 % of all; 100.0 % of its caller"),
        "a": (2, "total 20 ms, 66.7 % of all; 66.7 % of its caller"),
        "b": (3, "total 10 ms, 33.3 % of all; 50.0 % of its caller"),
        "c": (2, "total 10 ms, 33.3 % of all; 33.3 % of its caller"),
    }
    assert frames["a"].width == pytest.approx(2 * frames["b"].width, rel=0.02)
    assert frames["c"].x > frames["a"].x
    # It grows.
    publish(script, stack("main", "d"))
    until_drawn(page, "main", "a", "b", "c", "d")


def test_a_click_zooms_in_and_the_whole_comes_back(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, *[stack("main", "hot")] * 3, stack("main", "cold", "within"))
    frames = until_drawn(page, "main", "hot", "cold", "within")
    assert frames["cold"].width == pytest.approx(frames["main"].width / 4, rel=0.02)
    click(page, "cold")
    frames = until_drawn(page, "main", "cold", "within")
    assert frames["cold"].width == frames["main"].width == frames["within"].width
    assert frames["cold"].lines == [
        "/srv/shop.rb:1",
        "self 0 ms, 0.0 %",
        "total 10 ms, 25.0 % of all; 25.0 % of its caller",
    ]
    page.until(lambda: page.texts("#view-cpu .detail h3") == ["cold"], "its details are shown")
    # What is looked at goes on as well.
    publish(script, stack("main", "new"), stack("main", "cold", "later"))
    frames = until_drawn(page, "main", "cold", "within", "later")
    assert frames["within"].width == pytest.approx(frames["cold"].width / 2, rel=0.02)
    page.click("Whole graph")
    frames = until_drawn(page, "main", "hot", "cold", "within", "later", "new")
    assert frames["cold"].width == pytest.approx(frames["main"].width / 3, rel=0.02)


def test_the_flame_graph_has_the_height_of_the_window(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", *(f"f{number}" for number in range(100))))
    page.until(lambda: page.all(".flame canvas"), "it is drawn")
    box = page.one(".flame").rect
    assert box["y"] < 215
    assert 0 <= page.script("return innerHeight") - box["y"] - box["height"] < 20


def test_escape_and_the_browser_s_back_button_undo_the_zoom(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "a", "b"), stack("main", "c"))
    until_drawn(page, "main", "a", "b", "c")
    click(page, "a")
    until_drawn(page, "main", "a", "b")
    click(page, "b")
    page.until(lambda: flame(page)["b"].depth == 3, "it is zoomed in")
    page.driver.back()
    page.until(lambda: page.script("return history.state.path.length") == 2, "one step back")
    page.driver.back()
    until_drawn(page, "main", "a", "b", "c")
    click(page, "a")
    until_drawn(page, "main", "a", "b")
    page.one(".flame").send_keys(Keys.ESCAPE)
    until_drawn(page, "main", "a", "b", "c")


def test_frames_that_are_too_small_are_one_frame_that_says_so(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, *[stack("main", "hot")] * 2700, *(stack("main", f"f{number}") for number in range(300)))
    frames = until_drawn(page, "main", "hot", "300 frames too small to draw")
    cut = frames["300 frames too small to draw"]
    assert cut.width == pytest.approx(frames["main"].width / 10, rel=0.05)
    assert cut.lines == ["total 3.00 s, 10.0 % of all; 10.0 % of its caller"]
    click(page, "300 frames too small to draw")
    page.until(lambda: page.texts("#view-cpu .detail h3") == ["main"], "its caller is in view")


def test_waiting_threads_are_left_out_until_asked_for(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    wait = stack("main", "threading.Condition.wait", thread=2)
    wait[0][6] = "/usr/lib/python3.11/threading.py"
    publish(script, wait, wait, wait)
    page.until(lambda: "All threads wait" in page.text, "it says why there is nothing")
    publish(script, stack("main", "work"), wait, wait)
    until_drawn(page, "main", "work")
    until_shown(page, {"work": (1, 1), "main": (0, 1)})
    show_idle(page)
    until_drawn(page, "main", "work", "threading.Condition.wait")
    until_shown(page, {"threading.Condition.wait": (5, 5), "work": (1, 1), "main": (0, 6)})


def test_the_tooltip_is_at_the_pointer_and_within_the_window(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "left"), stack("main", "right"))
    frames = until_drawn(page, "main", "left", "right")
    graph = page.one(".flame").rect
    for name, x in (("left", graph["x"] + 5), ("right", graph["x"] + graph["width"] - 5)):
        y = graph["y"] + 18 * frames[name].depth + 9
        page.script(
            "document.querySelector('.flame').dispatchEvent("
            "new PointerEvent('pointermove', {bubbles: true, clientX: arguments[0], clientY: arguments[1]}))",
            x,
            y,
        )
        tip = page.one(".tip").rect
        assert page.text_of(".tip b") == name
        assert 0 <= tip["x"] <= page.script("return innerWidth") - tip["width"]
        assert abs(tip["x"] - x) <= max(12, tip["width"] + 4)
        assert 0 < tip["y"] - y < 30
    page.script("document.querySelector('.flame').dispatchEvent(new PointerEvent('pointerleave'))")
    assert not page.all(".tip")


def outlined(page: Page, name: str) -> bool:
    """Return whether a frame has the outline of the chosen function."""
    frame = flame(page)[name]
    pixel = page.script(
        """
        const canvas = document.querySelector('.flame canvas');
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {willReadFrequently: true});
        copy.drawImage(canvas, 0, 0);
        return [...copy.getImageData(arguments[0], arguments[1], 1, 1).data];
        """,
        frame.x,
        18 * frame.depth + 1,
    )
    return bool(pixel == [29, 18, 8, 255])


def test_the_table_and_the_graph_choose_for_each_other(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "a"), stack("main", "b"))
    until_drawn(page, "main", "a", "b")
    page.click("b")
    page.until(lambda: outlined(page, "b") and not outlined(page, "a"), "its frames are marked")
    click(page, "a")
    chosen = "return document.querySelector('#view-cpu [aria-selected=true]')?.cells[0].textContent"
    page.until(lambda: page.script(chosen) == "a", "its row is marked")


def test_lambdas_of_one_file_are_distinguished(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    one, other = stack("main", "shop.<lambda>"), at_line(stack("main", "shop.<lambda>"), 9)
    publish(script, one, other, other)
    until_drawn(page, "main", "shop.<lambda>:1", "shop.<lambda>:9")
    rows = [[row[0], row[3]] for row in page.rows("Functions")]
    assert rows == [
        ["shop.<lambda>", "/srv/shop.rb:9"],
        ["shop.<lambda>", "/srv/shop.rb:1"],
        ["main", "/srv/shop.rb"],
    ]


def test_with_the_cpu_clock_samples_are_counted(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main"), stack("main"), stack("main"))
    page.until(lambda: shown(page) == {"main": (3, 3)}, "samples of wall time")
    page.click("CPU clock")
    page.until(lambda: page.facts["clock"] == "cpu", "the clock is set")
    page.until(lambda: page.rows("Functions") == [], "samples of different clocks are not added up")
    publish(script, stack("main"), stack("main"))
    page.until(lambda: page.row("Functions", "main")[0] == "2  100.0 %", "they are no times")


def test_the_profile_of_another_clock_is_shown_though_it_has_as_many_samples(
    page: Page, site: Serve, script: Script
) -> None:
    page.open_with(site(script.rbkit).url, "cpu", TICKED)
    page.until_live()
    publish(script, stack("main", "waits"), stack("main", "waits"))
    page.until(lambda: shown(page) == {"waits": (2, 2), "main": (0, 2)}, "samples of wall time")
    # The tab is left, and comes back after another client has chosen the clock.
    page.script("Object.defineProperty(document, 'hidden', {configurable: true, get: () => true})")
    script.rbkit.clock_type = "cpu"
    asked = len(script.rbkit.received)
    page.tick(5)
    page.until(lambda: len(script.rbkit.received) > asked, "the page has asked")
    publish(script, stack("main", "computes"), stack("main", "computes"))
    page.until(lambda: script.rbkit.sent == 2, "all is sent")
    page.script("delete document.hidden")
    page.until(lambda: page.facts["clock"] == "cpu", "the clock is seen")
    until_shown(page, {"computes": (2, 2), "main": (0, 2)})


def test_a_clock_chosen_while_ruby_records_starts_the_profile_again(page: Page, site: Serve, script: Script) -> None:
    """Ruby's rbkit sets its timer only at a start; the profiler for Python changes the clock at once."""
    page.open(site(script.rbkit).url, "cpu")
    page.click("Record CPU")
    page.until(lambda: page.facts["recording"] == "CPU", "the page knows that it records")
    page.click("CPU clock")
    page.until(lambda: (page.facts["clock"], page.facts["recording"]) == ("cpu", "CPU"), "the clock is set")
    started = [command for command in script.rbkit.received if command != b"handshake"]
    assert started == [b"start_cpu_profiling", b"stop_cpu_profiling", b"use_cpu_time", b"start_cpu_profiling"]
    assert "CPU time of the process" in str(page.button("CPU clock").get_attribute("title"))

    python = msgpack.unpackb(script.rbkit.handshake(), strict_map_key=False)
    python[2]["allocation_tracing_enabled"] = 0
    script.rbkit.handshake = lambda: msgpack.packb(python)  # type: ignore[method-assign]
    page.click("Ask again")
    title = "sample each thread by its own CPU clock"
    page.until(lambda: title in str(page.button("CPU clock").get_attribute("title")), "it is a Python process")
    page.click("Wall clock")
    page.until(lambda: script.rbkit.received.count(b"use_wall_time") == 1, "the clock is set")
    page.click("Ask again")
    page.until(lambda: script.rbkit.received[-1] == b"handshake", "it answers")
    assert script.rbkit.received.count(b"stop_cpu_profiling") == 1


def test_the_flame_graph_is_walked_by_keyboard(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, *[stack("main", "hot")] * 2, stack("main", "cold"))
    until_drawn(page, "main", "hot", "cold")
    graph = page.one(".flame")

    def told(*keys: str) -> str:
        graph.send_keys(*keys)
        return page.text_of(".tip [aria-live=polite]")

    assert told(Keys.ARROW_DOWN) == "all"
    assert told(Keys.ARROW_DOWN, Keys.ARROW_DOWN) == "hot"  # the widest
    assert told(Keys.ARROW_RIGHT) == "cold"
    assert told(Keys.ARROW_RIGHT) == "cold"  # the rightmost frame
    assert told(Keys.ARROW_UP) == "main"
    assert told(Keys.ARROW_DOWN, Keys.ENTER) == "hot"
    until_drawn(page, "main", "hot")


def test_a_graph_of_deep_recursion_is_drawn_and_scrolled(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", *["deeper"] * 2000), stack("main", "flat"))
    page.until(lambda: {"main", "deeper", "flat"} <= set(flame(page)), "it is drawn")
    assert page.one(".flame canvas").size["height"] < page.script("return innerHeight")
    page.script("document.querySelector('.flame').scrollTop = 9000")
    page.until(lambda: set(flame(page)) == {"deeper"}, "it is deeper there")


def test_callers_callees_and_lines_of_a_function(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "hub", "leaf"), stack("main", "hub", "leaf"), stack("other", "hub"), stack("hub"))
    page.until(lambda: "hub" in shown(page), "hub is there")
    page.click("hub")
    expected = {
        "Called by": [["main", "20 ms  50.0 %"], ["other", "10 ms  25.0 %"], ["(thread)", "10 ms  25.0 %"]],
        "Calls": [["leaf", "20 ms  50.0 %"]],
        "Its lines": [["line 1", "10 ms  25.0 %", "30 ms  75.0 %"], ["line 0", "10 ms  25.0 %", "10 ms  25.0 %"]],
    }
    page.until(lambda: lists(page) == expected, "they are its own")
    assert "self 20 ms, 50.0 %; total 40 ms, 100.0 %" in page.text_of("#view-cpu .detail")
    assert page.texts("#view-cpu .detail button") == ["main", "other", "leaf"]  # what can be followed


def test_details_continue_under_the_focus(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("one", "hub", "leaf"), stack("one", "hub"), stack("two", "hub"))
    page.until(lambda: "hub" in shown(page), "hub is there")
    page.click("hub")
    page.until(lambda: len(lists(page)["Called by"]) == 2, "its callers are shown")
    page.script("document.querySelector('#view-cpu .detail button').focus()")
    assert page.driver.switch_to.active_element.text == "one"
    publish(script, *[stack("two", "hub")] * 5)
    expected = [["one", "20 ms  25.0 %"], ["two", "60 ms  75.0 %"]]
    page.until(lambda: lists(page)["Called by"] == expected, "the figures go on")
    assert page.driver.switch_to.active_element.text == "one"


def at_line(frames: list[dict[int, Any]], line: int) -> list[dict[int, Any]]:
    """Return a stack that is at another line of its innermost function."""
    return [frames[0] | {7: line}, *frames[1:]]


def lists(page: Page) -> dict[str, list[list[str]]]:
    """Return what is said of the function in view, by title."""
    return {title: page.rows(title) for title in ("Called by", "Calls", "Its lines")}


def follow(page: Page, name: str) -> None:
    """Click a function among the callers and callees of another."""
    page.press(lambda: next(link for link in page.all("#view-cpu .detail button") if link.text == name))
    page.until(lambda: page.texts("#view-cpu .detail h3") == [name], f"{name} is in view")


def test_callers_and_callees_are_followed(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "load", "parse"), stack("main", "save"))
    page.until(lambda: "parse" in shown(page), "parse is there")
    page.click("parse")
    page.until(lambda: page.texts("#view-cpu .detail h3") == ["parse"], "it is in view")
    follow(page, "load")
    page.until(lambda: lists(page)["Calls"] == [["parse", "10 ms  100.0 %"]], "what it calls")
    follow(page, "main")
    page.until(lambda: lists(page)["Calls"] == [["load", "10 ms  50.0 %"], ["save", "10 ms  50.0 %"]], "what it calls")


def test_a_sample_counts_once_however_deep_it_recurses(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "walk", "walk", "visit", "walk", "visit"), stack("main", "walk"))
    page.until(lambda: shown(page) == {"visit": (1, 1), "walk": (1, 2), "main": (0, 2)}, "it counts once")
    page.click("walk")
    page.until(lambda: lists(page)["Calls"] == [["visit", "10 ms  50.0 %"]], "its details are shown")
    assert lists(page)["Called by"] == [["main", "20 ms  100.0 %"]]


def test_lines_are_one_function_and_those_of_the_thread(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    other = at_line(stack("main", "work", thread=2), 5)
    publish(script, stack("main", "work"), at_line(stack("main", "work"), 3), other, other)
    page.until(lambda: shown(page) == {"work": (4, 4), "main": (0, 4)}, "at whatever line")
    page.click("work")

    def lines() -> list[list[str]]:
        return lists(page)["Its lines"]

    def same(time: str) -> list[str]:
        return [time, time]

    half, quarter = same("20 ms  50.0 %"), same("10 ms  25.0 %")
    every = [["line 5", *half], ["line 1", *quarter], ["line 3", *quarter]]
    page.until(lambda: lines() == every, "its details are shown")
    page.choose("Thread", "1 ")
    alone = [["line 1", *same("10 ms  50.0 %")], ["line 3", *same("10 ms  50.0 %")]]
    page.until(lambda: lines() == alone, "one thread is shown alone")
    until_shown(page, {"work": (2, 2), "main": (0, 2)})


def test_rows_stay_while_one_has_the_focus(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "one"), stack("main", "one"), stack("main", "two"))
    page.until(lambda: list(shown(page)) == ["one", "two", "main"], "they are in order")
    page.script("document.querySelector('#view-cpu tbody button').focus()")
    publish(script, *[stack("main", "two")] * 5)
    page.until(lambda: shown(page)["two"] == (6, 6), "the figures go on")
    assert list(shown(page)) == ["one", "two", "main"]


def test_search_filters_the_functions_and_marks_the_frames(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "alpha"), stack("main", "beta"))
    page.until(lambda: set(shown(page)) == {"main", "alpha", "beta"}, "all are there")

    def marked() -> set[str]:
        return {frame.name for frame in flame(page).values() if frame.found}

    assert marked() == set()
    page.type("Search functions", "ALPH")
    page.until(lambda: set(shown(page)) == {"alpha"}, "one is left")
    page.until(lambda: marked() == {"alpha"}, "its frame is marked")
    page.until(lambda: re.search(r"matches \d+\.\d %", page.text), "its share is shown")
    page.type("Search functions", "(")  # no regular expression
    page.until(lambda: marked() == set(), "none is marked")
    page.until(lambda: "No function has “(” in its name or file." in page.text, "it is said")


def test_a_header_sorts_the_functions(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, *[stack("main", "a")] * 3, stack("main", "b"), stack("main"), stack("main"))
    page.until(lambda: list(shown(page)) == ["a", "main", "b"], "by own samples")
    page.click("total")
    page.until(lambda: list(shown(page)) == ["main", "a", "b"], "by all samples")
    page.click("function")
    page.until(lambda: list(shown(page)) == ["a", "b", "main"], "by name")


def test_the_exports_are_those_of_the_command_line(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    samples = open_ruby(page, site, rbkit)
    page.click("Export collapsed stacks")
    assert page.downloaded("cpu-1.collapsed.txt").read_text().splitlines() == list(collapsed(samples, ""))
    page.click("Export speedscope")
    assert page.downloaded("cpu-1.speedscope.json").read_text().splitlines() == list(speedscope(samples, "cpu-1"))


def test_clear_starts_over(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "old"))
    page.until(lambda: "old" in shown(page), "old is there")
    page.click("Clear")
    page.until(lambda: page.rows("Functions") == [], "nothing is left")
    publish(script, stack("main", "new"))
    page.until(lambda: set(shown(page)) == {"main", "new"}, "what comes is shown")


def test_clear_can_be_undone(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "old"), stack("main", "old"))
    page.until(lambda: "old" in shown(page), "old is there")
    page.click("Clear")
    page.click("Undo Clear")
    page.until(lambda: shown(page) == {"old": (2, 2), "main": (0, 2)}, "it is back")
    assert not page.all("[title^='show the samples before Clear']")
    publish(script, stack("main", "old"))
    page.until(lambda: shown(page)["old"] == (3, 3), "it goes on")


def test_missing_messages_are_reported(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main"))
    script.lose(2)
    publish(script, stack("main"))
    page.until(lambda: "2 messages are missing: there may have been more samples" in page.text, "it is said")


def drag(page: Page, begin: float, end: float) -> None:
    """Drag over a part of the time in the strip, given as fractions of the whole."""
    strip = page.one(".strip canvas")
    names, width = 110, strip.size["width"]
    actions = ActionChains(page.driver)
    actions.move_to_element_with_offset(strip, round(names + (width - names) * begin - width / 2), 0).click_and_hold()
    actions.move_by_offset(round((width - names) * (end - begin)), 0).release().perform()


def test_a_range_is_dragged_over_and_compared_with_the_time_before(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    for name in ("early", "late"):  # each for 10 s; the other thread sleeps
        computing, asleep = stack("main", name), stack("worker", "sleep", thread=2)
        computing[0] |= {19: "MainThread", 21: "running"}
        asleep[0] |= {19: "sleeper", 21: "waiting"}
        begin = 10.0 * (name == "late")
        times = [begin + 0.01 * number for number in range(1000)]
        script.publish(*((time, CPU_SAMPLE, frames) for time in times for frames in (computing, asleep)))
    until_drawn(page, "main", "early", "late")
    names = page.script(
        "return [...document.querySelector('select[aria-label=Thread]').options].map(({text}) => text)"
    )
    assert names == ["all", "MainThread (100.0 %)"]
    drag(page, 0.55, 0.75)
    page.until(lambda: "range=" in page.driver.current_url, "it is in the address")
    until_drawn(page, "main", "late")
    page.choose("Compare with", "the time before")
    page.until(lambda: page.rows("Changes of functions"), "the changes are in the table")
    changes = {
        row[0]: float(row[1].split()[0].replace("−", "-").lstrip("±")) for row in page.rows("Changes of functions")
    }
    assert changes["late"] == pytest.approx(75, abs=3)
    assert changes["early"] == pytest.approx(-75, abs=3)
    assert "compare=before" in page.driver.current_url
    page.one(".strip").send_keys(Keys.ESCAPE)
    until_drawn(page, "main", "early", "late")
    page.choose("Graph", "Sandwich")
    page.click("late")
    page.until(lambda: len(page.all(".flame")) == 2, "there is a graph of the callers and one of what it calls")


PROGRAM = """
import time

class Shop:
    def hot(self):
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass

    def warm(self):
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass

shop = Shop()
while True:
    shop.hot()
    shop.warm()
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[str]:
    """A program that spends two thirds of its time in one function, run by `tornado-rbkit run`: the address."""
    script = tmp_path / "shop.py"
    script.write_text(PROGRAM)
    command = [sys.executable, *PATIENT, "run", str(script)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://\S+", process.stderr.readline())
            assert found
            yield found[0]
        finally:
            process.terminate()


def test_a_real_program_s_hot_function_has_its_share(program: str, page: Page) -> None:
    page.open(program, "cpu")
    page.until_live()
    page.click("Record CPU")

    def samples(method: str) -> int:
        """Return the samples of a method, of all rows with its name."""
        rows = page.rows("Functions", exact=True)
        return sum(number(row[2]) for row in rows if row[0].endswith(method))

    page.until(lambda: samples("hot") + samples("warm") > 1000, "a thousand samples are there")
    engines = ("stack reader", "in-process")
    page.until(lambda: page.facts["sampler"].startswith(engines), "what samples is said")
    by_task = page.script("return [...document.querySelectorAll('option')].find(({value}) => value === 'task').text")
    assert by_task.endswith("(needs --cpu-engine in-process)") != page.facts["sampler"].startswith("in-process")

    # A pause of the machine is as many samples of one function, which later ones outnumber.
    page.until(
        lambda: 0.55 < samples("hot") / (samples("hot") + samples("warm")) < 0.78, "the program's share is seen"
    )
    page.click("Stop CPU")
    page.until(lambda: page.facts["recording"] == "nothing", "it is stopped")
