"""The routes of one profiler or several: one call mounts them all, and each handler is public."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from typing import Any, Final

from tornado.routing import Rule, URLSpec

from tornado_rbkit.access import Access
from tornado_rbkit.bridge import Bridge
from tornado_rbkit.pages import IndexHandler, StatusHandler, TargetsHandler
from tornado_rbkit.protocol import SUBPROTOCOL
from tornado_rbkit.websocket import RbkitWebSocketHandler, SubprotocolMatches

RESERVED_NAMES: Final = frozenset({"ws", "status", "targets", "metrics", "static"})
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]*")


def rbkit_routes(
    bridges: Bridge | Mapping[str, Bridge] | None = None,
    prefix: str = "/rbkit",
    **access: Any,
) -> list[Rule]:
    """Return the routes to put before an application's own.

    They are the WebSocket at any path (of the first bridge, where there are several), the same at ``PREFIX/ws``, a
    page at ``PREFIX/`` and JSON at ``PREFIX/status``; for bridges with names, ``PREFIX/NAME/ws`` and so on, and a
    list at ``PREFIX/targets``; with prometheus_client installed, ``PREFIX/metrics``. Upgrades that do not offer the
    subprotocol rbkit, and all other paths, are left to the routes after these.

    Args:
        bridges: one; several by name, at least one; or none, for one at rbkit's default ports. It is the caller's
            to close.
        prefix: where the pages and the WebSockets are.
        access: the settings of `Access`, for all of them.

    Raises:
        ValueError: a name that a path cannot have or that is reserved, or a setting out of its range.
        EndpointError: ``RBKIT_PUB_PORT`` or ``RBKIT_REQ_PORT`` is not a port.
    """
    rules = Access(**access)
    named: Mapping[str, Bridge] = {}
    if isinstance(bridges, Mapping):
        named = {check_name(name): bridge for name, bridge in bridges.items()}
        if not named:
            raise ValueError("bridges={} is empty; allowed: at least one bridge, or None for the default ports")
        first = next(iter(named.values()))
    else:
        first = bridges or Bridge()
    base = re.escape(prefix.rstrip("/"))
    one = {"bridge": first, "access": rules}
    everything = {"bridges": named or {"": first}, "access": rules}

    routes: list[Rule] = []
    for name, bridge in named.items():
        below = f"{base}/{re.escape(name)}"
        routes.append(URLSpec(rf"{below}/ws", RbkitWebSocketHandler, {"bridge": bridge, "access": rules}))
        routes.append(URLSpec(rf"{below}/status", StatusHandler, {"bridges": {"": bridge}, "access": rules}))
    routes.append(Rule(SubprotocolMatches(SUBPROTOCOL), RbkitWebSocketHandler, one))
    routes.append(URLSpec(rf"{base}/ws", RbkitWebSocketHandler, one))
    routes.append(URLSpec(rf"{base}/status", StatusHandler, everything))
    routes.append(URLSpec(rf"{base}/targets", TargetsHandler, everything))
    routes.append(URLSpec(rf"{base}/?", IndexHandler, everything))
    if importlib.util.find_spec("prometheus_client"):
        from tornado_rbkit.metrics import MetricsHandler

        routes.append(URLSpec(rf"{base}/metrics", MetricsHandler, everything))
    return routes


def check_name(name: str) -> str:
    """Return a target's name if it can be a part of a path.

    Raises:
        ValueError: it cannot.
    """
    if not _NAME.fullmatch(name) or name in RESERVED_NAMES:
        reserved = ", ".join(sorted(RESERVED_NAMES))
        raise ValueError(f"{name!r} cannot name a target; allowed: letters, digits and ._~-, but not {reserved}")
    return name
