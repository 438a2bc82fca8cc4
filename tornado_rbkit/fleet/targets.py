"""Bridges by name for the targets of all hosts, added and removed as agents announce them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.errors import DiscoveryError
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.agent import VERSION
from tornado_rbkit.fleet.link import LinkError, Message, NoRespondersError
from tornado_rbkit.fleet.nats import NatsServers
from tornado_rbkit.fleet.transport import Fleet, FleetEndpoint
from tornado_rbkit.log_throttle import LogThrottle, times
from tornado_rbkit.upstream.iothread import IOLoopThread

_log = logging.getLogger(__name__)

LATE_AFTER: Final = 1.3
"""Seconds without a hello after which a host is asked whether it is there."""

FLEET_IDLE_GRACE: Final = 2.0
"""Seconds for which a bridge keeps the lease of a target after its last client left; the agent has its own grace."""

FORGET_AFTER: Final = 10.0
"""Seconds for which the targets of a host that is gone, or targets that are gone, keep their clients."""

_CHECK_INTERVAL: Final = 0.25  # seconds
_WHO_INTERVAL: Final = 1.0  # seconds
_MAX_HOSTS: Final = 1024
_MAX_TARGETS: Final = 16384
_JOIN_TIMEOUT: Final = 5.0  # seconds


@dataclass
class _Host:
    """A host: `state` is here, late, frozen or gone; `heard` and `gone_at` are in monotonic seconds."""

    instance: str
    heard: float
    state: str = "here"
    digest: str = ""
    gone_at: float | None = None
    asking: bool = False
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class _Entry:
    """A target and its bridge; `gives_up_at` (monotonic seconds) is None while the target is announced."""

    host: str
    bridge: Bridge
    gives_up_at: float | None = None


class FleetTargets(Mapping[str, Bridge]):
    """Bridges by ``HOST~TARGET``, for `rbkit_routes`, kept up to date with what agents announce. Web loop only."""

    def __init__(
        self,
        make_bridge: Callable[[FleetEndpoint, IOLoopThread], Bridge],
        servers: Callable[[], NatsServers | None],
        bridge: str,
        path_name: Callable[[str], str],
    ) -> None:
        """Describe the targets; `follow` finds them.

        Args:
            make_bridge: called with the endpoint of a target, and the thread that all bridges share.
            servers: returns the NATS servers, before each attempt to connect.
            bridge: the name of the credentials.
            path_name: makes a name valid in a path.
        """
        self._make_bridge = make_bridge
        self._path_name = path_name
        self._thread = IOLoopThread()
        self._fleet = Fleet(servers, bridge)
        self._hosts: dict[str, _Host] = {}
        self._entries: dict[str, _Entry] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._throttle = LogThrottle()
        self._next_who = 0.0

    def __getitem__(self, name: str) -> Bridge:
        return self._entries[name].bridge

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def hosts(self) -> dict[str, str]:
        """The state of each host: here, late (its hellos do not arrive), frozen (it does not answer) or gone."""
        return {name: host.state for name, host in self._hosts.items()}

    async def follow(self) -> None:
        """Follow the announcements until cancelled, then close all bridges and join their thread.

        Raises:
            DiscoveryError: the I/O thread of the bridges could not be started, or has ended.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._start_thread()
            while self._thread.is_alive():
                self.scan()
                await asyncio.sleep(_CHECK_INTERVAL)
            raise DiscoveryError("the I/O thread of the bridges' connections has ended")
        finally:
            bridges = [entry.bridge for entry in self._entries.values()]
            await asyncio.gather(*self._leaving, *(self._close(bridge) for bridge in bridges))
            if self._thread.is_alive():
                await asyncio.wait_for(self._on_thread(self._fleet.close()), _JOIN_TIMEOUT)
            self._thread.stop()

    def scan(self) -> None:
        """Ask for hosts that are late, and close the bridges of targets that are gone."""
        now = time.monotonic()
        for name, host in list(self._hosts.items()):
            if host.gone_at is not None and now - host.gone_at > FORGET_AFTER:
                del self._hosts[name]
            elif host.state != "gone" and now - host.heard > LATE_AFTER and not host.asking:
                host.asking = True
                task = asyncio.create_task(self._ask(name, host))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
        for name, entry in list(self._entries.items()):
            if entry.gives_up_at is not None and (now >= entry.gives_up_at or not entry.bridge.watched):
                task = asyncio.create_task(self._close(self._entries.pop(name).bridge))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)

    def on_hello(self, host_name: str, hello: dict[str, Any]) -> None:
        """Record the hello of an agent."""
        if host_name not in self._hosts and len(self._hosts) >= _MAX_HOSTS:
            self._warn("hosts", "there are more than %d hosts; the others are not shown", _MAX_HOSTS)
            return
        instance, digest = str(hello.get("instance", "")), str(hello.get("digest", ""))
        host = self._hosts.get(host_name)
        if host is None:
            host = self._hosts[host_name] = _Host(instance, time.monotonic())
            _log.info("the host %s is here", host_name)
        elif host.instance != instance and time.monotonic() - host.heard < LATE_AFTER and host.state == "here":
            self._warn(("twice", host_name), "two agents, or one that was restarted, have the name %s", host_name)
        if host.state != "here":
            _log.info("the host %s is here again", host_name)
        host.instance, host.heard, host.state, host.gone_at = instance, time.monotonic(), "here", None
        targets = hello.get("targets")
        if isinstance(targets, list):
            host.digest = digest
            named = (facts for facts in targets if isinstance(facts, dict) and isinstance(facts.get("name"), str))
            host.facts = {facts["name"]: facts for facts in named}
        elif digest != host.digest and time.monotonic() > self._next_who:
            self._next_who = time.monotonic() + _WHO_INTERVAL  # all hosts answer
            self._thread.io_loop.add_callback(self._fleet.who)
        self._update(host_name, set(host.facts))

    def _update(self, host: str, targets: set[str]) -> None:
        """Make a bridge for each target of a host that is announced, and let the others go."""
        shown = {self._name(host, target): target for target in targets}
        for name, target in shown.items():
            if name in self._entries:
                self._entries[name].gives_up_at = None
            elif len(self._entries) >= _MAX_TARGETS:
                self._warn("targets", "there are more than %d targets; the others are not shown", _MAX_TARGETS)
            else:
                bridge = self._make_bridge(FleetEndpoint(self._fleet, host, target), self._thread)
                self._entries[name] = _Entry(host, bridge)
                _log.info("found %s", name)
        for name, entry in self._entries.items():
            if entry.host == host and name not in shown and entry.gives_up_at is None:
                _log.info("%s has ended", name)
                entry.gives_up_at = time.monotonic() + FORGET_AFTER

    def _name(self, host: str, target: str) -> str:
        return f"{self._path_name(host)}~{self._path_name(target)}"

    async def _ask(self, name: str, host: _Host) -> None:
        """Find out why a host is late."""
        heard = host.heard
        try:
            await self._on_thread(self._fleet.ping(name))
            state = "late"
        except NoRespondersError:
            state = "gone"
        except LinkError:
            state = "frozen" if self._fleet.link.is_up else host.state
        finally:
            host.asking = False
        if host.heard != heard or state == host.state:
            return
        host.state = state
        _log.info("the host %s is %s", name, state)
        if state == "gone":
            host.gone_at = time.monotonic()
            host.facts.clear()
            host.digest = ""
            self._update(name, set())

    def _start_thread(self) -> None:
        try:
            self._thread.start()
        except (OSError, RuntimeError) as error:  # too few descriptors, or threads
            raise DiscoveryError(f"the I/O thread of the bridges' connections did not start: {error}") from error
        self._thread.io_loop.add_callback(self._fleet.start, self._on_message)

    def _on_thread(self, coroutine: Any) -> asyncio.Future[Any]:
        """Run a coroutine on the thread."""
        loop: Any = self._thread.io_loop
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop))

    def _on_message(self, message: Message) -> None:
        """Decode a hello, on the thread, and hand it to the web loop."""
        host = subjects.parse_hello(message.subject)
        try:
            hello = msgpack.unpackb(message.data)
        except (ValueError, TypeError, msgpack.UnpackException):
            hello = None
        if host is None or not isinstance(hello, dict):
            return
        if hello.get("v") != VERSION:
            hello = {**hello, "targets": []}
            self._warn(("version", host), "the agent of %s speaks another version of the protocol", host)
        self._loop.call_soon_threadsafe(self.on_hello, host, hello)

    async def _close(self, bridge: Bridge) -> None:
        try:
            await bridge.close()
        except Exception:  # noqa: BLE001 - the other bridges must be closed too
            _log.exception("closing the connection to %s failed", bridge.pub)

    def _warn(self, key: object, text: str, about: object) -> None:
        count = self._throttle.add(str(key))
        if count:
            _log.warning(text + "%s", about, times(count))
