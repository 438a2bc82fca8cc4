"""A session in a file: what a profiler sent, when, and what was asked of it.

The file is a stream of MessagePack records ``[seconds, channel, command, bytes]``: the time since the recording
began; channel 0 for replies, with their command, and for notices, with nil; channel 1 for published messages. The
bytes are rbkit's own, so what can be done with a live session can be done with a recorded one. No I/O but on the
file given; any thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import msgpack

from tornado_rbkit.client import Gap, RbkitClient
from tornado_rbkit.protocol import CommandError, Event, Handshake, Notice, ObjectSpaceDump, RbkitError, decode

REPLY, DATA = 0, 1


class RecordingError(RbkitError, ValueError):
    """A file that is not a recording, or ends in the middle of a record."""


class Record(NamedTuple):
    """One message; `seconds` since the recording began, `command` of a reply."""

    seconds: float
    channel: int
    command: str | None
    payload: bytes


class Recorder:
    """Writes a session as it happens.

    Attributes:
        messages: published messages written.
        size: their bytes.
        objects: those that have come since a snapshot was asked for, of all snapshots that come meanwhile.
        objects_announced: how many there are in all, by complete_message_count; 0 before the first have come.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Begin now; `file` is the caller's to close."""
        self.messages = self.size = self.objects = self.objects_announced = 0
        self._snapshot_is_due = False
        self._snapshots: dict[int, list[int]] = {}  # objects that have come and that were announced, by correlation_id
        self._file = file
        self._started = time.monotonic()

    def progress(self) -> str:
        """Return how far it is, for people."""
        text = f"{self.messages:,} messages, {self.size:,} bytes"
        if self.objects_announced:
            text += f", {self.objects:,} of {self.objects_announced:,} objects"
        return text

    def write(self, channel: int, command: str | None, payload: bytes) -> None:
        """Write one record with the time of this moment."""
        self._file.write(msgpack.packb([time.monotonic() - self._started, channel, command, payload]))
        if channel == DATA:
            self.messages += 1
            self.size += len(payload)
            if self._snapshot_is_due:
                self._count_objects(payload)

    async def ask_all(self, rbkit: RbkitClient, commands: Iterable[str]) -> None:
        """Send commands one after another and write their replies.

        Raises:
            CommandError: one was not carried out; its error is written too.
        """
        for command in commands:
            self._snapshot_is_due |= command == "objectspace_snapshot"
            reply = await rbkit.request(command)
            self.write(REPLY, command, reply)
            error = CommandError.from_reply(reply)
            if error is not None:
                raise error

    async def ask_each(self, rbkit: RbkitClient, commands: Iterable[str]) -> list[Exception]:
        """The same, and go on whatever becomes of one; return what was raised."""
        raised: list[Exception] = []
        for command in commands:
            try:
                await self.ask_all(rbkit, [command])
            except (RbkitError, OSError) as error:
                raised.append(error)
        return raised

    async def follow(self, rbkit: RbkitClient) -> None:
        """Write what is published, and the notices, until the client is closed.

        Raises:
            ConnectionLost: as `RbkitClient.messages`.
        """
        async for item in rbkit.messages():
            if isinstance(item, bytes):
                self.write(DATA, None, item)
            elif isinstance(item, Notice):
                self.write(REPLY, None, item.to_bytes())
            else:
                assert isinstance(item, Gap)  # message_counter tells it again

    def _count_objects(self, payload: bytes) -> None:
        collection = decode(payload)
        if isinstance(collection, Handshake):
            return
        for event in collection.events:
            if isinstance(event, ObjectSpaceDump):
                snapshot = self._snapshots.setdefault(event.correlation_id, [0, event.complete_message_count])
                snapshot[0] += len(event.objects)
        self.objects = sum(come for come, _ in self._snapshots.values())
        self.objects_announced = sum(announced for _, announced in self._snapshots.values())
        self._snapshot_is_due = not self._snapshots or any(come < all_ for come, all_ in self._snapshots.values())


def read(file: BinaryIO) -> Iterator[Record]:
    """Yield the records of a file.

    Raises:
        RecordingError: it is not a recording, or was cut off.
    """
    unpacker = msgpack.Unpacker(file, max_buffer_size=0)
    whole = 0  # bytes; after a record that is cut off, tell() is somewhere within it
    try:
        for item in unpacker:
            whole = unpacker.tell()
            seconds, channel, command, payload = item
            if channel not in (REPLY, DATA) or not isinstance(payload, bytes):
                raise RecordingError(f"a record on channel {channel!r}; expected {REPLY} or {DATA}")
            yield Record(float(seconds), channel, command, payload)
    except (TypeError, ValueError, msgpack.UnpackException) as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(f"not a recording of tornado-rbkit: {error!r}") from error
    if whole != file.tell():
        raise RecordingError(f"it ends in the middle of a record, at byte {whole}")


def events(records: Iterable[Record]) -> Iterator[Event]:
    """Yield the events of a recording, decoded.

    Raises:
        DecodeError: a message is not rbkit's.
    """
    for record in records:
        if record.channel == DATA:
            collection = decode(record.payload)
            if not isinstance(collection, Handshake):
                yield from collection.events
