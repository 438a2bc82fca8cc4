"""Announces the host and the targets of an agent in hello messages."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.bridge.summary import describe
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.hello import MAX_TARGETS, MAX_TEXT, VERSION, Hello
from tornado_rbkit.fleet.link import MAX_PAYLOAD, Link, LinkError
from tornado_rbkit.log_throttle import LogThrottle
from tornado_rbkit.tasks import Tasks

_log = logging.getLogger(__name__)

_LIST_INTERVAL: Final = 0.2  # seconds between two lists of the targets, however many bridges ask


class Announcer:
    """Announces a host, and the list of its targets when it has changed or a bridge asks. Web loop only."""

    def __init__(
        self,
        host: str,
        instance: str,
        targets: Mapping[str, Bridge],
        viewers: Callable[[str], int],
        link: Link,
        tasks: Tasks,
    ) -> None:
        """Describe an announcer.

        Args:
            host: the name of the host.
            instance: identifies the agent.
            targets: the bridges by name.
            viewers: returns the number of clients of a target.
            link: the connection to NATS.
            tasks: the tasks of the agent.
        """
        self._host = host
        self._instance = instance
        self._targets = targets
        self._viewers = viewers
        self._link = link
        self._tasks = tasks
        self._listing: asyncio.Task[None] | None = None
        self._listed_at = -math.inf
        self._digest = ""
        self._throttle = LogThrottle()

    async def announce(self, *, with_list: bool = False) -> None:
        """Announce the host, with the list of its targets if it has changed or was requested."""
        targets, digest = self._list()
        if with_list or digest != self._digest:
            self._listed_at = time.monotonic()
            hello = Hello(VERSION, self._instance, digest, targets)
        else:
            hello = Hello(VERSION, self._instance, digest)
        try:
            await self._link.publish(subjects.hello(self._host), hello.pack())
        except LinkError:
            return
        self._digest = digest

    def announce_list(self) -> None:
        """Announce the list of the targets, once for all bridges that ask within `_LIST_INTERVAL`."""
        if self._listing is None or self._listing.done():
            self._listing = self._tasks.start(self._announce_list(), "announcing the targets")

    async def _announce_list(self) -> None:
        await asyncio.sleep(max(0.0, self._listed_at + _LIST_INTERVAL - time.monotonic()))
        await self.announce(with_list=True)

    def _list(self) -> tuple[dict[str, dict[str, Any]], str]:
        """Return the facts about each target, as many as fit into a message, and their digest."""
        listed: dict[str, dict[str, Any]] = {}
        digest = hashlib.blake2b(digest_size=8)
        size = MAX_TEXT
        for key, bridge in self._targets.items():
            name = key or subjects.DEFAULT_TARGET
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
            "viewers": self._viewers(name),
        }


def _text(value: object) -> str:
    """Return a short text that can be encoded; the names of processes may have bytes that are not UTF-8."""
    return str(value or "")[:MAX_TEXT].encode("utf-8", "replace").decode()
