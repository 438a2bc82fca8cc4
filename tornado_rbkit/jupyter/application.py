"""The Jupyter Server extension: its settings, start and stop."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from traitlets import Bool, Dict, Float, Int, TraitError, Unicode

from tornado_rbkit import __version__
from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.errors import RbkitError
from tornado_rbkit.fleet.link import require_nats
from tornado_rbkit.fleet.server import bridge_servers
from tornado_rbkit.fleet.targets import FLEET_IDLE_GRACE, FleetTargets
from tornado_rbkit.jupyter.handlers import jupyter_access, jupyter_routes
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.upstream.options import MIB
from tornado_rbkit.web.discovered import DiscoveredTargets, Endpoints, path_name

_LIMITS: Final = (
    "connect_timeout",
    "max_clients",
    "max_backlog_bytes",
    "stall_timeout",
    "ping_interval",
    "idle_grace",
    "stop_when_idle",
    "max_pending_bytes",
    "max_message_bytes",
    "compression_level",
)


class RbkitExtension(ExtensionApp):
    """Serves rbkit profilers on WebSockets below ``rbkit/``, and a page that shows them."""

    name = "rbkit"
    description = __doc__
    version = __version__
    extension_url = "/rbkit/"

    pub = Unicode(
        allow_none=True,
        default_value=None,
        help="Endpoint where one profiler publishes, such as tcp://127.0.0.1:5555; this target is named `default`.",
    ).tag(config=True)
    req = Unicode(
        allow_none=True,
        default_value=None,
        help="Endpoint where the profiler of `pub` takes commands, such as tcp://127.0.0.1:5556.",
    ).tag(config=True)
    targets = Dict(
        help="""Endpoints by name, such as {"web-1": {"pub": "tcp://10.0.0.1:5555", "req": "tcp://10.0.0.1:5556"}}.""",
    ).tag(config=True)
    discovery = Bool(
        True,
        help="Whether to find the Python processes of this user that have a profiler, including kernels.",
    ).tag(config=True)
    nats = Unicode(
        allow_none=True,
        default_value=None,
        help="""NATS servers of a fleet, whose targets are shown and no others, as in `tornado-rbkit serve --nats`;
        "auto" for the server that `tornado-rbkit agent` runs on this machine.""",
    ).tag(config=True)
    nats_creds = Unicode(
        allow_none=True,
        default_value=None,
        help="File with the credentials of a bridge for `nats`, as in `tornado-rbkit serve --creds`.",
    ).tag(config=True)
    read_only = Bool(False, help="Whether to refuse all commands except handshake.").tag(config=True)
    connect_timeout = Float(
        2.0, help="Seconds within which the profiler must be reached after a client connects."
    ).tag(config=True)
    max_clients = Int(1024, help="Maximum number of clients of one profiler at a time.").tag(config=True)
    max_backlog_bytes = Int(64 * MIB, help="Maximum bytes of profiling data that may wait for one client.").tag(
        config=True
    )
    stall_timeout = Float(
        60.0, help="Seconds within which a client must read some of the data that waits for it."
    ).tag(config=True)
    ping_interval = Float(
        15.0, help="Seconds between two pings, and within which the pong must arrive; 0 for no pings."
    ).tag(config=True)
    idle_grace = Float(30.0, help="Seconds to keep the connection to a profiler after its last client left.").tag(
        config=True
    )
    stop_when_idle = Bool(
        True, help="Whether to stop the profiling that was started through this server after the last client left."
    ).tag(config=True)
    max_pending_bytes = Int(
        32 * MIB, help="Maximum bytes of profiling data that may wait between a profiler and the web server's loop."
    ).tag(config=True)
    max_message_bytes = Int(
        512 * MIB,
        help="Maximum bytes of a message from a profiler; a longer one ends its connection (ZMQ_MAXMSGSIZE).",
    ).tag(config=True)
    compression_level = Int(0, help="Level of permessage-deflate for clients, 1 to 9; 0 for no compression.").tag(
        config=True
    )

    _following: asyncio.Task[None] | None = None
    _stopped = False
    _wrong = ""
    bridges: DiscoveredTargets | FleetTargets

    def _link_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        """Load the settings, and store an error: Jupyter would log a traceback without the allowed values."""
        try:
            super()._link_jupyter_server_extension(serverapp)
        except TraitError as error:
            self._wrong = str(error)

    def initialize_handlers(self) -> None:
        """Mount the routes below ``rbkit/``; if a setting is wrong, log which one and mount nothing."""
        assert self.serverapp is not None
        try:
            if not self._wrong:
                self.bridges = self._make_targets()
        except (ValueError, OSError, RbkitError) as error:
            self._wrong = str(error)
        if self._wrong:
            self.log.error("RbkitExtension is off because a setting is wrong: %s", " ".join(self._wrong.split()))
            return
        self._adopt_logger()
        routes = jupyter_routes(self.bridges, self.serverapp.base_url, jupyter_access(self.read_only))
        self.serverapp.web_app.add_handlers(".*$", routes)  # type: ignore[no-untyped-call]
        self.serverapp.io_loop.add_callback(self._start_following)

    async def stop_extension(self) -> None:
        """Close the clients with 1001, the connections to the profilers, and the thread."""
        self._stopped = True
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])

    def _adopt_logger(self) -> None:
        """Log what the package's other modules report by this extension's log, as Jupyter does with Tornado's."""
        logger = logging.getLogger("tornado_rbkit")
        logger.parent = self.log
        logger.setLevel(self.log.level)

    def _start_following(self) -> None:
        if not self._stopped:
            self._following = asyncio.create_task(self.bridges.follow())
            self._following.add_done_callback(self._log_end)

    def _log_end(self, following: asyncio.Task[None]) -> None:
        """Log the error that ended discovery, unless the server is stopping."""
        if not following.cancelled() and (error := following.exception()) is not None:
            self.log.error("RbkitExtension is off until the server restarts: %s", error, exc_info=error)

    def _make_fleet(self, nats: str) -> FleetTargets:
        """Return the bridges to the targets of a fleet.

        Raises:
            ValueError: a setting is wrong.
            OSError: a file cannot be read.
            FleetExtraMissingError: the extra `fleet` is not installed.
        """
        if self.targets or self.pub or self.req:
            raise ValueError("nats cannot be combined with targets, pub and req")
        require_nats()
        servers, credentials = bridge_servers(nats, self.nats_creds)
        self.read_only |= credentials.read_only
        limits = {name: getattr(self, name) for name in _LIMITS} | {"stop_when_idle": False}
        limits["idle_grace"] = min(self.idle_grace, FLEET_IDLE_GRACE)
        return FleetTargets(
            lambda endpoint, thread: Bridge(endpoint=endpoint, threaded=thread, **limits),
            servers,
            credentials.name or "bridge",
            path_name,
        )

    def _make_targets(self) -> DiscoveredTargets | FleetTargets:
        """Return the bridges by name.

        Raises:
            ValueError: a setting is wrong.
        """
        if self.nats:
            return self._make_fleet(self.nats)
        targets = {name: _endpoints(name, target) for name, target in self.targets.items()}
        if self.pub or self.req:
            if not (self.pub and self.req):
                raise ValueError(f"pub={self.pub!r}, req={self.req!r}: one is not set; allowed: both, or neither")
            targets["default"] = Endpoints(self.pub, self.req)
        return DiscoveredTargets(self._make_bridge, targets, self.discovery, default_ports=False)

    def _make_bridge(self, pub: str | None, req: str | None, thread: IOLoopThread) -> Bridge:
        return Bridge(pub, req, threaded=thread, **{name: getattr(self, name) for name in _LIMITS})


def _endpoints(name: str, target: Any) -> Endpoints:
    if not isinstance(target, dict) or {*target} != {"pub", "req"} or not {*map(type, target.values())} <= {str}:
        example = '{"pub": "tcp://...", "req": "tcp://..."}'
        raise ValueError(f"targets[{name!r}] is {target!r}; allowed: a dict like {example}")
    return Endpoints(target["pub"], target["req"])
