"""What an agent makes of the messages of bridges, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest

from tests.conftest import until
from tests.fake_rbkit import FakeRbkit
from tests.fleet.conftest import FakeLink
from tornado_rbkit import Bridge
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.fleet import agent as agents
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.agent import Agent
from tornado_rbkit.fleet.framing import WINDOW
from tornado_rbkit.fleet.lease import Lease
from tornado_rbkit.fleet.link import Message
from tornado_rbkit.fleet.subjects import Subject, Watcher


class Rig:
    """An agent of one target, ``puma``, all of whose connections are `link`."""

    def __init__(self, puma: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.link = FakeLink()
        monkeypatch.setattr(agents, "Link", lambda *args, **options: self.link)
        self.agent = Agent({"puma": puma}, lambda: None, "web-1")

    def lease(self, watcher: Watcher, **asked: Any) -> dict[str, Any] | None:
        return self.agent._lease(Subject("web-1", "puma", watcher), asked, is_renewal=True)

    def leases(self) -> dict[Watcher, Lease]:
        return self.agent._leases.of("puma")


@pytest.fixture
async def rig(puma: Bridge, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    rig = Rig(puma, monkeypatch)
    yield rig
    rig.agent._leases.end_all()
    await rig.agent._tasks.cancel()


async def test_bridges_ask_all_agents_or_one_for_the_list_of_targets(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "HELLO_INTERVAL", 3600)
    running = asyncio.create_task(rig.agent.run())
    await until(lambda: subjects.WHO in rig.link.subscribed, "it is subscribed")
    rig.link.subscribed[subjects.WHO](Message(subjects.WHO, b"", ""))
    await until(lambda: len(rig.link.hellos()) == 1, "it has answered")
    of_host = subjects.watch("web-1", subjects.HOST_TARGET, Watcher("b1", "x"))
    await rig.agent._on_lease(Message(of_host, msgpack.packb({"list": True}), ""))
    await until(lambda: len(rig.link.hellos()) == 2, "it has answered again")
    assert [[each["name"] for each in hello["targets"]] for hello in rig.link.hellos()] == [["puma"], ["puma"]]
    running.cancel()
    await asyncio.wait([running])


async def test_an_agent_whose_connection_has_failed_ends_with_the_reason(rig: Rig) -> None:
    running = asyncio.create_task(rig.agent.run())
    rig.link.failed.set()
    with pytest.raises(OSError, match="no descriptors"):
        await running


async def test_a_lease_that_is_refused_is_answered_with_the_reason(rig: Rig) -> None:
    reply = rig.agent._lease(Subject("web-1", "gone", Watcher("b1", "x")), {}, is_renewal=True)
    assert reply == {"error": "unavailable: there is no target gone on web-1"}


async def test_a_bridge_that_has_chosen_another_agent_with_this_name_gets_nothing_from_this_one(rig: Rig) -> None:
    watcher = Watcher("b1", "x")
    reply = rig.lease(watcher, instance="", stream=0, grant=0)
    assert reply is not None
    again = rig.lease(watcher, instance=rig.agent.instance, stream=reply["stream"], grant=0)
    assert again is not None
    assert again["stream"] == reply["stream"]
    assert rig.lease(watcher, instance="the other", stream=9, grant=0) is None
    assert rig.leases() == {}


@pytest.mark.parametrize("grant", [-1, 1 << 63, (1 << 64) - 1, 1e300, "x", None])
@pytest.mark.parametrize("own_stream", [True, False])
async def test_no_grant_is_worth_more_than_a_window(
    rig: Rig, rbkit: FakeRbkit, puma: Bridge, grant: object, own_stream: bool
) -> None:
    watcher = Watcher("b1", "x")
    rig.lease(watcher, stream=0, grant=0)
    (lease,) = rig.leases().values()
    await until(lambda: puma.state is State.CONNECTED, "it is connected")
    for _ in range(8):
        rbkit.publish_collection(padding=600_000)
    await until(lambda: puma.stats()["messages_in"] == 8, "all have arrived")
    stream = lease.sender.stream if own_stream else 5
    rig.agent._lease(Subject("web-1", "puma", watcher), {"stream": stream, "grant": grant}, is_renewal=False)
    await until(lambda: not lease._wake.is_set(), "it has sent what it may")
    assert lease.sender.position <= WINDOW
    assert lease.sender.position == 0 or own_stream


async def test_an_odd_deadline_is_none(rig: Rig, rbkit: FakeRbkit, puma: Bridge) -> None:
    watcher = Watcher("b1", "x")
    rig.lease(watcher, stream=0, grant=0)
    await until(lambda: puma.state is State.CONNECTED, "it is connected")
    for deadline in (float("nan"), float("inf"), float("-inf"), 10**18, True, None):
        asked = msgpack.packb({"instance": rig.agent.instance, "deadline": deadline})
        reply = f"{subjects.inbox('b1')}.{deadline}"
        await rig.agent._on_command(Message(subjects.command("web-1", "puma", watcher, "trigger_gc"), asked, reply))
    replies = [data for subject, data in rig.link.published if subject.startswith(subjects.inbox("b1"))]
    assert len(replies) == 6
    assert all(reply.startswith(b"error:timeout") for reply in replies)
    assert rbkit.received.count(b"trigger_gc") == 0
