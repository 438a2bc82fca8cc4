"""A live rbkit profiler on a WebSocket: Tornado handlers with threaded ZMQ."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tornado_rbkit.bridge.bridge import Bridge
    from tornado_rbkit.client import ConnectionLost, RbkitClient
    from tornado_rbkit.errors import BridgeFullError, CommandError, DecodeError, EndpointError, RbkitError
    from tornado_rbkit.inbox import Gap
    from tornado_rbkit.upstream.iothread import IOLoopThread
    from tornado_rbkit.web.access import Access
    from tornado_rbkit.web.dashboard import AssetHandler, IndexHandler
    from tornado_rbkit.web.pages import StatusHandler, TargetsHandler
    from tornado_rbkit.web.routes import rbkit_routes
    from tornado_rbkit.web.websocket import RbkitWebSocketHandler, SubprotocolMatches

__version__: Final = "0.1.0"

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

_MODULES = {
    "Access": "tornado_rbkit.web.access",
    "AssetHandler": "tornado_rbkit.web.dashboard",
    "Bridge": "tornado_rbkit.bridge.bridge",
    "BridgeFullError": "tornado_rbkit.errors",
    "CommandError": "tornado_rbkit.errors",
    "ConnectionLost": "tornado_rbkit.client",
    "DecodeError": "tornado_rbkit.errors",
    "EndpointError": "tornado_rbkit.errors",
    "Gap": "tornado_rbkit.inbox",
    "IOLoopThread": "tornado_rbkit.upstream.iothread",
    "IndexHandler": "tornado_rbkit.web.dashboard",
    "RbkitClient": "tornado_rbkit.client",
    "RbkitError": "tornado_rbkit.errors",
    "RbkitWebSocketHandler": "tornado_rbkit.web.websocket",
    "StatusHandler": "tornado_rbkit.web.pages",
    "SubprotocolMatches": "tornado_rbkit.web.websocket",
    "TargetsHandler": "tornado_rbkit.web.pages",
    "rbkit_routes": "tornado_rbkit.web.routes",
}
"""The module of each public name, imported on first use: a profiled process needs no web server."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Return the location of the Jupyter Server extension. Nothing else in this module needs Jupyter."""
    from tornado_rbkit import jupyter

    return jupyter._jupyter_server_extension_points()


def load_ipython_extension(shell: Any) -> None:
    """Add ``%rbkit`` and ``%%rbkit`` to a notebook; called by ``%load_ext tornado_rbkit``."""
    from tornado_rbkit.jupyter.magics import RbkitMagics

    shell.register_magics(RbkitMagics)
