"""``hub``: a NATS server for a fleet, with the keys of its hosts and bridges."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.output import say
from tornado_rbkit.cli.stopping import stop_signals
from tornado_rbkit.errors import ServerFailedError
from tornado_rbkit.fleet.hub import Hub


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=["run", "add-host", "add-bridge", "remove"],
        default="run",
        help="run the server (default), write credentials for a host or a bridge, or revoke them; a running server "
        "applies a change at once",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the host or the bridge")
    parser.add_argument(
        "--dir",
        default=str(_default_folder()),
        metavar="DIR",
        help="folder of the keys and the configuration (default: %(default)s)",
    )
    parser.add_argument(
        "--listen",
        default="127.0.0.1:4222",
        metavar="HOST:PORT",
        help="address to listen on; 0.0.0.0:4222 for all (default: %(default)s)",
    )
    parser.add_argument(
        "--name",
        dest="names",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="name or address by which hosts and bridges reach the server, for its certificate (repeatable; "
        "default: the address in --listen, localhost and 127.0.0.1)",
    )
    parser.add_argument(
        "--read-only", action="store_true", help="add a bridge that may send only handshake (default: any command)"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="file for the credentials, which must not exist (default: NAME.creds)"
    )


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tornado-rbkit" / "hub"


async def _run(options: argparse.Namespace) -> int:
    hub = Hub(Path(options.dir))
    if options.action == "run":
        return await _serve(hub, options)
    if not options.name:
        raise ValueError(f"{options.action} needs the name of the host or the bridge")
    if options.action == "remove":
        hub.remove(options.name)
    else:
        kind = options.action.removeprefix("add-")
        if options.read_only and kind == "host":
            raise ValueError("--read-only is for a bridge; allowed: `agent --read-only` for a host")
        path = Path(options.output or f"{options.name}.creds")
        hub.add(kind, options.name, path, read_only=options.read_only)
        print(path)
    if not hub.reload():
        say("the server does not run here, or must be restarted")
    return 0


async def _serve(hub: Hub, options: argparse.Namespace) -> int:
    host, separator, port = options.listen.rpartition(":")
    if not (separator and host and port.lstrip("-").isdecimal() and -1 <= int(port) < 65536):
        raise ValueError(f"{options.listen!r} is not HOST:PORT (--listen)")
    hub.configure(options.listen, [*options.names, host.strip("[]")])
    server = await hub.start()
    stopped, _ = stop_signals()
    print(f"ready {server.url.replace('nats://', 'tls://')}", flush=True)
    ending, stopping = asyncio.create_task(server.wait()), asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait([ending, stopping], return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            raise ServerFailedError(f"nats-server has ended with status {ending.result()}; see {hub.folder}")
        return 0
    finally:
        ending.cancel()
        stopping.cancel()
        server.stop()


COMMAND = Command(
    name="hub",
    help="run a NATS server for a fleet, with TLS and a key for each host and bridge",
    example="tornado-rbkit hub --listen 0.0.0.0:4222 --name hub.example\n"
    "tornado-rbkit hub add-host web-1   # writes web-1.creds, for `agent --creds`\n"
    "tornado-rbkit hub add-bridge office --read-only",
    add_options=_add_options,
    run=_run,
)
