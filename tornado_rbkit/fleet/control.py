"""The control connection of a bridge process: hellos, leases and commands."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable
from typing import Final

import msgpack

from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.link import Link, LinkError, Message
from tornado_rbkit.fleet.nats import NatsServers
from tornado_rbkit.fleet.subjects import Watcher
from tornado_rbkit.fleet.vitals import VITALS_TARGET
from tornado_rbkit.tasks import Tasks

LEASE_TIMEOUT: Final = 2.0
"""Seconds for the reply to a lease; then the agent counts as disconnected."""

_CLOSE_TIMEOUT: Final = 1.0  # seconds


class ControlConnection:
    """A bridge process's control connection to NATS. On the thread of its bridges' connections only.

    Attributes:
        watcher: the names of this process.
        link: the control connection: leases, commands and hellos.
        failure: why the control connection has ended, "" while it has not.
        tasks: the tasks of this process's connections.
    """

    def __init__(self, servers: Callable[[], NatsServers | None], bridge: str) -> None:
        """Describe the connection; `start` opens it. May be called on any thread.

        Args:
            servers: returns the NATS servers, before each attempt to connect.
            bridge: the name of the credentials, which is in each subject.
        """
        self.watcher = Watcher(subjects.check_fleet_name(bridge, "the name of the bridge"), secrets.token_hex(4))
        self.servers = servers
        self.link = Link(servers, f"rbkit bridge {bridge}", inbox=subjects.inbox(bridge), on_change=self._on_change)
        self.failure = ""
        self.tasks = Tasks()
        self._linking = Tasks()

    async def start(self, on_hello: Callable[[Message], None], on_vitals: Callable[[Message], None]) -> None:
        """Open the connection, and call functions with the hellos of agents and the figures they send."""
        await self.link.subscribe(subjects.HELLOS, on_hello)
        await self.link.subscribe(subjects.ALL_VITALS, on_vitals)
        self._linking.start(self.link.run(), "the connection to NATS", self._on_failure)

    def _on_failure(self, reason: str) -> None:
        self.failure = reason

    async def who(self) -> None:
        """Ask all agents for the lists of their targets."""
        with contextlib.suppress(LinkError):
            await self.link.publish(subjects.WHO, b"")

    async def ask_for_list(self, host: str) -> None:
        """Ask one agent for the list of its targets."""
        with contextlib.suppress(LinkError):
            await self.link.publish(
                subjects.watch(host, subjects.HOST_TARGET, self.watcher), msgpack.packb({"list": True})
            )

    async def lease_vitals(self, hosts: Iterable[str]) -> None:
        """Lease the figures of the processes of some hosts."""
        with contextlib.suppress(LinkError):
            for host in hosts:
                await self.link.publish(subjects.watch(host, VITALS_TARGET, self.watcher), msgpack.packb({}))

    def _on_change(self, up: bool) -> None:
        if up:
            self.tasks.start(self.who(), "asking for targets")

    async def ping(self, host: str) -> None:
        """Ask whether an agent is there.

        Raises:
            LinkError: there is none, or this cannot be determined.
        """
        subject = subjects.watch(host, subjects.HOST_TARGET, self.watcher)
        await self.link.request(subject, msgpack.packb({}), LEASE_TIMEOUT)

    async def close(self) -> None:
        """Close the connection, after the tasks that end leases."""
        await self.tasks.wait(_CLOSE_TIMEOUT)
        await self.tasks.cancel()
        await self._linking.cancel()
