"""The SVG writer: what is drawn, how wide, and that nothing in it can do harm."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from selenium.webdriver import Keys
from selenium.webdriver.chromium.webdriver import ChromiumDriver

from tornado_rbkit.jupyter.flamegraph import ZOOM_STYLE, flame_graph, zoomable

SVG = "{http://www.w3.org/2000/svg}"


def bars(svg: str) -> dict[str, tuple[float, float, float]]:
    """Return where each bar begins, how wide it is and how high it is, by its tip."""
    found = {}
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        rectangle = group.find(f"{SVG}rect")
        assert rectangle is not None
        x, width, y = (float(rectangle.attrib[name]) for name in ("x", "width", "y"))
        found[str(group.findtext(f"{SVG}title"))] = (x, width, y)
    return found


def test_a_bar_is_as_wide_as_it_was_seen_often_and_lies_on_its_caller() -> None:
    found = bars(flame_graph({("main", "a", "c"): 3, ("main", "b"): 1}, "four"))
    assert found.keys() == {
        "all: 4 samples, 100.0 %",
        "main: 4 samples, 100.0 %",
        "a: 3 samples, 75.0 %",
        "c: 3 samples, 75.0 %",
        "b: 1 samples, 25.0 %",
    }
    by_label = {tip.partition(":")[0]: bar for tip, bar in found.items()}
    whole, a, b, c = by_label["all"], by_label["a"], by_label["b"], by_label["c"]
    assert abs(a[1] / whole[1] - 0.75) < 0.01
    assert a[0] == c[0] == whole[0]
    assert b[0] > a[0]
    assert whole[2] > a[2] > c[2], "the outermost is at the bottom"
    assert a[2] == b[2]


def test_labels_are_text_and_nothing_else() -> None:
    evil = "</title><script>alert(1)</script>\"'&\x00\x1b\ud800"
    svg = flame_graph({(evil,): 1}, evil)
    svg.encode()
    root = ET.fromstring(svg)
    assert {element.tag for element in root.iter()} == {f"{SVG}{tag}" for tag in ("svg", "title", "rect", "text", "g")}
    assert not re.search(r"href|\son\w+=|url\(", svg)


def test_what_cannot_be_seen_is_left_out() -> None:
    many: dict[tuple[str, ...], int] = {("wide",): 100_000, **{(f"thin-{i}",): 1 for i in range(1000)}}
    assert len(bars(flame_graph(many, "many"))) == 2
    deep = {tuple(f"level-{i}" for i in range(5000)): 1}
    assert len(bars(flame_graph(deep, "deep"))) < 200


def test_nothing_seen_is_a_picture_too() -> None:
    assert bars(flame_graph({}, "0.00 s, 0 samples")).keys() == {"all: 0 samples, 0.0 %"}


def boxes(page: str) -> dict[str, float]:
    """Return the width of each box in percent of its caller's box, by its tip."""
    found = re.findall(r'width:([\d.]+)%"><label title="(.*?)"', page)
    return {tip: float(width) for width, tip in found}


def test_a_box_is_as_wide_in_its_caller_s_as_it_was_seen_often_in_it() -> None:
    assert boxes(zoomable({("main", "a", "c"): 3, ("main", "b"): 1}, "four")) == {
        "all: 4 samples, 100.0 %": 100,
        "main: 4 samples, 100.0 %": 100,
        "a: 3 samples, 75.0 %": 75,
        "c: 3 samples, 75.0 %": 100,
        "b: 1 samples, 25.0 %": 25,
    }


@pytest.mark.parametrize("count", [3, 7, 9, 11, 13, 30])
def test_the_boxes_of_a_row_never_need_more_than_the_row(count: int) -> None:
    widths = list(boxes(zoomable({(str(i),): 1 for i in range(count)}, "")).values())[1:]
    assert len(widths) == count
    assert sum(widths) <= 100


def test_the_boxes_have_text_and_no_script() -> None:
    evil = "</label><script>alert(1)</script>\"'&\x00\ud800"
    page = zoomable({(evil,): 1}, evil)
    page.encode()
    tags = {"div", "p", "b", "span", "label", "input", "bdi"}
    assert {
        element.tag for element in ET.fromstring(re.sub("(<input[^>]*|hidden)(?=[ >])", _closed, page)).iter()
    } == tags
    assert not re.search(r"href|\son\w+=|url\(", page + ZOOM_STYLE)


def _closed(match: re.Match[str]) -> str:
    """Return what is HTML only as XML."""
    return 'hidden=""' if match[0] == "hidden" else f"{match[0]}/"


def test_a_click_or_a_key_zooms_in_and_out_without_the_other_cells_graphs(
    browser: ChromiumDriver, tmp_path: Path
) -> None:
    graph = {("main", "a", "c"): 3, ("main", "b"): 1}
    page = tmp_path / "page.html"
    page.write_text(f"<style>{ZOOM_STYLE}</style>{zoomable(graph, 'one')}{zoomable(graph, 'two')}")
    browser.get(page.as_uri())

    def seen() -> list[list[str]]:
        graphs = browser.find_elements("css selector", ".rbkit-flames")
        return [
            [box.text for box in graph.find_elements("css selector", "label") if box.is_displayed()]
            for graph in graphs
        ]

    whole, b, c = ["all", "main", "a", "c", "b"], "//label[.='b']", "//label[.='c']"
    assert seen() == [whole, whole]
    browser.find_element("xpath", b).click()
    assert seen() == [["all", "main", "b"], whole]
    assert browser.find_element("xpath", b).size == browser.find_element("xpath", "//label[.='all']").size
    browser.switch_to.active_element.send_keys(Keys.ARROW_UP)
    assert seen() == [whole, whole], "main is chosen"
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert seen() == [["all", "main", "a", "c"], whole]
    assert browser.find_element("xpath", c).size == browser.find_element("xpath", "//label[.='all']").size
    browser.find_element("xpath", "//label[.='all']").click()
    assert seen() == [whole, whole]
