"""The JSON pages: the status of the bridges and the list of targets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.web.access import Access, AccessHandler
from tornado_rbkit.web.overview import overview


class PageHandler(AccessHandler):
    """Base class of the pages: checked like a WebSocket that opens, and never cached."""

    def initialize(
        self, bridge: Bridge | None = None, bridges: Mapping[str, Bridge] | None = None, access: Access | None = None
    ) -> None:
        """Set one bridge, or several by name, and the access rules."""
        self.bridges = {"": bridge} if bridge is not None else {} if bridges is None else bridges
        self.access = access or Access()
        self.listed = bridge is None  # named bridges may change; `targets` beside the page lists them

    async def head(self, *args: Any, **kwargs: Any) -> None:
        """Answer as `get` does; Tornado leaves out the body."""
        await cast("Any", self).get(*args, **kwargs)

    def begin(self, content_type: str) -> None:
        """Set the headers of the answer to a checked request."""
        self.set_header("Content-Type", content_type)
        self.set_header("Cache-Control", "no-store")

    def finish_json(self, value: Any) -> None:
        """Answer with JSON; a path or a name that is not UTF-8 contains lone surrogates."""
        self.begin("application/json")
        self.finish(json.dumps(value, indent=1) + "\n")  # not awaited: that raises if the client has disconnected


class StatusHandler(PageHandler):
    """`Bridge.stats` as JSON; for named bridges, an object of them by name below ``targets``.

    The addresses of clients are left out for a request that may not send ``objectspace_snapshot``.
    """

    async def get(self) -> None:
        """Answer with the current statistics."""
        await self.check_request()
        shows_clients = await self.access.shows_clients(self)
        stats = {name: bridge.stats() for name, bridge in self.bridges.items()}
        if not shows_clients:
            for client in (client for figures in stats.values() for client in figures["clients"]):
                del client["remote"]
        self.finish_json(stats.get("", {"targets": stats}))


class PolledHandler(PageHandler):
    """Base of the pages for which an open page asks every second or two."""

    def _log(self) -> None:
        """Log only failures."""
        if self.get_status() >= 400:
            super()._log()


class TargetsHandler(PolledHandler):
    """The named bridges as JSON: the paths of their WebSocket and status, and the state of the connection.

    With ``?fleet``, `tornado_rbkit.web.overview.overview` of them.
    """

    async def get(self) -> None:
        """Answer with a list, whose paths are relative to this page's, or with the overview."""
        await self.check_request()
        if self.get_query_argument("fleet", None) is not None:
            self.begin("application/json")
            self.finish(json.dumps(overview(self.bridges), separators=(",", ":")))
            return
        self.finish_json(
            [
                {"name": name, "ws": f"{name}/ws", "status": f"{name}/status", "state": bridge.state.value}
                for name, bridge in self.bridges.items()
                if name
            ]
        )
