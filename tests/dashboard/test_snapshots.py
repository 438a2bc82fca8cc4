"""The Snapshots view with known heaps, from the classes down to the holders of one object."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.dashboard.conftest import TICKED, Page, Program, Script, Serve, Site
from tests.fake_rbkit import collection, recorded
from tornado_rbkit.protocol import EventCollection, EventType, ObjectSpaceDump, decode
from tornado_rbkit.recording import recording

CLASSES = "Classes in the snapshot"
COMPARED = "Classes, compared with the earlier snapshot"
OBJECTS = "Objects of the class"

HEAP: list[dict[int, Any]] = [
    {3: 0x10, 4: "Module", 5: [0x20, 0x30], 6: None, 7: None, 8: 100},
    {3: 0x20, 4: "Registry", 5: [0x40], 6: "/srv/app/lib/shop/registry.rb", 7: 7, 8: 40},
    {3: 0x30, 4: "Hash", 5: [], 6: None, 7: None, 8: 4096},
    {3: 0x40, 4: "Array", 5: [0x50, 0x51, 0x99], 6: None, 7: None, 8: 3000},  # 0x99 is not in the snapshot
    {3: 0x50, 4: "Item", 5: [0x60], 6: "/srv/app/item.rb", 7: 3, 8: 40},
    {3: 0x51, 4: "Item", 5: [0x60], 6: "/srv/app/item.rb", 7: 4, 8: 56},
    {3: 0x60, 4: "String", 5: [], 6: None, 7: None, 8: None},
    {3: 0x70, 4: None, 5: [0x71], 6: None, 7: None, 8: 8},
    {3: 0x71, 4: "Ring", 5: [0x70], 6: None, 7: None, 8: 8},
]


@pytest.fixture
def snapshots(page: Page, site: Serve, script: Script) -> Page:
    """The view of a profiler that has published nothing yet."""
    page.open(site(script.rbkit).url, "snapshots")
    page.until_live()
    return page


def dump(objects: list[dict[int, Any]], number: int = 1, expected: int | None = None) -> dict[int, Any]:
    """Return an object_space_dump."""
    total = len(objects) if expected is None else expected
    return {0: EventType.OBJECT_SPACE_DUMP, 1: 1_795_388_400_000.0 + number, 10: number, 11: total, 2: objects}


def objects_of(name: str, ids: range) -> list[dict[int, Any]]:
    return [{3: each, 4: name, 5: [], 6: None, 7: None, 8: 10} for each in ids]


def until_taken(page: Page, *numbers: int) -> None:
    page.until(lambda: taken(page) == list(numbers), f"the snapshots are {numbers}")


def taken(page: Page) -> list[int]:
    return [int(text.split()[1]) for text in page.texts(".snapshots b")]


def choose_class(page: Page, caption: str, name: str) -> None:
    page.until(lambda: name in [row[0] for row in page.rows(caption)], f"{name} is among the classes")
    page.press(lambda: link(page, "table", name))
    page.until(lambda: page.texts(".objects h3") == [name], f"the objects of {name} are shown")


def link(page: Page, within: str, text: str) -> Any:
    """Return a link, once the browser has laid out the row that it is in, which it does where it is seen."""
    links = "[...document.querySelectorAll(arguments[0])].filter(one => one.textContent === arguments[1])"
    found: list[Any] = []

    def look() -> bool:
        code = f"""
            const found = {links};
            if (found.length === 1) found[0].scrollIntoView({{ block: "center" }});
            return found.filter(one => one.checkVisibility() && one.innerText === arguments[1]);
        """
        found[:] = page.script(code, f"{within} button.link", text)
        return len(found) == 1

    page.until(look, f"there is one link {text!r}")
    return found[0]


def follow(page: Page, within: str, text: str) -> None:
    page.press(lambda: link(page, within, text))
    page.until(lambda: page.texts(".detail h3") == [text], f"{text} is shown")


def path(page: Page) -> list[str]:
    return [" ".join(text.split()[:2]) for text in page.texts(".path li")]


def links(page: Page, kind: str) -> list[str]:
    return page.texts(f".{kind} button.link")


def test_it_says_how_a_leak_is_found(snapshots: Page) -> None:
    snapshots.until(
        lambda: "press Find what grows: it takes one, lets the program do its work" in snapshots.text, "it is said"
    )


def test_the_button_takes_one(snapshots: Page, script: Script) -> None:
    script.rbkit.snapshot = collection(0, [dump(HEAP)])
    snapshots.click("Take a snapshot")
    until_taken(snapshots, 1)
    assert "9 objects, 7.2 KiB" in snapshots.texts(".snapshots button")[0]


def test_classes_are_counted_and_measured(snapshots: Page, script: Script) -> None:
    script.publish_raw([dump(HEAP)])
    until_taken(snapshots, 1)
    snapshots.until(lambda: snapshots.rows(CLASSES), "its classes are shown")
    assert snapshots.rows(CLASSES) == [
        ["Module", "1", "100 B", "7.2 KiB", "0"],
        ["Hash", "1", "4.0 KiB", "4.0 KiB", "0"],
        ["Registry", "1", "40 B", "3.1 KiB", "0"],
        ["Array", "1", "2.9 KiB", "3.0 KiB", "0"],
        ["Item", "2", "96 B", "96 B", "0"],
        ["(unknown)", "1", "8 B", "16 B", "1"],
        ["Ring", "1", "8 B", "8 B", "1"],
        ["String", "1", "0 B", "0 B", "0"],
    ]
    snapshots.type("Filter by class name", "ri")
    snapshots.until(lambda: [row[0] for row in snapshots.rows(CLASSES)] == ["Ring", "String"], "they are filtered")
    snapshots.click("class")
    snapshots.until(lambda: [row[0] for row in snapshots.rows(CLASSES)] == ["Ring", "String"], "they are in order")
    snapshots.click("class")
    snapshots.until(lambda: [row[0] for row in snapshots.rows(CLASSES)] == ["String", "Ring"], "they are turned round")


def test_the_resident_memory_is_a_bar_of_what_explains_it(snapshots: Page, script: Script) -> None:
    def described() -> str:
        return str(snapshots.one(".account-bar").get_attribute("aria-label"))

    script.publish_raw([dump(HEAP) | {18: 73_480}])
    until_taken(snapshots, 1)
    snapshots.until(lambda: described().startswith("Of 71.8 KiB resident memory: "), "its size is said")
    assert "objects in the snapshot 7.2 KiB (10.0 %)" in described()
    assert "64.6 KiB (90.0 %)" in described()
    assert "tracemalloc is off" in snapshots.text_of(".account")
    script.publish_raw([dump(HEAP, 2) | {18: 73_480, 23: 36_740}])
    until_taken(snapshots, 1, 2)
    snapshots.until(lambda: "more that tracemalloc knows 28.7 KiB (40.0 %)" in described(), "its part is said")
    assert "tracemalloc is off" not in snapshots.text_of(".account")
    widths = "return [...document.querySelectorAll('.account-bar span')].map(part => parseFloat(part.style.width))"
    assert snapshots.script(widths) == pytest.approx([10.0, 40.0, 50.0], abs=0.1)
    script.publish_raw([dump(HEAP, 3)])
    until_taken(snapshots, 1, 2, 3)
    snapshots.until(lambda: not snapshots.all(".account"), "it is not known of the third")


def test_objects_are_followed_both_ways(snapshots: Page, script: Script) -> None:
    script.publish_raw([dump(HEAP)])
    until_taken(snapshots, 1)
    choose_class(snapshots, CLASSES, "Item")
    snapshots.until(lambda: len(snapshots.rows(OBJECTS)) == 2, "they are listed")
    assert snapshots.rows(OBJECTS) == [
        ["0x51", "56 B", "56 B", "…/app/item.rb:4"],
        ["0x50", "40 B", "40 B", "…/app/item.rb:3"],
    ]
    assert snapshots.texts(".objects > .hint") == ["2 objects."]
    assert snapshots.texts(".ways li") == ["(Module) → Registry → Array 2 objects, 96 B retained"]
    snapshots.press(lambda: link(snapshots, "table", "0x50"))
    snapshots.until(lambda: snapshots.texts(".detail h3") == ["Item 0x50"], "it is shown")
    assert "40 B, 40 B retained, made at …/app/item.rb:3" in snapshots.texts(".detail p")
    assert path(snapshots) == ["Module 0x10", "Registry 0x20", "Array 0x40", "Item 0x50"]
    assert links(snapshots, "referrers") == ["Array 0x40"]
    assert links(snapshots, "references") == ["String 0x60"]

    follow(snapshots, ".references", "String 0x60")
    assert links(snapshots, "referrers") == ["Item 0x50", "Item 0x51"]
    follow(snapshots, ".referrers", "Item 0x51")
    follow(snapshots, ".path", "Array 0x40")
    assert links(snapshots, "references") == ["Item 0x50", "Item 0x51"]
    assert "and to 1 that are not in the snapshot" in snapshots.texts(".detail .hint")
    for step in ["Item 0x51", "String 0x60", "Item 0x50"]:
        snapshots.click("Back")
        snapshots.until(lambda shown=step: snapshots.texts(".detail h3") == [shown], f"back at {step}")  # type: ignore[misc]
    assert "Back" not in snapshots.texts("button")


def test_it_says_what_nothing_or_only_a_cycle_holds(snapshots: Page, script: Script) -> None:
    script.publish_raw([dump(HEAP)])
    until_taken(snapshots, 1)
    choose_class(snapshots, CLASSES, "Ring")
    snapshots.press(lambda: link(snapshots, "table", "0x71"))
    snapshots.until(lambda: "Only by a cycle: nothing outside refers to it." in snapshots.text, "it is a cycle")
    assert links(snapshots, "referrers") == ["(unknown) 0x70"]
    choose_class(snapshots, CLASSES, "Module")
    snapshots.press(lambda: link(snapshots, "table", "0x10"))
    held = "Nothing in the snapshot refers to it: the interpreter holds it, or it is garbage."
    snapshots.until(lambda: held in snapshots.text, "it is a root")


def test_progress_is_shown_while_one_comes_in_parts(snapshots: Page, script: Script) -> None:
    script.publish_raw([dump(HEAP[:4], expected=9)])
    told = "Receiving a snapshot: 4 of 9 objects."
    snapshots.until(lambda: told in snapshots.text, "it is told")
    assert snapshots.all("progress")[0].get_property("value") == pytest.approx(4 / 9)
    assert taken(snapshots) == []
    script.publish_raw([dump(HEAP[4:], expected=9)])
    until_taken(snapshots, 1)
    assert snapshots.all("progress") == []
    assert told not in snapshots.text
    choose_class(snapshots, CLASSES, "Item")
    snapshots.press(lambda: link(snapshots, "table", "0x51"))
    snapshots.until(lambda: path(snapshots)[:1] == ["Module 0x10"], "the parts refer to each other")


def lose_messages(script: Script, server: Site) -> None:
    script.lose(1)
    script.publish_raw([])


def restart(script: Script, server: Site) -> None:
    script.rbkit.counter = 0
    script.publish_raw([])


def end_profiler(script: Script, server: Site) -> None:
    script.rbkit.stop()


def end_server(script: Script, server: Site) -> None:
    server.stop()


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lose_messages, "messages are missing"),
        (restart, "the process was restarted"),
        (end_profiler, "the profiler disconnected"),
        (end_server, "the connection was lost"),
    ],
)
def test_one_whose_rest_will_not_come_is_shown_as_such(
    page: Page, site: Serve, script: Script, end: Callable[[Script, Site], None], told: str
) -> None:
    server = site(script.rbkit)
    page.open(server.url, "snapshots")
    page.until_live()
    script.publish_raw([])
    script.publish_raw([dump(HEAP[:4], expected=9)])
    page.until(lambda: "4 of 9 objects" in page.text, "it comes in")
    gone = ["WebSocket connection to", "Failed to load resource: net::ERR_"]
    page.expected_console = gone if end is end_server else []
    end(script, server)
    until_taken(page, 1)
    only = f"Only 4 of 9 objects of a snapshot arrived: {told}."
    page.until(lambda: any(only in text for text in page.alerts), "it is reported")
    incomplete = f"incomplete: 4 of 9 arrived, {told}"
    page.until(lambda: incomplete in page.texts(".snapshots button")[0], "it is shown as incomplete")
    page.until(lambda: page.all("progress") == [], "nothing is awaited")


def test_one_that_does_not_continue_is_given_up_in_the_end(page: Page, site: Serve, script: Script) -> None:
    page.open_with(site(script.rbkit).url, "snapshots", TICKED)
    page.until_live()
    script.publish_raw([dump(HEAP[:4], expected=9)])
    page.until(lambda: "4 of 9 objects" in page.text, "it comes in")
    page.tick(59)
    page.until(lambda: "4 of 9 objects, nothing for 59 s" in page.text, "its silence is told")
    assert taken(page) == []
    page.tick(1)
    until_taken(page, 1)
    incomplete = "incomplete: 4 of 9 arrived, then nothing for 60 s"
    page.until(lambda: incomplete in page.texts(".snapshots button")[0], "it is shown as incomplete")
    page.until(lambda: "Receiving" not in page.text, "nothing is awaited")


def test_the_second_is_shown_by_what_it_has_more_than_the_first(snapshots: Page, script: Script) -> None:
    steady = objects_of("Steady", range(10, 13))
    script.publish_raw([dump([*objects_of("Leaky", range(1, 5)), *steady, *objects_of("Gone", range(20, 22))])])
    until_taken(snapshots, 1)
    script.publish_raw([dump([*objects_of("Leaky", range(2, 105)), *steady, *objects_of("New", range(20, 22))], 2)])
    until_taken(snapshots, 1, 2)
    snapshots.until(lambda: snapshots.rows(COMPARED), "they are compared")
    assert snapshots.rows(COMPARED) == [
        ["Leaky", "+990 B", "+99", "+990 B", "100", "1", "103", "0"],
        ["New", "+20 B", "+2", "+20 B", "2", "0", "2", "0"],  # at the addresses of freed objects
        ["Gone", "−20 B", "−2", "−20 B", "0", "2", "0", "0"],
    ]
    assert "3 classes changed since snapshot 1" in snapshots.text
    choose_class(snapshots, COMPARED, "Leaky")
    snapshots.until(lambda: "100 objects not in snapshot 1" in snapshots.text, "only the new ones are listed")
    assert "0x2" not in [row[0] for row in snapshots.rows(OBJECTS)]
    snapshots.choose("Compare with", "nothing")
    snapshots.until(lambda: snapshots.row(CLASSES, "Leaky") == ["103", "1.0 KiB", "1.0 KiB", "0"], "it alone is shown")
    snapshots.press(lambda: snapshots.all(".snapshots button")[0])
    snapshots.until(lambda: snapshots.row(CLASSES, "Leaky") == ["4", "40 B", "40 B", "0"], "the first is shown")


def test_one_can_be_removed(snapshots: Page, script: Script) -> None:
    for number in (1, 2, 3):
        script.publish_raw([dump(objects_of("Thing", range(1, 10 * number)), number)])
        until_taken(snapshots, *range(1, number + 1))
    snapshots.until(lambda: "since snapshot 2" in snapshots.text, "the third is compared with the second")
    snapshots.click("Remove snapshot 1")
    until_taken(snapshots, 2, 3)
    assert [button.get_attribute("aria-pressed") for button in snapshots.all("[data-number]")] == ["false", "true"]
    assert "since snapshot 2" in snapshots.text
    others = snapshots.script(
        "return [...document.querySelector('[aria-label=\"Compare with\"]').options].map(o => o.text)"
    )
    assert [text.split(",")[0] for text in others] == ["nothing", "snapshot 2"]
    snapshots.click("Remove snapshot 2")
    until_taken(snapshots, 3)
    snapshots.until(lambda: snapshots.row(CLASSES, "Thing")[0] == "29", "it is shown alone")
    snapshots.click("Remove snapshot 3")
    until_taken(snapshots)
    snapshots.until(lambda: "No snapshot yet" in snapshots.text, "there is none")
    assert snapshots.all("table") == []


def test_the_last_one_removed_can_be_brought_back(snapshots: Page, script: Script) -> None:
    for number in (1, 2):
        script.publish_raw([dump(HEAP, number)])
    until_taken(snapshots, 1, 2)
    snapshots.click("Remove snapshot 1")
    until_taken(snapshots, 2)
    snapshots.click("Undo Remove")
    until_taken(snapshots, 1, 2)
    assert "Undo Remove" not in snapshots.texts("button")


def test_objects_are_grouped_by_the_place_where_they_were_made(snapshots: Page, script: Script) -> None:
    script.publish_raw([dump(HEAP)])
    more = [{3: 0x100 + n, 4: "Item", 5: [], 6: "/srv/app/item.rb", 7: 3, 8: 40} for n in range(5)]
    script.publish_raw([dump([*HEAP, *more], 2)])
    until_taken(snapshots, 1, 2)
    snapshots.choose("Group by", "file and line")
    caption = "Places where objects are made, compared with the earlier snapshot"
    snapshots.until(lambda: snapshots.rows(caption) == [["…/app/item.rb:3", "+200 B", "+5", "6", "Item"]], "it grows")
    snapshots.choose("Compare with", "nothing")
    places = "Places where objects are made in the snapshot"
    snapshots.until(lambda: len(snapshots.rows(places)) == 4, "all are listed")
    assert snapshots.row(places, "…/app/item.rb:3") == ["6", "240 B", "Item"]
    assert snapshots.row(places, "(not known)")[0] == "6"
    snapshots.press(lambda: link(snapshots, "table", "…/app/item.rb:3"))
    snapshots.until(lambda: len(snapshots.rows(OBJECTS)) == 6, "its objects are listed")


def test_a_link_shows_the_same_snapshots_class_and_object(snapshots: Page, script: Script) -> None:
    parts = [dump(HEAP), dump([*HEAP, *objects_of("Item", range(0x200, 0x210))], 2)]
    for part in parts:
        script.publish_raw([part])
    until_taken(snapshots, 1, 2)
    choose_class(snapshots, COMPARED, "Item")
    snapshots.press(lambda: link(snapshots, "table", "0x205"))
    snapshots.until(lambda: snapshots.texts(".detail h3") == ["Item 0x205"], "it is shown")
    snapshots.type("Filter by class name", "it")
    snapshots.click("new")
    snapshots.until(lambda: "sort=-appeared" in snapshots.driver.current_url, "the order is in the address")
    address = snapshots.driver.current_url
    # Another viewer has the same two snapshots, and one more, under other numbers.
    snapshots.driver.get("about:blank")
    snapshots.driver.get(address)
    snapshots.until_live()
    snapshots.until(lambda: "The address names a snapshot" in snapshots.text, "it has none yet")
    for part in [dump(HEAP, 7), *parts]:
        script.publish_raw([part])
    snapshots.until(lambda: snapshots.texts(".detail h3") == ["Item 0x205"], "the object is shown")
    assert snapshots.one("[data-number][aria-pressed=true]").get_attribute("data-number") == "3"
    assert "changed since snapshot 2" in snapshots.text
    assert snapshots.driver.current_url == address


def test_one_is_saved_and_loaded_again(snapshots: Page, script: Script) -> None:
    script.publish_raw([dump(HEAP[:4], expected=9)])
    script.publish_raw([dump(HEAP[4:], expected=9)])
    until_taken(snapshots, 1)
    snapshots.until(lambda: len(snapshots.rows(CLASSES)) == 8, "its classes are shown")
    before = snapshots.rows(CLASSES)
    snapshots.click("Save snapshot 1")
    file = snapshots.downloaded("snapshot-1.rbkit")
    problems: list[str] = []
    with file.open("rb") as stream:
        events = list(recording.events(recording.read(stream), problems))
    assert problems == []
    dumps = [event for event in events if isinstance(event, ObjectSpaceDump)]
    assert [each.object_id for one in dumps for each in one.objects] == [each[3] for each in HEAP]
    snapshots.click("Remove snapshot 1")
    until_taken(snapshots)
    snapshots.upload("Load snapshot…", file)
    until_taken(snapshots, 2)
    assert "from snapshot-1.rbkit" in snapshots.texts(".snapshots button")[0]
    snapshots.until(lambda: snapshots.rows(CLASSES) == before, "they are the same")
    choose_class(snapshots, CLASSES, "Item")
    snapshots.press(lambda: link(snapshots, "table", "0x50"))
    snapshots.until(lambda: path(snapshots)[:1] == ["Module 0x10"], "their references too")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"#!/bin/sh\necho no recording\n" * 100, "wrong.rbkit is not a recording of rbkit"),
        (b"", "wrong.rbkit is empty"),
        (msgpack.packb([0.0, 1, None, collection(0)]), "wrong.rbkit has no snapshot in it"),
        (msgpack.packb([0.0, 1, None, collection(0)])[:-3], "wrong.rbkit"),
    ],
    ids=["text", "empty", "without", "cut"],
)
def test_a_file_that_cannot_be_loaded_is_reported(snapshots: Page, tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "wrong.rbkit"
    file.write_bytes(content)
    snapshots.upload("Load snapshot…", file)
    snapshots.until(lambda: told in snapshots.text_of("section[aria-label=Snapshots] .note"), "it is told")


def test_of_a_file_that_was_cut_off_the_whole_snapshots_and_a_piece_are_loaded(
    snapshots: Page, tmp_path: Path
) -> None:
    parts = [[dump(HEAP)], [dump(HEAP[:4], 2, expected=9)], [dump(HEAP[4:], 2, expected=9)]]
    content = b"".join(msgpack.packb([0.0, 1, None, collection(n, part)]) for n, part in enumerate(parts))
    file = tmp_path / "cut.rbkit"
    file.write_bytes(content[:-3])
    snapshots.upload("Load snapshot…", file)
    until_taken(snapshots, 1, 2)
    note = snapshots.one("section[aria-label=Snapshots] .note")
    damage = "cut.rbkit is damaged after 2 messages: it ends in the middle of one."
    told = f"{damage} The objects that could be read are shown."
    snapshots.until(lambda: note.text == told, "it is told")
    whole, piece = snapshots.texts(".snapshots li button:first-child")
    assert "incomplete" not in whole
    assert "incomplete: 4 of 9 arrived, the file ends there" in piece


def test_of_a_long_way_from_a_root_the_ends_are_shown(snapshots: Page, script: Script) -> None:
    length = 50_000
    chain = [{3: 1, 4: "Module", 5: [2], 6: None, 7: None, 8: 8}]
    chain += [{3: n, 4: "Link", 5: [n + 1], 6: None, 7: None, 8: 8} for n in range(2, length)]
    chain += [{3: length, 4: "Last", 5: [], 6: None, 7: None, 8: 8}]
    script.publish_raw([dump(chain)])
    until_taken(snapshots, 1)
    choose_class(snapshots, CLASSES, "Last")
    snapshots.press(lambda: link(snapshots, "table", f"{length:#x}"))
    snapshots.until(lambda: path(snapshots), "it is shown")
    assert path(snapshots)[19:22] == ["Link 0x14", "… 49,960", f"Link {length - 19:#x}"]
    assert path(snapshots)[-1] == f"Last {length:#x}"
    assert len(path(snapshots)) == 41


def test_recorded_ruby_heap_gives_the_tables_of_python(snapshots: Page, script: Script) -> None:
    payload = msgpack.unpackb(recorded("snapshot")[1][3], strict_map_key=False)
    event = payload[2][0]
    event[11] = len(event[2])  # of a larger one, the first thousand were kept
    message = decode(msgpack.packb(payload))
    assert isinstance(message, EventCollection)
    assert isinstance(message.events[0], ObjectSpaceDump)
    objects = message.events[0].objects
    counts, sizes = Counter[str](), Counter[str]()
    for each in objects:
        name, size = each.class_name or "(unknown)", each.size or 0
        counts[name] += 1
        sizes[name] += size
    script.publish_raw([event])
    until_taken(snapshots, 1)
    snapshots.until(lambda: len(snapshots.rows(CLASSES)) == len(counts), "its classes are shown")
    assert {name: row[:2] for name, *row in snapshots.rows(CLASSES)} == {
        name: [f"{counts[name]:,}", in_bytes(sizes[name])] for name in counts
    }
    named = {each.object_id: f"{each.class_name} {each.object_id:#x}" for each in objects}
    choose_class(snapshots, CLASSES, "Shop::Item")
    snapshots.until(lambda: len(snapshots.rows(OBJECTS)) == 200, "they are listed")
    assert f"{counts['Shop::Item']} objects, the 200 that retain most are shown" in snapshots.text
    first = snapshots.rows(OBJECTS)[0][0]
    shown = next(each for each in objects if f"{each.object_id:#x}" == first)
    snapshots.press(lambda: link(snapshots, "table", f"{shown.object_id:#x}"))
    snapshots.until(lambda: snapshots.texts(".detail h3") == [named[shown.object_id]], "it is shown")
    assert links(snapshots, "references") == [named[each] for each in shown.references if each in named]
    referrers = [named[each.object_id] for each in objects if shown.object_id in each.references]
    assert links(snapshots, "referrers") == referrers


def in_bytes(size: int) -> str:
    if size < 1024:
        return f"{size} B"
    return f"{size / 1024:.1f} KiB" if size < 100 * 1024 else f"{size / 1024:.0f} KiB"


LEAKING = """
import sys

class Session:
    def __init__(self, user):
        self.user = user

class Registry:
    sessions = []

registry = Registry()

for line in sys.stdin:
    for _ in range(500):
        registry.sessions.append(Session("jo"))
    print("worked", flush=True)
"""


def test_a_leak_in_a_real_program_is_found(page: Page, program: Callable[[str], Program]) -> None:
    leaking = program(LEAKING)
    page.open(leaking.url, "snapshots")
    page.until_live()
    page.click("Take a snapshot")
    until_taken(page, 1)
    leaking.tell("work")
    page.click("Take a snapshot")
    until_taken(page, 1, 2)
    page.until(lambda: page.rows(COMPARED), "they are compared")
    assert page.row(COMPARED, "__main__.Session")[1] == "+500"
    page.until(lambda: page.texts(".suspects li"), "it is said in a sentence")
    assert re.match(
        r"500 Session objects in __main__\.Registry\.sessions, [\d.]+ KiB retained, \+\d+/s",
        page.texts(".suspects li")[0],
    )
    choose_class(page, COMPARED, "__main__.Session")
    page.until(lambda: page.rows(OBJECTS), "they are listed")
    page.press(lambda: link(page, "table", page.rows(OBJECTS)[0][0]))
    assert "created while tracemalloc was on" in page.text
    page.until(lambda: path(page), "what holds it is shown")
    assert page.texts(".held-as")[0].startswith("__main__.Registry.sessions[")
    names = [step.split()[0] for step in path(page)]
    assert names[0] == "module"
    assert names[-2] == "list"
    assert names[-1] == "__main__.Session"


def test_another_viewer_s_does_not_push_aside_what_is_read(snapshots: Page, script: Script) -> None:
    script.publish_raw([dump(HEAP, 1)])
    until_taken(snapshots, 1)
    choose_class(snapshots, CLASSES, "Item")
    script.publish_raw([dump(HEAP, 2)])
    until_taken(snapshots, 1, 2)
    assert snapshots.texts(".objects h3") == ["Item"]
    assert snapshots.one("[data-number][aria-pressed=true]").get_attribute("data-number") == "1"
    script.rbkit.snapshot = collection(script.rbkit.counter, [dump(HEAP, 3)])
    snapshots.click("Take a snapshot")
    snapshots.until(
        lambda: snapshots.one("[data-number][aria-pressed=true]").get_attribute("data-number") == "3",
        "one's own is shown",
    )


LATE = """
const plain = self.postMessage.bind(self);
let held = null;
self.postMessage = (answer) => {
  if (answer.result?.path && held === null) {
    held = answer;
    return;
  }
  plain(answer);
  if (held && answer.result?.rows?.some((row) => row.id && row.size)) {
    plain(held);
    held = false;
  }
};
"""
"""Have the page's worker answer for the first object only after it has answered for the next table."""


def test_an_object_whose_answer_is_late_is_not_drawn_over_another_class(
    page: Page, site: Serve, script: Script
) -> None:
    page.open_with(site(script.rbkit).url, "snapshots", LATE)
    page.until_live()
    script.publish_raw([dump(HEAP)])
    until_taken(page, 1)
    choose_class(page, CLASSES, "Item")
    page.press(lambda: link(page, "table", "0x50"))
    choose_class(page, CLASSES, "Hash")
    script.publish_raw([{0: EventType.GC_START, 1: 1_795_388_400_000.0}])
    page.until(lambda: "2 messages" in page.text_of("footer"), "a later answer of the worker has come")
    assert page.texts(".objects h3") == ["Hash"]
    assert page.texts(".detail h3") == []


GROWING = """
import gc, sys

AUDIT, SEEN = {}, set()

class Context:
    __slots__ = ("body",)

class Ring:
    def __init__(self):
        self.ring = self

def remember(number):
    context = Context()
    context.body = b"x" * 10_000 + str(number).encode()

    def finish():
        return context

    AUDIT[f"request {number}"] = finish
    SEEN.add(f"user {number}")
    Ring()

gc.disable()
number = 0
for line in sys.stdin:
    for _ in range(100):
        number += 1
        remember(number)
    print("worked", flush=True)
"""


def test_what_grows_is_found_by_one_button_and_said_in_a_sentence(
    page: Page, program: Callable[[str], Program]
) -> None:
    growing = program(GROWING)
    page.open(growing.url, "snapshots")
    page.until_live()
    growing.tell("work")
    page.type("Seconds between the snapshots", "2")
    with page.held():
        page.click("Find what grows")
        page.until(lambda: "Letting the program run" in page.text, "the first snapshot is taken")
        growing.tell("work")
    page.until(lambda: page.texts(".suspects li"), "the answer is there")
    first, *others = page.texts(".suspects li")
    sentence, evidence = first.split("\n", 1)
    assert re.fullmatch(
        r"[\d,]+ closures in __main__\.AUDIT, [\d.,]+ [KM]iB retained, \+[\d.]+/s, made at program\.py:17", sentence
    )
    assert re.search(
        r"__main__\.AUDIT\['request \d+'\] → remember\.<locals>\.finish → context → Context\.body", evidence
    )
    assert any(re.match(r"[\d,]+ str objects in __main__\.SEEN,", each) for each in others)
    assert "Ring" not in page.text.split("compare with")[0], "garbage is collected first"
    count = int(re.findall(r"[\d,]+", sentence)[0].replace(",", ""))
    page.press(lambda: page.all(".suspects button.link")[0])
    page.until(lambda: page.texts(".held-as"), "its holder is shown")
    assert re.fullmatch(r"__main__\.AUDIT\['request \d+'\]", page.texts(".held-as")[0])
    choose_class(page, COMPARED, "__main__.Context")
    page.until(lambda: page.texts(".ways li"), "the ways are shown")
    (way,) = page.texts(".ways li")
    assert way.startswith(f"__main__.AUDIT[…] → remember.<locals>.finish → context {count:,} objects, ")


def kept(count: int, size: int) -> list[dict[int, Any]]:
    """Return a heap with so many listeners and calls, and a buffer of a size."""
    listeners = objects_of("method", range(1000, 1000 + count))
    calls = [
        one | {6: "/srv/chat.py", 7: 12, 13: "chat.serve"} for one in objects_of("frame", range(5000, 5000 + count))
    ]
    module = {3: 1, 4: "module", 5: [2, 3], 6: None, 7: None, 8: 80, 13: "chat", 16: ["LISTENERS", "LOG"]}
    listed = {3: 2, 4: "list", 5: [one[3] for one in listeners], 6: None, 7: None, 8: 80, 17: 0}
    return [module, listed, {3: 3, 4: "bytearray", 5: [], 6: None, 7: None, 8: size}, *listeners, *calls]


def test_methods_calls_and_what_grows_in_place_are_said_as_what_they_are(snapshots: Page, script: Script) -> None:
    script.rbkit.snapshot = collection(0, [dump(kept(100, 10_000))])
    snapshots.click("Take a snapshot")
    until_taken(snapshots, 1)
    script.rbkit.snapshot = collection(1, [dump(kept(1100, 110_000), 10_000)])
    snapshots.click("Take a snapshot")
    until_taken(snapshots, 1, 2)
    snapshots.until(lambda: len(snapshots.texts(".suspects li")) == 3, "they are said")
    assert [text.split("\n")[0] for text in snapshots.texts(".suspects li")] == [
        "1 bytearray object in chat.LOG, 107 KiB retained, +9.8 KiB/s",
        "1,100 bound methods in chat.LISTENERS, 10.7 KiB retained, +100/s",
        "1,100 calls of serve that have not ended, 10.7 KiB retained, +100/s, at chat.py:12",
    ]


def test_without_collecting_first_garbage_is_in_a_column_of_its_own(
    page: Page, program: Callable[[str], Program]
) -> None:
    growing = program(GROWING)
    page.open(growing.url, "snapshots")
    page.until_live()
    growing.tell("work")
    page.press("input[aria-label='Collect first']")
    page.click("Take a snapshot")
    until_taken(page, 1)
    page.until(lambda: page.row(CLASSES, "__main__.Ring"), "there is garbage")
    count, *_, unreachable = page.row(CLASSES, "__main__.Ring")
    assert count == unreachable != "0"


def test_the_procedure_can_be_stopped(snapshots: Page, script: Script) -> None:
    script.rbkit.snapshot = collection(0, [dump(HEAP)])
    with snapshots.held():
        snapshots.click("Find what grows")
        snapshots.until(lambda: "Letting the program run for another" in snapshots.text, "it waits")
        taking = [one for one in script.rbkit.received if one != b"handshake"]
        assert taking == [b"trigger_gc", b"objectspace_snapshot"]
        snapshots.click("Stop")
        snapshots.until(lambda: snapshots.texts(".growth-status") == ["Stopped."], "it is stopped")
    until_taken(snapshots, 1)
    assert "Stop" not in snapshots.texts("button")


def test_a_procedure_that_is_stopped_while_it_collects_takes_no_snapshot(snapshots: Page, script: Script) -> None:
    script.rbkit.answering.clear()
    snapshots.click("Find what grows")
    snapshots.until(lambda: b"trigger_gc" in script.rbkit.received, "it collects")
    snapshots.click("Stop")
    snapshots.until(lambda: snapshots.texts(".growth-status") == ["Stopped."], "it is stopped")
    script.rbkit.answering.set()
    rest = script.rbkit.received.index(b"trigger_gc") + 1
    snapshots.until(lambda: len(script.rbkit.received) > rest + 1, "the page asks again, and once more seconds later")
    assert set(script.rbkit.received[rest:]) == {b"handshake"}


def test_a_collection_that_is_refused_is_reported_and_what_grows_is_found_without(
    snapshots: Page, script: Script
) -> None:
    script.rbkit.reply = {b"trigger_gc": b"error:forbidden no"}
    script.rbkit.snapshot = collection(0, [dump(HEAP)])
    snapshots.type("Seconds between the snapshots", "1")
    snapshots.click("Find what grows")
    snapshots.until(lambda: "What grew in" in snapshots.text, "it is found")
    assert "nothing" in snapshots.texts(".suspects h3")[0]
    until_taken(snapshots, 1, 2)


def test_a_snapshot_that_is_refused_ends_the_procedure(snapshots: Page, script: Script) -> None:
    script.rbkit.reply = {b"objectspace_snapshot": b"error:forbidden no"}
    snapshots.click("Find what grows")
    snapshots.until(lambda: "The first snapshot was not taken: " in snapshots.text, "it is told")
    assert "Stop" not in snapshots.texts("button")


TRACED = """import sys

class Order:
    __slots__ = ()  # tracemalloc of CPython 3.11 knows no place of an object with a dict

kept = []

def take():
    kept.append(Order())

for line in sys.stdin:
    for _ in range(100):
        take()
    print("worked", flush=True)
"""


def test_allocations_of_a_live_process_are_traced_from_the_page(page: Page, program: Callable[[str], Program]) -> None:
    running = program(TRACED)
    page.open(running.url, "snapshots")
    page.until_live()
    running.tell("work, before it is traced")
    page.click("Trace allocations")
    page.until(lambda: page.button("Stop tracing"), "it is on")
    running.tell("work")
    page.click("Take a snapshot")
    until_taken(page, 1)
    page.choose("Group by", "file and line")
    row = "program.py:9"

    def traced() -> list[str]:
        return next(each for each in page.rows("Places where objects are made") if each[0].endswith(row))

    page.until(lambda: traced(), "the line is named")
    _, count, _, kind = traced()
    assert int(count.replace(",", "")) >= 100
    assert kind == "__main__.Order"
    page.until(lambda: "more that tracemalloc knows" in page.text, "what it explains is said")
    page.click("Stop tracing")
    page.until(lambda: page.button("Trace allocations"), "it is off")
    page.click("Take a snapshot")
    until_taken(page, 1, 2)
    page.until(lambda: "tracemalloc is off" in page.text, "the next snapshot says so")
