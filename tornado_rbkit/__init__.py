"""A live rbkit profiler on a WebSocket: Tornado handlers with threaded ZMQ."""

from __future__ import annotations

from typing import Any

from tornado_rbkit.access import Access
from tornado_rbkit.bridge import Bridge, BridgeFullError
from tornado_rbkit.client import ConnectionLost, Gap, RbkitClient
from tornado_rbkit.dashboard import AssetHandler, IndexHandler
from tornado_rbkit.endpoints import EndpointError
from tornado_rbkit.iothread import IOLoopThread
from tornado_rbkit.pages import StatusHandler, TargetsHandler
from tornado_rbkit.protocol import CommandError, DecodeError, RbkitError
from tornado_rbkit.routes import rbkit_routes
from tornado_rbkit.websocket import RbkitWebSocketHandler, SubprotocolMatches

__all__ = [
    "Access",
    "AssetHandler",
    "Bridge",
    "BridgeFullError",
    "CommandError",
    "ConnectionLost",
    "DecodeError",
    "EndpointError",
    "Gap",
    "IOLoopThread",
    "IndexHandler",
    "RbkitClient",
    "RbkitError",
    "RbkitWebSocketHandler",
    "StatusHandler",
    "SubprotocolMatches",
    "TargetsHandler",
    "rbkit_routes",
]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Tell Jupyter Server where its extension is; nothing else here needs Jupyter."""
    from tornado_rbkit import jupyter

    return jupyter._jupyter_server_extension_points()


def load_ipython_extension(shell: Any) -> None:
    """Add ``%rbkit`` and ``%%rbkit`` to a notebook: ``%load_ext tornado_rbkit``."""
    from tornado_rbkit.jupyter.magics import RbkitMagics

    shell.register_magics(RbkitMagics)
