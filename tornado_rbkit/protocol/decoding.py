"""Decodes rbkit's MessagePack: published messages and the reply to ``handshake``."""

from __future__ import annotations

import io
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Final, NamedTuple

import msgpack

from tornado_rbkit.errors import DecodeError
from tornado_rbkit.protocol.events import (
    CPUSample,
    Event,
    EventCollection,
    EventType,
    Field,
    GCEndMark,
    GCEndSweep,
    GCStart,
    GCStats,
    Handshake,
    HeapObject,
    ObjCreated,
    ObjDestroyed,
    ObjectSpaceDump,
    StackFrame,
    SuspendedTasks,
    TaskGroup,
    UnknownEvent,
)

MAX_HANDSHAKE_BYTES: Final = 16 * 1024
"""Bytes. A handshake has about 250: two versions, two modes, and a process name and a path of at most a few KiB.

MessagePack of n bytes can hold n lists, which take 80 times as much memory and 400 ns each to decode.
"""


def decode(payload: bytes | memoryview) -> EventCollection | Handshake:
    """Decode a published message, or the reply to ``handshake``.

    Decoding is strict: every field of the result has its declared type. One value of another type, such as a label
    that is not a string or a timestamp that is not finite, makes the whole message invalid. Keys and event types that
    protocol 2.1 does not define are not errors. Strings that are not UTF-8 (paths, class names) keep their bytes as
    surrogate escapes.

    Raises:
        DecodeError: the payload is not MessagePack, or not an rbkit message.
    """
    try:
        message = _map(msgpack.unpackb(payload, strict_map_key=False, unicode_errors="surrogateescape"))
        kind = message[Field.EVENT_TYPE]
        if kind == EventType.EVENT_COLLECTION:
            return EventCollection(
                _timestamp(message),
                _int(message[Field.MESSAGE_COUNTER]),
                [_decode_event(event) for event in _maps(message[Field.PAYLOAD])],
            )
        if kind == EventType.HANDSHAKE:
            return _decode_handshake(message)
    except (ValueError, TypeError, LookupError, RecursionError, msgpack.UnpackException) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise DecodeError(f"{len(payload)} bytes that are not an rbkit message: {reason}") from error
    raise DecodeError(f"a message of event type {reprlib.repr(kind)}; expected event_collection (7) or handshake (8)")


def decode_handshake(reply: bytes) -> Handshake:
    """Decode the reply to ``handshake``.

    Raises:
        DecodeError: the reply is not a handshake, or has more than `MAX_HANDSHAKE_BYTES`.
    """
    if len(reply) > MAX_HANDSHAKE_BYTES:
        raise DecodeError(f"a reply to handshake of {len(reply)} bytes; allowed: at most {MAX_HANDSHAKE_BYTES}")
    message = decode(reply)
    if not isinstance(message, Handshake):
        raise DecodeError(f"the reply to handshake is {type(message).__name__}")
    return message


def _decode_event(event: dict[int, Any]) -> Event:
    kind = _int(event[Field.EVENT_TYPE])
    decoder = _DECODERS.get(kind)
    if decoder is None:
        timestamp = _timestamp(event) if Field.TIMESTAMP in event else 0.0
        return UnknownEvent(timestamp, kind, event.get(Field.PAYLOAD))
    return decoder(event)


def _decode_obj_created(event: dict[int, Any]) -> ObjCreated:
    payload = _map(event[Field.PAYLOAD])
    return ObjCreated(_timestamp(event), _int(payload[Field.OBJECT_ID]), _text_or_none(payload[Field.CLASS_NAME]))


def _decode_obj_destroyed(event: dict[int, Any]) -> ObjDestroyed:
    return ObjDestroyed(_timestamp(event), _int(_map(event[Field.PAYLOAD])[Field.OBJECT_ID]))


def _decode_gc_stats(event: dict[int, Any]) -> GCStats:
    stats = _map(event[Field.PAYLOAD])
    _check_columns(stats.items(), "stats", ("name", _TEXT), ("value", _INT | _TEXT))
    return GCStats(_timestamp(event), stats)


def _decode_object_space_dump(event: dict[int, Any]) -> ObjectSpaceDump:
    objects = [
        HeapObject(
            item[Field.OBJECT_ID],
            item[Field.CLASS_NAME],
            item[Field.REFERENCES],
            item[Field.FILE],
            item[Field.LINE],
            item[Field.SIZE],
        )
        for item in _maps(event[Field.PAYLOAD])
    ]
    _check_columns(objects, "object", *zip(HeapObject._fields, _HEAP_OBJECT_TYPES, strict=True))
    _check_types("references", chain.from_iterable(item.references for item in objects), _INT)
    return ObjectSpaceDump(
        _timestamp(event),
        _int_or_none(event.get(Field.CORRELATION_ID)),
        _int_or_none(event.get(Field.COMPLETE_MESSAGE_COUNT)),
        objects,
    )


def _decode_cpu_sample(event: dict[int, Any]) -> CPUSample:
    stack = _maps(event[Field.PAYLOAD])
    innermost = stack[0] if stack else {}
    thread, task, state = (
        _text_or_none(innermost.get(key)) for key in (Field.THREAD_NAME, Field.TASK_NAME, Field.THREAD_STATE)
    )
    tasks = event.get(Field.SUSPENDED_TASKS)
    suspended = None if tasks is None else _decode_suspended_tasks(_map(tasks))
    return CPUSample(_timestamp(event), _decode_frames(stack), thread, task, state, suspended)


def _decode_frames(stack: list[dict[int, Any]]) -> list[StackFrame]:
    frames = [
        StackFrame(
            frame[Field.METHOD_NAME],
            frame[Field.LABEL],
            frame[Field.FILE],
            frame[Field.LINE],
            _flag(frame[Field.SINGLETON_METHOD]),
            frame[Field.THREAD_ID],
            frame.get(Field.DEFINITION_LINE),
        )
        for frame in stack
    ]
    _check_columns(frames, "frame", *zip(StackFrame._fields, _STACK_FRAME_TYPES, strict=True))
    return frames


def _decode_suspended_tasks(look: dict[int, Any]) -> SuspendedTasks:
    groups = [
        TaskGroup(
            _int(group[Field.TASKS]),
            group[Field.TASK_NAMES],
            _text_or_none(group[Field.CLASS_NAME]),
            _decode_frames(_maps(group[Field.PAYLOAD])),
        )
        for group in _maps(look[Field.PAYLOAD])
    ]
    _check_types("task names", [group.names for group in groups], frozenset({list}))
    _check_types("task name", chain.from_iterable(group.names for group in groups), _TEXT)
    milliseconds = _number(look[Field.MILLISECONDS], "a time between two looks")
    return SuspendedTasks(_int(look[Field.TASKS]), _int(look[Field.TASKS_READ]), milliseconds, groups)


_DECODERS: Final[dict[int, Callable[[dict[int, Any]], Event]]] = {
    EventType.OBJ_CREATED: _decode_obj_created,
    EventType.OBJ_DESTROYED: _decode_obj_destroyed,
    EventType.GC_START: lambda event: GCStart(_timestamp(event)),
    EventType.GC_END_M: lambda event: GCEndMark(_timestamp(event)),
    EventType.GC_END_S: lambda event: GCEndSweep(_timestamp(event)),
    EventType.OBJECT_SPACE_DUMP: _decode_object_space_dump,
    EventType.GC_STATS: _decode_gc_stats,
    EventType.CPU_SAMPLE: _decode_cpu_sample,
}


def _decode_handshake(message: dict[int, Any]) -> Handshake:
    facts = _map(message[Field.PAYLOAD])
    cpu_profiling_enabled = facts.get("cpu_profiling_enabled")
    allocation_tracing_enabled = facts.get("allocation_tracing_enabled")
    handshake = Handshake(
        _timestamp(message),
        _text_or_none(facts.get("rbkit_server_version")),
        _text_or_none(facts.get("rbkit_protocol_version")),
        facts["process_name"],
        facts["pwd"],
        _int(facts["pid"]),
        _flag(facts["object_trace_enabled"]),
        None if cpu_profiling_enabled is None else _flag(cpu_profiling_enabled),
        _text_or_none(facts.get("clock_type")),
        _text_or_none(facts.get("cpu_profiling_mode")),
        None if allocation_tracing_enabled is None else _flag(allocation_tracing_enabled),
    )
    _check_types("process_name or pwd", (handshake.process_name, handshake.pwd), _TEXT)
    return handshake


# The types that decode() promises


_NONE: Final = frozenset({type(None)})
_INT: Final = frozenset({int})  # excludes bool
_TEXT: Final = frozenset({str})
_HEAP_OBJECT_TYPES: Final = (_INT, _TEXT | _NONE, frozenset({list}), _TEXT | _NONE, _INT | _NONE, _INT | _NONE)
_STACK_FRAME_TYPES: Final = (_TEXT | _NONE, _TEXT, _TEXT, _INT, frozenset({bool}), _INT, _INT | _NONE)


def _check_types(name: str, values: Iterable[object], types: frozenset[type]) -> None:
    odd = set(map(type, values)) - types
    if odd:
        raise TypeError(f"{name} of type {_names(odd)}; expected {_names(types)}")


def _check_columns(rows: Iterable[tuple[object, ...]], name: str, *columns: tuple[str, frozenset[type]]) -> None:
    """Check the types of a table column by column, which is faster than one call per value."""
    for values, (column, types) in zip(
        zip(*rows, strict=True), columns, strict=False
    ):  # without rows there are no columns
        _check_types(f"{name} {column}", values, types)


def _names(types: Iterable[type]) -> str:
    return " or ".join(sorted(item.__name__ for item in types))


def _timestamp(event: dict[int, Any]) -> float:
    return _number(event[Field.TIMESTAMP], "a timestamp")


def _number(value: Any, name: str) -> float:
    if type(value) not in (float, int) or not math.isfinite(value):
        raise TypeError(f"{name} that is not a finite number")
    return float(value)


def _int(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{type(value).__name__} where an integer is expected")
    return value


def _int_or_none(value: Any) -> int | None:
    return None if value is None else _int(value)


def _text_or_none(value: Any) -> str | None:
    if value is not None and type(value) is not str:
        raise TypeError(f"{type(value).__name__} where a string is expected")
    return value


def _flag(value: Any) -> bool:
    """Convert rbkit's 0 or 1 to a bool."""
    if type(value) is not int and type(value) is not bool:
        raise TypeError(f"{type(value).__name__} where 0 or 1 is expected")
    return bool(value)


def _map(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise TypeError(f"{type(value).__name__} where a map is expected")
    return value


def _maps(value: Any) -> list[dict[Any, Any]]:
    if type(value) is not list:
        raise TypeError(f"{type(value).__name__} where an array is expected")
    _check_types("item", value, frozenset({dict}))
    return value


class DumpPart(NamedTuple):
    """The number of objects in one event of a heap snapshot that has `complete_message_count` objects in total.

    Both other fields are None if rbkit is the tagged version 0.1.10, which sends a snapshot as one event.
    """

    correlation_id: int | None
    complete_message_count: int | None
    objects: int


def dump_parts(payload: bytes) -> list[DumpPart]:
    """Count the objects in the object_space_dumps of a published message without decoding them.

    A message of 50 MB takes about a second, during which other threads can run. Return an empty list for a message
    that is not rbkit's.
    """
    unpacker = msgpack.Unpacker(io.BytesIO(payload), strict_map_key=False, unicode_errors="surrogateescape")
    try:
        return list(_dump_parts(unpacker))
    except (ValueError, TypeError, LookupError, RecursionError, msgpack.UnpackException):
        return []


def _dump_parts(unpacker: msgpack.Unpacker) -> Iterator[DumpPart]:
    for _ in range(unpacker.read_map_header()):
        if unpacker.unpack() != Field.PAYLOAD:
            unpacker.skip()
            continue
        for _ in range(unpacker.read_array_header()):
            event: dict[int, Any] = {}
            for _ in range(unpacker.read_map_header()):
                key = unpacker.unpack()
                if key != Field.PAYLOAD:
                    event[key] = unpacker.unpack()
                elif event[Field.EVENT_TYPE] != EventType.OBJECT_SPACE_DUMP:
                    unpacker.skip()
                else:
                    event[key] = unpacker.read_array_header()
                    for _ in range(event[key]):
                        unpacker.skip()
            if event[Field.EVENT_TYPE] == EventType.OBJECT_SPACE_DUMP:
                snapshot = _int_or_none(event.get(Field.CORRELATION_ID))
                total = _int_or_none(event.get(Field.COMPLETE_MESSAGE_COUNT))
                yield DumpPart(snapshot, total, event[Field.PAYLOAD])


_COUNTER_HEAD: Final = b"\x84\x00\x07\x01\xcb"  # a map of four: 0 → event_collection, 1 → float64
_COUNTER_AT: Final = 14
_UINT_BYTES: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}


def message_counter(head: bytes | memoryview) -> int | None:
    """Return the message_counter from the first 23 bytes of a published message, None if they are not rbkit's.

    This costs a hundredth of decoding the message. A bridge needs only the counter, to detect lost messages and
    restarts. rbkit writes the keys in the order 0, 1, 9, 2.
    """
    head = bytes(head[:23])
    if len(head) <= _COUNTER_AT or not head.startswith(_COUNTER_HEAD) or head[13] != Field.MESSAGE_COUNTER:
        return None
    first = head[_COUNTER_AT]
    if first < 0x80:
        return first
    size = _UINT_BYTES.get(first)
    if size is None or len(head) < _COUNTER_AT + 1 + size:
        return None
    return int.from_bytes(head[_COUNTER_AT + 1 : _COUNTER_AT + 1 + size], "big")
