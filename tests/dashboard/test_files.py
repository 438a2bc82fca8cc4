"""A session saved from the page, read by the other tools, and opened again without a profiler."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgpack

from tests.dashboard.conftest import Page, Script, Serve
from tests.fake_rbkit import DATA, FakeRbkit, collection, recorded
from tornado_rbkit.recording.recording import Record, read


def publish(rbkit: FakeRbkit, *names: str) -> list[bytes]:
    """Publish real traffic; return its messages."""
    messages = [record[3] for name in names for record in recorded(name) if record[1] == 1]
    for message in messages:
        rbkit.publish(message)
    return messages


def until_all_came(page: Page, messages: list[bytes]) -> None:
    """Wait until the page has these messages: a table that is compared later must not be that of some of them."""
    page.until(lambda: f"{len(messages)} messages" in page.text_of("footer"), "all have come")


def records(path: Path) -> list[Record]:
    with path.open("rb") as file:
        return list(read(file))


def test_what_is_saved_is_what_was_received_and_other_tools_read_it(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit).url)
    page.until_live()
    messages = publish(rbkit, "cpu", "memory")
    until_all_came(page, messages)
    page.click("Save session")
    saved = page.downloaded(f"fake-{page.facts['pid']}.rbkit")
    written = records(saved)
    assert [record.payload for record in written if record.channel == 1] == messages
    assert written[0].command == "handshake"
    assert [record.seconds for record in written] == sorted(record.seconds for record in written)
    export = [sys.executable, "-m", "tornado_rbkit", "export", "--format", "collapsed", str(saved)]
    ours = subprocess.run(export, capture_output=True, text=True, check=True).stdout
    export[-1] = str(DATA / "cpu.msgpack")
    assert ours == subprocess.run(export, capture_output=True, text=True, check=True).stdout


def test_what_is_saved_can_be_replayed(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit).url, "objects")
    page.until_live()
    until_all_came(page, publish(rbkit, "allocations"))
    page.until(lambda: page.rows("Live objects"), "objects are shown")
    live = page.rows("Live objects")
    page.click("Save session")
    saved = page.downloaded(f"fake-{page.facts['pid']}.rbkit")
    command = [sys.executable, "-m", "tornado_rbkit", "replay", "--port", "0", "--speed", "100", str(saved)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            page.open(process.stdout.readline().removeprefix("ready ").strip(), "objects")
            page.until(lambda: page.rows("Live objects") == live, "it shows the same")
            page.driver.get("about:blank")  # it would say in the console that the server went away
        finally:
            process.terminate()


def test_it_is_opened_again_without_a_profiler(page: Page, site: Serve, rbkit: FakeRbkit, tmp_path: Path) -> None:
    page.open(site(rbkit).url, "cpu")
    page.until_live()
    until_all_came(page, publish(rbkit, "cpu"))
    page.until(lambda: page.rows("Functions"), "functions are shown")
    live = page.rows("Functions")
    page.click("Save session")
    saved = page.downloaded(f"fake-{page.facts['pid']}.rbkit")
    page.upload("Open session…", saved)
    page.until(lambda: page.state == "from a file", "the file is shown")
    assert saved.name in page.text_of(".banner")
    assert page.facts["process"] == "fake"
    page.until(lambda: page.rows("Functions") == live, "it shows the same")
    assert "go back to the live profiler first" in str(page.obstacle("Snapshot"))
    page.click("Back to the live profiler")
    page.until_live()
    page.until(lambda: page.rows("Functions") == live, "the live session goes on")


def test_a_recording_of_the_command_line_is_opened(page: Page, site: Serve, rbkit: FakeRbkit) -> None:
    page.open(site(rbkit).url, "snapshots")
    page.until_live()
    page.upload("Open session…", DATA / "snapshot.msgpack")
    page.until(lambda: page.state == "from a file", "the file is shown")
    page.until(lambda: "Snapshot 2" in page.text, "its snapshots are there")
    assert "1,000 of 53,186 arrived" in page.text  # it was cut to a small piece for the tests
    page.until(lambda: page.rows("Classes, compared"), "the second is compared with the first")


def test_a_file_that_is_invalid_is_reported_and_changes_nothing(
    page: Page, site: Serve, rbkit: FakeRbkit, tmp_path: Path
) -> None:
    page.open(site(rbkit).url)
    page.until_live()
    for name, content in {
        "empty.rbkit": b"",
        "text.rbkit": b"Not what it says.",
        "other.rbkit": msgpack.packb({"a": 1}),
        "garbage.rbkit": b"\xc1" * 1000,
    }.items():
        (tmp_path / name).write_bytes(content)
        page.upload("Open session…", tmp_path / name)
        page.until(lambda told=name: any(text.startswith(told) for text in page.alerts), f"{name} is told")  # type: ignore[misc]
        assert page.state == "live"


def test_of_a_file_that_was_cut_off_the_rest_is_shown_and_what_it_lacks_is_reported(
    page: Page, site: Serve, rbkit: FakeRbkit, tmp_path: Path
) -> None:
    page.open(site(rbkit).url, "cpu")
    page.until_live()
    cut = tmp_path / "cut.rbkit"
    piece = msgpack.packb({0: 5, 1: 0.0, 10: 1, 11: 2, 2: [{3: 1, 4: "Thing", 5: [], 6: None, 7: None, 8: 8}]})
    dump = msgpack.packb([0.5, 1, None, collection(1_000, [msgpack.unpackb(piece, strict_map_key=False)])])
    cut.write_bytes((DATA / "cpu.msgpack").read_bytes() + dump + msgpack.packb([1.0, 1, None, b"x" * 100])[:50])
    page.upload("Open session…", cut)
    page.until(lambda: page.rows("Functions"), "what is whole is shown")
    page.until(
        lambda: any("Only 1 of 2 objects of a snapshot arrived: the file ends" in text for text in page.alerts),
        "it is said",
    )
    page.script("document.querySelectorAll('.alerts button').forEach(button => button.click())")
    assert page.alerts == []
    assert re.search(r"cut.rbkit is damaged after \d+ messages: it ends in the middle of one", page.text_of(".banner"))
    page.click("Snapshots")
    page.until(
        lambda: "incomplete: 1 of 2 arrived, the file ends there" in page.text, "the snapshot's end is not awaited"
    )


def test_what_was_looked_at_is_forgotten_with_its_session(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url, "cpu")
    page.until_live()
    names = [f"function{number}" for number in range(200)]
    script.publish(
        *((0.0, 9, [{12: name, 13: name, 6: "/srv/shop.rb", 7: 1, 14: 0, 15: 1}]) for name in names),
    )
    page.type("Search functions", names[-1])
    page.until(lambda: len(page.rows("Functions")) == 1, "the last is found")
    page.click(names[-1])
    page.until(lambda: page.texts("#view-cpu .detail h3") == names[-1:], "it is in view")
    page.upload("Open session…", DATA / "cpu.msgpack")  # which has not so many functions
    page.until(lambda: page.state == "from a file", "the file is shown")
    page.until(lambda: f"No function has “{names[-1]}”" in page.text, "its functions are searched")
    assert page.all("#view-cpu .detail") == []


def test_messages_that_were_lost_are_lost_in_the_file_too(page: Page, site: Serve, script: Script) -> None:
    page.open(site(script.rbkit).url)
    page.until_live()
    script.publish((0.0, 0, {3: 1, 4: "Thing"}))
    script.lose(3)
    script.publish((1.0, 0, {3: 2, 4: "Thing"}))
    page.until(lambda: "3 missing" in page.text_of("footer"), "the loss is told")
    page.click("Save session")
    page.upload("Open session…", page.downloaded(f"fake-{page.facts['pid']}.rbkit"))
    page.until(lambda: page.state == "from a file", "the file is shown")
    page.until(lambda: "3 missing" in page.text_of("footer"), "the loss is told again")
