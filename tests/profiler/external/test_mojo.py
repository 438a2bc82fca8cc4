"""MOJO: what the description of the format says, and bytes that are anything else."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tornado_rbkit.profiler.external import mojo
from tornado_rbkit.profiler.external.engine import EngineFullError, Stack
from tornado_rbkit.profiler.external.mojo import MAX_EVENT, MAX_FRAMES, MAX_STRING, MojoError, MojoParser, integer

HEAD = b"MOJ\x03"


def varint(value: int) -> bytes:
    """Pack an integer as the description of the format says."""
    rest, sign = abs(value), 0x40 if value < 0 else 0
    packed = [rest & 0x3F | sign]
    rest >>= 6
    while rest:
        packed[-1] |= 0x80
        packed.append(rest & 0x7F)
        rest >>= 7
    return bytes(packed)


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def string(key: int, value: str) -> bytes:
    return b"\x0b" + varint(key) + text(value)


def frame(key: int, file: int, scope: int, line: int, definition_line: int = 1) -> bytes:
    return b"\x03" + b"".join(map(varint, (key, file, scope, line, definition_line, 1, 2)))


def stack(thread: int, *keys: int, interpreter: int = 0, micros: int = 1000, idle: bool = False) -> bytes:
    references = b"".join(b"\x05" + varint(key) for key in keys)
    head = b"\x02" + varint(42) + varint(interpreter) + text(f"{thread:x}")
    return head + references + b"\x09" + varint(micros) + (b"\x08" if idle else b"") + b"\x0a\x00"


END = b"\x02" + varint(42) + varint(0) + text("0")
"""Another stack's beginning, which completes the one before."""

DEFINED = string(1, "/srv/app.py") + string(2, "main") + string(3, "Job.run") + frame(7, 1, 2, 10) + frame(8, 1, 3, 20)


def parsed(*parts: bytes) -> list[Stack]:
    return MojoParser().feed(b"".join((HEAD, *parts, END)))


def feed_all(parser: MojoParser, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        parser.feed(chunk)


def places(found: Stack) -> list[tuple[str, str, int]]:
    return [(each.file, each.scope, each.line) for each in found.frames]


def test_what_the_system_has_counted_for_a_thread() -> None:
    use = b"\x0d" + varint(2_500_000_000) + varint(7) + varint(1)
    [counted, other] = parsed(DEFINED, stack(1, 7) + use, stack(2, 7))
    assert counted.use == (2.5, 7, True)
    assert other.use is None


def test_the_example_of_the_description() -> None:
    assert integer(b"\xc3\x02") == -131


@given(st.integers(-(1 << 63), 1 << 63))
def test_integers_of_any_size(value: int) -> None:
    assert integer(varint(value)) == value


def test_a_stack_has_its_frames_outermost_first_its_thread_and_its_time() -> None:
    (found,) = parsed(b"\x01", text("stack_reader"), text("3.11.7"), DEFINED, stack(0x1A, 7, 8, micros=1234))
    assert places(found) == [("/srv/app.py", "main", 10), ("/srv/app.py", "Job.run", 20)]
    assert (found.thread_id, found.seconds, found.is_broken) == (26, 0.001234, False)


def test_broken_stacks_are_marked() -> None:
    broken, whole = parsed(DEFINED, stack(1, 7) + b"\x04", stack(1, 7, idle=True))
    assert (broken.is_broken, whole.is_broken) == (True, False)


def test_a_reference_to_nothing_makes_a_broken_stack() -> None:
    (found,) = parsed(DEFINED, stack(1, 7, 99))
    assert found.is_broken


def test_a_place_that_is_defined_again_is_the_same_object_unless_it_differs() -> None:
    again = [DEFINED, frame(8, 1, 3, 21), frame(8, 1, 3, 21, 20)]
    first, *others = parsed(DEFINED, stack(1, 7, 8), *(part for each in again for part in (each, stack(1, 7, 8))))
    assert all(one is another for one, another in zip(first.frames, others[0].frames, strict=True))
    found = [[(each.line, each.definition_line) for each in stack.frames] for stack in others]
    assert found == [[(10, 1), (20, 1)], [(10, 1), (21, 1)], [(10, 1), (21, 20)]]


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int, list[int], int]]]:
    """A valid stream, and the stacks that are in it."""
    lines = draw(st.dictionaries(st.integers(1, 1 << 60), st.integers(0, 1 << 20), min_size=1, max_size=5))
    names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
    parts = [HEAD, string(1, draw(names)), string(2, draw(names))]
    parts += [frame(key, 1, 2, line) for key, line in lines.items()]
    told = []
    for _ in range(draw(st.integers(0, 8))):
        keys = draw(st.lists(st.sampled_from(sorted(lines)), max_size=6))
        thread, interpreter, micros = draw(st.tuples(*[st.integers(0, 1 << 40)] * 3))
        idle = draw(st.booleans())
        parts.append(stack(thread, *keys, interpreter=interpreter, micros=micros, idle=idle))
        told.append((interpreter, thread, [lines[key] for key in keys], micros))
    return b"".join((*parts, END)), told


@given(streams(), st.data())
def test_a_stream_cut_anywhere_gives_the_same_stacks(
    stream: tuple[bytes, list[tuple[int, int, list[int], int]]], data: st.DataObject
) -> None:
    whole, told = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
    parser = MojoParser()
    found = [
        each for begin, end in itertools.pairwise([0, *cuts, len(whole)]) for each in parser.feed(whole[begin:end])
    ]
    assert [
        (each.interpreter, each.thread_id, [one.line for one in each.frames], round(each.seconds * 1e6))
        for each in found
    ] == told


@given(streams(), st.data())
def test_a_stream_that_is_cut_off_gives_its_first_stacks(
    stream: tuple[bytes, list[tuple[int, int, list[int], int]]], data: st.DataObject
) -> None:
    whole, told = stream
    found = MojoParser().feed(whole[: data.draw(st.integers(0, len(whole)))])
    assert [each.thread_id for each in found] == [thread for _, thread, _, _ in told][: len(found)]


@given(st.lists(st.binary(max_size=200), max_size=10), st.booleans())
def test_garbage_is_an_error_or_gives_stacks_and_nothing_else(chunks: list[bytes], headed: bool) -> None:
    parser = MojoParser()
    try:
        for chunk in [HEAD, *chunks] if headed else chunks:
            for found in parser.feed(chunk):
                assert found.seconds >= 0
                assert found.thread_id >= 0
    except MojoError:
        pass


@given(streams(), st.integers(0, 10_000), st.integers(0, 255))
def test_one_wrong_byte_is_an_error_or_gives_stacks(
    stream: tuple[bytes, list[tuple[int, int, list[int], int]]], at: int, byte: int
) -> None:
    damaged = bytearray(stream[0])
    damaged[at % len(damaged)] = byte
    with contextlib.suppress(MojoError):
        MojoParser().feed(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"P42;T0:42", "not MOJO"),
        (b"MOJ\x04", "MOJO 4; supported: 3"),
        (HEAD + b"\x00", "unknown kind 0"),
        (HEAD + b"\x0e", "unknown kind 14"),
        (HEAD + b"\x02\x01\x00tid\0", "thread b'tid'"),
        (HEAD + b"\x02\x01\x00" + b"f" * 17 + b"\0", "thread b'f"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(MojoError, match=reason):
        MojoParser().feed(data)


def test_an_event_without_end_is_not_kept_for_ever() -> None:
    parser = MojoParser()
    parser.feed(HEAD + b"\x0b\x01")
    with pytest.raises(MojoError, match="does not end"):
        feed_all(parser, [b"x" * 1024] * MAX_EVENT)


def test_an_integer_without_end_is_an_error() -> None:
    with pytest.raises(MojoError, match="does not end"):
        MojoParser().feed(HEAD + b"\x09" + b"\xff" * (MAX_EVENT + 1))


def test_the_longest_name_is_read_and_a_longer_one_is_an_error() -> None:
    longest = string(2, "x" * MAX_STRING)
    (found,) = parsed(string(1, "f"), longest, frame(7, 1, 2, 1), stack(1, 7))
    assert len(found.frames[0].scope) == MAX_STRING
    with pytest.raises(MojoError, match="does not end"):
        parsed(string(2, "x" * (MAX_STRING + 1)), b"\x08" * MAX_EVENT)


def test_a_stack_of_too_many_frames_is_an_error() -> None:
    (found,) = parsed(DEFINED, stack(1, *[7] * MAX_FRAMES))
    assert len(found.frames) == MAX_FRAMES
    with pytest.raises(MojoError, match="frames"):
        parsed(DEFINED, stack(1, *[7] * MAX_FRAMES, 8))


def test_endless_definitions_end_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mojo, "MAX_DEFINED", 100_000)
    parser = MojoParser()
    parser.feed(HEAD)
    with pytest.raises(EngineFullError):
        feed_all(parser, (string(key, f"function {key}") for key in range(1, 2000)))


def test_repeated_definitions_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mojo, "MAX_DEFINED", 2000)
    assert len(parsed(*[DEFINED + stack(1, 7, 8)] * 1000)) == 1000


def test_stacks_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mojo, "_MAX_RUNS", 100)
    parser = MojoParser()
    parser.feed(HEAD + DEFINED)
    for keys in itertools.product((7, 8), repeat=8):
        parser.feed(stack(1, *keys))
        assert sum(map(len, parser._runs.values())) <= 100
