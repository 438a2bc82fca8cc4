"""axe-core finds nothing in any view, the answers to both questions included, in light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest

import tornado_rbkit.dashboard
from tests.dashboard.conftest import Page, Script, Serve
from tests.dashboard.test_snapshots import dump
from tests.fake_rbkit import recorded

AXE = Path(tornado_rbkit.dashboard.__file__).parent / "node_modules/axe-core/axe.min.js"
"""A dependency of the sources, which the bundle does not have."""

CONTENT = {
    "memory": "[1-9][0-9]*/s",
    "objects": "Shop::Item",
    "snapshots": "Remove",
    "cpu": "100.0 %",
    "overview": r"retained, \+[^]*[1-9][0-9.]* % ",
}
"""The content of each view when it is complete. The Overview includes the first suspect that Snapshots found."""


def heap(count: int) -> dict[int, Any]:
    """Return a snapshot in which so many orders are kept."""
    orders: list[dict[int, Any]] = [
        {3: 100 + i, 4: "shop.Order", 5: [], 6: "/srv/shop.py", 7: 20, 8: 500} for i in range(count)
    ]
    kept = {3: 2, 4: "list", 5: [one[3] for one in orders], 6: None, 7: None, 8: 80, 17: 0}
    module = {3: 1, 4: "module", 5: [2], 6: None, 7: None, 8: 80, 13: "__main__", 16: ["ORDERS"]}
    return dump([module, kept, *orders], count)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, site: Serve, script: Script, scheme: str) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.open(site(script.rbkit).url)
    page.until_live()
    for name in ("allocations", "snapshot", "cpu"):
        for _, channel, _, message in recorded(name):
            if channel == 1:
                script.publish_raw(msgpack.unpackb(message, strict_map_key=False)[2])  # as of one process
    script.lose(1)  # so that the first snapshot, a piece of one, is complete as far as it can be
    script.publish_raw([heap(100), heap(300)])
    page.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text()})
    found = {}
    for view, content in CONTENT.items():
        page.script("location.hash = arguments[0]", view)
        shown = f"return new RegExp(arguments[0]).test(document.querySelector('#view-{view}').innerText)"
        page.until(lambda code=shown, text=content: page.script(code, text), f"{view} is shown")  # type: ignore[misc]
        if view == "snapshots":
            open_an_object(page)
            find_suspects(page)
        page.script("document.querySelectorAll('.alerts button').forEach(button => button.click())")
        violations = page.script("return axe.run().then(({violations}) => violations)")
        found[view] = [
            (one["id"], node["html"], node["failureSummary"]) for one in violations for node in one["nodes"]
        ]
    assert found == {view: [] for view in CONTENT}


def find_suspects(page: Page) -> None:
    page.until(lambda: len(page.all("[data-number]")) == 3, "all snapshots are there")
    page.press(lambda: page.all("[data-number]")[2])
    page.choose("Compare with", "snapshot 2")
    page.until(lambda: "300 Order objects in __main__.ORDERS" in page.text, "what grew is said")


def open_an_object(page: Page) -> None:
    page.until(lambda: page.all(".columns tbody button"), "classes are listed")
    page.press(lambda: page.all(".columns tbody button")[0])
    page.until(lambda: page.all(".objects tbody button"), "objects are listed")
    page.press(lambda: page.all(".objects tbody button")[0])
    page.until(lambda: "Held by" in page.text, "one is shown")
