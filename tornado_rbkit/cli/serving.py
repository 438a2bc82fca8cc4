"""Serves bridges until a signal arrives: the part that all commands with a web server have in common."""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import socket
from collections.abc import Mapping
from typing import Any, Final

from tornado.netutil import bind_sockets
from tornado.web import Application

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.cli.listener import BoundedServer, Listener
from tornado_rbkit.cli.options import access_settings, bridge_settings, token_of
from tornado_rbkit.cli.stopping import stop_signals, stop_with_program
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.web.access import AccessDeniedError, AccessHandler, is_loopback
from tornado_rbkit.web.routes import rbkit_routes

_log = logging.getLogger(__name__)

_SPARE_REQUESTS: Final = 128  # connections without a WebSocket, in addition to `max_clients` that connect


def bridge_to(
    options: argparse.Namespace, pub: str | None, req: str | None, threaded: bool | IOLoopThread = True
) -> Bridge:
    """Return a bridge with the settings of the options."""
    return Bridge(pub, req, threaded=threaded, **bridge_settings(options))


async def serve_until_stopped(
    options: argparse.Namespace, bridges: Bridge | Mapping[str, Bridge], ended: asyncio.Future[Any] | None = None
) -> int:
    """Serve until a signal arrives, the program ends (`beside`), or `ended` is done; return the exit status.

    Raises:
        ValueError: an option is out of its range.
        OSError: the address cannot be listened on, or the file with the token cannot be read.
    """
    if not options.host:
        raise ValueError("there is no address to listen on; allowed: 0.0.0.0 for all of them (--host)")
    token = token_of(options)
    is_generated = token is None and not is_loopback(options.host)
    if is_generated:
        token = secrets.token_urlsafe(24)
    routes = rbkit_routes(bridges, prefix=options.prefix, token=token, **access_settings(options))
    sockets = _listening(options.host, options.port)
    if is_generated:
        print(f"token {token}")
    application = Application(routes, default_handler_class=_UnknownPathHandler)
    # At least `max_clients`, because all clients may connect at once and are not WebSockets until then.
    server = BoundedServer(application, max_requests=options.max_clients + _SPARE_REQUESTS)
    listener = Listener(sockets, server)
    stopped, _ = stop_signals()
    if ended is not None:
        ended.add_done_callback(lambda _: stopped.set())
    if getattr(options, "beside", None) is not None:
        stop_with_program(stopped, options.beside)
    host = f"[{options.host}]" if ":" in options.host else options.host
    path = f"/{options.prefix.strip('/')}/".replace("//", "/")
    print(f"ready http://{host}:{sockets[0].getsockname()[1]}{path}", flush=True)
    if token is None:
        _log.warning("every user of this machine can connect to this server; --token-file FILE demands a token")
    await stopped.wait()
    listener.close()
    served = [bridges] if isinstance(bridges, Bridge) else bridges.values()
    await asyncio.gather(*(bridge.close() for bridge in served))
    await server.close_all_connections()
    return 0


def _listening(host: str, port: int) -> list[socket.socket]:
    try:
        return bind_sockets(port, host)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {host} port {port}: {reason} (--host, --port)") from error


class _UnknownPathHandler(AccessHandler):
    """Answers 404 in plain text for unknown paths, and logs them without their query as the other handlers do."""

    def prepare(self) -> None:
        raise AccessDeniedError(
            404, "there is no page at this path, and no profiler of that name; targets beside the page lists them"
        )
