"""The routes of one or several profilers: one call mounts them all, and each handler is public."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher, PathMatches, Rule
from tornado.web import RequestHandler

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.protocol import SUBPROTOCOL
from tornado_rbkit.web.access import Access, AccessSettings
from tornado_rbkit.web.dashboard import AssetHandler, IndexHandler
from tornado_rbkit.web.pages import StatusHandler, TargetsHandler
from tornado_rbkit.web.websocket import RbkitWebSocketHandler, SubprotocolMatches

if TYPE_CHECKING:
    from typing_extensions import Unpack  # type checkers have it; `typing` has Unpack since Python 3.11

RESERVED_NAMES: Final = frozenset({"ws", "status", "targets", "metrics", "static"})
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._~-]*"


def rbkit_routes(
    bridges: Bridge | Mapping[str, Bridge] | None = None,
    prefix: str = "/rbkit",
    *,
    anywhere: bool = True,
    **access: Unpack[AccessSettings],
) -> list[Rule]:
    """Return the routes to put before an application's own.

    They mount the WebSocket at any path (if there are several bridges: to the first one) and at ``PREFIX/ws``, a
    dashboard at ``PREFIX/`` (of several bridges, a table that leads to each one's) and JSON at ``PREFIX/status``; for
    named bridges also ``PREFIX/NAME/ws``, ``PREFIX/NAME/status`` and a list at ``PREFIX/targets``; with
    prometheus_client installed, ``PREFIX/metrics``. Upgrades that do not offer the subprotocol rbkit, and all other
    paths, are left to the application's routes.

    Each handler can also be mounted by itself, such as ``(r"/profiler", RbkitWebSocketHandler, {"bridge": bridge})``:
    `RbkitWebSocketHandler`, `StatusHandler`, `TargetsHandler`, `IndexHandler` with `AssetHandler`, and
    `SubprotocolMatches`, the matcher for any path.

    Args:
        bridges: a bridge; or a mapping of names to bridges, which may change while the server runs; or None for a
            bridge to rbkit's default ports. The caller closes its bridges.
        prefix: the path of the pages and the WebSockets.
        anywhere: whether to mount the WebSocket at any path. If so, rules that depend on the path, such as a proxy's
            or a login's for ``PREFIX``, do not protect it.
        access: the settings of `Access`, for all routes.

    Raises:
        ValueError: a name is reserved or not valid in a path, or a setting is out of its range.
        TypeError: `access` has an unknown setting.
        EndpointError: ``RBKIT_PUB_PORT`` or ``RBKIT_REQ_PORT`` is not a port.
    """
    rules = Access(**access)
    named = bridges if isinstance(bridges, Mapping) else {"": bridges or Bridge()}
    for name in named:
        check_name(name)
    base = re.escape(f"/{check_prefix(prefix).strip('/')}".rstrip("/"))
    one_of_them = re.compile(f"{base}/({NAME})/ws") if isinstance(bridges, Mapping) else None
    pages: dict[str, type[RequestHandler]] = {"/status": StatusHandler, "/targets": TargetsHandler, "/?": IndexHandler}
    if importlib.util.find_spec("prometheus_client"):
        from tornado_rbkit.web.metrics import MetricsHandler

        pages["/metrics"] = MetricsHandler
    return [
        Rule(OneBridge(PathMatches(f"{base}/({NAME})/ws"), named, rules), RbkitWebSocketHandler),
        *(
            [Rule(OneBridge(SubprotocolMatches(SUBPROTOCOL), named, rules, one_of_them), RbkitWebSocketHandler)]
            if anywhere
            else []
        ),
        Rule(OneBridge(PathMatches(f"{base}/ws"), named, rules), RbkitWebSocketHandler),
        Rule(OneBridge(PathMatches(f"{base}/({NAME})/status"), named, rules), StatusHandler),
        Rule(PathMatches(f"{base}/static/(.*)"), AssetHandler, {"access": rules}),
        *(Rule(PathMatches(base + path), page, {"bridges": named, "access": rules}) for path, page in pages.items()),
    ]


def check_prefix(prefix: str) -> str:
    """Return the prefix if it is valid in the path of a URL, as browsers send it.

    Raises:
        ValueError: the prefix is not valid.
    """
    if not re.fullmatch(r"[A-Za-z0-9._~!$&'()*+,;=:@/-]*", prefix) or {".", ".."} & set(prefix.split("/")):
        allowed = "ASCII that a URL does not escape, as /tools/rbkit"
        raise ValueError(f"the prefix {prefix!r} is not the path of a URL; allowed: {allowed} (--prefix)")
    return prefix


def check_name(name: str) -> str:
    """Return a target's name if it is valid in a path, or ``""`` for a target without a path of its own.

    Raises:
        ValueError: the name is reserved or not valid in a path.
    """
    if name and (not re.fullmatch(NAME, name) or name in RESERVED_NAMES):
        reserved = ", ".join(sorted(RESERVED_NAMES))
        raise ValueError(f"{name!r} cannot name a target; allowed: letters, digits and ._~-, but not {reserved}")
    return name


class OneBridge(Matcher):
    """Matches like another matcher if there is a bridge for the request: the one named in the path, or the first."""

    def __init__(
        self, matcher: Matcher, bridges: Mapping[str, Bridge], access: Access, but_not: re.Pattern[str] | None = None
    ) -> None:
        """Exclude the paths in `but_not`: a removed or misspelt name must not reach the first bridge."""
        self._matcher = matcher
        self._but_not = but_not
        self._bridges = bridges
        self._access = access

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """Return the arguments of the handler, None for no match."""
        matched = self._matcher.match(request)
        if matched is None or (self._but_not is not None and self._but_not.fullmatch(request.path)):
            return None
        names = [name.decode() for name in matched.get("path_args", ())] or list(self._bridges)[:1]
        bridge = self._bridges.get(names[0]) if names else None
        return None if bridge is None else {"target_kwargs": {"bridge": bridge, "access": self._access}}
