"""Light and dark, large and small, by keyboard, out of sight: the page is usable and quiet."""

from __future__ import annotations

import os
import re

import pytest
from selenium.webdriver.common.keys import Keys

from tests.dashboard.conftest import Page, Script, Serve, scripted
from tests.fake_rbkit import FakeRbkit, recorded

VIEWS = ["overview", "memory", "objects", "snapshots", "cpu"]

TEXT_CONTRAST = 4.5
"""WCAG 2.2, 1.4.3: of text to its background."""


def fill(page: Page, rbkit: FakeRbkit, *names: str) -> None:
    """Publish real traffic; by default, so that each view has data, of one process after the other."""
    page.until_live()
    for name in names or ("memory", "cpu", "snapshot"):
        for _, channel, _, message in recorded(name):
            if channel == 1:
                rbkit.publish(message)
    page.until(lambda: re.search(r"[1-9]\d* messages", page.text_of("footer")), "messages come")


def contrast(page: Page, selector: str) -> float:
    """Return the contrast of an element's text to what is behind it."""
    return float(
        page.script(
            """
            const luminance = text => {
                const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(c => c / 255)
                    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const element = document.querySelector(arguments[0]);
            let behind = element;
            while (/, 0\\)$|transparent/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
            const [low, high] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
                .map(luminance).sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05);
            """,
            selector,
        )
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_light_or_dark_as_the_system_is(page: Page, site: Serve, rbkit: FakeRbkit, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.open(site(rbkit).url)
    page.until_live()
    red, _, _ = page.script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red > 128) == (scheme == "light")
    for selector in ["body", ".state", ".facts dt", "[role=tab]", "button[aria-pressed=true]", ".hint", ".note"]:
        assert contrast(page, selector) >= TEXT_CONTRAST, selector


@pytest.mark.parametrize("width", [390, 1280])
def test_no_view_is_wider_than_the_screen(page: Page, site: Serve, rbkit: FakeRbkit, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.open(site(rbkit).url)
    fill(page, rbkit)
    for view in VIEWS:
        page.script("location.hash = arguments[0]", view)
        page.until(lambda name=view: page.all(f"#view-{name}"), f"{view} is shown")  # type: ignore[misc]
        assert page.script("return document.documentElement.scrollWidth") <= width, view


def test_a_phone_shows_all_tabs_and_figures_beside_names(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.open(site(rbkit).url, "cpu")
    fill(page, rbkit, "cpu")
    ends = "return [...document.querySelectorAll(arguments[0])].map(each => each.getBoundingClientRect().right)"
    assert len(page.script(ends, "[role=tab]")) == 5
    assert max(page.script(ends, "[role=tab]")) <= 390
    page.until(lambda: page.all("#view-cpu input[type=checkbox]"), "there are samples")
    page.script("document.querySelector('#view-cpu input[type=checkbox]').click()")  # of idle threads, too
    page.until(lambda: page.rows("Functions"), "functions are listed")
    assert page.script(ends, "#view-cpu tbody tr:first-child td:nth-child(2)")[0] <= 390
    assert page.script("return document.querySelector('#view-cpu tbody td:last-child').clientWidth") > 50


def test_one_bar_has_the_process_its_state_and_the_commands(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit).url)
    page.until_live()
    assert page.one("header").size["height"] == 44
    assert page.text_of("header").split("\n") == [
        "rbkit", f"fake, pid {os.getpid()}", "live", "Record memory", "Record CPU", "Snapshot", "⋯",
    ]  # fmt: skip
    assert not page.all(".banner")
    assert not page.all(".facts")
    page.press(".menu:has(.state) summary")
    assert "/srv" in page.text_of(".facts")
    page.press("body")
    assert not page.all(".facts")


@pytest.mark.parametrize(("view", "button", "recording"), [
    ("memory", "Record memory now", "memory"),
    ("objects", "Record memory now", "memory"),
    ("cpu", "Record CPU now", "CPU"),
])  # fmt: skip
def test_a_view_without_data_has_the_button_that_starts_it(
    page: Page, site: Serve, script: Script, view: str, button: str, recording: str
) -> None:
    page.open(site(script.rbkit).url, view)
    page.until_live()
    assert not page.all(".chart, .tile, .table, .flame")
    page.click(button)
    page.until(lambda: page.facts["recording"] == recording, "it is started")
    page.until(lambda: "Waiting for the first data" in page.text, "it says so")
    script.publish((0.0, 0, {3: 1, 4: "Thing"}), (0.0, 9, [{12: "main", 13: "main", 6: "a.rb", 7: 1, 15: 1}]))
    page.until(lambda: page.all(".chart, .table"), "data are shown")
    assert not page.all(".empty")


def test_views_are_turned_by_the_arrow_keys(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit).url)
    page.press("#tab-memory")
    for view in ["objects", "snapshots", "cpu", "overview", "memory"]:
        page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        assert page.driver.switch_to.active_element.get_attribute("id") == f"tab-{view}"
        assert len(page.all("[role=tabpanel]")) == 1
        assert page.all(f"#view-{view}")


def test_everything_is_reached_by_the_tab_key_and_seen_to_have_the_focus(
    page: Page, site: Serve, rbkit: FakeRbkit
) -> None:
    page.open(site(rbkit).url, "snapshots")
    page.until_live()
    reached: list[str] = []
    page.one("body").send_keys(Keys.TAB)
    for _ in range(30):
        element = page.driver.switch_to.active_element
        if element.tag_name == "body":
            break
        reached.append(element.text or str(element.get_attribute("aria-label")))
        assert page.script("return getComputedStyle(arguments[0]).outlineStyle", element) != "none", reached[-1]
        element.send_keys(Keys.TAB)
    for label in ["Record memory", "Snapshot", "Snapshots", "Take a snapshot", "⋯"]:
        assert label in reached


def test_every_control_has_a_name(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit).url)
    fill(page, rbkit)
    for view in VIEWS:
        page.script("location.hash = arguments[0]", view)
        page.until(lambda name=view: page.all(f"#view-{name}"), f"{view} is shown")  # type: ignore[misc]
        unnamed = page.script(
            """
            return [...document.querySelectorAll('button, input:not([hidden]), select, progress, section')]
                .filter(element => element.checkVisibility())
                .filter(element => !(element.textContent.trim() || element.ariaLabel || element.title
                    || element.getAttribute('aria-labelledby') || element.labels?.length))
                .map(element => element.outerHTML);
            """
        )
        assert unnamed == [], view


def test_a_page_out_of_sight_draws_nothing_and_misses_nothing(page: Page, site: Serve, script: Script) -> None:
    # What a browser does when the tab is left; a headless one takes all its tabs for visible.
    with scripted(page.driver, "Object.defineProperty(document, 'hidden', {configurable: true, get: () => true})"):
        page.open(site(script.rbkit).url, "objects")
    page.until(lambda: b"handshake" in script.rbkit.received, "the page has begun")
    page.script(
        """
        window.drawn = 0;
        new MutationObserver(() => window.drawn++)
            .observe(document.body, {childList: true, subtree: true, characterData: true});
        """
    )
    for number in range(1, 200):
        script.publish((0.01 * number, 0, {3: number, 4: "Thing"}))
    page.until(lambda: script.rbkit.sent == 199, "all is sent")
    assert page.script("return new Promise(done => setTimeout(() => done(window.drawn), 1500))") == 0
    page.script("delete document.hidden; document.dispatchEvent(new Event('visibilitychange', {bubbles: true}))")
    page.until(lambda: page.row("Live objects", "Thing")[0] == "199", "it has caught up")


def test_what_is_chosen_is_in_the_address_and_a_link_shows_it(page: Page, site: Serve, script: Script) -> None:
    url = site(script.rbkit).url
    page.open(url, "objects")
    page.until_live()
    script.publish((0.0, 0, {3: 1, 4: "Shop::Item"}), (0.0, 0, {3: 2, 4: "Time"}))
    page.type("Filter by class name", "shop & item")
    page.type("Filter by class name", "shop")
    page.click("allocated")
    address = page.driver.current_url
    assert address.endswith("#objects?filter=shop&sort=-created")
    page.click("CPU")
    work = {12: "work", 13: "work", 6: "a.rb", 7: 1, 15: 7}
    script.publish((0.0, 9, [work]), (0.0, 9, [work | {15: 8}]))
    page.until(lambda: page.all("#view-cpu input[type=checkbox]"), "there are samples")
    page.press("#view-cpu input[type=checkbox]")
    page.choose("Thread", "8 ")
    page.until(lambda: page.driver.current_url.endswith("#cpu?thread=thread+8&idle=1"), "its choices are there")
    page.click("Objects")
    assert page.driver.current_url == address
    # Another opens the link.
    page.driver.get("about:blank")
    page.driver.get(address)
    page.until_live()
    script.publish((0.0, 0, {3: 1, 4: "Shop::Item"}), (0.0, 0, {3: 2, 4: "Time"}))
    page.until(lambda: [row[0] for row in page.rows("Live objects")] == ["Shop::Item"], "the filter is in force")
    assert page.text_of("#view-objects [aria-sort=descending]").startswith("allocated")
    page.driver.get(f"{url}#cpu?thread=thread+8&idle=1")
    script.publish((0.0, 9, [work]), (0.0, 9, [work | {15: 8}]), (0.0, 9, [work | {15: 8}]))
    page.until(
        lambda: page.rows("Functions", exact=True) == [["work", "2 samples", "2 samples", "a.rb"]], "of a thread"
    )
    assert page.one("#view-cpu input[type=checkbox]").is_selected()
