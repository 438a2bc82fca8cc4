"""An agent and its leases, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgpack
import pytest

from tests.conftest import until
from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.fleet import agent as agents
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.agent import Agent
from tornado_rbkit.fleet.framing import WINDOW
from tornado_rbkit.fleet.hello import MAX_TARGETS
from tornado_rbkit.fleet.lease import Lease
from tornado_rbkit.fleet.link import MAX_PAYLOAD, Link, Message
from tornado_rbkit.fleet.subjects import Subject, Watcher
from tornado_rbkit.protocol import Handshake


class FakeLink(Link):
    """A connection that records what is published, and is up until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__(lambda: None, "test")
        self.published: list[tuple[str, bytes]] = []
        self.subscribed: dict[str, Callable[[Message], Awaitable[None] | None]] = {}
        self.is_up = True
        self.failure: Exception | None = None
        self.failed = asyncio.Event()

    async def run(self) -> None:
        await self.failed.wait()
        raise OSError("no descriptors")

    async def wait_until_up(self) -> None:
        return

    async def subscribe(self, subject: str, callback: Callable[[Message], Awaitable[None] | None]) -> None:
        self.subscribed[subject] = callback

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        if self.failure is not None:
            raise self.failure
        self.published.append((subject, data))

    def hellos(self) -> list[dict[str, Any]]:
        return [msgpack.unpackb(data) for subject, data in self.published if subject == subjects.hello("web-1")]


class Rig:
    """An agent whose connections are `link`."""

    def __init__(self, targets: dict[str, Bridge], **options: Any) -> None:
        self.link = FakeLink()
        self.agent = Agent(targets, lambda: None, "web-1", **options)
        self.agent._link = self.link
        self.agent._new_link = lambda name: self.link  # type: ignore[method-assign]

    def lease(self, target: str, watcher: Watcher, **asked: Any) -> dict[str, Any] | None:
        return self.agent._lease(Subject("web-1", target, watcher), asked, is_renewal=True)

    def leases(self, target: str = "puma") -> dict[Watcher, Lease]:
        watched = self.agent._watched.get(target)
        return {} if watched is None else watched.leases


@pytest.fixture
async def puma(rbkit: FakeRbkit) -> AsyncIterator[Bridge]:
    bridge = Bridge(**rbkit.endpoints)
    yield bridge
    await bridge.close()


@pytest.fixture
async def rig(puma: Bridge) -> AsyncIterator[Rig]:
    rig = Rig({"puma": puma})
    yield rig
    for name in list(rig.agent._watched):
        rig.agent._end_all(name)
    await rig.agent._tasks.cancel()


async def test_a_process_with_a_name_that_is_not_utf8_is_announced(rig: Rig, puma: Bridge) -> None:
    name = "caf\udce9" * 100
    puma._profiler.handshake = Handshake(0.0, None, "2.1", name, "/", 7, False, None, None, None)
    await rig.agent._say_hello(with_list=True)
    (listed,) = rig.link.hellos()[0]["targets"]
    assert listed["process"].startswith("caf?caf?")
    assert len(listed["process"]) <= subjects.MAX_NAME


async def test_targets_that_do_not_fit_into_a_hello_are_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    bridge = Bridge()
    rig = Rig({"a" * 65: bridge, "b\n": bridge, **{f"target-{number}": bridge for number in range(3000)}})
    await rig.agent._say_hello(with_list=True)
    (hello,) = rig.link.hellos()
    assert len(hello["targets"]) == MAX_TARGETS
    assert len(rig.link.published[0][1]) <= MAX_PAYLOAD
    assert "a target is not announced" in caplog.text
    assert "1024 targets are announced" in caplog.text


async def test_however_many_bridges_ask_the_list_is_sent_a_few_times_a_second(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "HELLO_INTERVAL", 3600)  # which would be the second list
    running = asyncio.create_task(rig.agent.run())
    await until(lambda: subjects.WHO in rig.link.subscribed, "it is subscribed")
    for _ in range(1000):
        rig.link.subscribed[subjects.WHO](Message(subjects.WHO, b"", ""))
        await rig.agent._on_lease(
            Message(subjects.watch("web-1", "_host", Watcher("b1", "x")), msgpack.packb({"list": True}), "")
        )
    await until(rig.link.hellos, "it has answered")
    assert len(rig.link.hellos()) == 1
    running.cancel()
    await asyncio.wait([running])


async def test_an_agent_whose_connection_has_failed_ends_with_the_reason(rig: Rig) -> None:
    running = asyncio.create_task(rig.agent.run())
    rig.link.failed.set()
    with pytest.raises(OSError, match="no descriptors"):
        await running


@pytest.mark.logs_errors
async def test_a_lease_ends_when_sending_fails(rig: Rig, rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture) -> None:
    assert rig.lease("puma", Watcher("b1", "x"), stream=0, grant=0)
    rig.link.failure = RuntimeError("a fault of the client")
    (lease,) = rig.leases().values()
    lease.on_profiler_connected()
    await until(lambda: not rig.leases(), "it has ended")
    assert "sending to b1 (x) failed" in caplog.text


async def test_a_bridge_takes_neither_all_leases_nor_those_of_others(rig: Rig, puma: Bridge) -> None:
    replies = [rig.lease("puma", Watcher("greedy", str(number))) for number in range(100)]
    assert "stream" in replies[63]  # type: ignore[operator]
    assert replies[64] == {"error": str(replies[64]["error"])}  # type: ignore[index]
    assert "allowed: 64 of processes of greedy for one target" in str(replies[64])
    reply = rig.lease("puma", Watcher("modest", "x"))
    assert reply is not None
    assert "stream" in reply


@pytest.mark.parametrize(("limit", "text"), [("_MAX_LEASES", "of one agent"), ("_MAX_LEASES_OF_BRIDGE", "of b1")])
async def test_leases_of_all_targets_together_are_bounded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, limit: str, text: str
) -> None:
    monkeypatch.setattr(agents, limit, 2)
    replies = [rig.lease("puma", Watcher("b1", str(number))) for number in range(3)]
    assert f"there are 2 leases; allowed: 2 {text}" in str(replies[2])


async def test_a_bridge_that_has_chosen_another_agent_with_this_name_gets_nothing_from_this_one(rig: Rig) -> None:
    watcher = Watcher("b1", "x")
    reply = rig.lease("puma", watcher, instance="", stream=0, grant=0)
    assert reply is not None
    again = rig.lease("puma", watcher, instance=rig.agent.instance, stream=reply["stream"], grant=0)
    assert again is not None
    assert again["stream"] == reply["stream"]
    assert rig.lease("puma", watcher, instance="the other", stream=9, grant=0) is None
    assert rig.leases() == {}


@pytest.mark.parametrize("grant", [-1, 1 << 63, (1 << 64) - 1, 1e300, "x", None])
@pytest.mark.parametrize("own_stream", [True, False])
async def test_no_grant_is_worth_more_than_a_window(
    rig: Rig, rbkit: FakeRbkit, puma: Bridge, grant: object, own_stream: bool
) -> None:
    watcher = Watcher("b1", "x")
    rig.lease("puma", watcher, stream=0, grant=0)
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


async def test_a_lease_that_has_left_is_not_kept_by_its_task(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.lease("puma", Watcher("b1", "x"), stream=0, grant=0)
    (lease,) = rig.leases().values()
    task = lease._task
    monkeypatch.setattr(
        lease, "_task", asyncio.get_running_loop().create_future()
    )  # nats-py swallows the cancellation
    rig.agent._end_all("puma")
    lease.wake()
    await asyncio.wait([task], timeout=60)
    assert task.done()


async def test_an_odd_deadline_is_none(rig: Rig, rbkit: FakeRbkit, puma: Bridge) -> None:
    watcher = Watcher("b1", "x")
    rig.lease("puma", watcher, stream=0, grant=0)
    await until(lambda: puma.state is State.CONNECTED, "it is connected")
    for deadline in (float("nan"), float("inf"), float("-inf"), 10**18, True, None):
        asked = msgpack.packb({"instance": rig.agent.instance, "deadline": deadline})
        reply = f"{subjects.inbox('b1')}.{deadline}"
        await rig.agent._on_command(Message(subjects.command("web-1", "puma", watcher, "trigger_gc"), asked, reply))
    replies = [data for subject, data in rig.link.published if subject.startswith(subjects.inbox("b1"))]
    assert len(replies) == 6
    assert all(reply.startswith(b"error:timeout") for reply in replies)
    assert rbkit.received.count(b"trigger_gc") == 0
