"""The profilers of this machine as bridges by name, while they come and go."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Final, NamedTuple

from tornado_rbkit.bridge import Bridge
from tornado_rbkit.endpoints import EndpointError
from tornado_rbkit.iothread import IOLoopThread
from tornado_rbkit.profiler.discovery import RunningServer, list_servers
from tornado_rbkit.routes import RESERVED_NAMES, check_name

_log = logging.getLogger(__name__)

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at the runtime folder."""

KEEP_SECONDS: Final = 10.0
"""How long a process that has gone while it was watched keeps its name, for the one that is started in its place."""


class Endpoints(NamedTuple):
    """Where a profiler publishes and takes commands; None for rbkit's default ports."""

    pub: str | None
    req: str | None


class DiscoveredTargets(Mapping[str, Bridge]):
    """What `rbkit_routes` takes, kept up with `list_servers`. Web loop only.

    While there is none, there is one bridge, without a name, to rbkit's default ports: a Ruby process does not
    announce itself.
    """

    def __init__(
        self,
        make_bridge: Callable[[str | None, str | None, IOLoopThread], Bridge],
        fixed: Mapping[str, Endpoints] | None = None,
        discovery: bool = True,
    ) -> None:
        """Begin with those whose names and endpoints are known.

        Args:
            make_bridge: takes pub, req (None for the default ports) and the thread they share.
            fixed: what is there without being found.
            discovery: whether to look for others.

        Raises:
            ValueError: a name that a path cannot have, or what `make_bridge` raises.
        """
        self._make_bridge = make_bridge
        self._discovery = discovery
        self._thread = IOLoopThread()
        self._default = make_bridge(None, None, self._thread)
        self._fixed = {
            check_name(name): make_bridge(pub, req, self._thread) for name, (pub, req) in (fixed or {}).items()
        }
        self._bridges: dict[str, Bridge] = {}
        self._names: dict[RunningServer, str] = {}
        self._gone: dict[str, tuple[RunningServer, float]] = {}  # by name, with the time at which it is given up
        self._unreachable: set[RunningServer] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._unusable = ""

    def __getitem__(self, name: str) -> Bridge:
        return self._shown()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown())

    def __len__(self) -> int:
        return len(self._shown())

    async def follow(self) -> None:
        """Look again and again until cancelled; then close all bridges, and join their thread."""
        self._thread.start()
        try:
            while True:
                self.look()
                await asyncio.sleep(LOOK_INTERVAL)
        finally:
            bridges = [self._default, *self._fixed.values(), *self._bridges.values()]
            await asyncio.gather(*self._leaving, *(bridge.close() for bridge in bridges))
            self._thread.stop()

    def look(self) -> None:
        """Add bridges for the processes that have come, and close those of processes that have gone.

        One that was watched is kept for `KEEP_SECONDS`, and handed on to a process of the same name.
        """
        servers = self._servers()
        for server in self._names.keys() - servers:
            name = self._names.pop(server)
            _log.info("%s has gone", name)
            self._gone[name] = (server, time.monotonic() + KEEP_SECONDS)
        for server in servers:
            if server not in self._names and server not in self._unreachable:
                self._add(server)
        for name, (_, end) in list(self._gone.items()):
            if time.monotonic() >= end or not self._bridges[name].watched:
                self._give_up(name)

    def _give_up(self, name: str) -> None:
        del self._gone[name]
        closing = asyncio.create_task(self._bridges.pop(name).close())
        self._leaving.add(closing)
        closing.add_done_callback(self._leaving.discard)

    def _add(self, server: RunningServer) -> None:
        before = [name for name, (gone, _) in self._gone.items() if gone.name == server.name]
        name = before[0] if before else self._name(server)
        try:
            if before:
                self._bridges[name].retarget(server.pub, server.req)
                del self._gone[name]
            else:
                self._bridges[name] = self._make_bridge(server.pub, server.req, self._thread)
        except EndpointError as error:
            self._unreachable.add(server)
            _log.warning("%s cannot be served: %s", name, error)
        else:
            self._names[server] = name
            _log.info("%s has come, at %s", name, server.pub)

    def _shown(self) -> dict[str, Bridge]:
        return {**self._fixed, **self._bridges} or {"": self._default}

    def _servers(self) -> list[RunningServer]:
        try:
            servers = list_servers() if self._discovery else []
        except OSError as error:
            if str(error) != self._unusable:  # said once, not each second
                self._unusable = str(error)
                _log.warning("processes are not found by themselves: %s", error)
            return list(self._names)
        self._unusable = ""
        return servers

    def _name(self, server: RunningServer) -> str:
        """Return a name that a path can have: that of the program, with the pid where it is taken."""
        plain = path_name(server.name)
        return plain if plain not in {*self._fixed, *self._bridges, *RESERVED_NAMES} else f"{plain}-{server.pid}"


def path_name(program: str) -> str:
    """Return the name of a program's file as a path can have it."""
    return re.sub(r"[^A-Za-z0-9._~-]+", "-", PurePath(program).name).strip("._~-") or "python"
