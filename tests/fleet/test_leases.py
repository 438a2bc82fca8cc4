"""Which bridge watches which target, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.conftest import until
from tests.fake_rbkit import FakeRbkit
from tests.fleet.conftest import FakeLink
from tornado_rbkit import Bridge
from tornado_rbkit.errors import CommandError
from tornado_rbkit.fleet import leases as leases_module
from tornado_rbkit.fleet.lease import LEASE_SECONDS
from tornado_rbkit.fleet.leases import Leases
from tornado_rbkit.fleet.subjects import Watcher
from tornado_rbkit.tasks import Tasks

ONE = Watcher("b1", "x")


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def targets(puma: Bridge) -> dict[str, Bridge]:
    return {"puma": puma}


@pytest.fixture
async def leases(targets: dict[str, Bridge], link: FakeLink) -> AsyncIterator[Leases]:
    tasks = Tasks()
    leases = Leases("web-1", targets, lambda target: link, tasks, max_backlog_bytes=64 * 1024 * 1024)
    yield leases
    leases.end_all()
    await tasks.cancel()


@pytest.mark.logs_errors
async def test_a_lease_ends_when_sending_fails(
    leases: Leases, link: FakeLink, rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture
) -> None:
    lease = leases.begin("puma", ONE)
    link.failure = RuntimeError("a fault of the client")
    lease.on_profiler_connected()
    await until(lambda: not leases.of("puma"), "it has ended")
    assert "sending to b1 (x) failed" in caplog.text


async def test_a_lease_ends_when_it_is_not_renewed_or_its_target_is_another_one(
    leases: Leases, targets: dict[str, Bridge], puma: Bridge
) -> None:
    renewed, forgotten = leases.begin("puma", ONE), leases.begin("puma", Watcher("b2", "x"))
    leases.age(LEASE_SECONDS)
    renewed.age = 0.0
    leases.age(LEASE_SECONDS / 2)
    assert leases.of("puma") == {ONE: renewed}
    assert len(puma.stats()["clients"]) == 1
    assert forgotten.age > LEASE_SECONDS
    targets["puma"] = Bridge()
    leases.age(0.0)
    assert leases.of("puma") == {}
    assert puma.stats()["clients"] == []


async def test_the_target_without_a_name_is_leased_by_its_announced_name(
    leases: Leases, targets: dict[str, Bridge], puma: Bridge
) -> None:
    targets[""] = targets.pop("puma")
    leases.begin("rbkit", ONE)
    leases.age(0.0)
    assert leases.of("rbkit").keys() == {ONE}
    with pytest.raises(CommandError, match="there is no target puma on web-1"):
        leases.begin("puma", ONE)


async def test_a_bridge_takes_neither_all_leases_nor_those_of_others(leases: Leases) -> None:
    for number in range(64):
        leases.begin("puma", Watcher("greedy", str(number)))
    with pytest.raises(CommandError, match="allowed: 64 of processes of greedy for one target"):
        leases.begin("puma", Watcher("greedy", "64"))
    leases.begin("puma", Watcher("modest", "x"))
    assert len(leases.of("puma")) == 65


@pytest.mark.parametrize(("limit", "text"), [("MAX_LEASES", "of one agent"), ("_MAX_LEASES_OF_BRIDGE", "of b1")])
async def test_leases_of_all_targets_together_are_bounded(
    leases: Leases, monkeypatch: pytest.MonkeyPatch, limit: str, text: str
) -> None:
    monkeypatch.setattr(leases_module, limit, 2)
    for number in range(2):
        leases.begin("puma", Watcher("b1", str(number)))
    with pytest.raises(CommandError, match=f"there are 2 leases; allowed: 2 {text}"):
        leases.begin("puma", Watcher("b1", "2"))


async def test_a_lease_that_has_left_is_not_kept_by_its_task(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = leases.begin("puma", ONE)
    task = lease._task
    monkeypatch.setattr(
        lease, "_task", asyncio.get_running_loop().create_future()
    )  # nats-py swallows the cancellation
    leases.end_all()
    lease.wake()
    await asyncio.wait([task], timeout=60)
    assert task.done()
