"""``record``: the messages of a profiler, in a file."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from tornado_rbkit.cli.caveats import SNAPSHOT, check_command
from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.options import add_client_options, token_of
from tornado_rbkit.cli.output import FULL, binary_output, check_output, is_stdout
from tornado_rbkit.cli.progress import Progress
from tornado_rbkit.cli.stopping import stop_signals
from tornado_rbkit.client import RbkitClient
from tornado_rbkit.errors import CommandError, DecodeError
from tornado_rbkit.protocol import decode_handshake
from tornado_rbkit.recording.recorder import CPU, MEMORY, Recorder, RecordingSession

_T = TypeVar("_T")
_ENDING: Final = "; ending, once the last messages have arrived (Ctrl-C: at once)"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="file to write the recording to; - for standard output"
    )
    parser.add_argument(
        "--memory", action="store_true", help="profile memory during the recording (default: record what is on)"
    )
    parser.add_argument(
        "--cpu", action="store_true", help="profile CPU use during the recording (default: record what is on)"
    )
    parser.add_argument(
        "--snapshot", action="store_true", help="take a heap snapshot at the beginning (default: take none)"
    )
    parser.add_argument(
        "--seconds", type=_seconds, metavar="SECONDS", help="seconds to record (default: until Ctrl-C)"
    )
    add_client_options(parser)


def _seconds(text: str) -> float:
    """Convert an argument to a duration in seconds, which is finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is out of range; allowed: 0 or more (seconds)")
    return value


async def _run(options: argparse.Namespace) -> int:
    check_output(options.output)  # before any profiling is started
    stop, stop_now = stop_signals()
    try:
        await _unless(stop_now, _record_until(stop, options))
    except _StoppedError:
        return 130  # as for a process that SIGINT ended
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, error.strerror, options.output) from error
        raise
    return 0


async def _record_until(stop: asyncio.Event, options: argparse.Namespace) -> None:
    """Record until the event is set; raise _StoppedError if it is set before the recording has begun."""
    async with contextlib.AsyncExitStack() as stack:
        client = RbkitClient(options.url, token=token_of(options))
        rbkit = await _unless(stop, stack.enter_async_context(client))
        reply = await _unless(stop, rbkit.request("handshake"))
        _check_profiler(reply, options)
        output = binary_output(options.output)
        recorder = Recorder(output)
        summary = sys.stderr if is_stdout(options.output) else sys.stdout
        stack.callback(lambda: print(recorder.progress(), file=summary))
        stack.enter_context(output)
        profiling = [*([MEMORY] if options.memory else []), *([CPU] if options.cpu else [])]
        await _record(stop, rbkit, recorder, RecordingSession(rbkit, recorder, profiling), reply, options)


def _check_profiler(reply: bytes, options: argparse.Namespace) -> None:
    """Check the reply to ``handshake`` before the file is opened."""
    error = CommandError.from_reply(reply)
    if error is not None:
        raise error
    try:
        handshake = decode_handshake(reply)
    except DecodeError:  # it is recorded nevertheless
        return
    for wanted, command in ((options.cpu, "start_cpu_profiling"), (options.snapshot, SNAPSHOT)):
        if wanted:
            check_command(command, handshake)


async def _record(
    stop: asyncio.Event,
    rbkit: RbkitClient,
    recorder: Recorder,
    session: RecordingSession,
    handshake: bytes,
    options: argparse.Namespace,
) -> None:
    stopping = asyncio.create_task(stop.wait())
    following = asyncio.create_task(session.follow())
    beginning = asyncio.create_task(_begin(session, handshake, options))
    tasks: list[asyncio.Task[Any]] = [stopping, following, beginning]
    try:
        with Progress(lambda: recorder.progress() + (_ENDING if stop.is_set() else "")) as progress:
            await progress.until(beginning, stopping, following)
            if beginning.done():
                await progress.until(stopping, following, timeout=options.seconds)
            beginning.cancel()
            ending = asyncio.create_task(session.end(following))
            tasks.append(ending)
            await progress.until(ending)
        await rbkit.close()
        results = await asyncio.gather(following, beginning, return_exceptions=True)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for result in (*results, *ending.result()):
        if isinstance(result, Exception):
            raise result


async def _begin(session: RecordingSession, handshake: bytes, options: argparse.Namespace) -> None:
    await session.begin(handshake)
    if options.snapshot:
        await session.snapshot()


class _StoppedError(Exception):
    """A signal has stopped the work."""


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of the work, or cancel it and raise _StoppedError once the event is set."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _StoppedError
        return task.result()
    finally:
        stopping.cancel()
        while not task.done():  # closing a client waits for the server, unless it is cancelled again
            task.cancel()
            await asyncio.wait([task], timeout=0.1)


COMMAND = Command(
    name="record",
    help="record the messages of a profiler to a file, until Ctrl-C",
    example="tornado-rbkit record --cpu --seconds 30 -o session.rbkit",
    add_options=_add_options,
    run=_run,
)
