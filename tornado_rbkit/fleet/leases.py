"""The leases at an agent: which bridge watches which target, and until when."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.errors import CommandError
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.lease import LEASE_SECONDS, MAX_LEASES, Lease
from tornado_rbkit.fleet.link import Link
from tornado_rbkit.fleet.subjects import Watcher
from tornado_rbkit.tasks import Tasks

_log = logging.getLogger(__name__)

_MAX_LEASES_OF_BRIDGE: Final = 1024  # of all processes with the same credentials
_MAX_PROCESSES: Final = 64  # with the same credentials, for one target


@dataclass
class _Watched:
    """A target with leases, and the connection for its data."""

    bridge: Bridge
    link: Link
    running: asyncio.Task[None]
    leases: dict[Watcher, Lease] = field(default_factory=dict)


class Leases:
    """Makes remote bridges clients of the targets of a host, until their leases end. Web loop only.

    A target without a lease has no client, so its bridge disconnects from the profiler, and stops the profiling that
    was started through it.
    """

    def __init__(
        self,
        host: str,
        targets: Mapping[str, Bridge],
        new_link: Callable[[str], Link],
        tasks: Tasks,
        *,
        max_backlog_bytes: int,
    ) -> None:
        """Create an empty collection.

        Args:
            host: the name of the host.
            targets: the bridges by name, which may change.
            new_link: returns a new connection for the data of a target.
            tasks: the tasks of the agent.
            max_backlog_bytes: bytes of profiling data that may wait for one bridge.
        """
        self._host = host
        self._targets = targets
        self._new_link = new_link
        self._tasks = tasks
        self._max_backlog_bytes = max_backlog_bytes
        self._watched: dict[str, _Watched] = {}

    def of(self, target: str) -> dict[Watcher, Lease]:
        """Return the leases of a target."""
        watched = self._watched.get(target)
        return {} if watched is None else watched.leases

    def viewers(self, target: str) -> int:
        """Return the number of clients of a target, at all bridges together."""
        return sum(lease.viewers for lease in self.of(target).values())

    def begin(self, target: str, watcher: Watcher) -> Lease:
        """Make a bridge a client of a target.

        Raises:
            BridgeFullError: it cannot join.
            CommandError: there is no such target, or there are too many leases.
        """
        bridge = self._bridge_of(target)
        if bridge is None:
            raise CommandError("unavailable", f"there is no target {target} on {self._host}")
        self._check_bounds(target, watcher.bridge)
        watched = self._watched.get(target)
        link = self._new_link(target) if watched is None else watched.link
        lease = bridge.add(
            lambda submit: Lease(
                submit,
                link,
                subjects.stream(watcher, self._host, target),
                name=f"{watcher.bridge} ({watcher.token})",
                max_backlog_bytes=self._max_backlog_bytes,
                on_closed=lambda lease: self.end(target, watcher),
            )
        )
        if watched is None:
            what = f"the connection for {target}"
            running = self._tasks.start(link.run(), what, lambda reason: self._end_target(target))
            watched = self._watched[target] = _Watched(bridge, link, running)
        watched.leases[watcher] = lease
        if bridge.state is State.CONNECTED:
            lease.on_profiler_connected()
        _log.info("the bridge %s watches %s", watcher.bridge, target)
        return lease

    def age(self, seconds: float) -> None:
        """End the leases of removed targets, and those not renewed for `LEASE_SECONDS`, of which `seconds` passed."""
        for target, watched in list(self._watched.items()):
            for watcher, lease in list(watched.leases.items()):
                lease.age += seconds
                if lease.age > LEASE_SECONDS or self._bridge_of(target) is not watched.bridge:
                    self.end(target, watcher)

    def end(self, target: str, watcher: Watcher) -> None:
        """End a lease, and close the connection for data after the last one. May be called twice."""
        watched = self._watched.get(target)
        lease = watched.leases.pop(watcher, None) if watched is not None else None
        if watched is None or lease is None:
            return
        watched.bridge.leave(lease)
        if not watched.leases:
            del self._watched[target]
            watched.running.cancel()

    def end_all(self) -> None:
        """End all leases."""
        for target in list(self._watched):
            self._end_target(target)

    def _end_target(self, target: str) -> None:
        for watcher in list(self.of(target)):
            self.end(target, watcher)

    def _bridge_of(self, target: str) -> Bridge | None:
        bridge = self._targets.get(target)
        return self._targets.get("") if bridge is None and target == subjects.DEFAULT_TARGET else bridge

    def _check_bounds(self, target: str, bridge: str) -> None:
        """Check that a bridge may have another lease.

        Raises:
            CommandError: it, or all bridges together, have too many.
        """
        of_target = Counter(watcher.bridge for watcher in self.of(target))
        of_all = Counter(watcher.bridge for watched in self._watched.values() for watcher in watched.leases)
        for count, most, what in (
            (of_target[bridge], _MAX_PROCESSES, f"of processes of {bridge} for one target"),
            (of_all[bridge], _MAX_LEASES_OF_BRIDGE, f"of {bridge}"),
            (of_all.total(), MAX_LEASES, "of one agent"),
        ):
            if count >= most:
                raise CommandError("busy", f"there are {count} leases; allowed: {most} {what}")
