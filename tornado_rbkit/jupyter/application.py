"""The extension: its settings, and its life with the server."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from traitlets import Bool, Dict, Float, Int, TraitError, Unicode

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.jupyter.handlers import jupyter_access, jupyter_routes
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.web.discovered import DiscoveredTargets, Endpoints

_MIB: Final = 1024 * 1024
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
    """rbkit profilers on WebSockets below ``rbkit/``, and a page that shows them."""

    name = "rbkit"
    description = __doc__
    extension_url = "/rbkit/"

    pub = Unicode(
        allow_none=True,
        default_value=None,
        help="Where one profiler publishes, as tcp://127.0.0.1:5555; beside others it is called `default`.",
    ).tag(config=True)
    req = Unicode(
        allow_none=True,
        default_value=None,
        help="Where the profiler of `pub` takes commands, as tcp://127.0.0.1:5556.",
    ).tag(config=True)
    targets = Dict(
        help="""Profilers by name: {"web-1": {"pub": "tcp://10.0.0.1:5555", "req": "tcp://10.0.0.1:5556"}}.""",
    ).tag(config=True)
    discovery = Bool(
        True,
        help="Whether to find this user's Python processes that have a profiler, kernels among them, by themselves.",
    ).tag(config=True)
    read_only = Bool(False, help="Whether to refuse all commands but handshake.").tag(config=True)
    connect_timeout = Float(2.0, help="Seconds from a viewer's opening in which its profiler has to be reached.").tag(
        config=True
    )
    max_clients = Int(1024, help="Viewers of one profiler at a time.").tag(config=True)
    max_backlog_bytes = Int(64 * _MIB, help="Bytes of profiling data that may wait for one viewer.").tag(config=True)
    stall_timeout = Float(60.0, help="Seconds in which a viewer with data waiting has to take some of it.").tag(
        config=True
    )
    ping_interval = Float(15.0, help="Seconds between pings, in which the pong has to come; 0 for none.").tag(
        config=True
    )
    idle_grace = Float(30.0, help="Seconds a profiler's connection is kept after its last viewer left.").tag(
        config=True
    )
    stop_when_idle = Bool(
        True, help="Whether to stop the profiling that was started through here when the last viewer has left."
    ).tag(config=True)
    max_pending_bytes = Int(
        32 * _MIB, help="Bytes of profiling data that may wait between a profiler and the web server's loop."
    ).tag(config=True)
    max_message_bytes = Int(
        512 * _MIB, help="Bytes; a longer message from a profiler ends its connection (ZMQ_MAXMSGSIZE)."
    ).tag(config=True)
    compression_level = Int(0, help="1 to 9 to offer permessage-deflate to viewers; 0 for none.").tag(config=True)

    _following: asyncio.Task[None] | None = None
    _stopped = False
    _wrong = ""
    bridges: DiscoveredTargets

    def _link_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        """Take the settings. Jupyter would log a wrong one with a traceback, and say nothing of what is allowed."""
        try:
            super()._link_jupyter_server_extension(serverapp)
        except TraitError as error:
            self._wrong = str(error)

    def initialize_handlers(self) -> None:
        """Mount what is below ``rbkit/``; with a setting that is wrong, say which one, and mount nothing."""
        assert self.serverapp is not None
        try:
            if not self._wrong:
                self.bridges = self._make_targets()
        except ValueError as error:
            self._wrong = str(error)
        if self._wrong:
            self.log.error("RbkitExtension is off, a setting of it is wrong: %s", " ".join(self._wrong.split()))
            return
        routes = jupyter_routes(self.bridges, self.serverapp.base_url, jupyter_access(self.read_only))
        self.serverapp.web_app.add_handlers(".*$", routes)  # type: ignore[no-untyped-call]
        self.serverapp.io_loop.add_callback(self._start_following)

    async def stop_extension(self) -> None:
        """Close the viewers with 1001, the connections, and the thread."""
        self._stopped = True
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])

    def _start_following(self) -> None:
        if not self._stopped:
            self._following = asyncio.create_task(self.bridges.follow())
            self._following.add_done_callback(self._log_end)

    def _log_end(self, following: asyncio.Task[None]) -> None:
        """Log why the profilers are not followed any more, unless the server stops."""
        if not following.cancelled() and (error := following.exception()) is not None:
            self.log.error("RbkitExtension is off until the server restarts: %s", error, exc_info=error)

    def _make_targets(self) -> DiscoveredTargets:
        """Return the bridges.

        Raises:
            ValueError: a setting is wrong.
        """
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
