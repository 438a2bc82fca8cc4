"""What there is to see without a WebSocket: a page, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from tornado.template import Template

from tornado_rbkit.access import Access, AccessHandler
from tornado_rbkit.bridge import Bridge


class PageHandler(AccessHandler):
    """The base of the handlers here: checked like a WebSocket that opens, and never cached."""

    def initialize(
        self, bridge: Bridge | None = None, bridges: Mapping[str, Bridge] | None = None, access: Access | None = None
    ) -> None:
        """Take what the route gives: one bridge, or several by name, and who may see them."""
        self.bridges = {"": bridge} if bridge is not None else bridges or {}
        self.access = access or Access()

    async def prepare_page(self, content_type: str) -> None:
        """Raise `Refusal` unless the request may see the page; begin the answer."""
        await self.check_request()
        self.set_header("Content-Type", content_type)
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    async def finish_json(self, value: Any) -> None:
        """Answer with JSON; a path or a name that is not UTF-8 comes as lone surrogates."""
        await self.prepare_page("application/json")
        await self.finish(json.dumps(value, indent=1) + "\n")


class StatusHandler(PageHandler):
    """`Bridge.stats` as JSON; of several bridges, all of them below ``targets``."""

    async def get(self) -> None:
        """Answer with the figures of this moment."""
        stats = {name: bridge.stats() for name, bridge in self.bridges.items()}
        await self.finish_json(stats.get("", {"targets": stats}))


class TargetsHandler(PageHandler):
    """The bridges that have names, as JSON: where their WebSockets are, and their connection's state."""

    async def get(self) -> None:
        """Answer with a list, whose paths are relative to this one's."""
        await self.finish_json(
            [
                {"name": name, "ws": f"{name}/ws", "status": f"{name}/status", "state": bridge.state.value}
                for name, bridge in self.bridges.items()
                if name
            ]
        )


class IndexHandler(PageHandler):
    """A page that says what is connected, without a script."""

    async def get(self) -> None:
        """Answer with the state of this moment; the browser asks again every two seconds."""
        query = "?" + self.request.query if self.request.query else ""  # with the token, if there is one
        if not self.request.path.endswith("/"):
            self.redirect(self.request.path.rpartition("/")[2] + "/" + query)
            return
        await self.prepare_page("text/html; charset=UTF-8")
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'")
        targets = [(name, bridge.stats()) for name, bridge in self.bridges.items()]
        await self.finish(_PAGE.generate(targets=targets, query=query))


_PAGE: Final = Template(
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width">
<title>rbkit</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
table { border-collapse: collapse; margin-bottom: 2rem }
th, td { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
</style>
<h1>rbkit</h1>
{% for name, stats in targets %}
{% set facts = stats["handshake"] or {} %}
<h2>{{ name or facts.get("process_name", "profiler").encode("utf-8", "replace") }}</h2>
<table>
<tr><th>state<td>{{ stats["state"] }}
<tr><th>profiler<td>{{ stats["pub"] }}, {{ stats["req"] }}
{% for fact, value in facts.items() %}<tr><th>{{ fact }}<td>{{ str(value).encode("utf-8", "replace") }}
{% end %}
<tr><th>clients<td>{{ len(stats["clients"]) }}
<tr><th>messages<td>{{ "{:,}".format(stats["messages_in"]) }} ({{ "{:,}".format(stats["bytes_in"]) }} bytes) in,
{{ "{:,}".format(stats["messages_sent"]) }} sent, {{ "{:,}".format(stats["messages_dropped"]) }} dropped
<tr><th>WebSocket<td>{{ name + "/" if name else "" }}ws, subprotocol rbkit
</table>
{% end %}
<p>The same as <a href="status{{ query }}">JSON</a>.
</html>
"""
)
