"""The rbkit 2.1 protocol without I/O: names, validation of commands, and decoding of messages and replies.

The numbers were read off the wire of rbkit 0.1.10 (protocol 2.1). Nothing in this module uses a socket or a loop, so
everything may be called on any thread.
"""

from __future__ import annotations

import enum
import io
import math
import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgpack

SUBPROTOCOL: Final = "rbkit"
"""The WebSocket subprotocol that a client offers to connect to a profiler."""

DEFAULT_PUB_PORT: Final = 5555
DEFAULT_REQ_PORT: Final = 5556

COMMANDS: Final = frozenset(
    {
        "start_memory_profile",
        "stop_memory_profile",
        "trigger_gc",
        "objectspace_snapshot",
        "handshake",
        "use_cpu_time",
        "use_wall_time",
        "start_cpu_profiling",
        "stop_cpu_profiling",
    }
)
"""The nine commands of protocol 2.1."""

VIEW_COMMAND: Final = "handshake"
"""The command that stands for viewing: `authorize` is called for it at open, and `read_only` allows no other."""

MAX_COMMAND_LENGTH: Final = 256
"""Bytes; the longest command of protocol 2.1 has 20 bytes."""

MAX_HANDSHAKE_BYTES: Final = 16 * 1024
"""Bytes. A handshake has about 250: two versions, two modes, and a process name and a path of at most a few KiB.

MessagePack of n bytes can hold n lists, which take 80 times as much memory and 400 ns each to decode.
"""


class Channel(bytes, enum.Enum):
    """The one-byte prefix of every message a WebSocket client receives."""

    REPLY = b"0"
    DATA = b"1"


class EventType(enum.IntEnum):
    """The value of `Field.EVENT_TYPE`."""

    OBJ_CREATED = 0
    OBJ_DESTROYED = 1
    GC_START = 2
    GC_END_M = 3
    GC_END_S = 4
    OBJECT_SPACE_DUMP = 5
    GC_STATS = 6
    EVENT_COLLECTION = 7
    HANDSHAKE = 8
    CPU_SAMPLE = 9


class Field(enum.IntEnum):
    """The integer keys in rbkit's MessagePack maps."""

    EVENT_TYPE = 0
    TIMESTAMP = 1
    PAYLOAD = 2
    OBJECT_ID = 3
    CLASS_NAME = 4
    REFERENCES = 5
    FILE = 6
    LINE = 7
    SIZE = 8
    MESSAGE_COUNTER = 9
    CORRELATION_ID = 10
    COMPLETE_MESSAGE_COUNT = 11
    METHOD_NAME = 12
    LABEL = 13
    SINGLETON_METHOD = 14
    THREAD_ID = 15


# Errors

_ERROR: Final = b"error:"  # prefix of an error that is sent in place of a reply


class RbkitError(Exception):
    """Base class of the errors that this package raises."""


class DecodeError(RbkitError, ValueError):
    """A payload is not an rbkit message."""


class CommandError(RbkitError):
    """A command was not carried out.

    Attributes:
        reason: one word for programs, sent after ``error:``.
        text: one sentence for people.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.text = text

    def to_reply(self) -> bytes:
        """Return the bytes that are sent instead of the reply."""
        return f"error:{self.reason} {self.text}".encode()

    @classmethod
    def from_reply(cls, payload: bytes) -> CommandError | None:
        """Return the error in a reply, None if it is not an error."""
        if not payload.startswith(_ERROR):
            return None
        reason, _, text = payload[len(_ERROR) :].decode(errors="replace").partition(" ")
        return cls(reason, text)


# Commands


def parse_command(message: str | bytes, allowed: Collection[str] | Literal["any"] = COMMANDS) -> str:
    """Return the command in a client's message, checked to be safe to send to rbkit.

    An empty request, or one that begins with NUL, kills rbkit's command channel for every client until the profiled
    process restarts. No setting allows such a request.

    Args:
        message: the client's message, text or binary.
        allowed: the commands that may be sent, or ``"any"``.

    Raises:
        CommandError: ``invalid-command`` if no rbkit accepts the command, ``unknown-command`` if it is not allowed.
    """
    raw = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message
    if not raw:
        raise CommandError("invalid-command", "the command is empty; allowed: " + _describe(allowed))
    if len(raw) > MAX_COMMAND_LENGTH:
        raise CommandError(
            "invalid-command", f"the command has {len(raw)} bytes; allowed: at most {MAX_COMMAND_LENGTH}"
        )
    if not all(0x20 <= byte <= 0x7E for byte in raw):
        raise CommandError("invalid-command", f"{raw[:40]!r} is not one line of printable ASCII")
    command = raw.decode("ascii")
    if allowed != "any" and command not in allowed:
        raise CommandError(
            "unknown-command", f"{command!r} is not one of: {_describe(allowed)} (the setting `commands`)"
        )
    return command


def _describe(allowed: Collection[str] | Literal["any"]) -> str:
    return "any one line of ASCII" if allowed == "any" else ", ".join(sorted(allowed))


# Notices


class Notice(NamedTuple):
    """An unsolicited message on the reply channel: ``client_count:2``, ``dropped:17``, ``server:restarted``.

    Notices are state, not events. At most one notice of each `kind` waits for a slow client:

    - ``client_count``: the newest number replaces an older one.
    - ``dropped``: the numbers are added up.
    - ``server:disconnected`` and ``server:connected``: the newest replaces the older, so a client may get
      ``connected`` without the ``disconnected`` before it, or one ``disconnected`` for several losses.
    - ``server:restarted``: several become one. ``connected`` and ``disconnected`` do not replace it, but it may be
      sent before or after them.
    """

    name: str
    value: str

    @property
    def kind(self) -> str:
        """A newer notice replaces a waiting one of the same kind: the name, or ``restarted`` for `RESTARTED`."""
        return self.value if self == RESTARTED else self.name

    def to_bytes(self) -> bytes:
        return f"{self.name}:{self.value}".encode()


CLIENT_COUNT: Final = "client_count"
DROPPED: Final = "dropped"
NOTICES: Final = frozenset({CLIENT_COUNT, DROPPED, "server"})
RESTARTED: Final = Notice("server", "restarted")


def parse_notice(payload: bytes) -> Notice | None:
    """Return the notice in a message of the reply channel, None if the message is a reply or an error."""
    name, colon, value = payload[:64].partition(b":")
    if colon and name.decode("latin-1") in NOTICES:
        return Notice(name.decode("latin-1"), value.decode("latin-1"))
    return None


def check_reply(command: str, reply: bytes) -> None:
    """Check that clients cannot mistake a profiler's reply for a notice or for an error from the bridge.

    Replies, errors and notices share one channel and are distinguished by their prefixes. If a client took a reply for
    a notice, it would match all later replies to the wrong commands.

    Raises:
        CommandError: ``invalid-reply``, to be sent instead of the reply.
    """
    if reply.startswith(_ERROR) or parse_notice(reply):
        raise CommandError(
            "invalid-reply", f"{command}: the reply begins with {reply[:40]!r}, as only a bridge's own messages may"
        )


# Closing

CLOSE_GOING_AWAY: Final = 1001
CLOSE_POLICY: Final = 1008
CLOSE_TOO_BIG: Final = 1009
CLOSE_TRY_AGAIN: Final = 1013

NOT_AUTHORIZED: Final = "not authorized"
"""Prefix of the close reason (`CLOSE_POLICY`) if `authorize` refuses; a client should not reconnect by itself."""

TOO_SLOW: Final = "too slow"
"""Prefix of the close reason (`CLOSE_POLICY`) if a client accepted no data for `stall_timeout`; it may reconnect."""

NO_PONG: Final = "no pong"
"""Prefix of the close reason (`CLOSE_POLICY`) if a client sent no pong for `ping_timeout`; it may reconnect."""


def is_refused(close_code: int | None, close_reason: str | None) -> bool:
    """Return whether reconnecting is useless: closed with `CLOSE_POLICY`, but not with `TOO_SLOW` or `NO_PONG`."""
    return close_code == CLOSE_POLICY and not (close_reason or "").startswith((TOO_SLOW, NO_PONG))


# Events


class ObjCreated(NamedTuple):
    timestamp: float
    object_id: int
    class_name: str | None


class ObjDestroyed(NamedTuple):
    timestamp: float
    object_id: int


class GCStart(NamedTuple):
    timestamp: float


class GCEndMark(NamedTuple):
    timestamp: float


class GCEndSweep(NamedTuple):
    timestamp: float


class GCStats(NamedTuple):
    """Statistics of Ruby's GC; `stats` has Ruby's own keys, and ``''`` where Ruby has nil."""

    timestamp: float
    stats: dict[str, int | str]


class HeapObject(NamedTuple):
    """One object of a snapshot. Only objects created while tracing have `file` and `line`. `size` is in bytes."""

    object_id: int
    class_name: str | None
    references: list[int]
    file: str | None
    line: int | None
    size: int | None


class ObjectSpaceDump(NamedTuple):
    """A part of a heap snapshot. All parts of one snapshot have the same `correlation_id`.

    `complete_message_count` is, despite its name, the number of OBJECTS in the whole snapshot. Both are None if rbkit
    is the tagged version 0.1.10.
    """

    timestamp: float
    correlation_id: int | None
    complete_message_count: int | None
    objects: list[HeapObject]


class StackFrame(NamedTuple):
    method_name: str | None
    label: str
    file: str
    line: int
    singleton_method: bool
    thread_id: int


class CPUSample(NamedTuple):
    """One sample of a stack; `frames` begins with the innermost frame."""

    timestamp: float
    frames: list[StackFrame]


class UnknownEvent(NamedTuple):
    """An event of a type that protocol 2.1 does not define; `payload` is the decoded MessagePack value."""

    timestamp: float
    event_type: int
    payload: Any


Event: TypeAlias = (
    ObjCreated | ObjDestroyed | GCStart | GCEndMark | GCEndSweep | GCStats | ObjectSpaceDump | CPUSample | UnknownEvent
)
"""An event in an `EventCollection`. Every `timestamp` is in milliseconds since the Unix epoch."""


class EventCollection(NamedTuple):
    """One published message; `message_counter` begins at 0 in each process and has no gaps."""

    timestamp: float
    message_counter: int
    events: list[Event]


class Handshake(NamedTuple):
    """The reply to ``handshake``. Facts that the profiler does not send are None (rbkit before protocol 2.1)."""

    timestamp: float
    rbkit_server_version: str | None
    rbkit_protocol_version: str | None
    process_name: str
    pwd: str
    pid: int
    object_trace_enabled: bool
    cpu_profiling_enabled: bool | None
    clock_type: str | None
    cpu_profiling_mode: str | None


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
    frames = [
        StackFrame(
            frame[Field.METHOD_NAME],
            frame[Field.LABEL],
            frame[Field.FILE],
            frame[Field.LINE],
            _flag(frame[Field.SINGLETON_METHOD]),
            frame[Field.THREAD_ID],
        )
        for frame in _maps(event[Field.PAYLOAD])
    ]
    _check_columns(frames, "frame", *zip(StackFrame._fields, _STACK_FRAME_TYPES, strict=True))
    return CPUSample(_timestamp(event), frames)


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
    )
    _check_types("process_name or pwd", (handshake.process_name, handshake.pwd), _TEXT)
    return handshake


# The types that decode() promises


_NONE: Final = frozenset({type(None)})
_INT: Final = frozenset({int})  # excludes bool
_TEXT: Final = frozenset({str})
_HEAP_OBJECT_TYPES: Final = (_INT, _TEXT | _NONE, frozenset({list}), _TEXT | _NONE, _INT | _NONE, _INT | _NONE)
_STACK_FRAME_TYPES: Final = (_TEXT | _NONE, _TEXT, _TEXT, _INT, frozenset({bool}), _INT)


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
    timestamp = event[Field.TIMESTAMP]
    if type(timestamp) not in (float, int) or not math.isfinite(timestamp):
        raise TypeError("a timestamp that is not a finite number")
    return float(timestamp)


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
    """The number of objects in one event of a heap snapshot that has `complete_message_count` objects in total."""

    correlation_id: int
    complete_message_count: int
    objects: int


def dump_parts(payload: bytes) -> list[DumpPart]:
    """Count the objects in the object_space_dumps of a published message without decoding them.

    A message of 50 MB takes about a second, during which other threads can run. Return an empty list for a message
    that is not rbkit's or has no numbers for `DumpPart`.
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
                if snapshot is not None and total is not None:
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
