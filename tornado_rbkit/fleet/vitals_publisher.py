"""Publishes the figures of a host's processes while a bridge has leased them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from itertools import islice
from typing import Final

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.bridge.summary import KnowsTargets
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.hello import MAX_TARGETS
from tornado_rbkit.fleet.lease import LEASE_SECONDS, MAX_LEASES
from tornado_rbkit.fleet.link import Link, LinkError
from tornado_rbkit.fleet.subjects import Watcher
from tornado_rbkit.fleet.vitals import VITALS_INTERVAL, Vitals
from tornado_rbkit.tasks import Tasks

_TOLERANCE: Final = 0.5  # seconds by which the figures may be early, because they are sent in steps of a second


class VitalsPublisher:
    """Looks at the processes of a host each `VITALS_INTERVAL`, and only while a bridge has a lease. Web loop only."""

    def __init__(self, host: str, targets: Mapping[str, Bridge], link: Link, tasks: Tasks) -> None:
        """Describe a publisher.

        Args:
            host: the name of the host.
            targets: the bridges by name; there are no figures if they are not a `KnowsTargets`.
            link: the connection to NATS.
            tasks: the tasks of the agent.
        """
        self._host = host
        self._targets = targets
        self._link = link
        self._tasks = tasks
        self._ages: dict[Watcher, float] = {}  # seconds since a lease began or was renewed
        self._published_at = -math.inf

    def lease(self, watcher: Watcher) -> None:
        """Begin or renew a lease; the first one gets the figures at once."""
        if watcher in self._ages or len(self._ages) < MAX_LEASES:
            self._ages[watcher] = 0.0
            if len(self._ages) == 1:
                self._tasks.start(self.publish(), "publishing the figures of processes")

    def age(self, seconds: float) -> None:
        """End the leases that were not renewed for `LEASE_SECONDS`, of which `seconds` have passed."""
        aged = ((watcher, age + seconds) for watcher, age in self._ages.items())
        self._ages = {watcher: age for watcher, age in aged if age <= LEASE_SECONDS}

    async def publish(self) -> None:
        """Publish the figures if a bridge has a lease and they are due."""
        now = time.monotonic()
        if not self._ages or now - self._published_at < VITALS_INTERVAL - _TOLERANCE:
            return
        self._published_at = now
        if isinstance(self._targets, KnowsTargets):
            names = [name or subjects.DEFAULT_TARGET for name in islice(self._targets, MAX_TARGETS)]
            vitals = Vitals(now, {name: self._targets.figures(name) for name in names})
            with contextlib.suppress(LinkError):  # the link notices it
                await self._link.publish(subjects.vitals(self._host), vitals.pack())
