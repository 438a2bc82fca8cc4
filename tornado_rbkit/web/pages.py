"""What there is to see without a WebSocket, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.web.access import Access, AccessHandler


class PageHandler(AccessHandler):
    """The base of the handlers here: checked like a WebSocket that opens, and never cached."""

    def initialize(
        self, bridge: Bridge | None = None, bridges: Mapping[str, Bridge] | None = None, access: Access | None = None
    ) -> None:
        """Take what the route gives: one bridge, or several by name, and who may see them."""
        self.bridges = {"": bridge} if bridge is not None else bridges or {}
        self.access = access or Access()
        self.listed = bridge is None  # several may come and go, and `targets` beside the page has their names

    async def head(self, *args: Any, **kwargs: Any) -> None:
        """Answer as `get` does; Tornado leaves out the body."""
        await cast("Any", self).get(*args, **kwargs)

    def begin(self, content_type: str) -> None:
        """Begin the answer to a request that was checked."""
        self.set_header("Content-Type", content_type)
        self.set_header("Cache-Control", "no-store")

    async def finish_json(self, value: Any) -> None:
        """Answer with JSON; a path or a name that is not UTF-8 comes as lone surrogates."""
        self.begin("application/json")
        await self.finish(json.dumps(value, indent=1) + "\n")


class StatusHandler(PageHandler):
    """`Bridge.stats` as JSON; of several bridges, all of them below ``targets``.

    The addresses of clients are left out for a request that may not send ``objectspace_snapshot``.
    """

    async def get(self) -> None:
        """Answer with the figures of this moment."""
        await self.check_request()
        shows_clients = await self.access.shows_clients(self)
        stats = {name: bridge.stats() for name, bridge in self.bridges.items()}
        if not shows_clients:
            for client in (client for figures in stats.values() for client in figures["clients"]):
                del client["remote"]
        await self.finish_json(stats.get("", {"targets": stats}))


class TargetsHandler(PageHandler):
    """The bridges that have names, as JSON: where their WebSockets are, and their connection's state."""

    async def get(self) -> None:
        """Answer with a list, whose paths are relative to this one's."""
        await self.check_request()
        await self.finish_json(
            [
                {"name": name, "ws": f"{name}/ws", "status": f"{name}/status", "state": bridge.state.value}
                for name, bridge in self.bridges.items()
                if name
            ]
        )
