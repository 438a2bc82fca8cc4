"""Bridges by name for the profilers of this machine, added and removed as processes start and end."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final, NamedTuple

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.bridge.pool import BridgePool
from tornado_rbkit.errors import DiscoveryError, EndpointError
from tornado_rbkit.log_throttle import LogThrottle, times
from tornado_rbkit.profiler.discovery import RunningServer, list_servers
from tornado_rbkit.profiler.endpoints import accepts
from tornado_rbkit.profiler.vitals import process_figures
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.web.overview import own_figures
from tornado_rbkit.web.routes import RESERVED_NAMES, check_name

_log = logging.getLogger(__name__)

SCAN_INTERVAL: Final = 1.0
"""Seconds between two scans of the runtime folder."""

KEEP_SECONDS: Final = 10.0
"""Seconds for which the name of an ended process with clients is kept for a process started in its place."""


DEFAULT_NAME: Final = "rbkit"
"""The name of the profiler at rbkit's default ports where it is not the only target."""

_PROBE_INTERVAL: Final = 5.0  # seconds between two connections to the default ports, to see whether they are open


class Endpoints(NamedTuple):
    """The endpoints where a profiler publishes and takes commands; None for rbkit's default ports."""

    pub: str | None
    req: str | None


@dataclass
class _Entry:
    """A named process and its bridge. `gives_up_at` (monotonic seconds) is None while the process runs."""

    server: RunningServer
    bridge: Bridge
    gives_up_at: float | None = None


class DiscoveredTargets(Mapping[str, Bridge]):
    """Bridges by name, for `rbkit_routes`, kept up to date with `list_servers`. Web loop only.

    A process has one entry from the first scan that finds it, and keeps its name while it runs. Implements
    `tornado_rbkit.bridge.summary.KnowsTargets`.
    """

    def __init__(
        self,
        make_bridge: Callable[[str | None, str | None, IOLoopThread], Bridge],
        fixed: Mapping[str, Endpoints] | None = None,
        discovery: bool = True,
        default_ports: bool = True,
        family: str = "",
    ) -> None:
        """Create the bridges of the fixed targets.

        Args:
            make_bridge: called with pub, req (None for the default ports) and the thread that all bridges share.
            fixed: the endpoints of targets that need no discovery, by name.
            discovery: whether to look for other targets.
            default_ports: whether to show a bridge to rbkit's default ports, because a Ruby process does not announce
                itself: without a name while there is no other target, else as `DEFAULT_NAME` while something listens
                there. On a machine with many users it may be another user's.
            family: the `RunningServer.family` of the processes to show; by default all processes.

        Raises:
            ValueError: a name is not valid in a path, or `make_bridge` raised it.
        """
        self._make_bridge = make_bridge
        self._discovery = discovery
        self._family = family
        self._fixed_req = {req for _, req in (fixed or {}).values()}
        self._default_ports = default_ports
        self._pool = BridgePool()
        self._thread = self._pool.thread
        self._default = make_bridge(None, None, self._thread)
        self._default_is_open = False
        self._next_probe = 0.0
        self._fixed = {
            check_name(name): make_bridge(pub, req, self._thread) for name, (pub, req) in (fixed or {}).items()
        }
        self._found: dict[str, _Entry] = {}
        self._unreachable: set[RunningServer] = set()
        self._unusable = ""
        self._repeats = LogThrottle()

    def __getitem__(self, name: str) -> Bridge:
        return self._shown()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown())

    def __len__(self) -> int:
        return len(self._shown())

    async def follow(self) -> None:
        """Scan periodically until cancelled, then close all bridges and join their thread.

        A scan that fails is logged and repeated.

        Raises:
            DiscoveryError: the I/O thread of the bridges could not be started, or has ended.
        """
        try:
            self._pool.start()
            while self._thread.is_alive():
                self._try(self.scan)
                await asyncio.sleep(SCAN_INTERVAL)
            raise DiscoveryError("the I/O thread of the profilers' connections has ended")
        finally:
            bridges = [self._default, *self._fixed.values(), *(entry.bridge for entry in self._found.values())]
            await self._pool.close(bridges)
            self._thread.stop()

    def facts(self, name: str) -> dict[str, Any]:
        """Return the program and the pid of a discovered process, nothing of other targets."""
        entry = self._found.get(name)
        return {} if entry is None else {"process": entry.server.name, "pid": entry.server.pid}

    def figures(self, name: str) -> dict[str, float]:
        """Return the figures of a target's process, if it is a process of this machine; see `KnowsTargets`."""
        entry = self._found.get(name)
        if entry is not None and entry.server.here:
            return dict(process_figures(entry.server.pid))
        return own_figures(self._fixed.get(name, self._default) if entry is None else entry.bridge)

    def scan(self) -> None:
        """Add bridges for new processes, and close the bridges of processes that have ended.

        The entry of a process with clients is kept for `KEEP_SECONDS`; a new process of the same name takes it over.
        """
        now = time.monotonic()
        servers = dict.fromkeys(self._servers())
        self._unreachable &= servers.keys()
        for name, entry in self._found.items():
            if entry.server in servers:
                entry.gives_up_at = None  # its file may have been missing during one scan
            elif entry.gives_up_at is None:
                _log.info("%s has ended", name)
                entry.gives_up_at = now + KEEP_SECONDS
        known = {entry.server for entry in self._found.values()} | self._unreachable
        for server in servers:
            if server not in known:
                self._try(functools.partial(self._add, server))
        for name, entry in list(self._found.items()):
            if entry.gives_up_at is not None and (now >= entry.gives_up_at or not entry.bridge.watched):
                self._pool.let_go(self._found.pop(name).bridge)
        if self._default_ports:
            self._probe_default(now)

    def _try(self, step: Callable[[], None]) -> None:
        """Run a step; log its error, throttled because the next scan repeats it."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - one process or one failed scan must not end the others
            count = self._repeats.add(repr(error)[:200])
            if count:
                _log.exception("the scan for processes failed and will be repeated%s", times(count))

    def _add(self, server: RunningServer) -> None:
        orphaned = (
            name
            for name, entry in self._found.items()
            if entry.gives_up_at is not None and entry.server.name == server.name
        )
        before = next(orphaned, None)
        name = before or self._free_name(server)
        try:
            if before is None:
                bridge = self._make_bridge(server.pub, server.req, self._thread)
            else:
                bridge = self._found[before].bridge
                bridge.retarget(server.pub, server.req)
        except EndpointError as error:
            self._unreachable.add(server)
            _log.warning("%s cannot be served: %s", name, error)
        else:
            self._found[name] = _Entry(server, bridge)
            _log.info("found %s at %s", name, server.pub)

    def _shown(self) -> dict[str, Bridge]:
        found = {name: entry.bridge for name, entry in self._found.items()}
        named = {**self._fixed, **found}
        if not self._default_ports or DEFAULT_NAME in named:
            return named
        if not named:
            return {"": self._default}
        return {**named, DEFAULT_NAME: self._default} if self._default_is_open else named

    def _probe_default(self, now: float) -> None:
        """Check whether a profiler that is not among the other targets listens at the default ports."""
        others = [*self._fixed.values(), *(entry.bridge for entry in self._found.values())]
        if not others or now < self._next_probe:
            return
        self._next_probe = now + _PROBE_INTERVAL
        is_other = any(bridge.req == self._default.req for bridge in others)
        self._default_is_open = self._default.watched or (not is_other and accepts(self._default.req))

    def _servers(self) -> Iterable[RunningServer]:
        try:
            servers = list_servers() if self._discovery else []
        except OSError as error:
            if str(error) != self._unusable:  # logged once, not every second
                self._unusable = str(error)
                _log.warning("processes cannot be discovered: %s", error)
            return [entry.server for entry in self._found.values() if entry.gives_up_at is None]
        self._unusable = ""
        if self._family:
            return [each for each in servers if each.family == self._family and each.req not in self._fixed_req]
        return servers

    def _free_name(self, server: RunningServer) -> str:
        """Return an unused name: the program's, else the program's with its pid, else with its pid and a counter."""
        plain = path_name(server.name)
        with_pid = f"{plain}-{server.pid}"
        counted = (f"{with_pid}-{count}" for count in itertools.count(2))
        taken = {*self._fixed, *self._found, *RESERVED_NAMES, *([DEFAULT_NAME] if self._default_ports else [])}
        return next(name for name in itertools.chain([plain, with_pid], counted) if name not in taken)


def path_name(program: str) -> str:
    """Return the name of a program's file, made valid in a path."""
    return re.sub(r"[^A-Za-z0-9._~-]+", "-", PurePath(program).name).strip("._~-") or "python"
