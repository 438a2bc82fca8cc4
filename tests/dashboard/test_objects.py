"""The Objects view with known allocations and frees."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains

from tests.dashboard.conftest import Page, Script, Serve
from tests.fake_rbkit import recorded
from tornado_rbkit.protocol import EventCollection, EventType, ObjCreated, ObjDestroyed, decode

TABLE = "Live objects by class"
LIVE, GROWTH, RATE, _, YOUNG, MIDDLE, OLD, CREATED, DESTROYED = range(9)


@pytest.fixture
def objects(page: Page, site: Serve, script: Script) -> Page:
    """The view of a profiler that has published nothing yet."""
    page.open(site(script.rbkit).url, "objects")
    page.until_live()
    return page


def born(at: float, name: str | None, *ids: int) -> list[tuple[float, int, Any]]:
    return [(at, EventType.OBJ_CREATED, {3: each, 4: name}) for each in ids]


def dead(at: float, *ids: int) -> list[tuple[float, int, Any]]:
    return [(at, EventType.OBJ_DESTROYED, {3: each}) for each in ids]


def collected(at: float) -> list[tuple[float, int, Any]]:
    return [
        (at, EventType.GC_START, None),
        (at + 0.01, EventType.GC_END_M, None),
        (at + 0.02, EventType.GC_END_S, None),
    ]


def figure(page: Page, name: str, column: int) -> str:
    return page.row(TABLE, name)[column]


def names(page: Page) -> list[str]:
    return [row[0] for row in page.rows(TABLE)]


def until_live(page: Page, name: str, count: str) -> None:
    page.until(lambda: figure(page, name, LIVE) == count, f"{count} {name} are shown")


def test_it_says_how_to_begin(objects: Page) -> None:
    objects.until(
        lambda: "The memory profile is off. It lists the live objects by class" in objects.text, "it is said"
    )
    assert objects.button("Record memory now")
    assert names(objects) == []


def test_births_and_deaths_are_counted_by_class(objects: Page, script: Script) -> None:
    script.publish(
        *born(0, "Shop::Item", *range(1500)), *born(0, None, 5000), *born(0, "Time", 6000), *dead(1, *range(30))
    )
    until_live(objects, "Shop::Item", "1,470")
    columns = [objects.row(TABLE, "Shop::Item")[column] for column in (LIVE, GROWTH, CREATED, DESTROYED)]
    assert columns == ["1,470", "+1,470", "1,500", "30"]
    assert figure(objects, "(unknown)", LIVE) == "1"
    assert "3 classes; 1,472 live objects" in objects.text
    script.publish(*dead(2, 6000))
    until_live(objects, "Time", "0")
    assert figure(objects, "Time", GROWTH) == "±0"


def test_an_id_that_is_used_again_is_another_object(objects: Page, script: Script) -> None:
    script.publish(*born(0, "Old", 1), *dead(0, 1), *born(0, "New", 1), *born(0, "Newer", 1))
    until_live(objects, "Newer", "1")
    assert [figure(objects, name, LIVE) for name in ("Old", "New")] == ["0", "0"]


def test_deaths_of_what_is_older_than_the_profile_are_distinguished(objects: Page, script: Script) -> None:
    script.publish(*born(0, "Thing", 1, 2), *dead(0, 2, 77, 78, 79))
    until_live(objects, "Thing", "1")
    assert figure(objects, "Thing", DESTROYED) == "1"
    assert "3 older than the profile were destroyed" in objects.text


def test_growth_can_be_counted_from_now(objects: Page, script: Script) -> None:
    script.publish(*born(0, "Thing", *range(100)))
    until_live(objects, "Thing", "100")
    assert "growth" not in objects.texts("#view-objects th"), (
        "before growth is counted, the live objects would be shown twice"
    )
    objects.click("Count growth from now")
    objects.until(lambda: figure(objects, "Thing", GROWTH) == "±0", "growth begins anew")
    assert "growth" in objects.texts("#view-objects th")
    script.publish(*born(1, "Thing", *range(200, 250)), *born(1, "Other", 900), *dead(1, *range(60)))
    until_live(objects, "Thing", "90")
    assert figure(objects, "Thing", GROWTH) == "−10"
    assert figure(objects, "Other", GROWTH) == "+1"


def test_the_rate_is_that_of_the_last_seconds(objects: Page, script: Script) -> None:
    script.publish(*(event for at in range(0, 31, 2) for event in born(at, "Early" if at < 16 else "Late", at * 10)))
    script.publish(
        *(event for at in range(32, 43, 2) for event in born(at, "Late", *range(at * 1000, at * 1000 + 100)))
    )
    until_live(objects, "Late", "608")
    assert figure(objects, "Late", RATE) == "+50/s"
    assert figure(objects, "Early", RATE) == "0.0/s"


def test_generations_are_told_by_the_collections_survived(objects: Page, script: Script) -> None:
    script.publish(*born(0, "Thing", *range(10)), *collected(1), *born(2, "Thing", *range(10, 15)))
    until_live(objects, "Thing", "15")
    assert objects.row(TABLE, "Thing")[YOUNG : OLD + 1] == ["5", "10", "0"]
    script.publish(
        *collected(7), *collected(13), *collected(13.5), *collected(19), *born(20, "Thing", 20), *dead(21, 0, 10)
    )
    until_live(objects, "Thing", "14")
    assert objects.row(TABLE, "Thing")[YOUNG : OLD + 1] == ["1", "4", "9"]  # 13.5 is the same to them as 13


def test_classes_are_filtered_and_sorted(objects: Page, script: Script) -> None:
    script.publish(*born(0, "Alpha", 1, 2), *born(0, "Beta", 3, 4, 5), *born(0, "alphabet", 6))
    until_live(objects, "Beta", "3")
    assert names(objects) == ["Beta", "Alpha", "alphabet"]
    objects.click("class")
    objects.until(lambda: names(objects) == ["Alpha", "Beta", "alphabet"], "by name")
    objects.click("class")
    objects.until(lambda: names(objects) == ["alphabet", "Beta", "Alpha"], "by name, backwards")
    objects.click("live")
    objects.until(lambda: names(objects) == ["Beta", "Alpha", "alphabet"], "by number")
    assert [cell.text for cell in objects.all("[aria-sort=descending]")] == ["live"]
    objects.type("Filter by class name", "ALPHA")
    objects.until(lambda: names(objects) == ["Alpha", "alphabet"], "filtered")
    assert "2 classes; 6 live objects" in objects.text
    objects.type("Filter by class name", "nothing like it")
    objects.until(lambda: names(objects) == [], "there is none")
    assert "No class has “nothing like it” in its name" in objects.text


def test_rows_stay_while_the_pointer_is_on_them(objects: Page, script: Script) -> None:
    script.publish(*born(0, "Alpha", 1, 2, 3), *born(0, "Beta", 4, 5))
    until_live(objects, "Alpha", "3")
    ActionChains(objects.driver).move_to_element(objects.all("tbody tr")[0]).perform()
    script.publish(*born(1, "Beta", *range(10, 20)), *born(1, "Gamma", *range(50, 100)))
    until_live(objects, "Beta", "12")
    assert names(objects) == ["Alpha", "Beta", "Gamma"]
    objects.click("live")  # what one asks for is done, though
    objects.until(lambda: names(objects) == ["Alpha", "Beta", "Gamma"], "ascending")
    objects.click("live")
    objects.until(lambda: names(objects) == ["Gamma", "Beta", "Alpha"], "descending")
    script.publish(*born(2, "Alpha", *range(200, 300)))
    until_live(objects, "Alpha", "103")
    assert names(objects) == ["Gamma", "Beta", "Alpha"]
    ActionChains(objects.driver).move_to_element(objects.all("h1")[0]).perform()
    objects.until(lambda: names(objects) == ["Alpha", "Gamma", "Beta"], "the order is made good")


def test_missing_messages_make_the_counts_uncertain(objects: Page, script: Script) -> None:
    script.publish(*born(0, "Thing", 1))
    until_live(objects, "Thing", "1")
    assert "some counts are wrong" not in objects.text
    script.lose(2)
    script.publish(*born(1, "Thing", 2))
    objects.until(lambda: "some counts are wrong" in objects.text, "it is said")


def test_the_process_before_can_be_looked_at(objects: Page, script: Script) -> None:
    script.publish(*born(0, "Before", 1, 2))
    until_live(objects, "Before", "2")
    script.rbkit.counter = 0
    script.publish(*born(5, "After", 1))
    until_live(objects, "After", "1")
    assert names(objects) == ["After"]
    objects.choose("Process", "earlier process")
    until_live(objects, "Before", "2")
    assert names(objects) == ["Before"]


def test_thousands_of_classes(objects: Page, script: Script) -> None:
    script.publish(*(event for number in range(2000) for event in born(0, f"Class{number:04}", number)))
    objects.until(lambda: "2,000 classes, 200 are shown; 2,000 live objects" in objects.text, "they are counted")
    objects.until(lambda: names(objects) == [f"Class{number:04}" for number in range(200)], "they are listed")
    objects.type("Filter by class name", "class1999")
    objects.until(lambda: names(objects) == ["Class1999"], "one is found")


def test_recorded_ruby_traffic_gives_the_counts_of_python(objects: Page, script: Script) -> None:
    classes: dict[int, str | None] = {}
    created: Counter[str | None] = Counter()
    destroyed: Counter[str | None] = Counter()
    strangers = 0
    for _, channel, _, payload in recorded("allocations"):
        message = decode(payload)
        if channel == 0 or not isinstance(message, EventCollection):
            continue
        script.rbkit.publish(payload)
        for event in message.events:
            if isinstance(event, ObjCreated):
                created[event.class_name] += 1
                classes[event.object_id] = event.class_name
            elif isinstance(event, ObjDestroyed) and event.object_id in classes:
                destroyed[classes.pop(event.object_id)] += 1
            elif isinstance(event, ObjDestroyed):
                strangers += 1
    live = created - destroyed
    objects.until(lambda: f"{live.total():,} live objects" in objects.text, "all have come")
    expected = {name: (f"{live[name]:,}", f"{created[name]:,}", f"{destroyed[name]:,}") for name in created}

    def shown() -> dict[str, tuple[str, ...]]:
        return {row[0]: (row[1 + LIVE], row[1 + CREATED], row[1 + DESTROYED]) for row in objects.rows(TABLE)}

    objects.until(lambda: shown() == expected, "the table has them all")
    assert f"{strangers} older than the profile were destroyed" in objects.text


def test_many_objects_that_come_and_go_are_distinguished(objects: Page, script: Script) -> None:
    chance = random.Random(1)
    ids = [chance.choice([8, 16 * 4099, 1 << 33]) * chance.randrange(1, 1 << 20) for _ in range(8_000)]
    live: dict[int, str] = {}
    for batch in range(4):
        events: list[tuple[float, int, Any]] = []
        for _ in range(6_000):
            each, name = chance.choice(ids), f"Class{chance.randrange(3)}"
            if each in live:
                del live[each]
                events += dead(0, each)
            else:
                live[each] = name
                events += born(0, name, each)
        script.publish(*events)
        objects.until(lambda done=batch: f"{done + 1} messages" in objects.text_of("footer"), "it has come")  # type: ignore[misc]
    counts = Counter(live.values())
    expected = {name: f"{count:,}" for name, count in counts.items()}
    objects.until(lambda: {row[0]: row[1] for row in objects.rows(TABLE)} == expected, f"they are {expected}")
    assert "older than the profile were destroyed" not in objects.text


def test_each_class_is_one_line_however_long_its_name(objects: Page, script: Script) -> None:
    long = "Very::" * 60 + "Long"
    script.publish(*born(0, long, 1), *born(0, "Short", 2))
    until_live(objects, "Short", "1")
    rows = objects.all("tbody tr")
    assert rows[0].size["height"] == rows[1].size["height"] < 40
    assert any(cell.get_attribute("title") == long for cell in objects.all("tbody th"))
    # Its figures are beside it.
    name, live = objects.all("tbody th")[0].rect, objects.all("tbody tr:first-child td")[0].rect
    assert live["x"] == pytest.approx(name["x"] + name["width"], abs=1)


def test_more_classes_than_a_page_are_shown_when_asked_for(objects: Page, script: Script) -> None:
    script.publish(*(event for number in range(450) for event in born(0, f"Class{number:03}", number)))
    objects.until(lambda: "450 classes, 200 are shown" in objects.text, "the first page is shown")
    objects.click("Show 200 more of 250")
    objects.until(lambda: len(names(objects)) == 400, "the next is shown, too")
    objects.click("Show 50 more of 50")
    objects.until(lambda: len(names(objects)) == 450, "all are shown")
    assert not objects.all(".more")
