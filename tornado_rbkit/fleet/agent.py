"""The agent of a host: it serves the host's profilers to bridges, over NATS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Literal

import msgpack

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.errors import BridgeFullError, CommandError
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.announcer import Announcer
from tornado_rbkit.fleet.leases import Leases
from tornado_rbkit.fleet.link import DATA_PATIENCE, Link, LinkError, Message
from tornado_rbkit.fleet.nats import NatsServers
from tornado_rbkit.fleet.subjects import Subject, Watcher
from tornado_rbkit.fleet.vitals import VITALS_TARGET
from tornado_rbkit.fleet.vitals_publisher import VitalsPublisher
from tornado_rbkit.log_throttle import LogThrottle
from tornado_rbkit.protocol import COMMANDS, VIEW_COMMAND, parse_command
from tornado_rbkit.tasks import Tasks

_log = logging.getLogger(__name__)

HELLO_INTERVAL: Final = 1.0
"""Seconds between two hellos, which show bridges that the agent is running."""

_PENDING_BYTES: Final = 4 * 1024 * 1024  # in the client for data; then publishing waits
_LONG_TICK: Final = 1.5  # seconds counted at most of a tick: the process may have been stopped


class Agent:
    """Announces the targets of a host, and serves them to the bridges that lease them. Web loop only."""

    def __init__(
        self,
        targets: Mapping[str, Bridge],
        servers: Callable[[], NatsServers | None],
        host: str,
        *,
        commands: Collection[str] | Literal["any"] = COMMANDS,
        read_only: bool = False,
        max_backlog_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """Describe an agent; `run` starts it.

        Args:
            targets: the bridges to serve, by name, which may change; the caller closes them.
            servers: returns the NATS servers, before each attempt to connect.
            host: the name of this host.
            commands: the commands that bridges may send, or ``"any"``.
            read_only: whether they may send no commands except handshake.
            max_backlog_bytes: bytes of profiling data that may wait for one bridge.
        """
        self.host = subjects.check_fleet_name(host, "the name of the host")
        self.instance = secrets.token_hex(8)
        self._servers = servers
        self._commands = frozenset({VIEW_COMMAND}) if read_only else commands
        self._read_only = read_only
        link = self._link = Link(servers, f"rbkit agent {host}")
        tasks = self._tasks = Tasks()
        self._leases = Leases(host, targets, self._new_link, tasks, max_backlog_bytes=max_backlog_bytes)
        self._announcer = Announcer(host, self.instance, targets, self._leases.viewers, link, tasks)
        self._vitals = VitalsPublisher(host, targets, link, tasks)
        self._throttle = LogThrottle()

    @property
    def is_up(self) -> bool:
        """Whether there is a connection to NATS."""
        return self._link.is_up

    async def wait_until_up(self) -> None:
        """Wait until there is a connection to NATS."""
        await self._link.wait_until_up()

    async def run(self) -> None:
        """Serve until cancelled. An error ends it: without its connection or its hellos an agent is of no use."""
        await self._link.subscribe(subjects.all_leases(self.host), self._on_lease)
        await self._link.subscribe(subjects.all_commands(self.host), self._on_command)
        await self._link.subscribe(subjects.WHO, lambda message: self._announcer.announce_list())
        parts = [asyncio.create_task(self._link.run()), asyncio.create_task(self._tick())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()  # raises the error
        finally:
            self._leases.end_all()
            for part in parts:
                part.cancel()
            await asyncio.wait(parts)
            await self._tasks.cancel()

    async def _tick(self) -> None:
        """Say hello each second, and end the leases that were not renewed while there was a connection."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(HELLO_INTERVAL)
            now = time.monotonic()
            if self._link.is_up:
                seconds = min(now - before, _LONG_TICK)
                await self._announcer.announce()
                self._leases.age(seconds)
                self._vitals.age(seconds)
                await self._vitals.publish()
            before = now

    def _new_link(self, target: str) -> Link:
        return Link(
            self._servers, f"rbkit agent {self.host} {target}", pending_bytes=_PENDING_BYTES, patience=DATA_PATIENCE
        )

    # Leases

    async def _on_lease(self, message: Message) -> None:
        """Begin, renew or end a lease, or grant credit; reply if it is a request."""
        subject = subjects.parse(message.subject)
        asked = _unpacked(message.data)
        if subject is None or asked is None:
            return
        if message.reply and not _is_own_inbox(message.reply, subject.watcher):
            return
        reply = self._lease(subject, asked, is_renewal=bool(message.reply))
        if message.reply and reply is not None:
            await self._answer(message, msgpack.packb({"instance": self.instance, "now": time.monotonic(), **reply}))

    def _lease(self, subject: Subject, asked: dict[str, Any], *, is_renewal: bool) -> dict[str, Any] | None:
        """Return the reply to a lease, None for the lease of another agent with the same name.

        A bridge keeps the agent that answered it first. It would otherwise get both streams, each begun anew by the
        lease for the other one.
        """
        if subject.target == subjects.HOST_TARGET:
            if asked.get("list"):
                self._announcer.announce_list()
            return {}
        if subject.target == VITALS_TARGET:
            self._vitals.lease(subject.watcher)
            return {}
        if asked.get("instance", "") not in ("", self.instance):
            self._throttle.warn(_log, "twin", "another agent has the name %s, or this one was restarted", self.host)
            self._leases.end(subject.target, subject.watcher)
            return None
        if asked.get("end"):
            self._leases.end(subject.target, subject.watcher)
            return {}
        stream, grant = _whole(asked.get("stream")), _whole(asked.get("grant"))
        lease = self._leases.of(subject.target).get(subject.watcher)
        if not is_renewal:
            if lease is not None:
                lease.sender.grant(stream, grant)
                lease.wake()
            return {}
        if lease is None:
            try:
                lease = self._leases.begin(subject.target, subject.watcher)
            except (BridgeFullError, CommandError) as error:
                return {"error": str(error)}
        lease.age = 0.0
        lease.viewers = min(_whole(asked.get("viewers")), 1 << 20)
        lease.sender.lease(stream, grant)
        lease.wake()
        sender = lease.sender
        viewers = self._leases.viewers(subject.target)
        return {"stream": sender.stream, "sent": sender.position, "state": sender.state, "viewers": viewers}

    # Commands

    async def _on_command(self, message: Message) -> None:
        """Carry out a command, unless its deadline has passed or it is for another agent with the same name."""
        subject = subjects.parse(message.subject)
        asked = _unpacked(message.data)
        if subject is None or asked is None or not _is_own_inbox(message.reply, subject.watcher):
            return
        if asked.get("instance", "") not in ("", self.instance):
            return  # the other one answers; the bridge finds out if it is an earlier one

        def answer(reply: bytes) -> None:
            self._tasks.start(self._answer(message, reply), "answering a command")

        try:
            self._submit(subject, asked, answer)
        except CommandError as error:
            await self._answer(message, error.to_reply())

    def _submit(self, subject: Subject, asked: dict[str, Any], answer: Callable[[bytes], None]) -> None:
        """Submit a command.

        Raises:
            CommandError: it is refused.
        """
        name = subject.command
        if self._read_only and name != VIEW_COMMAND:
            raise CommandError("forbidden", f"{name[:40]!r} is refused: the agent of {self.host} is read-only")
        command = parse_command(name, self._commands)
        lease = self._leases.of(subject.target).get(subject.watcher)
        if lease is None or asked.get("instance") != self.instance:
            raise CommandError("unavailable", f"{command}: the bridge has no lease of {subject.target}; it asks again")
        deadline = asked.get("deadline")
        if not (isinstance(deadline, float) and time.monotonic() <= deadline < math.inf):  # also if it is NaN
            text = "dropped the command %s, which arrived after its deadline"
            self._throttle.warn(_log, "overdue", text, command)
            raise CommandError("timeout", f"{command}: it arrived after its deadline and was not sent")
        lease.ask(command, deadline, answer)

    async def _answer(self, message: Message, reply: bytes) -> None:
        with contextlib.suppress(LinkError):  # the bridge has noticed it as well
            await self._link.publish(message.reply, reply)


def _unpacked(data: bytes) -> dict[str, Any] | None:
    """Return the map in a message, None if it has none."""
    try:
        unpacked = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    return unpacked if isinstance(unpacked, dict) else None


def _is_own_inbox(reply: str, watcher: Watcher) -> bool:
    """Return whether a reply goes to the bridge that asks, which cannot make the agent publish anything elsewhere."""
    return reply.startswith(f"{subjects.inbox(watcher.bridge)}.")


def _whole(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0
