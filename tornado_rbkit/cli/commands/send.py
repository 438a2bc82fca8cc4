"""``send``: one command to a profiler."""

from __future__ import annotations

import argparse
import asyncio

from tornado_rbkit.cli.caveats import CHECKED_COMMANDS, check_command
from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.options import add_client_options, token_of
from tornado_rbkit.cli.output import one_line
from tornado_rbkit.cli.progress import Progress
from tornado_rbkit.client import RbkitClient
from tornado_rbkit.protocol import Handshake


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("command", metavar="COMMAND", help="command to send, such as handshake or trigger_gc")
    add_client_options(parser)


async def _run(options: argparse.Namespace) -> int:
    async with RbkitClient(options.url, token=token_of(options)) as rbkit:
        if options.command in CHECKED_COMMANDS:
            check_command(options.command, await rbkit.command("handshake"))
        asking = asyncio.create_task(rbkit.command(options.command))
        try:
            with Progress(lambda: f"waiting for the reply to {options.command}") as progress:
                await progress.until(asking)
            reply = asking.result()
        finally:
            asking.cancel()  # if Ctrl-C came first
    if isinstance(reply, Handshake):
        for name, value in reply._asdict().items():
            print(f"{name}: {one_line(value)}")
    else:
        print(one_line(reply))
    return 0


COMMAND = Command(
    name="send",
    help="send one command and print the reply",
    example="tornado-rbkit send handshake --url ws://127.0.0.1:8765/rbkit/ws",
    add_options=_add_options,
    run=_run,
)
