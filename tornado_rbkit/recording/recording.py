"""Recordings: files with the messages and replies of a profiler and their times.

A file is a stream of MessagePack records ``[seconds, channel, command, bytes]``: the time since the recording began;
channel 0 for replies, with their command, and for notices, with nil; channel 1 for published messages. The bytes are
rbkit's own, so a recording can be processed like live data. No I/O except on the given file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple

import msgpack

from tornado_rbkit.errors import DecodeError, RecordingError
from tornado_rbkit.protocol import Event, Handshake, decode

REPLY, DATA = 0, 1
_CHUNK: Final = 64 * 1024  # bytes read at a time


class Record(NamedTuple):
    """One message: `seconds` since the recording began, and the `command` if it is a reply."""

    seconds: float
    channel: int
    command: str | None
    payload: bytes


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
        raise RecordingError("not a recording of tornado-rbkit: it contains an item that is not a list of four")
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
