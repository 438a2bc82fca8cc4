"""The protocol without I/O: checks of commands, and decoding of rbkit's messages."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given

from tests.fake_rbkit import FACTS, collection, recorded
from tests.odd_values import FRAME, messages
from tornado_rbkit.protocol import (
    COMMANDS,
    MAX_COMMAND_LENGTH,
    NOTICES,
    TRACING_COMMANDS,
    CommandError,
    CPUSample,
    DecodeError,
    EventCollection,
    EventType,
    Field,
    GCEndMark,
    GCEndSweep,
    GCStart,
    GCStats,
    Handshake,
    Notice,
    ObjCreated,
    ObjDestroyed,
    ObjectSpaceDump,
    RbkitError,
    UnknownEvent,
    decode,
    decode_handshake,
    dump_parts,
    is_refused,
    message_counter,
    parse_command,
    parse_notice,
)

PUBLISH = 1
RECORDINGS = ["commands", "memory", "snapshot", "cpu"]


def published(name: str) -> list[bytes]:
    return [payload for _, channel, _, payload in recorded(name) if channel == PUBLISH]


def decode_collection(payload: bytes) -> EventCollection:
    message = decode(payload)
    assert isinstance(message, EventCollection)
    return message


ALL_PUBLISHED = [
    pytest.param(payload, id=f"{name}-{number}")
    for name in RECORDINGS
    for number, payload in enumerate(published(name))
]


# What rbkit sends


def test_recorded_handshakes_decode_to_named_fields() -> None:
    replies = [payload for _, _, command, payload in recorded("commands") if command == "handshake"]
    first = decode(replies[0])
    assert first == Handshake(
        timestamp=1795388434784.0,
        rbkit_server_version="0.1.10",
        rbkit_protocol_version="2.1",
        process_name="/srv/shop/rails/workload.rb",
        pwd="/srv/shop/rails",
        pid=15872,
        object_trace_enabled=False,
        cpu_profiling_enabled=False,
        clock_type="cpu",
        cpu_profiling_mode="sampling",
    )
    later = [decode(reply) for reply in replies[1:]]
    assert {type(reply) for reply in later} == {Handshake}
    assert [reply.object_trace_enabled for reply in later if isinstance(reply, Handshake)].count(True) == 1
    assert {reply.clock_type for reply in later if isinstance(reply, Handshake)} == {"cpu", "wall"}


def test_every_other_recorded_reply_is_ok() -> None:
    replies = {payload for _, _, command, payload in recorded("commands") if command != "handshake"}
    assert replies == {b"ok"}


@pytest.mark.parametrize("payload", ALL_PUBLISHED)
def test_recorded_message_decodes_with_all_its_events_known(payload: bytes) -> None:
    raw = msgpack.unpackb(payload, strict_map_key=False, unicode_errors="surrogateescape")
    message = decode_collection(payload)
    assert (message.timestamp, message.message_counter) == (raw[Field.TIMESTAMP], raw[Field.MESSAGE_COUNTER])
    assert [event.timestamp for event in message.events] == [event[Field.TIMESTAMP] for event in raw[Field.PAYLOAD]]
    assert not [event for event in message.events if isinstance(event, UnknownEvent)]


@pytest.mark.parametrize("payload", ALL_PUBLISHED)
def test_memoryview_decodes_as_the_bytes_do(payload: bytes) -> None:
    assert decode(memoryview(payload)) == decode(payload)


def test_recorded_memory_profile_has_every_kind_of_memory_event() -> None:
    events = [event for payload in published("memory") for event in decode_collection(payload).events]
    kinds = {type(event) for event in events}
    assert kinds == {ObjCreated, ObjDestroyed, GCStart, GCEndMark, GCEndSweep, GCStats}
    assert all(isinstance(event.object_id, int) for event in events if isinstance(event, ObjCreated | ObjDestroyed))
    created = [event.class_name for event in events if isinstance(event, ObjCreated)]
    assert "String" in created
    stats = next(event.stats for event in events if isinstance(event, GCStats))
    assert stats["heap_swept_slots"] == ""
    assert isinstance(stats["total_allocated_objects"], int)


def test_recorded_snapshot_has_objects_with_references_and_places() -> None:
    plain, traced = (decode_collection(payload).events[0] for payload in published("snapshot"))
    assert isinstance(plain, ObjectSpaceDump)
    assert isinstance(traced, ObjectSpaceDump)
    assert len(plain.objects) == 1000
    assert plain.complete_message_count is not None
    assert plain.complete_message_count > len(plain.objects)
    first = plain.objects[0]
    assert first._asdict() == {
        "object_id": 60,
        "class_name": "String",
        "references": [80],
        "file": None,
        "line": None,
        "size": 40,
    }
    placed = next(item for item in traced.objects if item.file is not None)
    assert placed.file is not None
    assert placed.file.startswith("/")
    assert isinstance(placed.line, int)


def test_recorded_cpu_samples_have_the_innermost_frame_first() -> None:
    samples = [event for payload in published("cpu") for event in decode_collection(payload).events]
    assert {type(sample) for sample in samples} == {CPUSample}
    frames = [frame for sample in samples if isinstance(sample, CPUSample) for frame in sample.frames]
    assert all(isinstance(frame.singleton_method, bool) for frame in frames)
    assert all(isinstance(frame.label, str) and isinstance(frame.line, int) for frame in frames)
    whole = max((sample for sample in samples if isinstance(sample, CPUSample)), key=lambda sample: len(sample.frames))
    assert whole.frames[-1].label == "block in <main>"


def test_a_nil_class_name_is_none() -> None:
    message = decode_collection(collection(0, [{0: 0, 1: 1.0, 2: {3: 7, 4: None}}]))
    assert message.events == [ObjCreated(1.0, 7, None)]


def test_object_ids_up_to_64_bits_are_kept() -> None:
    message = decode_collection(collection(0, [{0: 1, 1: 1.0, 2: {3: 2**64 - 1}}]))
    assert message.events == [ObjDestroyed(1.0, 2**64 - 1)]


def test_strings_that_are_not_utf8_keep_their_bytes() -> None:
    packer = msgpack.Packer(unicode_errors="surrogateescape")
    name = b"Caf\xe9\xff".decode(errors="surrogateescape")
    payload = packer.pack({0: 7, 1: 1.0, 9: 0, 2: [{0: 0, 1: 1.0, 2: {3: 1, 4: name}}]})
    assert b"Caf\xe9\xff" in payload
    (event,) = decode_collection(payload).events
    assert isinstance(event, ObjCreated)
    assert event.class_name is not None
    assert event.class_name.encode(errors="surrogateescape") == b"Caf\xe9\xff"


def test_raw_strings_of_old_msgpack_builds_decode() -> None:
    payload = msgpack.packb({0: 7, 1: 1.0, 9: 0, 2: [{0: 0, 1: 1.0, 2: {3: 1, 4: "C" * 40}}]}, use_bin_type=False)
    assert b"\xda\x00\x28" + b"C" * 40 in payload, "a string of 40 bytes is str16 there, not str8"
    assert decode_collection(payload).events == [ObjCreated(1.0, 1, "C" * 40)]


@pytest.mark.parametrize("event_type", [10, 99, 7, 8])
def test_an_event_of_unknown_type_is_passed_on_and_its_neighbours_are_read(event_type: int) -> None:
    unknown = {0: event_type, 1: 5.0, 2: {"new": [1]}}
    message = decode_collection(collection(3, [{0: 2, 1: 1.0}, unknown, {0: 4, 1: 2.0}]))
    assert message.events == [GCStart(1.0), UnknownEvent(5.0, event_type, {"new": [1]}), GCEndSweep(2.0)]


def test_an_unknown_event_without_time_or_payload_is_passed_on() -> None:
    assert decode_collection(collection(0, [{0: 77}])).events == [UnknownEvent(0.0, 77, None)]


GARBAGE = {
    "nothing": b"",
    "ok": b"ok",
    "a number": b"\x07",
    "nil": b"\xc0",
    "an array": b"\x93\x01\x02\x03",
    "an empty map": b"\x80",
    "a reserved byte": b"\xc1",
    "an event of another type": msgpack.packb({0: 2, 1: 1.0}),
    "a type that cannot be a key": msgpack.packb({0: [1], 1: 1.0}),
    "no counter": msgpack.packb({0: 7, 1: 1.0, 2: []}),
    "events that are not a list": msgpack.packb({0: 7, 1: 1.0, 9: 0, 2: 5}),
    "an event that is not a map": msgpack.packb({0: 7, 1: 1.0, 9: 0, 2: [5]}),
    "an event with a type that cannot be a key": msgpack.packb({0: 7, 1: 1.0, 9: 0, 2: [{0: [1]}]}),
    "an object without an id": msgpack.packb({0: 7, 1: 1.0, 9: 0, 2: [{0: 0, 1: 1.0, 2: {}}]}),
    "a handshake without facts": msgpack.packb({0: 8, 1: 1.0, 2: {}}),
    "two messages": collection(0) + collection(1),
    "a cut message": collection(0)[:-1],
    "very deep nesting": b"\x91" * 100_000,
}


@pytest.mark.parametrize("payload", GARBAGE.values(), ids=GARBAGE.keys())
def test_what_is_not_an_rbkit_message_is_a_decode_error(payload: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(payload)
    assert isinstance(caught.value, RbkitError)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value), "the error says what was wrong"


def test_random_damage_is_a_decode_error_or_a_message_but_nothing_else() -> None:
    source = random.Random(20_260)
    originals = [published("memory")[0], published("cpu")[0], recorded("commands")[0][3]]
    outcomes: Counter[str] = Counter()
    for _ in range(3000):
        damaged = bytearray(source.choice(originals))
        for _ in range(source.randint(1, 4)):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        try:
            decode(bytes(damaged[: source.choice([len(damaged), source.randrange(len(damaged))])]))
            outcomes["decoded"] += 1
        except DecodeError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 1000, outcomes


def conforms(value: Any, hint: Any) -> bool:
    """Return whether a value has the type that an annotation promises; a bool is no int."""
    if hint is Any:
        return True
    if get_origin(hint) in (UnionType, Union):
        return any(conforms(value, one) for one in get_args(hint))
    if get_origin(hint) is list:
        return type(value) is list and all(conforms(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        key, item = get_args(hint)
        return type(value) is dict and all(conforms(k, key) and conforms(v, item) for k, v in value.items())
    if hasattr(hint, "_fields"):
        return type(value) is hint and all(
            conforms(getattr(value, name), field) for name, field in get_type_hints(hint).items()
        )
    return type(value) is hint and (hint is not float or math.isfinite(value))


@given(payload=messages())
def test_what_decode_returns_has_the_types_that_it_promises(payload: bytes) -> None:
    try:
        message = decode(payload)
    except DecodeError:
        return
    assert conforms(message, type(message)), message


TASKS_OF_A_LOOK = {25: 3, 26: 2, 27: 1.5, 2: [{25: 2, 4: "sleep", 28: ["one", "two"], 2: [FRAME]}]}
WHOLE = [
    *(
        {0: 7, 1: 1.0, 9: 0, 2: [event]}
        for event in (
            {0: 0, 1: 1.0, 2: {3: 1, 4: "A"}},
            {0: 1, 1: 1.0, 2: {3: 1}},
            {0: 5, 1: 1.0, 10: 1, 11: 2, 2: [{3: 1, 4: "A", 5: [2, 3], 6: "a.py", 7: 3, 8: 40}]},
            {0: 6, 1: 1.0, 2: {"count": 1, "mode": "x"}},
            {0: 9, 1: 1.0, 24: TASKS_OF_A_LOOK, 2: [{**FRAME, 19: "main", 20: "task", 21: "running", 22: 1}]},
            {0: 77, 1: 1.0, 2: None},
        )
    ),
    {0: 8, 1: 1.0, 2: {**FACTS, "allocation_tracing_enabled": 0}},
]


def replacements(value: Any, by: object) -> Iterator[Any]:
    """Yield a value as often as it has parts, itself among them, each time with another part replaced."""
    yield by
    if isinstance(value, dict):
        for key, item in value.items():
            yield from ({**value, key: other} for other in replacements(item, by))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in replacements(item, by))


@pytest.mark.parametrize("odd", [None, True, 7, 1.5, "x", b"x", [], [b"x"], [[]], {}, {1: 1}], ids=repr)
def test_one_value_of_another_type_is_a_decode_error_or_one_that_may_stand_there(odd: object) -> None:
    for whole in WHOLE:
        decode(msgpack.packb(whole))
        for message in replacements(whole, odd):
            try:
                decoded = decode(msgpack.packb(message))
            except DecodeError:
                continue
            assert conforms(decoded, type(decoded)), message


def test_a_thread_and_its_task_and_state_are_in_its_innermost_frame() -> None:
    innermost = {**FRAME, 19: "main", 20: "task", 21: "running"}
    samples = [{0: 9, 1: 1.0, 2: frames} for frames in ([innermost, FRAME], [FRAME, innermost])]
    events = decode_collection(collection(0, samples)).events
    assert [event[2:5] for event in events] == [("main", "task", "running"), (None, None, None)]


@pytest.mark.parametrize("key", [12, 13, 6, 7, 14, 15])
def test_one_frame_of_other_types_makes_the_message_none_of_rbkits(key: int) -> None:
    values: list[object] = [[], {}, b"x", 1.5]
    for odd in (*values, "x" if key in (7, 14, 15) else 7):
        with pytest.raises(DecodeError):
            decode(collection(0, [{0: 9, 1: 1.0, 2: [FRAME, {**FRAME, key: odd}]}]))


@pytest.mark.parametrize("timestamp", [math.nan, math.inf, "1", None, True])
def test_a_timestamp_that_is_not_a_finite_number_makes_the_message_invalid(timestamp: object) -> None:
    with pytest.raises(DecodeError, match="timestamp"):
        decode(collection(0, [{0: 2, 1: timestamp}]))


def test_a_whole_timestamp_may_be_packed_as_an_integer() -> None:
    (event,) = decode_collection(collection(0, [{0: 2, 1: 5}])).events
    assert (event, type(event.timestamp)) == (GCStart(5.0), float)


def test_the_handshake_of_rbkit_2015_has_none_for_what_it_lacks() -> None:
    facts = {"process_name": "puma", "pwd": "/srv", "pid": 7, "object_trace_enabled": 1}
    handshake = decode(msgpack.packb({0: 8, 1: 1.0, 2: facts}, use_bin_type=False))
    assert handshake == Handshake(1.0, None, None, "puma", "/srv", 7, True, None, None, None)


def test_the_dumps_of_rbkit_2015_have_no_correlation_id() -> None:
    row = {3: 1, 4: "A", 5: [2], 6: None, 7: None, 8: 40}
    (dump,) = decode_collection(collection(0, [{0: 5, 1: 1.0, 2: [row]}])).events
    assert isinstance(dump, ObjectSpaceDump)
    assert (dump.correlation_id, dump.complete_message_count, len(dump.objects)) == (None, None, 1)


@given(payload=messages())
def test_dump_parts_are_those_of_the_decoded_message(payload: bytes) -> None:
    try:
        message = decode(payload)
    except DecodeError:
        dump_parts(payload)
        return
    assert dump_parts(payload) == [
        (event.correlation_id, event.complete_message_count, len(event.objects))
        for event in (message.events if isinstance(message, EventCollection) else [])
        if isinstance(event, ObjectSpaceDump)
    ]


@pytest.mark.parametrize("payload", published("snapshot"))
def test_dump_parts_of_a_recorded_snapshot_count_its_objects(payload: bytes) -> None:
    dumps = [event for event in decode_collection(payload).events if isinstance(event, ObjectSpaceDump)]
    assert sum(part.objects for part in dump_parts(payload)) == sum(len(dump.objects) for dump in dumps) > 0


# The counter


@pytest.mark.parametrize("payload", ALL_PUBLISHED)
def test_message_counter_is_that_of_the_decoded_message(payload: bytes) -> None:
    assert message_counter(payload) == decode_collection(payload).message_counter
    assert message_counter(memoryview(payload)) == message_counter(payload)
    assert message_counter(payload[:23]) == message_counter(payload), "23 bytes are enough"


@pytest.mark.parametrize(
    "counter", [0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63, 2**64 - 1], ids=hex
)
def test_message_counter_is_read_in_every_width(counter: int) -> None:
    assert message_counter(collection(counter)) == counter


@pytest.mark.parametrize("counter", [0, 200, 300, 70_000, 2**40])
def test_message_counter_of_a_truncated_head_is_none(counter: int) -> None:
    width = len(msgpack.packb(counter))
    head = collection(counter)[: 14 + width]
    assert message_counter(head) == counter
    for length in range(len(head)):
        assert message_counter(head[:length]) is None, f"{length} bytes of {len(head)}"


FOREIGN = {
    "nothing": b"",
    "a handshake": recorded("commands")[0][3],
    "keys in another order": msgpack.packb({9: 5, 0: 7, 1: 1.0, 2: []}),
    "another event type": msgpack.packb({0: 5, 1: 1.0, 9: 5, 2: []}),
    "a time that is an integer": msgpack.packb({0: 7, 1: 1, 9: 5, 2: []}),
    "a negative counter": msgpack.packb({0: 7, 1: 1.0, 9: -5, 2: []}),
    "a counter that is text": msgpack.packb({0: 7, 1: 1.0, 9: "5", 2: []}),
    "another key in its place": msgpack.packb({0: 7, 1: 1.0, 10: 5, 2: []}),
    "zeros": bytes(64),
    "text": b"start_memory_profile and more",
}


@pytest.mark.parametrize("payload", FOREIGN.values(), ids=FOREIGN.keys())
def test_message_counter_of_what_is_not_rbkits_is_none(payload: bytes) -> None:
    assert message_counter(payload) is None


# Commands


def test_there_are_the_nine_commands_of_protocol_2_1_and_two_of_our_own() -> None:
    assert sorted(COMMANDS - TRACING_COMMANDS) == [
        "handshake",
        "objectspace_snapshot",
        "start_cpu_profiling",
        "start_memory_profile",
        "stop_cpu_profiling",
        "stop_memory_profile",
        "trigger_gc",
        "use_cpu_time",
        "use_wall_time",
    ]
    assert sorted(TRACING_COMMANDS & COMMANDS) == ["start_allocation_tracing", "stop_allocation_tracing"]
    assert max(map(len, COMMANDS)) == 24


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_is_taken_as_text_and_as_binary(command: str) -> None:
    assert parse_command(command) == command
    assert parse_command(command.encode()) == command


def refused(message: str | bytes, allowed: Collection[str] | Literal["any"] = COMMANDS) -> CommandError:
    with pytest.raises(CommandError) as caught:
        parse_command(message, allowed)
    return caught.value


INVALID: dict[str, str | bytes] = {
    "empty text": "",
    "empty binary": b"",
    "NUL": "\0",
    "NUL first": "\0handshake",
    "NUL first, binary": b"\0handshake",
    "NUL inside": "handshake\0junk",
    "NUL last": b"handshake\0",
    "two lines": "handshake\ntrigger_gc",
    "a newline after it": "handshake\n",
    "a carriage return": b"handshake\r\n",
    "a tab": "trigger\tgc",
    "DEL": b"\x7f",
    "an escape": "\x1b[31m",
    "text that is not ASCII": "händshake",
    "bytes that are not ASCII": b"h\xc3\xa4ndshake",
    "bytes that are not UTF-8": b"\xff\xfe",
    "a lone surrogate": "hand\ud800shake",
    "a full-width letter": "\uff48andshake",
    "a line separator": "handshake\u2028",
    "257 bytes": "x" * 257,
    "257 bytes, binary": b"x" * 257,
    "256 characters of more bytes": "é" * 256,
}


@pytest.mark.parametrize("allowed", [COMMANDS, "any"], ids=["default", "any"])
@pytest.mark.parametrize("message", INVALID.values(), ids=INVALID.keys())
def test_what_no_rbkit_can_take_is_invalid_whatever_is_allowed(
    message: str | bytes, allowed: Collection[str] | Literal["any"]
) -> None:
    error = refused(message, allowed)
    assert error.reason == "invalid-command"
    assert "ASCII" in error.text or "allowed" in error.text, "the text says what is allowed"
    assert error.to_reply().isascii(), "the reply can be shown anywhere"
    assert b"\n" not in error.to_reply()


def test_the_longest_command_has_256_bytes() -> None:
    assert MAX_COMMAND_LENGTH == 256
    assert parse_command("x" * 256, "any") == "x" * 256
    assert parse_command(b"x" * 256, {"x" * 256}) == "x" * 256
    assert "257" in refused("x" * 257, "any").text
    assert "256" in refused("x" * 257, "any").text


@pytest.mark.parametrize("message", ["HANDSHAKE", " handshake", "handshake ", "bogus", "hand shake", b"0handshake"])
def test_a_command_that_is_not_allowed_is_unknown_and_the_text_names_the_allowed_ones(message: str | bytes) -> None:
    error = refused(message)
    assert error.reason == "unknown-command"
    for command in COMMANDS:
        assert command in error.text
    assert "`commands`" in error.text, "the setting that changes it"


def test_a_set_of_commands_replaces_the_nine() -> None:
    allowed = ["my_command", "handshake"]
    assert parse_command("my_command", allowed) == "my_command"
    error = refused("trigger_gc", allowed)
    assert error.reason == "unknown-command"
    assert "handshake, my_command" in error.text
    assert "start_memory_profile" not in error.text


def test_an_empty_set_of_commands_allows_no_command() -> None:
    assert refused("handshake", []).reason == "unknown-command"


@pytest.mark.parametrize("message", ["bogus", "with blanks and ~!", b"binary", "any"])
def test_any_allows_every_line_of_printable_ascii(message: str | bytes) -> None:
    assert parse_command(message, "any") == (message if isinstance(message, str) else message.decode())


# Errors and notices


@pytest.mark.parametrize(
    ("reason", "text"),
    [("busy", "32 commands are waiting"), ("timeout", "no reply: wait"), ("forbidden", ""), ("unavailable", "schön")],
)
def test_a_command_error_survives_the_wire(reason: str, text: str) -> None:
    reply = CommandError(reason, text).to_reply()
    assert reply == f"error:{reason} {text}".encode()
    back = CommandError.from_reply(reply)
    assert back is not None
    assert (back.reason, back.text) == (reason, text)
    assert str(back) == f"{reason}: {text}"


@pytest.mark.parametrize(
    "reply", [b"", b"ok", b"error", b"Error:busy x", b" error:busy x", recorded("commands")[0][3]]
)
def test_what_is_not_an_error_reply_gives_none(reply: bytes) -> None:
    assert CommandError.from_reply(reply) is None


def test_an_error_reply_with_broken_utf8_is_still_an_error() -> None:
    error = CommandError.from_reply(b"error:busy \xff")
    assert error is not None
    assert (error.reason, error.text) == ("busy", "\ufffd")


@pytest.mark.parametrize(
    "notice", [Notice("client_count", "2"), Notice("dropped", "17"), Notice("server", "restarted")], ids=str
)
def test_a_notice_survives_the_wire(notice: Notice) -> None:
    assert notice.to_bytes() == f"{notice.name}:{notice.value}".encode()
    assert parse_notice(notice.to_bytes()) == notice


def test_the_notices_are_three() -> None:
    assert frozenset({"client_count", "dropped", "server"}) == NOTICES


@pytest.mark.parametrize(
    "payload",
    [b"", b"ok", b"dropped", b"error:busy x", b"dropped 3", b"other:3", b":", recorded("commands")[0][3]],
)
def test_a_reply_is_not_a_notice(payload: bytes) -> None:
    assert parse_notice(payload) is None


def test_event_types_and_fields_have_rbkits_numbers() -> None:
    assert [kind.name for kind in sorted(EventType)] == [
        "OBJ_CREATED",
        "OBJ_DESTROYED",
        "GC_START",
        "GC_END_M",
        "GC_END_S",
        "OBJECT_SPACE_DUMP",
        "GC_STATS",
        "EVENT_COLLECTION",
        "HANDSHAKE",
        "CPU_SAMPLE",
    ]
    assert [field.value for field in Field] == [
        *range(16),
        Field.ATTRIBUTES,
        Field.KEYS,
        Field.RESIDENT,
        Field.THREAD_NAME,
        Field.TASK_NAME,
        Field.THREAD_STATE,
        Field.DEFINITION_LINE,
        Field.TRACED,
        Field.SUSPENDED_TASKS,
        Field.TASKS,
        Field.TASKS_READ,
        Field.MILLISECONDS,
        Field.TASK_NAMES,
    ]  # the last are our own
    assert [int(field) for field in Field] == [*range(29)]


# Closing


@pytest.mark.parametrize(
    ("code", "reason", "refused"),
    [
        (1008, "not authorized any more (authorize)", True),
        (1008, "", True),
        (1008, None, True),
        (1008, "too slow for 60 s (stall_timeout)", False),
        (1008, "no pong within 15 s (ping_timeout)", False),
        (1001, "server shutting down", False),
        (1006, None, False),
        (None, None, False),
    ],
)
def test_only_a_client_that_is_not_authorized_is_refused_for_good(
    code: int | None, reason: str | None, refused: bool
) -> None:
    assert is_refused(code, reason) is refused


def test_a_published_message_is_no_reply_to_handshake() -> None:
    with pytest.raises(DecodeError, match="the reply to handshake is EventCollection"):
        decode_handshake(published("cpu")[0])
