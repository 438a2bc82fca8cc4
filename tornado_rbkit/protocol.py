"""The rbkit 2.1 protocol without I/O: names, the commands that may be sent, and the decoding of what comes back.

The numbers were read off the wire of rbkit 0.1.10 (protocol 2.1). Nothing in this module touches a socket or a
loop, so any of it may be called on any thread.
"""

from __future__ import annotations

import enum
import math
import reprlib
from collections.abc import Callable, Collection
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgpack

SUBPROTOCOL: Final = "rbkit"
"""The WebSocket subprotocol a client offers to be given a profiler."""

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

MAX_COMMAND_LENGTH: Final = 256
"""Bytes; the longest command of protocol 2.1 has 20."""

MAX_HANDSHAKE_BYTES: Final = 16 * 1024
"""A handshake has some 250 bytes: two versions, two modes, and a process name and a path of at most a few KiB.

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
    """The integer keys of rbkit's MessagePack maps."""

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

_ERROR: Final = b"error:"  # the beginning of a message of the reply channel that is no reply


class RbkitError(Exception):
    """The base of every error this package raises on purpose."""


class DecodeError(RbkitError, ValueError):
    """A payload that is not an rbkit event."""


class CommandError(RbkitError):
    """A command that was not carried out.

    Attributes:
        reason: one word for programs, as it stands on the wire behind ``error:``.
        text: one sentence for people.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason}: {text}")
        self.reason = reason
        self.text = text

    def to_reply(self) -> bytes:
        """Return the bytes that take the place of the reply."""
        return f"error:{self.reason} {self.text}".encode()

    @classmethod
    def from_reply(cls, payload: bytes) -> CommandError | None:
        """Return the error a reply stands for, None if it is not one."""
        if not payload.startswith(_ERROR):
            return None
        reason, _, text = payload[len(_ERROR) :].decode(errors="replace").partition(" ")
        return cls(reason, text)


# Commands


def parse_command(message: str | bytes, allowed: Collection[str] | Literal["any"] = COMMANDS) -> str:
    """Return the command in a client's message, which is then safe to send to rbkit.

    An empty request, or one that begins with NUL, kills rbkit's command channel for every client until the
    profiled process restarts; no setting lets one through.

    Args:
        message: what the client sent, text or binary.
        allowed: the commands that may be sent, or ``"any"``.

    Raises:
        CommandError: ``invalid-command`` for what no rbkit can take, ``unknown-command`` for what is not allowed.
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
    """What a bridge says unasked on the reply channel: ``client_count:2``, ``dropped:17``, ``server:restarted``."""

    name: str
    value: str

    def to_bytes(self) -> bytes:
        return f"{self.name}:{self.value}".encode()


NOTICES: Final = frozenset({"client_count", "dropped", "server"})


def parse_notice(payload: bytes) -> Notice | None:
    """Return the notice in a message of the reply channel, None if it is a reply."""
    name, colon, value = payload[:64].partition(b":")
    if colon and name.decode("latin-1") in NOTICES:
        return Notice(name.decode("latin-1"), value.decode("latin-1"))
    return None


def check_reply(command: str, reply: bytes) -> None:
    """Refuse a profiler's reply that a client would take for a notice or for an error of the bridge.

    Replies, errors and notices share one channel and are told apart by how they begin, so a reply that begins like
    one of the others must not be passed on: the replies after it would be taken for those of other commands.

    Raises:
        CommandError: ``invalid-reply``; it takes the place of the reply.
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
"""How the reason of a `CLOSE_POLICY` begins when `authorize` refuses; a client should not reconnect by itself."""

TOO_SLOW: Final = "too slow"
"""How the reason of a `CLOSE_POLICY` begins when the client took no data for `stall_timeout`; it may reconnect."""

NO_PONG: Final = "no pong"
"""How the reason of a `CLOSE_POLICY` begins when the client answered no ping for `ping_timeout`; it may reconnect."""


def is_refused(close_code: int | None, close_reason: str | None) -> bool:
    """Return whether a bridge closed a WebSocket for good: `CLOSE_POLICY`, and not because the client was too slow."""
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
    """`stats` is keyed by Ruby's own names; a value is ``''`` where Ruby has nil."""

    timestamp: float
    stats: dict[str, int | str]


class HeapObject(NamedTuple):
    """One object of a snapshot; `file` and `line` are of objects made while tracing, `size` is in bytes."""

    object_id: int
    class_name: str | None
    references: list[int]
    file: str | None
    line: int | None
    size: int | None


class ObjectSpaceDump(NamedTuple):
    """A part of a heap snapshot; the parts of one snapshot share `correlation_id`.

    `complete_message_count` is, in spite of its name, the number of OBJECTS in the whole snapshot.
    """

    timestamp: float
    correlation_id: int
    complete_message_count: int
    objects: list[HeapObject]


class StackFrame(NamedTuple):
    method_name: str | None
    label: str
    file: str
    line: int
    singleton_method: bool
    thread_id: int


class CPUSample(NamedTuple):
    """`frames` has the innermost frame first."""

    timestamp: float
    frames: list[StackFrame]


class UnknownEvent(NamedTuple):
    """An event of a type that protocol 2.1 does not have; `payload` is as MessagePack gave it."""

    timestamp: float
    event_type: int
    payload: Any


Event: TypeAlias = (
    ObjCreated | ObjDestroyed | GCStart | GCEndMark | GCEndSweep | GCStats | ObjectSpaceDump | CPUSample | UnknownEvent
)
"""What an `EventCollection` holds. Every `timestamp` is in milliseconds since the Unix epoch."""


class EventCollection(NamedTuple):
    """One published message; `message_counter` begins at 0 in each process and has no gaps."""

    timestamp: float
    message_counter: int
    events: list[Event]


class Handshake(NamedTuple):
    """The reply to ``handshake``."""

    timestamp: float
    rbkit_server_version: str
    rbkit_protocol_version: str
    process_name: str
    pwd: str
    pid: int
    object_trace_enabled: bool
    cpu_profiling_enabled: bool
    clock_type: str
    cpu_profiling_mode: str


def decode(payload: bytes | memoryview) -> EventCollection | Handshake:
    """Decode a published message, or the reply to ``handshake``.

    Strings that are not UTF-8 (paths, class names) keep their bytes as surrogate escapes.

    Raises:
        DecodeError: the payload is not MessagePack, or not such a message.
    """
    try:
        message = msgpack.unpackb(payload, strict_map_key=False, unicode_errors="surrogateescape")
        kind = message[Field.EVENT_TYPE]
        if kind == EventType.EVENT_COLLECTION:
            return EventCollection(
                message[Field.TIMESTAMP],
                message[Field.MESSAGE_COUNTER],
                [_decode_event(event) for event in message[Field.PAYLOAD]],
            )
        if kind == EventType.HANDSHAKE:
            return _decode_handshake(message)
    except (ValueError, TypeError, LookupError, AttributeError, msgpack.UnpackException) as error:
        raise DecodeError(f"{len(payload)} bytes that are not an rbkit message: {error!r}") from error
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
    decoder = _DECODERS.get(event[Field.EVENT_TYPE])
    if decoder is None:
        return UnknownEvent(event.get(Field.TIMESTAMP, 0.0), event[Field.EVENT_TYPE], event.get(Field.PAYLOAD))
    return decoder(event)


def _decode_obj_created(event: dict[int, Any]) -> ObjCreated:
    payload = event[Field.PAYLOAD]
    return ObjCreated(event[Field.TIMESTAMP], payload[Field.OBJECT_ID], payload[Field.CLASS_NAME])


def _decode_obj_destroyed(event: dict[int, Any]) -> ObjDestroyed:
    return ObjDestroyed(event[Field.TIMESTAMP], event[Field.PAYLOAD][Field.OBJECT_ID])


def _decode_gc_stats(event: dict[int, Any]) -> GCStats:
    return GCStats(event[Field.TIMESTAMP], event[Field.PAYLOAD])


def _decode_object_space_dump(event: dict[int, Any]) -> ObjectSpaceDump:
    return ObjectSpaceDump(
        event[Field.TIMESTAMP],
        event[Field.CORRELATION_ID],
        event[Field.COMPLETE_MESSAGE_COUNT],
        [
            HeapObject(
                item[Field.OBJECT_ID],
                item[Field.CLASS_NAME],
                item[Field.REFERENCES],
                item[Field.FILE],
                item[Field.LINE],
                item[Field.SIZE],
            )
            for item in event[Field.PAYLOAD]
        ],
    )


def _decode_cpu_sample(event: dict[int, Any]) -> CPUSample:
    return CPUSample(
        event[Field.TIMESTAMP],
        [
            StackFrame(
                frame[Field.METHOD_NAME],
                frame[Field.LABEL],
                frame[Field.FILE],
                frame[Field.LINE],
                bool(frame[Field.SINGLETON_METHOD]),
                frame[Field.THREAD_ID],
            )
            for frame in event[Field.PAYLOAD]
        ],
    )


_DECODERS: Final[dict[int, Callable[[dict[int, Any]], Event]]] = {
    EventType.OBJ_CREATED: _decode_obj_created,
    EventType.OBJ_DESTROYED: _decode_obj_destroyed,
    EventType.GC_START: lambda event: GCStart(event[Field.TIMESTAMP]),
    EventType.GC_END_M: lambda event: GCEndMark(event[Field.TIMESTAMP]),
    EventType.GC_END_S: lambda event: GCEndSweep(event[Field.TIMESTAMP]),
    EventType.OBJECT_SPACE_DUMP: _decode_object_space_dump,
    EventType.GC_STATS: _decode_gc_stats,
    EventType.CPU_SAMPLE: _decode_cpu_sample,
}


def _decode_handshake(message: dict[int, Any]) -> Handshake:
    facts = message[Field.PAYLOAD]
    handshake = Handshake(
        message[Field.TIMESTAMP],
        facts["rbkit_server_version"],
        facts["rbkit_protocol_version"],
        facts["process_name"],
        facts["pwd"],
        facts["pid"],
        bool(facts["object_trace_enabled"]),
        bool(facts["cpu_profiling_enabled"]),
        facts["clock_type"],
        facts["cpu_profiling_mode"],
    )
    if not math.isfinite(handshake.timestamp) or not isinstance(handshake.pid, int):
        raise TypeError("a timestamp or a pid that is no number")
    for fact in (*handshake[1:5], *handshake[8:]):
        if not isinstance(fact, str):
            raise TypeError(f"{reprlib.repr(fact)} where a string is expected")
    return handshake


_COUNTER_HEAD: Final = b"\x84\x00\x07\x01\xcb"  # a map of four: 0 → event_collection, 1 → float64
_COUNTER_AT: Final = 14
_UINT_BYTES: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}


def message_counter(head: bytes | memoryview) -> int | None:
    """Read the message_counter off the first 23 bytes of a published message, None if they are not rbkit's.

    This is what a bridge needs to know about a payload (what was lost on the way, and whether the counter began
    again), at a hundredth of the cost of decoding one. rbkit writes the keys in the order 0, 1, 9, 2.
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
