"""``replay``: a recording as if it were a live profiler."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator

from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.options import add_server_options
from tornado_rbkit.cli.serving import bridge_to, serve_until_stopped
from tornado_rbkit.errors import RecordingError
from tornado_rbkit.recording.recording import Record, read
from tornado_rbkit.recording.replay import ReplayServer


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="recording of `record`, or of Save session in the dashboard")
    parser.add_argument(
        "--speed",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="playback speed; a factor of 2 is twice as fast as recorded (default: %(default)s)",
    )
    add_server_options(parser)
    # The replay restarts for a client that connects after the last one left.
    parser.set_defaults(idle_grace=0.0, stop_when_idle=False)


async def _run(options: argparse.Namespace) -> int:
    with open(options.file, "rb") as file:  # noqa: ASYNC230 - read on the replay's thread

        def records() -> Iterator[Record]:
            file.seek(0)
            return read(file)

        replay = ReplayServer(records, speed=options.speed)
        try:
            next(records(), None)
        except RecordingError as error:
            raise RecordingError(f"{options.file}: {error}") from error
        with replay as server:
            ended = asyncio.wrap_future(server.ended)
            status = await serve_until_stopped(options, bridge_to(options, server.pub, server.req), ended)
            if ended.done():
                ended.exception()  # retrieved, because leaving the replay raises it
            return status


COMMAND = Command(
    name="replay",
    help="serve a recording as if it were live",
    example="tornado-rbkit replay session.rbkit --speed 10",
    add_options=_add_options,
    run=_run,
)
