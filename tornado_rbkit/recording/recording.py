"""Recordings: files with the messages and replies of a profiler and their times.

A file is a stream of MessagePack records ``[seconds, channel, command, bytes]``: the time since the recording began;
channel 0 for replies, with their command, and for notices, with nil; channel 1 for published messages. The bytes are
rbkit's own, so a recording can be processed like live data. No I/O except on the given file.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple

import msgpack

from tornado_rbkit.client import Gap, RbkitClient
from tornado_rbkit.errors import RecordingError
from tornado_rbkit.protocol import (
    CommandError,
    DecodeError,
    DumpPart,
    Event,
    Handshake,
    Notice,
    RbkitError,
    decode,
    dump_parts,
)

REPLY, DATA = 0, 1
_CHUNK: Final = 64 * 1024  # bytes read at a time


class Record(NamedTuple):
    """One message: `seconds` since the recording began, and the `command` if it is a reply."""

    seconds: float
    channel: int
    command: str | None
    payload: bytes


class Recorder:
    """Writes a recording of a live profiler, on one event loop.

    The objects of a snapshot are counted on a thread, because the loop must answer pings, and only for display: a
    message that cannot be counted is written like any other.

    Attributes:
        messages: number of published messages written.
        size: bytes of the published messages written.
        objects: heap objects received since a snapshot was requested, of all snapshots received meanwhile.
        objects_announced: their total number, by complete_message_count; 0 before the first objects arrive.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Start the recording's clock; the caller closes `file`."""
        self.messages = self.size = self.objects = self.objects_announced = 0
        self._snapshot_is_due = False
        self._snapshots: dict[int, list[int]] = {}  # objects received and announced, by correlation_id
        self._file = file
        self._started = time.monotonic()

    def progress(self) -> str:
        """Return the progress as a text for people."""
        text = f"{self.messages:,} messages, {self.size:,} bytes"
        if self.objects_announced:
            text += f", {self.objects:,} of {self.objects_announced:,} objects"
        return text

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

    async def follow(self, rbkit: RbkitClient) -> None:
        """Write the published messages and the notices until the client is closed.

        Raises:
            ConnectionLost: see `RbkitClient.messages`.
        """
        async for item in rbkit.messages():
            if isinstance(item, bytes):
                self.write(DATA, None, item)
            elif isinstance(item, Notice):
                self.write(REPLY, None, item.to_bytes())
            else:
                assert isinstance(item, Gap)  # the message_counter of later messages shows the gap too

    def _add_parts(self, counting: asyncio.Future[list[DumpPart]]) -> None:
        if counting.cancelled():  # the loop is closing
            return
        for part in counting.result():
            snapshot = self._snapshots.setdefault(part.correlation_id, [0, part.complete_message_count])
            snapshot[0] += part.objects
        self.objects = sum(come for come, _ in self._snapshots.values())
        self.objects_announced = sum(announced for _, announced in self._snapshots.values())
        self._snapshot_is_due = not self._snapshots or any(come < all_ for come, all_ in self._snapshots.values())


def read(file: BinaryIO) -> Iterator[Record]:
    """Yield the records of a file.

    Raises:
        RecordingError: the file is not a recording, or is cut off.
    """
    # No container in a record has more than its four fields, so that another kind of file takes no memory.
    unpacker = msgpack.Unpacker(max_buffer_size=0, max_array_len=4, max_map_len=0, max_ext_len=0)
    fed = whole = 0  # bytes; not file.tell(), which fails for a pipe
    try:
        while chunk := file.read(_CHUNK):
            unpacker.feed(chunk)
            fed += len(chunk)
            for item in unpacker:
                whole = unpacker.tell()
                yield _checked(item)
    except (ValueError, msgpack.UnpackException) as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(f"not a recording of tornado-rbkit: {error!r}") from error
    if whole != fed:
        raise RecordingError(f"it ends in the middle of a record, at byte {whole}")


def _checked(item: object) -> Record:
    if not isinstance(item, list) or len(item) != 4:
        raise RecordingError("not a recording of tornado-rbkit: an item that is not a list of four")
    seconds, channel, command, payload = item
    if type(seconds) not in (float, int) or not math.isfinite(seconds):
        raise RecordingError("a record whose time is not a finite number")
    if type(channel) is not int or channel not in (REPLY, DATA):
        raise RecordingError(f"a record on channel {channel!r:.40}; expected {REPLY} or {DATA}")
    if not isinstance(command, str | None) or not isinstance(payload, bytes):
        raise RecordingError("a record whose command is not a string, or whose payload is not bytes")
    return Record(float(seconds), channel, command, payload)


def events(records: Iterable[Record], problems: list[str]) -> Iterator[Event]:
    """Yield the decoded events of a recording, up to the first invalid record.

    Args:
        records: the records that `read` yields.
        problems: list to which sentences for people about skipped data are appended at the end.
    """
    messages = foreign = 0
    first = ""
    try:
        for record in records:
            if record.channel != DATA:
                continue
            messages += 1
            try:
                collection = decode(record.payload)
            except DecodeError as error:
                foreign += 1
                first = first or f"{error}, at {record.seconds:.3f} s"
                continue
            if not isinstance(collection, Handshake):
                yield from collection.events
    except RecordingError as error:
        problems.append(str(error))
    if foreign:
        problems.append(f"{foreign} of {messages} messages are not rbkit's and were left out; the first: {first}")
