"""The handlers under Jupyter's rules: its identity, authorizer, origins, hosts, XSRF check and policy headers.

Jupyter checks the identity in `prepare` unless ``allow_unauthenticated_access`` is on, which is the default; the
decorators check it in every configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from http.client import responses
from typing import Any, Final, TypeVar, cast
from urllib.parse import parse_qsl, urlencode

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado.routing import PathMatches, Rule
from tornado.web import HTTPError, RequestHandler, authenticated

from tornado_rbkit.fleet.targets import FleetTargets
from tornado_rbkit.jupyter.kernels import find_target, kernel_figures
from tornado_rbkit.protocol import VIEW_COMMAND, CommandError
from tornado_rbkit.web.access import Access, AccessDeniedError, AccessHandler
from tornado_rbkit.web.dashboard import AssetHandler, IndexHandler
from tornado_rbkit.web.discovered import DiscoveredTargets
from tornado_rbkit.web.pages import PolledHandler, StatusHandler, TargetsHandler
from tornado_rbkit.web.routes import NAME, OneBridge
from tornado_rbkit.web.websocket import RbkitWebSocketHandler

AUTH_RESOURCE: Final = "rbkit"
_Method = TypeVar("_Method", bound=Callable[..., Any])


class JupyterAccess(Access):
    """Access rules by Jupyter's authorizer: "read" allows viewing, "execute" allows commands."""

    async def refusal(self, handler: RequestHandler, command: str) -> CommandError | None:
        """Return the error that refuses the command, None if it is allowed; see `Access.refusal`."""
        if await super().refusal(handler, command) is None:
            return None
        text = f"{command}: the server's authorizer does not let you {_action(command)!r} the resource {AUTH_RESOURCE}"
        return CommandError("forbidden", f"{text} (ServerApp.authorizer_class)")


def jupyter_access(read_only: bool) -> Access:
    """Return the access rules for all handlers; Jupyter's own policy header has the allowed frame-ancestors."""
    return JupyterAccess(authorize=_is_authorized, read_only=read_only, frame_ancestors=None)


def jupyter_routes(bridges: DiscoveredTargets | FleetTargets, base_url: str, access: Access) -> list[Rule]:
    """Return the routes below ``base_url``, for a mapping of bridges that may change."""
    base = re.escape(f"{base_url.rstrip('/')}/rbkit")
    pages: dict[str, type[RequestHandler]] = {
        "/?": JupyterIndexHandler,
        "/status": JupyterStatusHandler,
        "/targets": JupyterTargetsHandler,
        r"/kernels/(\w+(?:-\w+)+)": JupyterKernelHandler,
    }
    options = {"bridges": bridges, "access": access}
    return [
        Rule(OneBridge(PathMatches(f"{base}/({NAME})/ws"), bridges, access), JupyterWebSocketHandler),
        Rule(OneBridge(PathMatches(f"{base}/ws"), bridges, access), JupyterWebSocketHandler),
        Rule(OneBridge(PathMatches(f"{base}/({NAME})/status"), bridges, access), JupyterStatusHandler),
        Rule(PathMatches(f"{base}/static/(.*)"), JupyterAssetHandler, {"access": access}),
        *(Rule(PathMatches(base + path), page, options) for path, page in pages.items()),
    ]


def _guarded(method: _Method) -> _Method:
    guarded: Any = authenticated(authorized(method))
    return cast("_Method", guarded)


class JupyterWebSocketHandler(RbkitWebSocketHandler, WebSocketMixin, JupyterHandler):
    """The WebSocket of one client. The pings are `RbkitWebSocketHandler`'s: the mixin's times are in milliseconds."""

    auth_resource = AUTH_RESOURCE

    @ws_authenticated
    @authorized
    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Upgrade the request of a user who may view the profiler."""
        await super().get(*args, **kwargs)

    def check_origin(self, origin: str | None = None) -> bool:
        """Allow the origins that Jupyter allows."""
        if WebSocketMixin.check_origin(self, origin):
            return True
        raise _foreign(self)


class JupyterPageHandler(AccessHandler, JupyterHandler):
    """Base class of the pages for users who may view the profiler; a subclass's other base class writes the answer."""

    auth_resource = AUTH_RESOURCE

    @_guarded
    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Answer as the other base class does."""
        await cast("Any", super()).get(*args, **kwargs)

    @_guarded
    async def head(self, *args: Any, **kwargs: Any) -> None:
        """Answer as `get` does, without the body."""
        await cast("Any", super()).head(*args, **kwargs)

    async def check_request(self) -> None:
        """Raise `AccessDeniedError` also for scripts of other sites, which Jupyter checks only in APIHandler."""
        if not self.check_origin():
            raise _foreign(self)
        await super().check_request()


class JupyterIndexHandler(JupyterPageHandler, IndexHandler):
    """The dashboard's page. Jupyter keeps a token of its address in a cookie."""

    login_kept_in = "cookie"
    how_to_start = (
        "Start one in a notebook: %load_ext tornado_rbkit, then %rbkit start. "
        "If the kernel has no module tornado_rbkit, install it in the kernel's environment, too."
    )
    bridges: DiscoveredTargets | FleetTargets

    async def check_request(self) -> None:
        """Scan for the requested target if it is unknown: its kernel may have announced itself just now."""
        await super().check_request()
        if self.get_query_argument("target", "") not in ("", *self.bridges):
            self.bridges.scan()

    def script_query(self) -> str:
        """Add the XSRF token, which JupyterHub requires for module scripts, workers and fetch()."""
        query = [(name, value) for name, value in parse_qsl(self.request.query, True) if name != "_xsrf"]
        return urlencode([*query, ("_xsrf", self.xsrf_token)])


class _ScriptsHandler(JupyterPageHandler):
    """Base class of what scripts ask for; errors are JSON, as in Jupyter's APIHandler."""

    def get_login_url(self) -> str:
        """Refuse, as Jupyter's APIHandler does: a script cannot use the login page.

        Raises:
            HTTPError: 403, always.
        """
        raise HTTPError(403)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with the message as JSON; a page of HTML would be shown to people as the reason."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        text = error.text if isinstance(error, AccessDeniedError) else responses.get(status_code, "Unknown")
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"message": text, "reason": None}))


class JupyterStatusHandler(_ScriptsHandler, StatusHandler):
    """The statistics as JSON."""


class JupyterTargetsHandler(_ScriptsHandler, TargetsHandler):
    """The named bridges as JSON."""


class JupyterKernelHandler(_ScriptsHandler, PolledHandler):
    """The figures of a kernel of this server as JSON (see `kernel_figures`), and the name of its profiler."""

    @_guarded
    async def get(self, kernel_id: str) -> None:
        """Answer with the current figures.

        Raises:
            HTTPError: 404, there is no such kernel.
        """
        await self.check_request()
        if kernel_id not in self.kernel_manager:
            raise HTTPError(404)
        kernel: Any = self.kernel_manager.get_kernel(kernel_id)
        pid = getattr(kernel.provisioner, "pid", None)  # a gateway's kernel has none here
        target = find_target(kernel_id, self.bridges)
        figures = await kernel_figures(pid, None if target is None else self.bridges[target].req)
        self.finish_json({"target": target, **figures})


class JupyterAssetHandler(_ScriptsHandler, AssetHandler):
    """The page's scripts and styles."""


async def _is_authorized(handler: RequestHandler, command: str) -> bool:
    assert isinstance(handler, JupyterHandler)
    asked = handler.authorizer.is_authorized(handler, handler.current_user, _action(command), AUTH_RESOURCE)
    return bool(await ensure_async(asked))


def _action(command: str) -> str:
    return "read" if command == VIEW_COMMAND else "execute"


def _foreign(handler: RequestHandler) -> AccessDeniedError:
    origin = handler.request.headers.get("Origin", "")
    return AccessDeniedError(403, "the origin %a is not allowed (ServerApp.allow_origin)", origin[:200])
