"""Packs the protocol's events and messages as MessagePack.

Events that are frequent are joined from packed parts, which is several times as fast as packing a dict. This module
does no I/O; its functions may be called on any thread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain, repeat
from operator import length_hint
from typing import Any, Final, NamedTuple

import msgpack

from tornado_rbkit.profiler import real_time
from tornado_rbkit.protocol import EventType, Field

_double = struct.Struct(">d").pack
_id = struct.Struct(">BQ").pack
_UINT64: Final = 0xCF
# The key order 0, 1, 9, 2 is part of the protocol: a bridge reads the counter from the first 23 bytes.
_COLLECTION_HEAD: Final = bytes((0x84, Field.EVENT_TYPE, EventType.EVENT_COLLECTION, Field.TIMESTAMP))
_COUNTER_KEY: Final = bytes((Field.MESSAGE_COUNTER,))
_PAYLOAD_KEY: Final = bytes((Field.PAYLOAD,))
_SAMPLE_HEAD: Final = bytes((0x83, Field.EVENT_TYPE, EventType.CPU_SAMPLE, Field.TIMESTAMP))
_SAMPLE_TIMESTAMP: Final = slice(len(_SAMPLE_HEAD), len(_SAMPLE_HEAD) + 9)  # a float64
_NO_TIMESTAMP: Final = b"\xcb" + bytes(8)
_FRAME_HEAD: Final = bytes((0x86, Field.METHOD_NAME))
_DEFINED_FRAME_HEAD: Final = bytes((0x87, Field.METHOD_NAME))
_DEFINITION_KEY: Final = bytes((Field.DEFINITION_LINE,))
_SUSPENDED_KEY: Final = bytes((Field.SUSPENDED_TASKS,))
_LABEL_KEY: Final = bytes((Field.LABEL,))
_FILE_KEY: Final = bytes((Field.FILE,))
_LINE_KEY: Final = bytes((Field.LINE,))
_SINGLETON_KEY: Final = bytes((Field.SINGLETON_METHOD,))
_THREAD_KEY: Final = bytes((Field.THREAD_ID,))
_CREATED_HEAD: Final = bytes((0x83, Field.EVENT_TYPE, EventType.OBJ_CREATED, Field.TIMESTAMP))
_CREATED_KEYS: Final = bytes((Field.PAYLOAD, 0x82, Field.OBJECT_ID))
_CLASS_KEY: Final = bytes((Field.CLASS_NAME,))
_DESTROYED_HEAD: Final = bytes((0x83, Field.EVENT_TYPE, EventType.OBJ_DESTROYED, Field.TIMESTAMP))
_DESTROYED_KEYS: Final = bytes((Field.PAYLOAD, 0x81, Field.OBJECT_ID))
_DUMP_HEAD: Final = bytes((Field.EVENT_TYPE, EventType.OBJECT_SPACE_DUMP, Field.TIMESTAMP))
_CORRELATION_KEY: Final = bytes((Field.CORRELATION_ID,))
_COMPLETE_KEY: Final = bytes((Field.COMPLETE_MESSAGE_COUNT,))
_RESIDENT_KEY: Final = bytes((Field.RESIDENT,))
_TRACED_KEY: Final = bytes((Field.TRACED,))
# plain integers, which msgpack packs faster
_OBJECT_ID: Final = int(Field.OBJECT_ID)
_CLASS_NAME: Final = int(Field.CLASS_NAME)
_REFERENCES: Final = int(Field.REFERENCES)
_FILE: Final = int(Field.FILE)
_LINE: Final = int(Field.LINE)
_SIZE: Final = int(Field.SIZE)
_KEYS: Final = int(Field.KEYS)
_LABEL: Final = int(Field.LABEL)


def pack(value: Any) -> bytes:
    """Return `value` as MessagePack; surrogate escapes in text are packed as the original bytes.

    Raises:
        UnicodeEncodeError: text has surrogates that are not escapes.
        OverflowError: an integer exceeds 64 bits.
    """
    packed: bytes = msgpack.packb(value, unicode_errors="surrogateescape")
    return packed


def pack_text(text: str) -> bytes:
    """Return `text` as MessagePack; surrogates that are not escapes become question marks. Never raises."""
    try:
        return pack(text)
    except UnicodeEncodeError:
        return pack(text.encode("utf-8", "replace").decode())


def pack_time(seconds: float) -> bytes:
    """Return a time in seconds since the Unix epoch as the protocol's timestamp, a float64 of milliseconds."""
    return b"\xcb" + _double(seconds * 1000.0)


def pack_collection(events: Sequence[bytes], counter: int, now: float, count: int) -> bytes:
    """Return packed events as one event_collection.

    Args:
        events: the events; some may be joined.
        counter: the message_counter.
        now: seconds since the Unix epoch.
        count: the number of events.
    """
    head = (_COLLECTION_HEAD, pack_time(now), _COUNTER_KEY, pack(counter), _PAYLOAD_KEY, _array_header(count))
    return b"".join((*head, *events))


def pack_event(kind: EventType, payload: Any) -> bytes:
    """Return an event that happens now, with any payload."""
    return pack(
        {
            int(Field.EVENT_TYPE): int(kind),
            int(Field.TIMESTAMP): real_time.time() * 1000.0,
            int(Field.PAYLOAD): payload,
        }
    )


def pack_bare_event(kind: EventType, timestamp: bytes) -> bytes:
    """Return an event without a payload; the timestamp is from `pack_time`, here and below."""
    return bytes((0x82, Field.EVENT_TYPE, kind, Field.TIMESTAMP)) + timestamp


def pack_class(class_name: str) -> bytes:
    """Return the end of an obj_created event, for `pack_created`."""
    return _CLASS_KEY + pack_text(class_name)


def pack_created(timestamp: bytes, ids: Iterable[int], classes: Iterable[bytes]) -> bytes:
    """Return obj_created events, joined; the class of each object is from `pack_class`."""
    before = _CREATED_HEAD + timestamp + _CREATED_KEYS
    return b"".join(chain.from_iterable(zip(repeat(before), map(_id, repeat(_UINT64), ids), classes, strict=False)))


def pack_destroyed(timestamp: bytes, ids: Iterable[int]) -> bytes:
    """Return obj_destroyed events, joined."""
    before = _DESTROYED_HEAD + timestamp + _DESTROYED_KEYS
    return b"".join(chain.from_iterable(zip(repeat(before), map(_id, repeat(_UINT64), ids), strict=False)))


def pack_frame(
    method_name: str, label: str, file: str, line: int, *, singleton: bool, definition_line: int | None = None
) -> bytes:
    """Return a stack frame without the value of its last key, thread_id, which `pack_stack` adds."""
    head, defined = _FRAME_HEAD, b""
    if definition_line is not None:
        head, defined = _DEFINED_FRAME_HEAD, _DEFINITION_KEY + pack(definition_line)
    return b"".join(
        (
            *(head, pack_text(method_name), _LABEL_KEY, pack_text(label), _FILE_KEY, pack_text(file)),
            *(_LINE_KEY, pack(line), _SINGLETON_KEY, pack(int(singleton)), defined, _THREAD_KEY),
        )
    )


@lru_cache(maxsize=4096)
def pack_facts(thread_name: str | None, task_name: str | None, state: str | None) -> tuple[bytes, ...]:
    """Return what is known of a thread, for `pack_stack`; None is left out."""
    facts = ((Field.THREAD_NAME, thread_name), (Field.TASK_NAME, task_name), (Field.THREAD_STATE, state))
    return tuple(bytes((key,)) + pack_text(value) for key, value in facts if value is not None)


_pack_id = lru_cache(maxsize=4096)(pack)


def pack_stack(frames: Sequence[bytes], thread_id: int, facts: Sequence[bytes] = ()) -> bytes:
    """Return the payload of a cpu_sample.

    Args:
        frames: from `pack_frame`, innermost first.
        thread_id: the thread of all frames.
        facts: from `pack_facts`; they are added to the innermost frame.
    """
    if not frames:
        return _PAYLOAD_KEY + _array_header(0)
    packed_id = _pack_id(thread_id)
    if not facts:
        return b"".join((_PAYLOAD_KEY, _array_header(len(frames)), packed_id.join(frames), packed_id))
    innermost, *others = frames
    first = (bytes((innermost[0] + len(facts),)), innermost[1:], packed_id, *facts)
    rest = (packed_id.join(others), packed_id) if others else ()
    return b"".join((_PAYLOAD_KEY, _array_header(len(frames)), *first, *rest))


def pack_sample(timestamp: bytes, stack: bytes) -> bytes:
    """Return a cpu_sample with a payload of `pack_stack`."""
    return b"".join((_SAMPLE_HEAD, timestamp, stack))


class TaskGroup(NamedTuple):
    """Suspended tasks with the same stack of packed frames, innermost first; see `protocol.TaskGroup`."""

    tasks: int
    names: list[str]
    awaits: str | None
    stack: tuple[bytes, ...]


def pack_suspended_tasks(now: float, tasks: int, read: int, milliseconds: float, groups: Sequence[TaskGroup]) -> bytes:
    """Return a cpu_sample without frames that tells where tasks wait; see `protocol.SuspendedTasks`.

    Args:
        now: seconds since the Unix epoch.
        tasks: the number of tasks that are not done.
        read: the number of tasks that were read.
        milliseconds: the time since the look before.
        groups: the groups of the suspended tasks that were read.
    """
    counts = {int(Field.TASKS): tasks, int(Field.TASKS_READ): read, int(Field.MILLISECONDS): milliseconds}
    head = b"".join((bytes((0x84,)), _SAMPLE_HEAD[1:], pack_time(now), _PAYLOAD_KEY, b"\x90", _SUSPENDED_KEY))
    look = bytes((0x84,)) + pack(counts)[1:] + _PAYLOAD_KEY + _array_header(len(groups))
    return b"".join((head, look, *map(_pack_group, groups)))


def _pack_group(group: TaskGroup) -> bytes:
    about = (bytes((Field.TASKS,)), pack(group.tasks), bytes((Field.CLASS_NAME,)), pack(group.awaits))
    names = (bytes((Field.TASK_NAMES,)), _array_header(len(group.names)), *map(pack_text, group.names))
    return b"".join((b"\x84", *about, *names, pack_stack(group.stack, 0)))


def without_time(sample: bytes) -> bytes:
    """Return a packed cpu_sample with the timestamp 0, so that samples of the same stack are equal."""
    return sample[: _SAMPLE_TIMESTAMP.start] + _NO_TIMESTAMP + sample[_SAMPLE_TIMESTAMP.stop :]


DUMP_OBJECTS: Final = 1000
"""Objects in one object_space_dump, as in rbkit."""

_LONG_LIST: Final = 1000
"""Values that are packed in one call."""


class DumpPacker:
    """Packs the objects of a snapshot as the payload of an object_space_dump. For use by one thread.

    Each value is packed straight into a buffer: if tracemalloc is on, it traces every object created here, which takes
    longer than creating it.
    """

    def __init__(self) -> None:
        self._packer = msgpack.Packer(autoreset=False)
        self._start()
        self.pack: Callable[[Any], object] = self._packer.pack
        """Packs one value."""

    @property
    def rows(self) -> int:
        """Objects added since the last `take`."""
        return DUMP_OBJECTS - 1 - length_hint(self._before_last) + self._is_full

    def begin(self, object_id: int, class_name: str, references: int, more: int) -> None:
        """Begin to pack an object; the id of each reference is packed by `pack` next.

        Args:
            object_id: its id.
            class_name: the name of its class.
            references: the number of references.
            more: how many of `add_names` and `add_label` follow `add_place` and `add_size`.
        """
        packer, pack = self._packer, self.pack
        packer.pack_map_header(6 + more)
        pack(_OBJECT_ID)
        pack(object_id)
        pack(_CLASS_NAME)
        pack(class_name)
        pack(_REFERENCES)
        packer.pack_array_header(references)

    def add_place(self, file: str | None, line: int | None) -> None:
        """Pack where the object was created; None if it is not known."""
        pack = self.pack
        pack(_FILE)
        pack(file)
        pack(_LINE)
        pack(line)

    def add_size(self, size: int | None) -> None:
        """Pack the object's size in bytes; None if it is not known."""
        pack = self.pack
        pack(_SIZE)
        pack(size)

    def add_names(self, field: int, names: Sequence[Any] | int) -> None:
        """Pack the names of references, a long list name by name, so that the host can have the GIL in between."""
        self.pack(field)
        if type(names) is int or len(names) <= _LONG_LIST:  # type: ignore[arg-type]
            self.pack(names)
            return
        self._packer.pack_array_header(len(names))  # type: ignore[arg-type]
        for name in names:  # type: ignore[union-attr]
            self.pack(name)

    def begin_names(self, count: int) -> None:
        """Begin to pack the names of a dict's values; each is packed by `pack` next."""
        self.pack(_KEYS)
        self._packer.pack_array_header(count)

    def add_label(self, label: str | int) -> None:
        """Pack the object's own name."""
        self.pack(_LABEL)
        self.pack(label)

    def is_full(self) -> bool:
        """Count the object that has been packed; return True if `take` is due."""
        self._is_full = next(self._before_last, True)
        return self._is_full

    def take(self) -> bytes:
        """Return the payload with the objects added so far, and start an empty one."""
        payload = _array_header(self.rows) + bytes(self._packer.bytes())
        self._packer.reset()
        self._start()
        return payload

    def _start(self) -> None:
        self._before_last = repeat(False, DUMP_OBJECTS - 1)  # counting with integers would create them
        self._is_full = False


def pack_dump_head(
    timestamp: bytes, correlation_id: int, total: int, resident: int | str, traced: int | None
) -> bytes:
    """Return an object_space_dump without its payload, which comes from `DumpPacker`.

    Args:
        timestamp: from `pack_time`.
        correlation_id: identifies the dumps of one snapshot.
        total: the number of objects in the snapshot.
        resident: the resident memory of the process in bytes, ``''`` if it is not known.
        traced: the bytes that tracemalloc has traced, None if it is off.
    """
    head = (b"\x86" if traced is None else b"\x87", _DUMP_HEAD, timestamp, _CORRELATION_KEY, pack(correlation_id))
    memory = (_RESIDENT_KEY, pack(resident), *(() if traced is None else (_TRACED_KEY, pack(traced))))
    return b"".join((*head, _COMPLETE_KEY, pack(total), *memory, _PAYLOAD_KEY))


def _array_header(length: int) -> bytes:
    if length < 16:
        return bytes((0x90 | length,))
    if length < 1 << 16:
        return b"\xdc" + length.to_bytes(2, "big")
    return b"\xdd" + length.to_bytes(4, "big")
