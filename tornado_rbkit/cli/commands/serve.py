"""``serve``: a web server for running profilers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from typing import TYPE_CHECKING

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.fleet import add_nats_options
from tornado_rbkit.cli.options import add_profiler_options, add_server_options, bridge_settings, named_targets
from tornado_rbkit.cli.serving import bridge_to, serve_until_stopped
from tornado_rbkit.profiler.discovery import list_servers
from tornado_rbkit.profiler.folder import check_chosen_folder
from tornado_rbkit.web.discovered import DiscoveredTargets, Endpoints, path_name

if TYPE_CHECKING:
    from tornado_rbkit.fleet.targets import FleetTargets


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pub",
        metavar="URL",
        help="endpoint where rbkit publishes (default: with neither --pub nor --req the processes that `list` shows "
        "and a profiler at rbkit's default ports; with --req, tcp://127.0.0.1:5555, port from RBKIT_PUB_PORT if set)",
    )
    parser.add_argument(
        "--req",
        metavar="URL",
        help="endpoint where rbkit takes commands (default: as for --pub, with port 5556 or RBKIT_REQ_PORT)",
    )
    add_profiler_options(parser, "client", "clients of this server started")
    add_nats_options(parser, "bridge", "default: only the profilers of this machine")
    parser.add_argument("--beside", type=int, metavar="PID", help=argparse.SUPPRESS)  # for the server process of run
    parser.add_argument("--family", nargs=2, metavar=("ID", "NAME"), help=argparse.SUPPRESS)  # likewise
    add_server_options(parser)


_NOTES = """\
Ruby: call Rbkit.start_server of the gem rbkit in the program, such as in a Rails initializer.
- Several workers need ports of their own, Rbkit.start_server(pub_port: 5557, request_port: 5558), and a --target each.
  Or each announces itself by a file ANY.json with "name", "pid", "pub", "req" and "started" (seconds since 1970) in
  the folder RBKIT_RUNTIME_DIR, as Python processes do.
- CPU profiling needs rbkit's master branch, not its tag v0.1.10, which crashes Ruby 3.1 at a snapshot.
- Coming from rbkit-websocket: remove its middleware, and give Rbkit.start_server ports; its demo passes nil, which
  switches ZMQ off. Its clients work with ?encoding=escaped (--encoding).

Behind nginx: set Host $http_host, Upgrade $http_upgrade and Connection upgrade, and use --allow-host or a token.

"""


async def _run(options: argparse.Namespace) -> int:
    if options.nats is not None:
        return await _serve_fleet(options)
    if options.creds is not None or options.ca is not None or options.insecure:
        raise ValueError(
            "--creds, --ca and --insecure are not used without the URL of a server; allowed: --nats URL with them"
        )
    if options.family or (options.pub is None and options.req is None):
        return await _serve_discovered(options)
    if options.targets:
        raise ValueError("--target cannot be combined with --pub and --req; allowed: one --target for each profiler")
    return await serve_until_stopped(options, bridge_to(options, options.pub, options.req))


async def _serve_fleet(options: argparse.Namespace) -> int:
    """Serve the targets of all hosts that have an agent at a NATS server."""
    from tornado_rbkit.fleet.link import require_nats  # here, because few servers need a fleet
    from tornado_rbkit.fleet.server import bridge_servers
    from tornado_rbkit.fleet.targets import FLEET_IDLE_GRACE, FleetTargets

    if options.targets or options.pub is not None or options.req is not None:
        raise ValueError("--nats cannot be combined with --target, --pub and --req; allowed: these with `agent`")
    require_nats()
    servers, credentials = bridge_servers(options.nats, options.creds, options.ca, insecure=options.insecure)
    options.read_only |= credentials.read_only
    options.stop_when_idle = False  # the agent stops the profiling, once no bridge watches
    options.idle_grace = min(options.idle_grace, FLEET_IDLE_GRACE)
    targets = FleetTargets(
        lambda endpoint, thread: Bridge(endpoint=endpoint, threaded=thread, **bridge_settings(options)),
        servers,
        credentials.name or "bridge",
        path_name,
    )
    return await _serve_followed(options, targets)


async def _serve_discovered(options: argparse.Namespace) -> int:
    check_chosen_folder()
    family, name = options.family or ("", "")
    fixed = {path_name(name): Endpoints(options.pub, options.req)} if family else named_targets(options)
    targets = DiscoveredTargets(
        lambda pub, req, thread: bridge_to(options, pub, req, thread),
        fixed,
        default_ports=not fixed,  # if targets are given by name, a profiler at the default ports must be given as well
        family=family,
    )
    try:
        return await _serve_followed(options, targets)
    finally:
        with contextlib.suppress(OSError):
            list_servers()  # removes the files of the processes that signals have ended, as a pool ends its workers


async def _serve_followed(options: argparse.Namespace, targets: DiscoveredTargets | FleetTargets) -> int:
    """Serve targets while they are followed."""
    following = asyncio.create_task(targets.follow())
    await asyncio.sleep(0)  # for the first scan
    try:
        status = await serve_until_stopped(options, targets, following)
        if following.done():
            following.result()  # raises the exception that ended it
        return status
    finally:
        following.cancel()
        await asyncio.wait([following])


COMMAND = Command(
    name="serve",
    help="serve profilers to browsers and other WebSocket clients",
    example="tornado-rbkit serve --pub tcp://127.0.0.1:5555 --req tcp://127.0.0.1:5556 --port 8000\n"
    "tornado-rbkit serve --target web-1=tcp://10.0.0.5:5555,tcp://10.0.0.5:5556   # repeatable\n"
    "tornado-rbkit serve --nats auto   # what `tornado-rbkit agent` announces",
    add_options=_add_options,
    run=_run,
    notes=_NOTES,
)
