"""Records a live profiler: starts the profiling, writes all messages, and stops the profiling that it started."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO, Final

import msgpack

from tornado_rbkit.client import RbkitClient
from tornado_rbkit.deadline import Deadline
from tornado_rbkit.errors import CommandError, DecodeError, RbkitError
from tornado_rbkit.inbox import Gap
from tornado_rbkit.protocol import RESTARTED, DumpPart, Notice, decode_handshake, dump_parts
from tornado_rbkit.recording.recording import DATA, REPLY

_log = logging.getLogger(__name__)

LAST_FLUSH_SECONDS: Final = 1.5
"""Seconds to wait for the last messages: rbkit sends what is queued once a second, in a loop of up to 0.2 s."""

MEMORY: Final = "memory_profile"
CPU: Final = "cpu_profiling"
"""The kinds of profiling: the endings of their commands."""


class Recorder:
    """Writes a recording of a live profiler, on one event loop.

    The objects of a snapshot are counted on a thread, because the loop must answer pings, and only for display: a
    message that cannot be counted is written like any other.

    Attributes:
        messages: number of published messages written.
        size: bytes of the published messages written.
        objects: heap objects received since a snapshot was requested, in all snapshots received since.
        objects_announced: their total number, by complete_message_count; 0 before the first objects arrive, or if
            rbkit does not send it (the tagged version 0.1.10).
    """

    def __init__(self, file: BinaryIO) -> None:
        """Start the recording's clock; the caller closes `file`."""
        self.messages = self.size = self.objects = self.objects_announced = 0
        self._snapshot_is_due = False
        self._snapshots: dict[int | None, list[int]] = {}  # objects received and announced, by correlation_id
        self._file = file
        self._started = time.monotonic()

    def progress(self) -> str:
        """Return the progress as a text for people."""
        text = f"{self.messages:,} messages, {self.size:,} bytes"
        if self.objects_announced:
            return text + f", {self.objects:,} of {self.objects_announced:,} objects"
        return text + (f", {self.objects:,} objects" if self.objects else "")

    def write(self, channel: int, command: str | None, payload: bytes) -> None:
        """Write one record with the current time."""
        self._file.write(msgpack.packb([time.monotonic() - self._started, channel, command, payload]))
        if channel == DATA:
            self.messages += 1
            self.size += len(payload)
            if self._snapshot_is_due:
                counting = asyncio.get_running_loop().run_in_executor(None, dump_parts, payload)
                counting.add_done_callback(self._add_parts)

    async def ask_all(self, rbkit: RbkitClient, commands: Iterable[str]) -> None:
        """Send commands one after another and write their replies.

        Raises:
            CommandError: a command failed; its error is written too.
            ConnectionLost: there is no connection, or it was lost before a reply arrived.
        """
        for command in commands:
            self._snapshot_is_due |= command == "objectspace_snapshot"
            reply = await rbkit.request(command)
            self.write(REPLY, command, reply)
            error = CommandError.from_reply(reply)
            if error is not None:
                raise error

    async def ask_each(self, rbkit: RbkitClient, commands: Iterable[str]) -> list[Exception]:
        """Send commands as `ask_all` does, continue after an error, and return the errors."""
        raised: list[Exception] = []
        for command in commands:
            try:
                await self.ask_all(rbkit, [command])
            except (RbkitError, OSError) as error:
                raised.append(error)
        return raised

    async def follow(self, rbkit: RbkitClient, on_restart: Callable[[], None] = lambda: None) -> None:
        """Write the published messages and the notices until the client is closed.

        Args:
            rbkit: a connected client.
            on_restart: called when the profiled process was replaced by another process.

        Raises:
            ConnectionLost: see `RbkitClient.messages`.
        """
        async for item in rbkit.messages():
            if isinstance(item, bytes):
                self.write(DATA, None, item)
            elif isinstance(item, Notice):
                self.write(REPLY, None, item.to_bytes())
                if item == RESTARTED:
                    on_restart()
            else:
                assert isinstance(item, Gap)  # the message_counter of later messages shows the gap too

    def _add_parts(self, counting: asyncio.Future[list[DumpPart]]) -> None:
        """Add counted objects; without a total, as in rbkit's tagged version 0.1.10, one message has all of them."""
        if counting.cancelled():  # the loop is closing
            return
        for part in counting.result():
            snapshot = self._snapshots.setdefault(part.correlation_id, [0, part.complete_message_count or 0])
            snapshot[0] += part.objects
        self.objects = sum(received for received, _ in self._snapshots.values())
        self.objects_announced = sum(announced for _, announced in self._snapshots.values())
        self._snapshot_is_due = not self._snapshots or any(
            received < announced for received, announced in self._snapshots.values()
        )


class RecordingSession:
    """Profiles a process while it is recorded, also after it was restarted.

    Profiling that is on already is left on. One event loop.
    """

    def __init__(self, rbkit: RbkitClient, recorder: Recorder, profiling: Sequence[str]) -> None:
        """Describe a session.

        Args:
            rbkit: a connected client.
            recorder: writes the recording.
            profiling: the profiling to start: `MEMORY`, `CPU`, both or neither.
        """
        self._rbkit = rbkit
        self._recorder = recorder
        self._profiling = profiling
        self._started: list[str] = []
        self._took_snapshot = False
        self._restarting: asyncio.Task[None] | None = None

    async def begin(self, handshake: bytes) -> None:
        """Write the handshake of the process, and start the profiling that is not on.

        Raises:
            CommandError: the profiler did not start it.
            ConnectionLost: the connection was lost.
        """
        self._recorder.write(REPLY, "handshake", handshake)
        on = _already_on(handshake)
        self._started = [kind for kind in self._profiling if kind not in on]
        await self._recorder.ask_all(self._rbkit, [f"start_{kind}" for kind in self._started])

    async def snapshot(self) -> None:
        """Take a heap snapshot. Raises the same errors as `begin`."""
        self._took_snapshot = True
        await self._recorder.ask_all(self._rbkit, ["objectspace_snapshot"])

    async def follow(self) -> None:
        """Write all messages until the client is closed, and begin again after each restart of the process.

        Raises:
            ConnectionLost: see `RbkitClient.messages`.
        """
        await self._recorder.follow(self._rbkit, self._on_restart)

    async def end(self, following: asyncio.Task[None]) -> list[Exception]:
        """Stop the profiling that was started, and wait for the last messages; return the errors.

        The wait ends early if `following`, the task of `follow`, does. rbkit's tagged version 0.1.10 replies before it
        carries a command out, so the reply to the command after a snapshot shows that the snapshot is finished.
        """
        if self._restarting is not None:
            self._restarting.cancel()
        commands = [f"stop_{kind}" for kind in reversed(self._started)]
        if self._took_snapshot and not commands:
            commands = ["handshake"]
        errors = await self._recorder.ask_each(self._rbkit, commands)
        if not errors:
            flushed = asyncio.Event()
            deadline = Deadline(LAST_FLUSH_SECONDS, flushed.set)
            following.add_done_callback(lambda _: flushed.set())
            await flushed.wait()
            deadline.cancel()
        return errors

    def _on_restart(self) -> None:
        if self._restarting is not None:
            self._restarting.cancel()
        self._restarting = asyncio.create_task(self._begin_again())

    async def _begin_again(self) -> None:
        try:
            reply = await self._rbkit.request("handshake")
            error = CommandError.from_reply(reply)
            if error is not None:
                raise error
            await self.begin(reply)
        except (RbkitError, OSError) as error:
            _log.warning("the profiled process was restarted, and profiling was not started again: %s", error)
        else:
            again = "; profiling was started again" if self._started else ""
            _log.warning("the profiled process was restarted%s", again)


def _already_on(handshake: bytes) -> set[str]:
    try:
        facts = decode_handshake(handshake)
    except DecodeError:
        return set()
    on = {MEMORY: facts.object_trace_enabled, CPU: facts.cpu_profiling_enabled}
    return {kind for kind, is_on in on.items() if is_on}
