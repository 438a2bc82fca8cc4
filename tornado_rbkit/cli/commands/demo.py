"""``demo``: a Python workload under the profiler, in a process of its own, and a web server for it."""

from __future__ import annotations

import argparse
import asyncio
import json

from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.options import add_server_options
from tornado_rbkit.cli.program import own_module
from tornado_rbkit.cli.serving import bridge_to, serve_until_stopped
from tornado_rbkit.errors import ServerFailedError
from tornado_rbkit.profiler.folder import check_chosen_folder


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    parser.set_defaults(stop_when_idle=False)  # the demo profiles itself from its start


async def _run(options: argparse.Namespace) -> int:
    check_chosen_folder()
    process = await asyncio.create_subprocess_exec(
        *own_module("tornado_rbkit.profiler.demo"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C must reach only the server, which ends the demo
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            raise ServerFailedError("the process of the demo did not start")
        endpoints = json.loads(line)
        ended = asyncio.create_task(process.wait())
        bridge = bridge_to(options, endpoints["pub"], endpoints["req"])
        status = await serve_until_stopped(options, bridge, ended)
        if ended.done():
            raise ServerFailedError(f"the process of the demo ended (exit status {ended.result()})")
        return status
    finally:
        process.stdin.close()
        await process.wait()


COMMAND = Command(
    name="demo",
    help="serve a sample Python workload under the embedded profiler",
    example="tornado-rbkit demo --port 8000",
    add_options=_add_options,
    run=_run,
)
