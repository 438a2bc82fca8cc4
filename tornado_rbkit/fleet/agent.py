"""The agent of a host: it serves the host's profilers to bridges, over NATS."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgpack

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.errors import BridgeFullError, CommandError
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.lease import LEASE_SECONDS, Lease
from tornado_rbkit.fleet.link import DATA_PATIENCE, Link, LinkDownError, Message
from tornado_rbkit.fleet.nats import NatsServers
from tornado_rbkit.fleet.subjects import Subject, Watcher
from tornado_rbkit.log_throttle import LogThrottle, times
from tornado_rbkit.protocol import COMMANDS, VIEW_COMMAND, parse_command

_log = logging.getLogger(__name__)

VERSION: Final = 1
"""The version of the protocol between agents and bridges."""

HELLO_INTERVAL: Final = 1.0
"""Seconds between two hellos, which show bridges that the agent is running."""

HOST_TARGET: Final = "_host"
"""Used in place of a target's name by a bridge that asks whether the agent is running."""

DEFAULT_TARGET: Final = "rbkit"
"""The name of a target without a name: the profiler at rbkit's default ports."""

_MAX_TARGETS: Final = 1024
_MAX_LEASES: Final = 4096
_PENDING_BYTES: Final = 4 * 1024 * 1024  # in the client for data; then publishing waits
_LONG_TICK: Final = 1.5  # seconds counted at most of a tick: the process may have been stopped


@dataclass
class _Watched:
    """A target with leases, and the connection for its data."""

    bridge: Bridge
    link: Link
    running: asyncio.Task[None]
    leases: dict[Watcher, Lease] = field(default_factory=dict)


class Agent:
    """Announces the targets of a host, and serves them to the bridges that lease them. Web loop only.

    A target without a lease has no client, so its bridge disconnects from the profiler, and stops the profiling that
    was started through it.
    """

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
        self._targets = targets
        self._servers = servers
        self._commands = frozenset({VIEW_COMMAND}) if read_only else commands
        self._read_only = read_only
        self._max_backlog_bytes = max_backlog_bytes
        self._link = Link(servers, f"rbkit agent {host}")
        self._watched: dict[str, _Watched] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._digest = ""
        self._throttle = LogThrottle()

    @property
    def is_up(self) -> bool:
        """Whether there is a connection to NATS."""
        return self._link.is_up

    async def wait_until_up(self) -> None:
        """Wait until there is a connection to NATS."""
        await self._link.wait_until_up()

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._link.subscribe(subjects.all_leases(self.host), self._on_lease)
        await self._link.subscribe(subjects.all_commands(self.host), self._on_command)
        await self._link.subscribe(subjects.WHO, lambda message: self._say_hello(with_list=True))
        linking = asyncio.create_task(self._link.run())
        try:
            await self._tick()
        finally:
            for name in list(self._watched):
                for watcher in list(self._watched[name].leases):
                    self._end(name, watcher)
            linking.cancel()
            await asyncio.wait([linking, *self._ending])

    async def _tick(self) -> None:
        """Say hello each second, and end the leases that were not renewed while there was a connection."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(HELLO_INTERVAL)
            now = time.monotonic()
            if self._link.is_up:
                await self._say_hello(with_list=False)
                self._age(min(now - before, _LONG_TICK))
            before = now

    def _age(self, seconds: float) -> None:
        for name, watched in list(self._watched.items()):
            for watcher, lease in list(watched.leases.items()):
                lease.age += seconds
                if lease.age > LEASE_SECONDS or self._bridge_of(name) is not watched.bridge:
                    self._end(name, watcher)

    async def _say_hello(self, *, with_list: bool) -> None:
        """Announce the host, with the list of its targets if it has changed or was requested."""
        listed = [self._describe(name, bridge) for name, bridge in list(self._named())[:_MAX_TARGETS]]
        digest = hashlib.blake2b(msgpack.packb(listed), digest_size=8).hexdigest()
        hello: dict[str, Any] = {"v": VERSION, "instance": self.instance, "digest": digest}
        if with_list or digest != self._digest:
            hello["targets"] = listed
        try:
            await self._link.publish(subjects.hello(self.host), msgpack.packb(hello))
        except LinkDownError:
            return
        self._digest = digest

    def _describe(self, name: str, bridge: Bridge) -> dict[str, Any]:
        stats = bridge.stats()
        handshake = stats["handshake"] or {}
        watched = self._watched.get(name)
        return {
            "name": name,
            "process": str(handshake.get("process_name", ""))[: subjects.MAX_NAME],
            "pid": handshake.get("pid"),
            "state": stats["state"],
            "trouble": stats["trouble"],
            "viewers": sum(lease.viewers for lease in watched.leases.values()) if watched else 0,
        }

    def _named(self) -> list[tuple[str, Bridge]]:
        return [(name or DEFAULT_TARGET, bridge) for name, bridge in self._targets.items()]

    def _bridge_of(self, name: str) -> Bridge | None:
        bridge = self._targets.get(name)
        return self._targets.get("") if bridge is None and name == DEFAULT_TARGET else bridge

    # Leases

    async def _on_lease(self, message: Message) -> None:
        """Begin, renew or end a lease, or grant credit; reply if it is a request."""
        subject = subjects.parse(message.subject)
        asked = _unpacked(message.data)
        if subject is None or asked is None:
            return
        reply = self._lease(subject, asked, is_renewal=bool(message.reply))
        if message.reply:
            await self._answer(message, msgpack.packb({"instance": self.instance, "now": time.monotonic(), **reply}))

    def _lease(self, subject: Subject, asked: dict[str, Any], *, is_renewal: bool) -> dict[str, Any]:
        if subject.target == HOST_TARGET:
            return {}
        if asked.get("end"):
            self._end(subject.target, subject.watcher)
            return {}
        stream, grant = _whole(asked.get("stream")), _whole(asked.get("grant"))
        lease = self._find(subject)
        if not is_renewal:
            if lease is not None:
                lease.sender.grant(stream, grant)
                lease.wake()
            return {}
        if lease is None:
            try:
                lease = self._begin(subject)
            except (BridgeFullError, CommandError) as error:
                return {"error": str(error)}
        lease.age = 0.0
        lease.viewers = min(_whole(asked.get("viewers")), 1 << 20)
        lease.sender.lease(stream, grant)
        lease.wake()
        return {"stream": lease.sender.stream, "sent": lease.sender.position, "state": lease.sender.state}

    def _find(self, subject: Subject) -> Lease | None:
        watched = self._watched.get(subject.target)
        return None if watched is None else watched.leases.get(subject.watcher)

    def _begin(self, subject: Subject) -> Lease:
        """Make a bridge a client of a target.

        Raises:
            BridgeFullError: it cannot join.
            CommandError: there is no such target, or there are too many leases.
        """
        name, watcher = subject.target, subject.watcher
        bridge = self._bridge_of(name)
        if bridge is None:
            raise CommandError("unavailable", f"there is no target {name} on {self.host}")
        if sum(len(watched.leases) for watched in self._watched.values()) >= _MAX_LEASES:
            raise CommandError("busy", f"there are {_MAX_LEASES} leases; allowed: {_MAX_LEASES} of one agent")
        watched = self._watched.get(name)
        link = self._new_link(name) if watched is None else watched.link
        lease = bridge.add(
            lambda submit: Lease(
                submit,
                link,
                subjects.stream(watcher, self.host, name),
                name=f"{watcher.bridge} ({watcher.token})",
                max_backlog_bytes=self._max_backlog_bytes,
                on_closed=lambda lease: self._end(name, watcher),
            )
        )
        if watched is None:
            watched = self._watched[name] = _Watched(bridge, link, asyncio.create_task(link.run()))
        watched.leases[watcher] = lease
        if bridge.stats()["state"] == "connected":
            lease.on_profiler_connected()
        _log.info("the bridge %s watches %s", watcher.bridge, name)
        return lease

    def _new_link(self, name: str) -> Link:
        return Link(
            self._servers, f"rbkit agent {self.host} {name}", pending_bytes=_PENDING_BYTES, patience=DATA_PATIENCE
        )

    def _end(self, name: str, watcher: Watcher) -> None:
        """End a lease, and close the connection for data after the last one. May be called twice."""
        watched = self._watched.get(name)
        lease = watched.leases.pop(watcher, None) if watched is not None else None
        if watched is None or lease is None:
            return
        watched.bridge.leave(lease)
        if not watched.leases:
            del self._watched[name]
            watched.running.cancel()
            self._ending.add(watched.running)
            watched.running.add_done_callback(self._ending.discard)

    # Commands

    async def _on_command(self, message: Message) -> None:
        """Carry out a command, unless its deadline has passed."""
        subject = subjects.parse(message.subject)
        asked = _unpacked(message.data)
        if subject is None or asked is None or not message.reply:
            return
        loop = asyncio.get_running_loop()

        def answer(reply: bytes) -> None:
            task = loop.create_task(self._answer(message, reply))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

        try:
            self._submit(subject, asked, answer)
        except CommandError as error:
            answer(error.to_reply())

    def _submit(self, subject: Subject, asked: dict[str, Any], answer: Callable[[bytes], None]) -> None:
        """Submit a command.

        Raises:
            CommandError: it is refused.
        """
        name = subject.command
        if self._read_only and name != VIEW_COMMAND:
            raise CommandError("forbidden", f"{name[:40]!r} is refused: the agent of {self.host} is read-only")
        command = parse_command(name, self._commands)
        lease = self._find(subject)
        if lease is None or asked.get("instance") != self.instance:
            raise CommandError("unavailable", f"{command}: the bridge has no lease of {subject.target}; it asks again")
        deadline = asked.get("deadline")
        if not isinstance(deadline, float) or time.monotonic() > deadline:
            count = self._throttle.add("overdue")
            if count:
                _log.warning("dropped the command %s, which arrived after its deadline%s", command, times(count))
            raise CommandError("timeout", f"{command}: it arrived after its deadline and was not sent")
        lease.ask(command, deadline, answer)

    async def _answer(self, message: Message, reply: bytes) -> None:
        with contextlib.suppress(LinkDownError):  # the bridge has noticed it as well
            await self._link.publish(message.reply, reply)


def _unpacked(data: bytes) -> dict[str, Any] | None:
    """Return the map in a message, None if it has none."""
    try:
        unpacked = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    return unpacked if isinstance(unpacked, dict) else None


def _whole(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0
