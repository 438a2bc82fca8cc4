"""``agent``: serves the profilers of this host to a fleet's bridges."""

from __future__ import annotations

import argparse
import asyncio
import socket

from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.fleet import add_nats_options, agent_servers
from tornado_rbkit.cli.options import add_command_rules, add_profiler_options, named_targets
from tornado_rbkit.cli.serving import bridge_to
from tornado_rbkit.cli.stopping import stop_signals
from tornado_rbkit.fleet.agent import Agent
from tornado_rbkit.fleet.link import require_nats
from tornado_rbkit.fleet.server import LocalServer, local_servers
from tornado_rbkit.profiler.folder import check_chosen_folder
from tornado_rbkit.web.discovered import DiscoveredTargets


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_nats_options(parser, "host", "default: RBKIT_NATS_URL, else auto, for which it starts a nats-server")
    parser.add_argument(
        "--host-name",
        metavar="NAME",
        help="name of this host in the fleet (default: the one in the credentials, else the system's)",
    )
    add_profiler_options(parser, "bridge", "was started through this agent")
    add_command_rules(parser)


async def _run(options: argparse.Namespace) -> int:
    check_chosen_folder()
    require_nats()
    servers = agent_servers(options)
    named = servers.credentials.name if servers is not None else ""
    host = options.host_name if options.host_name is not None else named or socket.gethostname()
    if named not in ("", host):
        raise ValueError(f"the credentials are those of {named}, not of {host} (--host-name)")
    fixed = named_targets(options)
    targets = DiscoveredTargets(
        lambda pub, req, thread: bridge_to(options, pub, req, thread), fixed, default_ports=not fixed
    )
    local = LocalServer() if servers is None else None
    agent = Agent(
        targets,
        local_servers if servers is None else lambda: servers,
        host,
        commands=options.commands,
        read_only=options.read_only,
    )
    if local is not None:
        await local.ensure()
    try:
        return await _serve(agent, targets, local)
    finally:
        if local is not None:
            local.stop()


async def _serve(agent: Agent, targets: DiscoveredTargets, local: LocalServer | None) -> int:
    """Run an agent until a signal arrives, or a part of it ends."""
    stopped, _ = stop_signals()
    following = asyncio.create_task(targets.follow())
    parts = [asyncio.create_task(agent.run())]
    if local is not None:
        parts.append(asyncio.create_task(local.keep(lambda: agent.is_up)))
    stopping, ready = asyncio.create_task(stopped.wait()), asyncio.create_task(agent.wait_until_up())
    try:
        await asyncio.wait([following, *parts, stopping, ready], return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            print(f"ready {agent.host} {len(targets)} targets", flush=True)
        done, _ = await asyncio.wait([following, *parts, stopping], return_when=asyncio.FIRST_COMPLETED)
        for part in done - {stopping}:
            part.result()  # raises the exception that ended it
        return 0
    finally:
        for task in (*parts, stopping, ready):
            task.cancel()
        await asyncio.wait([*parts, stopping, ready])  # leases end before the bridges are closed
        following.cancel()
        await asyncio.wait([following])


COMMAND = Command(
    name="agent",
    help="serve the profilers of this host to the bridges of a fleet, through a NATS server",
    example="tornado-rbkit agent   # and on the same machine: tornado-rbkit serve --nats auto\n"
    "tornado-rbkit agent --nats tls://hub.example:4222 --creds web-1.creds",
    add_options=_add_options,
    run=_run,
)
