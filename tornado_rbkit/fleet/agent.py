"""The agent of a host: it serves the host's profilers to bridges, over NATS."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgpack

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.bridge.summary import KnowsTargets, describe
from tornado_rbkit.errors import BridgeFullError, CommandError
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.hello import MAX_TARGETS, MAX_TEXT, VERSION, Hello
from tornado_rbkit.fleet.lease import LEASE_SECONDS, Lease
from tornado_rbkit.fleet.link import DATA_PATIENCE, MAX_PAYLOAD, Link, LinkError, Message
from tornado_rbkit.fleet.nats import NatsServers
from tornado_rbkit.fleet.subjects import Subject, Watcher
from tornado_rbkit.fleet.vitals import VITALS_INTERVAL, VITALS_TARGET, Vitals
from tornado_rbkit.log_throttle import LogThrottle
from tornado_rbkit.protocol import COMMANDS, VIEW_COMMAND, parse_command
from tornado_rbkit.tasks import Tasks

_log = logging.getLogger(__name__)

HELLO_INTERVAL: Final = 1.0
"""Seconds between two hellos, which show bridges that the agent is running."""

DEFAULT_TARGET: Final = "rbkit"
"""The name of a target without a name: the profiler at rbkit's default ports."""

_LIST_INTERVAL: Final = 0.2  # seconds between two lists of the targets, however many bridges ask
_MAX_LEASES: Final = 4096
_MAX_LEASES_OF_BRIDGE: Final = 1024  # of all processes with the same credentials
_MAX_PROCESSES: Final = 64  # with the same credentials, for one target
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
        self._lookers: dict[Watcher, float] = {}  # seconds since the last lease of the figures
        self._vitals_at = -math.inf
        self._tasks = Tasks()
        self._listing: asyncio.Task[None] | None = None
        self._listed_at = -math.inf
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
        """Serve until cancelled. An error ends it: without its connection or its hellos an agent is of no use."""
        await self._link.subscribe(subjects.all_leases(self.host), self._on_lease)
        await self._link.subscribe(subjects.all_commands(self.host), self._on_command)
        await self._link.subscribe(subjects.WHO, lambda message: self._list_soon())
        parts = [asyncio.create_task(self._link.run()), asyncio.create_task(self._tick())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()  # raises the error
        finally:
            for name in list(self._watched):
                self._end_all(name)
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
                await self._say_hello(with_list=False)
                self._age(min(now - before, _LONG_TICK))
                await self._send_vitals()
            before = now

    def _age(self, seconds: float) -> None:
        for name, watched in list(self._watched.items()):
            for watcher, lease in list(watched.leases.items()):
                lease.age += seconds
                if lease.age > LEASE_SECONDS or self._bridge_of(name) is not watched.bridge:
                    self._end(name, watcher)
        aged = ((watcher, age + seconds) for watcher, age in self._lookers.items())
        self._lookers = {watcher: age for watcher, age in aged if age <= LEASE_SECONDS}

    async def _send_vitals(self) -> None:
        """Publish the figures of the processes if a bridge has leased them and they are due."""
        now = time.monotonic()
        if not self._lookers or now - self._vitals_at < VITALS_INTERVAL - HELLO_INTERVAL / 2:
            return
        self._vitals_at = now
        if isinstance(self._targets, KnowsTargets):
            read = self._targets.figures
            vitals = Vitals(now, {name: read(name) for name, _ in self._named()[:MAX_TARGETS]})
            with contextlib.suppress(LinkError):  # the link notices it
                await self._link.publish(subjects.vitals(self.host), vitals.pack())

    def _on_looker(self, watcher: Watcher) -> None:
        """Begin or renew a lease of the figures; the first one gets them at once."""
        if watcher in self._lookers or len(self._lookers) < _MAX_LEASES:
            self._lookers[watcher] = 0.0
            if len(self._lookers) == 1:
                self._tasks.start(self._send_vitals(), "sending the figures of processes")

    def _list_soon(self) -> None:
        """Announce the list of the targets, once for all bridges that ask within `_LIST_INTERVAL`."""
        if self._listing is None or self._listing.done():
            self._listing = self._tasks.start(self._list_in_time(), "announcing the targets")

    async def _list_in_time(self) -> None:
        await asyncio.sleep(max(0.0, self._listed_at + _LIST_INTERVAL - time.monotonic()))
        await self._say_hello(with_list=True)

    async def _say_hello(self, *, with_list: bool) -> None:
        """Announce the host, with the list of its targets if it has changed or was requested."""
        targets, digest = self._list()
        if with_list or digest != self._digest:
            self._listed_at = time.monotonic()
            hello = Hello(VERSION, self.instance, digest, targets)
        else:
            hello = Hello(VERSION, self.instance, digest)
        try:
            await self._link.publish(subjects.hello(self.host), hello.pack())
        except LinkError:
            return
        self._digest = digest

    def _list(self) -> tuple[dict[str, dict[str, Any]], str]:
        """Return the facts about each target, as many as fit into a message, and their digest."""
        listed: dict[str, dict[str, Any]] = {}
        digest = hashlib.blake2b(digest_size=8)
        size = MAX_TEXT
        for name, bridge in self._named():
            try:
                subjects.check_fleet_name(name, "the target")
            except ValueError as error:
                self._throttle.warn(_log, name, "a target is not announced: %s", error)
                continue
            facts = self._describe(name, bridge)
            packed = msgpack.packb({"name": name, **facts})
            size += len(packed)
            if size > MAX_PAYLOAD or len(listed) == MAX_TARGETS:
                text = "%d targets are announced, and no more fit into a hello"
                self._throttle.warn(_log, "many", text, len(listed))
                break
            listed[name] = facts
            digest.update(packed)
        return listed, digest.hexdigest()

    def _describe(self, name: str, bridge: Bridge) -> dict[str, Any]:
        known = describe(self._targets, name, bridge)
        return {
            "process": _text(known["process"])[: subjects.MAX_NAME],
            "pid": known["pid"],
            "state": known["state"],
            "trouble": _text(known["trouble"]) or None,
            "recording": known["recording"],
            "viewers": self._viewers_of(name),
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
                self._list_soon()
            return {}
        if subject.target == VITALS_TARGET:
            self._on_looker(subject.watcher)
            return {}
        if asked.get("instance", "") not in ("", self.instance):
            self._throttle.warn(_log, "twin", "another agent has the name %s, or this one was restarted", self.host)
            self._end(subject.target, subject.watcher)
            return None
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
        sender = lease.sender
        viewers = self._viewers_of(subject.target)
        return {"stream": sender.stream, "sent": sender.position, "state": sender.state, "viewers": viewers}

    def _viewers_of(self, name: str) -> int:
        """Return the number of clients of a target, at all bridges together."""
        watched = self._watched.get(name)
        return sum(lease.viewers for lease in watched.leases.values()) if watched is not None else 0

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
        self._check_leases(subject)
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
            running = self._tasks.start(link.run(), f"the connection for {name}", lambda reason: self._end_all(name))
            watched = self._watched[name] = _Watched(bridge, link, running)
        watched.leases[watcher] = lease
        if bridge.state is State.CONNECTED:
            lease.on_profiler_connected()
        _log.info("the bridge %s watches %s", watcher.bridge, name)
        return lease

    def _check_leases(self, subject: Subject) -> None:
        """Check that a bridge may have another lease.

        Raises:
            CommandError: it, or all bridges together, have too many.
        """
        of_target = Counter(watcher.bridge for watcher in getattr(self._watched.get(subject.target), "leases", ()))
        of_all = Counter(watcher.bridge for watched in self._watched.values() for watcher in watched.leases)
        bridge = subject.watcher.bridge
        for count, most, what in (
            (of_target[bridge], _MAX_PROCESSES, f"of processes of {bridge} for one target"),
            (of_all[bridge], _MAX_LEASES_OF_BRIDGE, f"of {bridge}"),
            (of_all.total(), _MAX_LEASES, "of one agent"),
        ):
            if count >= most:
                raise CommandError("busy", f"there are {count} leases; allowed: {most} {what}")

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

    def _end_all(self, name: str) -> None:
        watched = self._watched.get(name)
        for watcher in list(watched.leases) if watched is not None else ():
            self._end(name, watcher)

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
        lease = self._find(subject)
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
    """Return whether a reply goes to the bridge that asks: else the agent would send in its own name where it says."""
    return reply.startswith(f"{subjects.inbox(watcher.bridge)}.")


def _text(value: object) -> str:
    """Return a short text that can be encoded; the names of processes may have bytes that are not UTF-8."""
    return str(value or "")[:MAX_TEXT].encode("utf-8", "replace").decode()


def _whole(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0
