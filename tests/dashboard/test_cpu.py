"""CPU samples: the flame graph, the functions, and what is exported, beside what Python counts of them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.dashboard.conftest import Page, Script, Serve
from tests.fake_rbkit import FakeRbkit, recorded
from tornado_rbkit.protocol import CPUSample, EventCollection, decode
from tornado_rbkit.recording.export import collapsed, speedscope

CPU_SAMPLE = 9


def ruby_samples() -> list[CPUSample]:
    """Return the samples of the real traffic."""
    messages = [decode(record[3]) for record in recorded("cpu") if record[1] == 1]
    events = [event for message in messages if isinstance(message, EventCollection) for event in message.events]
    return [event for event in events if isinstance(event, CPUSample) and event.frames]


def open_ruby(page: Page, site: Serve, rbkit: FakeRbkit) -> list[CPUSample]:
    """Show the real traffic; return its samples."""
    page.open(site(rbkit).url, "cpu")
    page.until_live()
    for record in recorded("cpu"):
        if record[1] == 1:
            rbkit.publish(record[3])
    samples = ruby_samples()
    page.until(lambda: f"{len(samples)} samples" in page.text, "all samples are counted")
    page.until(lambda: page.rows("Functions"), "functions are shown")
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
    first = [(row[0], [int(cell.split()[0].replace(",", "")) for cell in row[1:3]]) for row in page.rows("Functions")]
    return {name: (own, whole) for name, (own, whole) in first}


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


def flame(page: Page) -> dict[str, Frame]:
    """Return the frames that are drawn, by name: what is told of each patch of one colour when it is pointed at."""
    frames = page.script(
        """
        const [graph, told] = ['.flame', '.hovered'].map(selector => document.querySelector(selector));
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
            const [name, , figures] = told.textContent.split('  ');
            return [name, figures, (y - 1) / 18, x + width / 2, width, found];
        });
        point('pointerleave', 0, 0);
        return rows;
        """
    )
    return {frame[0]: Frame(*frame) for frame in frames}


def until_drawn(page: Page, *names: str) -> dict[str, Frame]:
    """Wait until these frames are drawn and no others."""
    page.until(lambda: set(flame(page)) == {"all", *names}, f"the frames are {names}")
    return flame(page)


def click(page: Page, name: str) -> None:
    """Click a frame."""
    frame, canvas = flame(page)[name], page.one(".flame canvas")
    size = canvas.size
    ActionChains(page.driver).move_to_element_with_offset(
        canvas, round(frame.x - size["width"] / 2), round(18 * frame.depth + 9 - size["height"] / 2)
    ).click().perform()


def test_functions_have_the_samples_that_python_counts(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    own, whole = counted(open_ruby(page, site, rbkit))
    assert shown(page) == {label: (own[label], whole[label]) for label in whole}
    # A function that recurses is counted once a sample.
    assert max(whole.values()) <= len(ruby_samples())


def test_of_a_thread_for_each_request_the_list_has_the_busiest(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, *[stack("main", "loop", thread=1)] * 40)
    publish(script, *(stack("handle", f"request{number % 7}", thread=10 + number) for number in range(3000)))
    page.until(lambda: "3,040 samples" in page.text, "all are counted")
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
        "all": (0, "3 samples, 100.0 %"),
        "main": (1, "3 samples, 100.0 %"),
        "a": (2, "2 samples, 66.7 %"),
        "b": (3, "1 sample, 33.3 %"),
        "c": (2, "1 sample, 33.3 %"),
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
    assert frames["cold"].figures == "1 sample, 25.0 %"
    page.until(lambda: page.texts("#view-cpu .detail h3") == ["cold"], "its details are shown")
    # What is looked at goes on as well.
    publish(script, stack("main", "new"), stack("main", "cold", "later"))
    frames = until_drawn(page, "main", "cold", "within", "later")
    assert frames["within"].width == pytest.approx(frames["cold"].width / 2, rel=0.02)
    page.click("Whole graph")
    frames = until_drawn(page, "main", "hot", "cold", "within", "later", "new")
    assert frames["cold"].width == pytest.approx(frames["main"].width / 3, rel=0.02)


def test_the_flame_graph_is_walked_by_keyboard(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, *[stack("main", "hot")] * 2, stack("main", "cold"))
    until_drawn(page, "main", "hot", "cold")
    graph = page.one(".flame")

    def told(*keys: str) -> str:
        graph.send_keys(*keys)
        return page.one(".hovered [aria-live=polite]").text

    assert told(Keys.ARROW_DOWN) == "all"
    assert told(Keys.ARROW_DOWN, Keys.ARROW_DOWN) == "hot"  # the widest
    assert told(Keys.ARROW_LEFT) == "cold"
    assert told(Keys.ARROW_LEFT) == "cold"  # there is none further left
    assert told(Keys.ARROW_UP) == "main"
    assert told(Keys.ARROW_DOWN, Keys.ENTER) == "hot"
    until_drawn(page, "main", "hot")


def test_a_graph_of_deep_recursion_is_drawn_and_scrolled(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", *["deeper"] * 2000), stack("main", "flat"))
    page.until(lambda: {"main", "deeper", "flat"} <= set(flame(page)), "it is drawn")
    canvas = page.one(".flame canvas").size
    assert canvas["height"] < 700
    page.script("document.querySelector('.flame').scrollTop = 9000")
    page.until(lambda: set(flame(page)) == {"deeper"}, "it is deeper there")


def test_callers_callees_and_lines_of_a_function(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "hub", "leaf"), stack("main", "hub", "leaf"), stack("other", "hub"), stack("hub"))
    page.until(lambda: "hub" in shown(page), "hub is there")
    page.click("hub")
    expected = {
        "Called by": [["main", "2  50.0 %"], ["other", "1  25.0 %"], ["(thread)", "1  25.0 %"]],
        "Calls": [["leaf", "2  50.0 %"]],
        "Its own samples by line": [["line 1", "1  25.0 %"], ["line 0", "1  25.0 %"]],
    }
    page.until(lambda: lists(page) == expected, "they are its own")
    assert "self 2 samples, 50.0 %; total 4 samples, 100.0 %" in page.one("#view-cpu .detail").text
    assert page.texts("#view-cpu .detail button") == ["main", "other", "leaf"]  # what can be followed


def test_details_go_on_under_the_focus(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("one", "hub", "leaf"), stack("one", "hub"), stack("two", "hub"))
    page.until(lambda: "hub" in shown(page), "hub is there")
    page.click("hub")
    page.until(lambda: len(lists(page)["Called by"]) == 2, "its callers are shown")
    page.script("document.querySelector('#view-cpu .detail button').focus()")
    assert page.driver.switch_to.active_element.text == "one"
    publish(script, *[stack("two", "hub")] * 5)
    expected = [["one", "2  25.0 %"], ["two", "6  75.0 %"]]
    page.until(lambda: lists(page)["Called by"] == expected, "the figures go on")
    assert page.driver.switch_to.active_element.text == "one"


def at_line(frames: list[dict[int, Any]], line: int) -> list[dict[int, Any]]:
    """Return a stack that is at another line of its innermost function."""
    return [frames[0] | {7: line}, *frames[1:]]


def lists(page: Page) -> dict[str, list[list[str]]]:
    """Return what is said of the function in view, by title."""
    return {title: page.rows(title) for title in ("Called by", "Calls", "Its own samples by line")}


def follow(page: Page, name: str) -> None:
    """Click a function among the callers and callees of another."""
    next(link for link in page.all("#view-cpu .detail button") if link.text == name).click()
    page.until(lambda: page.texts("#view-cpu .detail h3") == [name], f"{name} is in view")


def test_callers_and_callees_are_followed(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "load", "parse"), stack("main", "save"))
    page.until(lambda: "parse" in shown(page), "parse is there")
    page.click("parse")
    page.until(lambda: page.texts("#view-cpu .detail h3") == ["parse"], "it is in view")
    follow(page, "load")
    page.until(lambda: lists(page)["Calls"] == [["parse", "1  100.0 %"]], "what it calls")
    follow(page, "main")
    page.until(lambda: lists(page)["Calls"] == [["load", "1  50.0 %"], ["save", "1  50.0 %"]], "what it calls")


def test_a_sample_counts_once_however_deep_it_recurses(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "walk", "walk", "visit", "walk", "visit"), stack("main", "walk"))
    page.until(lambda: shown(page) == {"visit": (1, 1), "walk": (1, 2), "main": (0, 2)}, "it counts once")
    page.click("walk")
    page.until(lambda: lists(page)["Calls"] == [["visit", "1  50.0 %"]], "its details are shown")
    assert lists(page)["Called by"] == [["main", "2  100.0 %"]]


def test_lines_are_one_function_and_those_of_the_thread(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    other = at_line(stack("main", "work", thread=2), 5)
    publish(script, stack("main", "work"), at_line(stack("main", "work"), 3), other, other)
    page.until(lambda: shown(page) == {"work": (4, 4), "main": (0, 4)}, "at whatever line")
    page.click("work")

    def lines() -> list[list[str]]:
        return lists(page)["Its own samples by line"]

    every = [["line 5", "2  50.0 %"], ["line 1", "1  25.0 %"], ["line 3", "1  25.0 %"]]
    page.until(lambda: lines() == every, "its details are shown")
    page.choose("Thread", "1 ")
    alone = [["line 1", "1  50.0 %"], ["line 3", "1  50.0 %"]]
    page.until(lambda: lines() == alone, "one thread is shown alone")
    assert shown(page) == {"work": (2, 2), "main": (0, 2)}


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


def test_clear_begins_anew(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main", "old"))
    page.until(lambda: "old" in shown(page), "old is there")
    page.click("Clear")
    page.until(lambda: page.rows("Functions") == [], "nothing is left")
    publish(script, stack("main", "new"))
    page.until(lambda: set(shown(page)) == {"main", "new"}, "what comes is shown")


def test_missing_messages_are_said(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    publish(script, stack("main"))
    script.lose(2)
    publish(script, stack("main"))
    page.until(lambda: "2 messages are missing: there may have been more samples" in page.text, "it is said")


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
    command = [sys.executable, "-m", "tornado_rbkit", "run", str(script)]
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
    page.until(lambda: sum(own for own, _ in shown(page).values()) > 1000, "a thousand samples are there")
    table = shown(page)
    hot, warm = (next(whole for name, (_, whole) in table.items() if name.endswith(end)) for end in ("hot", "warm"))
    assert 0.55 < hot / (hot + warm) < 0.78
    page.click("Stop CPU")
    page.until(lambda: page.facts["recording"] == "nothing", "it is stopped")
