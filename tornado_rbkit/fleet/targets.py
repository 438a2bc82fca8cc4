"""Bridges by name for the targets of all hosts, added and removed as agents announce them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.bridge.pool import BridgePool
from tornado_rbkit.bridge.summary import printable
from tornado_rbkit.errors import DiscoveryError
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.control import ControlConnection
from tornado_rbkit.fleet.hello import MAX_TARGETS, VERSION, Hello
from tornado_rbkit.fleet.link import LONGEST_DELAY, LinkError, Message, NoRespondersError
from tornado_rbkit.fleet.nats import NatsServers
from tornado_rbkit.fleet.transport import FleetEndpoint
from tornado_rbkit.fleet.vitals import VITALS_INTERVAL, Vitals
from tornado_rbkit.log_throttle import LogThrottle
from tornado_rbkit.tasks import Tasks
from tornado_rbkit.upstream.iothread import IOLoopThread

_log = logging.getLogger(__name__)

LATE_AFTER: Final = 1.3
"""Seconds without a hello after which a host is asked whether it is there."""

REJOIN_SECONDS: Final = LONGEST_DELAY + LATE_AFTER
"""Seconds after our connection to NATS came up, before which no host counts as gone: it reconnects, too."""

FLEET_IDLE_GRACE: Final = 2.0
"""Seconds for which a bridge keeps the lease of a target after its last client left; the agent has its own grace."""

FORGET_AFTER: Final = 10.0
"""Seconds for which the targets of a host that is gone, or targets that are gone, keep their clients."""

SHOW_GONE: Final = 600.0
"""Seconds for which a host that is gone is shown as such."""

LOOK_SECONDS: Final = 4.0
"""Seconds for which hosts are asked for the figures of their processes after somebody has looked at the targets."""

_CHECK_INTERVAL: Final = 0.25  # seconds
_LIST_INTERVAL: Final = 1.0  # seconds between two requests for the list of a host
_MAX_HELLOS: Final = 20  # of one host within a second; an agent sends one, and five lists at most
_MAX_HOSTS: Final = 1024
_MAX_TARGETS: Final = 16384
_NEW_AT_ONCE: Final = 64  # targets of one host that become entries within `_CHECK_INTERVAL`, at 0.2 ms each
_JOIN_TIMEOUT: Final = 10.0  # seconds; each connection may take two to close


@dataclass
class _Host:
    """A host: `state` is here, late, frozen or gone; times are in monotonic seconds.

    `shown` is the number of its targets that are entries, and `next_new` the time from which others may become some.
    """

    instance: str
    heard: float
    state: str = "here"
    digest: str = ""
    gone_at: float | None = None
    asking: bool = False
    next_list: float = 0.0
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    vitals: Vitals | None = None
    shown: int = 0
    next_new: float = 0.0


@dataclass
class _Entry:
    """A target and its bridge; `gives_up_at` (monotonic seconds) is None while the target is announced."""

    host: str
    target: str
    bridge: Bridge
    gives_up_at: float | None = None


class FleetTargets(Mapping[str, Bridge]):
    """Bridges by ``HOST~TARGET``, for `rbkit_routes`, kept up to date with what agents announce. Web loop only.

    Implements `tornado_rbkit.bridge.summary.KnowsTargets` and `tornado_rbkit.web.overview.KnowsHosts`.
    """

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
        self._pool = BridgePool()
        self._thread = self._pool.thread
        self._control = ControlConnection(servers, bridge)
        self._hosts: dict[str, _Host] = {}
        self._entries: dict[str, _Entry] = {}
        self._asking = Tasks()
        self._throttle = LogThrottle()
        self._looked_at = self._leased_at = -math.inf
        self._hellos: dict[str, tuple[float, int]] = {}  # on the thread: see `_is_flood`

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

    def facts(self, name: str) -> dict[str, Any]:
        """Return what the agent of a target has announced about it; see `KnowsTargets`."""
        entry = self._entries[name]
        host = self._hosts.get(entry.host)
        announced = host.facts.get(entry.target, {}) if host is not None else {}
        return {"host": entry.host, **announced}

    def figures(self, name: str) -> dict[str, float]:
        """Return the figures of a target's process, if its host has sent them lately; see `KnowsTargets`."""
        entry = self._entries[name]
        host = self._hosts.get(entry.host)
        if host is None or host.vitals is None:
            return {}
        return {"at": host.vitals.at, **host.vitals.processes.get(entry.target, {})}

    def host_facts(self) -> list[dict[str, Any]]:
        """Return each host's name and state, the seconds since it was heard if it is not here, and its targets."""
        now = time.monotonic()
        return [
            {
                "name": printable(name),
                "state": host.state,
                "seconds": 0.0 if host.state == "here" else now - host.heard,
                "targets": len(host.facts),
            }
            for name, host in self._hosts.items()
        ]

    def look(self) -> None:
        """Ask the hosts for the figures of their processes for the next `LOOK_SECONDS`."""
        self._looked_at = time.monotonic()

    async def follow(self) -> None:
        """Follow the announcements until cancelled, then close all bridges and join their thread.

        Raises:
            DiscoveryError: the I/O thread of the bridges could not be started, or has ended.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._pool.start()
            self._thread.io_loop.add_callback(self._control.start, self._on_message, self._on_vitals)
            while self._thread.is_alive() and not self._control.failure:
                self.scan()
                await asyncio.sleep(_CHECK_INTERVAL)
            raise DiscoveryError(self._control.failure or "the I/O thread of the bridges' connections has ended")
        finally:
            await self._asking.cancel()  # if the thread has ended, nobody answers them
            bridges = [entry.bridge for entry in self._entries.values()]
            await self._pool.close(bridges)
            try:
                if self._thread.is_alive():
                    await asyncio.wait_for(self._on_thread(self._control.close()), _JOIN_TIMEOUT)
            finally:
                self._thread.stop()

    def scan(self) -> None:
        """Ask for hosts that are late, show targets that are not shown yet, and close the bridges of those gone."""
        now = time.monotonic()
        for name, host in list(self._hosts.items()):
            if host.gone_at is not None and now - host.gone_at > SHOW_GONE:
                del self._hosts[name]
            elif host.state != "gone" and now - host.heard > LATE_AFTER and not host.asking:
                host.asking = True
                self._asking.start(self._ask(name, host), f"asking the host {name}")
            if host.shown < len(host.facts) and len(self._entries) < _MAX_TARGETS:
                self._show(name, host)
        for name, entry in list(self._entries.items()):
            if entry.gives_up_at is not None and (now >= entry.gives_up_at or not entry.bridge.watched):
                self._pool.let_go(self._entries.pop(name).bridge)
        if now - self._looked_at < LOOK_SECONDS and now - self._leased_at >= VITALS_INTERVAL:
            self._leased_at = now
            asked = [name for name, host in self._hosts.items() if host.state != "gone"]
            self._thread.io_loop.add_callback(self._control.lease_vitals, asked)

    def on_hello(self, host_name: str, hello: Hello) -> None:
        """Record the hello of an agent. Of two agents with one name, the first is kept while its hellos arrive."""
        if hello.version != VERSION:
            self._throttle.warn(
                _log, ("version", host_name), "the agent of %s speaks another version of the protocol", host_name
            )
        now = time.monotonic()
        host = self._hosts.get(host_name)
        if host is None:
            if len(self._hosts) >= _MAX_HOSTS and not self._forget_one():
                self._throttle.warn(
                    _log, "hosts", "there are more than %d hosts; the others are not shown", _MAX_HOSTS
                )
                return
            host = self._hosts[host_name] = _Host(hello.instance, now)
            _log.info("host %s has connected", host_name)
        elif host.instance != hello.instance and now - host.heard < LATE_AFTER and host.state == "here":
            self._throttle.warn(
                _log, ("twice", host_name), "two agents, or one that was restarted, have the name %s", host_name
            )
            return
        if host.state != "here":
            _log.info("host %s has reconnected", host_name)
        host.instance, host.heard, host.state, host.gone_at = hello.instance, now, "here", None
        if hello.targets is not None:
            host.digest, host.facts = hello.digest, hello.targets
            self._show(host_name, host)
            return
        if host.shown < len(host.facts):  # there may be room by now
            self._show(host_name, host)
        if hello.digest != host.digest and now >= host.next_list:
            host.next_list = now + _LIST_INTERVAL
            self._thread.io_loop.add_callback(self._control.ask_for_list, host_name)

    def on_vitals(self, host_name: str, vitals: Vitals) -> None:
        """Record the figures of a host's processes, while somebody looks at them."""
        host = self._hosts.get(host_name)
        if host is not None and time.monotonic() - self._looked_at < LOOK_SECONDS:
            host.vitals = vitals

    def _forget_one(self) -> bool:
        """Forget the host that has been gone for longest; return whether there is one."""
        gone = [(host.gone_at, name) for name, host in self._hosts.items() if host.gone_at is not None]
        if gone:
            del self._hosts[min(gone)[1]]
        return bool(gone)

    def _show(self, host_name: str, host: _Host) -> None:
        """Create bridges for announced targets of a host, and schedule the removal of its other bridges.

        The rest of its targets follows at the next scans, so that a host that announces other targets all the time
        does not keep the loop busy.
        """
        now = time.monotonic()
        room = _NEW_AT_ONCE if now >= host.next_new else 0
        known = {entry.target: name for name, entry in self._entries.items() if entry.host == host_name}
        host.shown = 0
        for target in host.facts:
            name = known.pop(target, None)
            if name is not None:
                self._entries[name].gives_up_at = None
            elif len(self._entries) >= _MAX_TARGETS:
                self._throttle.warn(
                    _log, "targets", "there are more than %d targets; the others are not shown", _MAX_TARGETS
                )
                continue
            elif room:
                room -= 1
                host.next_new = now + _CHECK_INTERVAL
                self._add(host_name, target)
            else:
                continue
            host.shown += 1
        for name in known.values():
            entry = self._entries[name]
            if entry.gives_up_at is None:
                _log.info("%s has ended", name)
                entry.gives_up_at = now + FORGET_AFTER

    def _add(self, host: str, target: str) -> None:
        """Create a bridge. Its name is free: different names may be the same in a path."""
        plain = f"{self._path_name(host)}~{self._path_name(target)}"
        counted = (f"{plain}-{count}" for count in itertools.count(2))
        name = next(name for name in itertools.chain([plain], counted) if name not in self._entries)
        bridge = self._make_bridge(FleetEndpoint(self._control, host, target), self._thread)
        self._entries[name] = _Entry(host, target, bridge)
        _log.info("found %s", name)

    async def _ask(self, name: str, host: _Host) -> None:
        """Find out why a host is late."""
        heard = host.heard
        try:
            await self._on_thread(self._control.ping(name))
            state = "late"
        except NoRespondersError:
            has_rejoined = time.monotonic() - self._control.link.up_at > REJOIN_SECONDS
            state = "gone" if has_rejoined else "late"
        except LinkError:
            state = "frozen" if self._control.link.is_up else host.state
        finally:
            host.asking = False
        if host.heard != heard or state == host.state or self._hosts.get(name) is not host:
            return
        host.state = state
        _log.info("host %s is %s", name, state)
        if state == "gone":
            host.gone_at = time.monotonic()
            host.facts.clear()
            host.vitals = None
            host.digest = ""
            self._show(name, host)

    def _on_thread(self, coroutine: Any) -> asyncio.Future[Any]:
        """Run a coroutine on the thread."""
        loop: Any = self._thread.io_loop
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop))

    def _on_message(self, message: Message) -> None:
        """Decode a hello, on the thread, and hand it to the web loop."""
        host = subjects.parse_host(message.subject, subjects.hello)
        if host is None or self._is_flood(host):
            return
        hello = Hello.parse(message.data)
        if hello is not None:
            self._loop.call_soon_threadsafe(self.on_hello, host, hello)

    def _on_vitals(self, message: Message) -> None:
        """Decode the figures of a host's processes, on the thread, and hand them to the web loop."""
        host = subjects.parse_host(message.subject, subjects.vitals)
        if host is None or self._is_flood(host):
            return
        vitals = Vitals.parse(message.data, MAX_TARGETS)
        if vitals is not None:
            self._loop.call_soon_threadsafe(self.on_vitals, host, vitals)

    def _is_flood(self, host: str) -> bool:
        """Return whether a host has sent too many messages within a second."""
        now = time.monotonic()
        since, count = self._hellos.get(host, (-1.0, 0))
        since, count = (now, 1) if now - since > 1 else (since, count + 1)
        if len(self._hellos) >= 2 * _MAX_HOSTS and host not in self._hellos:
            self._hellos.clear()
        self._hellos[host] = since, count
        return count > _MAX_HELLOS
