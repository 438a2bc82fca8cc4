"""What an agent announces of its host, and how often."""

from __future__ import annotations

import pytest

from tests.fleet.conftest import FakeLink
from tornado_rbkit import Bridge
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.announcer import Announcer
from tornado_rbkit.fleet.hello import MAX_TARGETS
from tornado_rbkit.fleet.link import MAX_PAYLOAD
from tornado_rbkit.protocol import Handshake
from tornado_rbkit.tasks import Tasks


class Rig:
    """An announcer of a host without viewers, whose connection is `link`."""

    def __init__(self, targets: dict[str, Bridge]) -> None:
        self.link = FakeLink()
        self.tasks = Tasks()
        self.announcer = Announcer("web-1", "one", targets, lambda target: 0, self.link, self.tasks)


async def test_a_process_with_a_name_that_is_not_utf8_is_announced(puma: Bridge) -> None:
    rig = Rig({"puma": puma})
    name = "caf\udce9" * 100
    puma._profiler.handshake = Handshake(0.0, None, "2.1", name, "/", 7, False, None, None, None)
    await rig.announcer.announce(with_list=True)
    (listed,) = rig.link.hellos()[0]["targets"]
    assert listed["process"].startswith("caf?caf?")
    assert len(listed["process"]) <= subjects.MAX_NAME


async def test_targets_that_do_not_fit_into_a_hello_are_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    bridge = Bridge()
    rig = Rig({"a" * 65: bridge, "b\n": bridge, **{f"target-{number}": bridge for number in range(3000)}})
    await rig.announcer.announce(with_list=True)
    (hello,) = rig.link.hellos()
    assert len(hello["targets"]) == MAX_TARGETS
    assert len(rig.link.published[0][1]) <= MAX_PAYLOAD
    assert "a target is not announced" in caplog.text
    assert "1024 targets are announced" in caplog.text


async def test_however_many_bridges_ask_the_list_is_sent_a_few_times_a_second(puma: Bridge) -> None:
    rig = Rig({"puma": puma})
    for _ in range(1000):
        rig.announcer.announce_list()
    await rig.tasks.wait()
    assert len(rig.link.hellos()) == 1


async def test_the_list_is_sent_again_only_when_it_has_changed(puma: Bridge) -> None:
    targets = {"puma": puma}
    rig = Rig(targets)
    await rig.announcer.announce()
    await rig.announcer.announce()
    targets["other"] = puma
    await rig.announcer.announce()
    assert [[each["name"] for each in hello.get("targets", ())] for hello in rig.link.hellos()] == [
        ["puma"],
        [],
        ["puma", "other"],
    ]
