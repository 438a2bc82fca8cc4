"""The command line: ``tornado-rbkit``, or ``python -m tornado_rbkit``."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import secrets
import signal
import sys
from collections.abc import Sequence
from typing import Final

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from tornado_rbkit.bridge import Bridge
from tornado_rbkit.client import RbkitClient
from tornado_rbkit.protocol import Handshake, RbkitError
from tornado_rbkit.routes import rbkit_routes

DEFAULT_PORT: Final = 8765


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0, 1 for what failed, 2 for what was asked wrongly."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        status: int = asyncio.run(options.run(options))
        return status
    except (RbkitError, ValueError, OSError) as error:
        print(f"tornado-rbkit: {error}", file=sys.stderr)
        return 1 if isinstance(error, RbkitError) and not isinstance(error, ValueError) else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tornado-rbkit", description="A live rbkit profiler on a WebSocket.")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what connects and goes")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a profiler to browsers and other WebSocket clients")
    serve.set_defaults(run=_serve)
    serve.add_argument("--pub", metavar="URL", help="where rbkit publishes (tcp://127.0.0.1:5555, RBKIT_PUB_PORT)")
    serve.add_argument("--req", metavar="URL", help="where it takes commands (tcp://127.0.0.1:5556, RBKIT_REQ_PORT)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    serve.add_argument("--port", type=_port, default=DEFAULT_PORT, help="port, 0 picks a free one (%(default)s)")
    serve.add_argument("--prefix", default="/rbkit", help="path of the page and the WebSocket (%(default)s)")
    serve.add_argument("--token", help="demand this token; made up and printed on an address that is not loopback")
    serve.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a Host to answer to")
    serve.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="an origin to let in")
    serve.add_argument("--read-only", action="store_true", help="refuse all commands but handshake")
    serve.add_argument("--any-command", action="store_true", help="pass on commands that protocol 2.1 does not have")
    serve.add_argument("--encoding", choices=["binary", "escaped"], default="binary", help="where a client says none")
    serve.add_argument("--max-clients", type=int, default=1024, metavar="N", help="at a time (%(default)s)")
    serve.add_argument("--idle-grace", type=float, default=30.0, metavar="S", help="see the README (%(default)s)")
    serve.add_argument("--keep-profiling", action="store_true", help="do not stop profiling when nobody watches")
    serve.add_argument("--compression-level", type=int, default=0, metavar="1-9", help="0, the default, is off")

    send = commands.add_parser("send", help="send one command and print the reply")
    send.set_defaults(run=_send)
    send.add_argument("command", metavar="COMMAND", help="handshake, start_memory_profile, objectspace_snapshot, ...")
    send.add_argument("--url", default=f"ws://127.0.0.1:{DEFAULT_PORT}/rbkit/ws", help="(%(default)s)")
    send.add_argument("--token", help="for a server that demands one")
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{text} is out of range; allowed: 0 to 65535")
    return port


async def _serve(options: argparse.Namespace) -> int:
    bridge = Bridge(
        options.pub,
        options.req,
        default_encoding=options.encoding,
        max_clients=options.max_clients,
        idle_grace=options.idle_grace,
        stop_when_idle=not options.keep_profiling,
        compression_level=options.compression_level,
    )
    token = options.token
    if token is None and not _is_loopback(options.host):
        token = secrets.token_urlsafe(24)
        print(f"token {token}")
    routes = rbkit_routes(
        bridge,
        prefix=options.prefix,
        read_only=options.read_only,
        token=token,
        allowed_hosts=[options.host, *options.allow_host],
        allowed_origins=options.allow_origin,
        **({"commands": "any"} if options.any_command else {}),
    )
    try:
        sockets = bind_sockets(options.port, options.host)
    except OSError as error:
        raise OSError(
            f"cannot listen on {options.host} port {options.port}: {error.strerror} (--host, --port)"
        ) from error
    server = HTTPServer(Application(routes))
    server.add_sockets(sockets)
    stopped = _stop_signal()
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"ready http://{host}:{sockets[0].getsockname()[1]}{options.prefix.rstrip('/')}/", flush=True)
    await stopped.wait()
    server.stop()
    await bridge.close()
    await server.close_all_connections()
    return 0


async def _send(options: argparse.Namespace) -> int:
    async with RbkitClient(options.url, token=options.token) as rbkit:
        reply = await rbkit.command(options.command)
    if isinstance(reply, Handshake):
        for name, value in reply._asdict().items():
            print(f"{name}: {value}")
    else:
        print(reply)
    return 0


def _stop_signal() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not loop.add_signal_handler, which Windows does not have.
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))
    return stopped


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
