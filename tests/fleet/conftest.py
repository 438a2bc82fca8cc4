"""A NATS server, agents and bridges for the tests of the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgpack
import pytest
from tornado.web import Application

from tests.conftest import Server, until
from tests.fake_rbkit import FakeRbkit
from tests.patient import patient
from tornado_rbkit import Bridge, rbkit_routes
from tornado_rbkit.fleet import agent as agents
from tornado_rbkit.fleet import control, leases, subjects, transport
from tornado_rbkit.fleet import targets as fleet_targets
from tornado_rbkit.fleet.agent import Agent
from tornado_rbkit.fleet.link import Link, Message
from tornado_rbkit.fleet.nats import NatsServers
from tornado_rbkit.fleet.server import NatsServer, local_servers, start_local_server
from tornado_rbkit.fleet.targets import FleetTargets
from tornado_rbkit.web.discovered import path_name

Servers = Callable[[], NatsServers | None]
FOREVER = 3600.0  # seconds


@pytest.fixture
def patient_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no connection and no lease end because a process or the NATS server was late."""
    assert Link.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(Link.__init__.__kwdefaults__, "patience", FOREVER)
    for module in (agents, transport):
        monkeypatch.setattr(module, "DATA_PATIENCE", FOREVER)
    for module in (control, transport):
        monkeypatch.setattr(module, "LEASE_TIMEOUT", FOREVER)
    monkeypatch.setattr(leases, "LEASE_SECONDS", FOREVER)
    monkeypatch.setattr(fleet_targets, "FORGET_AFTER", FOREVER)


class FakeLink(Link):
    """A link that records published messages, and is connected unless a test changes `is_up`."""

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


class Machine:
    """Agents and bridges at one NATS server."""

    def __init__(self, stack: AsyncExitStack, servers: Servers) -> None:
        self.servers = servers
        self._stack = stack
        self._running: dict[int, tuple[asyncio.Task[None], Callable[[], list[Any]]]] = {}

    async def agent(self, targets: dict[str, Bridge], host: str = "web-1", **options: Any) -> Agent:
        """Run an agent, until the test ends or `stop` is called with it."""
        for bridge in targets.values():
            patient(bridge)
        agent = Agent(targets, self.servers, host, **options)
        self._run(agent.run(), agent, lambda: [bridge.close() for bridge in targets.values()])
        await asyncio.wait_for(agent.wait_until_up(), 60)
        return agent

    async def bridge(self, name: str = "b1", **options: Any) -> FleetTargets:
        """Run the targets of a bridge, until the test ends."""
        targets = FleetTargets(
            lambda endpoint, thread: patient(
                Bridge(endpoint=endpoint, threaded=thread, stop_when_idle=False, **options)
            ),
            self.servers,
            name,
            path_name,
        )
        self._run(targets.follow(), targets, list)
        return targets

    async def served(self, targets: FleetTargets, name: str) -> Server:
        """Serve one target, once it is announced."""
        await until(lambda: name in targets, f"{name} is announced", timeout=60)
        server = Server.of(targets[name], Application(rbkit_routes(targets[name])))
        self._stack.push_async_callback(server.close)
        return server

    async def stop(self, running: object) -> None:
        """Stop an agent, or the targets of a bridge."""
        task, then = self._running.pop(id(running))
        task.cancel()
        await asyncio.wait([task])
        for coroutine in then():
            await coroutine

    def _run(self, coroutine: Any, key: object, then: Callable[[], list[Any]]) -> None:
        self._running[id(key)] = asyncio.create_task(coroutine), then

        async def stop() -> None:
            if id(key) in self._running:
                await self.stop(key)

        self._stack.push_async_callback(stop)


@pytest.fixture
async def nats(runtime_folder: Path) -> AsyncIterator[NatsServer]:
    """Run a server of this machine, as an agent without options does."""
    server = await start_local_server()
    yield server
    server.stop()


@pytest.fixture
async def machine(nats: NatsServer, patient_fleet: None) -> AsyncIterator[Machine]:
    async with AsyncExitStack() as stack:
        yield Machine(stack, local_servers)


@pytest.fixture
async def bridge_to_rbkit(rbkit: FakeRbkit) -> Bridge:
    return patient(Bridge(**rbkit.endpoints, idle_grace=0.2))


@pytest.fixture
async def puma(rbkit: FakeRbkit) -> AsyncIterator[Bridge]:
    bridge = patient(Bridge(**rbkit.endpoints))
    yield bridge
    await bridge.close()
