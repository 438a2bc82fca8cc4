"""A reload of the page keeps the session of its tab and target; another tab begins its own."""

from __future__ import annotations

from tests.dashboard.conftest import Page, Script, Serve
from tornado_rbkit.protocol import EventType

CREATED = EventType.OBJ_CREATED


def begin(page: Page, script: Script, url: str) -> None:
    """Have three objects, two of them since the growth counts, and a snapshot."""
    page.open(url, "objects")
    page.until_live()
    script.publish((0.0, CREATED, {3: 1, 4: "Thing"}))
    page.until(lambda: page.row("Live objects", "Thing")[0] == "1", "the first is counted")
    page.click("Count growth from now")
    script.publish((0.1, CREATED, {3: 2, 4: "Thing"}), (0.2, CREATED, {3: 3, 4: "Thing"}))
    heap = [{3: 9, 4: "Last", 5: [], 6: None, 7: None, 8: 40}]
    script.publish_raw([{0: EventType.OBJECT_SPACE_DUMP, 1: 1000.0, 10: 1, 11: 1, 2: heap}])
    page.until(lambda: page.row("Live objects", "Thing")[:2] == ["3", "+2"], "all are counted")


def until_written(page: Page) -> None:
    """Wait until the browser's database has the message with the class `Last`."""
    code = """
        const done = arguments[0];
        const opening = indexedDB.open('rbkit', 1);
        opening.onsuccess = () => {
            const all = opening.result.transaction('parts').objectStore('parts').getAll();
            all.onsuccess = () => {
                opening.result.close();
                const texts = all.result.map(part => new TextDecoder('latin1').decode(part.bytes ?? new Uint8Array()));
                done(texts.some(text => text.includes('Last')));
            };
        };
    """
    page.until(lambda: page.driver.execute_async_script(code), "all is written")


def test_a_reload_keeps_counts_baseline_and_snapshots_and_counts_what_it_missed(
    page: Page, site: Serve, script: Script
) -> None:
    begin(page, script, site(script.rbkit).url)
    until_written(page)
    page.driver.refresh()
    page.until_live()
    page.until(lambda: page.row("Live objects", "Thing")[:2] == ["3", "+2"], "the counts are those before")
    page.click("Snapshots")
    page.until(lambda: len(page.texts(".snapshots li")) == 1, "the snapshot is there")
    script.lose(7)
    script.publish((1.0, CREATED, {3: 4, 4: "Thing"}))
    page.until(lambda: "7 missing" in page.text_of("footer"), "what the reload missed is counted")


def test_another_tab_and_another_visit_start_over(page: Page, site: Serve, script: Script) -> None:
    url = site(script.rbkit).url
    begin(page, script, url)
    until_written(page)
    page.driver.get("about:blank")
    page.open(url, "objects")
    page.until_live()
    page.until(lambda: "The memory profile is off." in page.text, "there are no data")


def test_without_a_database_the_browser_asks_before_a_reload(page: Page, site: Serve, script: Script) -> None:
    url = site(script.rbkit).url
    page.open_with(url, "objects", "indexedDB.open = () => { throw new Error('no database'); };")
    page.until_live()
    script.publish((0.0, CREATED, {3: 1, 4: "Thing"}))
    page.until(lambda: page.rows("Live objects"), "an object is counted")
    asked = "const event = new Event('beforeunload', {cancelable: true}); return !dispatchEvent(event)"
    page.until(lambda: page.script(asked), "it asks")
    page.expected_console.append("'beforeunload' confirmation panel")  # refused, as nobody has clicked
    page.driver.get("about:blank")
    page.open(url, "objects")
    page.until_live()
    script.publish((0.0, CREATED, {3: 1, 4: "Thing"}))
    page.until(lambda: page.rows("Live objects"), "an object is counted")
    assert not page.script(asked), "what is kept needs no question"
