"""The views over the demo's workload, as they are in the README: `pytest tests/dashboard --screenshots` makes its
pictures anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboard.conftest import Page

PICTURES = Path(__file__).parent / "screenshots"
SIZE = (1140, 880)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[str]:
    """`tornado-rbkit demo`, as one would start it to look at."""
    command = [sys.executable, "-m", "tornado_rbkit", "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as process:  # which the page shows
        try:
            assert process.stdout is not None
            yield process.stdout.readline().removeprefix("ready ").strip()
        finally:
            process.terminate()


def live(page: Page, name: str) -> int:
    return int(page.row("Live objects", name)[0].replace(",", ""))


def test_the_demo_shows_its_leak_and_its_hot_function(
    demo: str, page: Page, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = PICTURES if request.config.getoption("--screenshots") else tmp_path
    folder.mkdir(exist_ok=True)

    def take(name: str) -> None:
        page.driver.save_screenshot(str(folder / f"{name}.png"))

    page.driver.set_window_size(*SIZE)
    page.open(demo, "snapshots")
    page.until_live()
    page.click("Take a snapshot")
    page.until(lambda: "Snapshot 1" in page.text, "the first is there")
    page.click("Objects")
    page.until(lambda: live(page, "tornado_rbkit.profiler.workload.Cart") > 200, "carts gather", timeout=60)
    page.until(lambda: page.row("Live objects", "list")[2] != "0.0/s", "growth is told")
    take("objects")
    page.click("Memory")
    page.until(lambda: re.search(r"(objects|blocks)\n[\d,]+", page.text), "the collector's figures came")
    take("memory")
    page.click("CPU")
    page.until(lambda: any("PriceList.discounted" in row[0] for row in page.rows("Functions")), "functions are there")
    page.until(lambda: page.all(".flame canvas"), "the flame graph is drawn")
    take("cpu")
    page.click("Snapshots")
    page.click("Take a snapshot")
    page.until(lambda: "changed since snapshot 1" in page.text, "the second is compared with the first")
    page.type("Filter by class name", "workload")
    page.until(lambda: all("workload" in row[0] for row in page.rows("Classes, compared")), "the filter is in force")
    _, growth, _, _, gone, *_ = page.row("Classes, compared", "tornado_rbkit.profiler.workload.Cart")
    assert int(growth.replace(",", "").lstrip("+")) > 100
    assert gone == "0"
    page.click("tornado_rbkit.profiler.workload.Cart")
    page.until(lambda: page.rows("Objects of the class"), "its objects are listed")
    page.one(".objects tbody button").click()
    page.until(lambda: "Held by" in page.text, "who holds it is shown")
    assert "Checkout" in page.one(".path").text
    page.script("scrollTo(0, document.querySelector('#view-snapshots .columns').offsetTop - 50)")
    take("snapshots")
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.png")}
    assert len(sizes) == 4
    assert all(10_000 < size < 200_000 for size in sizes.values()), sizes
