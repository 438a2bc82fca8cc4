"""The page of all targets: what it shows, the way to a target and back, and how often it is drawn."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from tests.dashboard.conftest import Page, Serve
from tests.dashboard.test_accessibility import AXE
from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge
from tornado_rbkit.web.overview import overview


@pytest.fixture(autouse=True)
def readings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each target figures that grow with each document."""
    counts: Counter[Bridge] = Counter()

    def own_figures(bridge: Bridge) -> dict[str, float]:
        counts[bridge] += 1
        return {"process_rss": 2**20 * (100 + counts[bridge]), "process_cpu_ms": 300 * counts[bridge]}

    monkeypatch.setattr("tornado_rbkit.web.overview.own_figures", own_figures)


def column(page: Page, label: str) -> list[str]:
    """Return a column of the table, from top to bottom."""
    code = """
        const table = document.querySelector('.fleet table');
        const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.innerText.trim() === arguments[0]);
        return [...table.tBodies[0].rows].map(row => row.cells[at].textContent);
    """
    return page.script(code, label)  # type: ignore[no-any-return]


def sort_by(page: Page, label: str) -> None:
    buttons = "[...document.querySelectorAll('.fleet thead button')]"
    page.script(f"{buttons}.find(button => button.innerText === arguments[0]).click()", label)


def lines(page: Page) -> list[str]:
    """Return the paths of the lines of figures."""
    paths = "[...document.querySelectorAll('.fleet .spark path')]"
    return page.script(f"return {paths}.map(path => path.getAttribute('d'))")  # type: ignore[no-any-return]


def test_all_targets_are_shown_and_one_leads_to_its_page_and_back(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    with FakeRbkit() as other, FakeRbkit() as third:
        other.enabled.add("memory_profile")
        server = site(**{"web-2": rbkit, "web-10": other, "db": third})
        page.open(server.url)
        page.until(lambda: column(page, "target") == ["db", "web-2", "web-10"], "all are listed")
        assert set(column(page, "state")) == {"not watched"}
        assert "3 profilers" in page.text
        assert page.driver.title == "3 profilers: rbkit"
        assert not page.all("header, footer, [role=tab]"), "nothing of the page of a target is shown"
        page.until(lambda: all(text.endswith("%") for text in column(page, "CPU")), "there are two readings of each")
        page.until(
            lambda: len(lines(page)) == 6 and all("L" in line for line in lines(page)), "they are drawn as lines"
        )
        page.type("Filter targets", "web")
        page.until(lambda: column(page, "target") == ["web-2", "web-10"], "the filter is in force")
        assert "2 of 3 profilers" in page.text
        sort_by(page, "target")
        page.until(lambda: column(page, "target") == ["web-10", "web-2"], "the order is in force")
        chosen = page.driver.current_url
        assert chosen == f"{server.url}#fleet?filter=web&sort=-name"

        page.press(".fleet tbody a")
        page.until_live()
        assert page.facts["recording"] == "memory"
        assert page.driver.current_url == f"{server.url}?target=web-10#overview"
        assert page.text_of("header .target") == "web-10"
        page.click("Memory")
        page.driver.back()
        page.until(lambda: column(page, "target") == ["web-10", "web-2"], "the filter and the order are as before")
        assert page.driver.current_url == chosen
        page.until(lambda: column(page, "process") == [f"fake, pid {os.getpid()}", ""], "a newer document is shown")
        page.until(lambda: column(page, "viewers") == ["0", "0"], "nothing is followed any more")
        page.driver.forward()
        page.until_live()
        assert page.facts["recording"] == "memory"
        page.driver.refresh()
        page.until_live()
        page.press("header a")
        page.until(lambda: len(column(page, "target")) == 3, "the link leads to all")
        page.driver.back()
        page.until_live()


def test_a_reload_and_a_shared_address_have_filter_and_order(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    server = site(one=rbkit, two=rbkit, three=rbkit)
    page.open(server.url, "fleet?filter=t&sort=-name")
    page.until(lambda: column(page, "target") == ["two", "three"], "they are in force")
    page.driver.refresh()
    page.until(lambda: column(page, "target") == ["two", "three"], "they are in force again")
    assert page.one(".fleet input").get_attribute("value") == "t"


def test_what_is_recorded_watched_and_wrong_is_shown(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    with FakeRbkit() as other:
        server = site(one=rbkit, two=other)
        page.open(f"{server.url}?target=one")
        page.until_live()
        page.click("Record CPU")
        page.until(lambda: page.facts["recording"] == "CPU", "it records")
        page.driver.switch_to.new_window("tab")
        page.open(server.url)
        page.until(lambda: column(page, "recording") == ["CPU", ""], "it is shown in another tab")
        assert column(page, "viewers") == ["1", "0"]
        assert column(page, "state") == ["live", "not watched"]
        rbkit.stop()
        page.until(lambda: column(page, "state")[0].startswith("⚠ no rbkit server at"), "the trouble is shown")


def test_two_hundred_targets_are_drawn_once_a_second(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    server = site(**{f"web-{i // 20}~puma-{i}": rbkit for i in range(200)})
    page.open(server.url)
    page.until(lambda: len(column(page, "target")) == 200, "all are listed")
    page.script(
        """
        window.updates = [];
        const observer = new MutationObserver(records => updates.push([performance.now(), records.length]));
        observer.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
        window.began = performance.now();
        """
    )
    page.until(lambda: page.script("return updates.length") >= 6, "it was drawn six times")
    began, updates = page.script("return [began, updates]")
    assert len(updates) <= (updates[-1][0] - began) / 1000 + 2
    assert all(changes >= 200 for _, changes in updates), "each is an update of all rows"
    assert len(set(column(page, "RSS"))) == 1, "all rows are of one document"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(
    page: Page, site: Serve, rbkit: FakeRbkit, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_hosts(bridges: Mapping[str, Bridge]) -> dict[str, Any]:
        states = ["here", "late", "frozen", "gone"]
        document = overview(bridges)
        document["hosts"] = [{"name": state, "state": state, "seconds": 3, "targets": 1} for state in states]
        for row, host, trouble in zip(document["targets"], states, ["no rbkit server", None, None, None], strict=True):
            row |= {"host": host, "trouble": trouble, "state": "connected"}
        return document

    monkeypatch.setattr("tornado_rbkit.web.pages.overview", with_hosts)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.open(site(a=rbkit, b=rbkit, c=rbkit, d=rbkit).url)
    page.until(lambda: column(page, "state") == ["⚠ no rbkit server", "late", "frozen", "gone"], "states are shown")
    page.until(lambda: len(page.texts(".hosts li")) == 4, "hosts are shown")
    assert page.texts(".hosts li")[0] == "gone gone for 3 s"
    page.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text()})
    violations = page.script("return axe.run().then(({violations}) => violations)")
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in violations] == []
    page.press(lambda: page.all(".hosts button")[1])
    page.until(lambda: page.one(".fleet input").get_attribute("value") == "frozen~", "a host's targets are asked for")


def test_a_single_target_is_followed_at_once(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(one=rbkit).url)
    page.until_live()
    assert not page.all("header a")


def test_a_server_that_stops_answering_is_reported_and_the_list_stays(
    page: Page, site: Serve, rbkit: FakeRbkit
) -> None:
    server = site(one=rbkit, two=rbkit)
    page.expected_console = ["Failed to load resource: net::ERR_"]
    page.open(server.url)
    page.until(lambda: len(column(page, "target")) == 2, "both are listed")
    server.stop()
    page.until(lambda: "The server does not answer." in page.text, "it is reported")
    assert len(column(page, "target")) == 2
    server.start()
    page.until(lambda: "The server does not answer." not in page.text, "it is there again")
