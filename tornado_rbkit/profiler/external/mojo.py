"""Parses MOJO, the format in which `stack_reader` writes. No I/O.

The format is that of the profiler austin, https://github.com/P403n1x87/austin/wiki/The-MOJO-file-format (version 3).

A stream is ``MOJ``, a version, and events. An event is a byte that says its kind, followed by strings that end with a
NUL, and integers of seven bits a byte, least significant first; the first byte has six bits and a sign. Strings and
frames are defined once and then referred to by a key. A stack event begins the stack of a thread; references to its
frames follow, outermost first, and then the time since the last look. The stack reader adds, as an event of its own,
what the system has counted for the thread. In place of the last line of a frame's statement it writes the line where
the function begins.
"""

from __future__ import annotations

import re
from typing import Final

from tornado_rbkit.profiler.external.engine import EngineError, EngineFullError, Frame, Stack, Use
from tornado_rbkit.profiler.objects import LARGE

VERSION: Final = 3

MAX_STRING: Final = 65_536
"""Bytes of a file name or a function name."""

MAX_EVENT: Final = 2 * MAX_STRING + 64
"""The most bytes of one event. Longer data without an event is not MOJO."""

MAX_FRAMES: Final = 65_536
"""Frames of one stack."""

MAX_DEFINED: Final = 64 << 20
"""Bytes of the definitions that one stream may have."""

_MAX_RUNS: Final = 1 << 20
"""Frames in the stacks that are remembered."""

_ENTRY_BYTES: Final = 100  # of memory for one definition, besides its text
_MAGIC: Final = b"MOJ"
_INTEGER: Final = rb"[\x80-\xff]{0,9}[\x00-\x7f]"
_TEXT: Final = rb"[^\x00]{0,%d}" % MAX_STRING
_METADATA, _STACK, _FRAME, _INVALID, _REFERENCE, _KERNEL = range(1, 7)
_GC, _IDLE, _TIME, _MEMORY, _STRING, _STRING_REFERENCE, _USE = range(7, 14)
_PATTERNS: Final = {
    kind: re.compile(pattern)
    for kind, pattern in {
        _METADATA: rb"\x01(%b)\x00(%b)\x00" % (_TEXT, _TEXT),
        _STACK: rb"\x02%b(%b)(%b)\x00" % (_INTEGER, _INTEGER, _TEXT),
        # key, file, scope, line, first line of the function; then column, last column
        _FRAME: rb"\x03(%b)(%b)(%b)(%b)(%b)(?:%b){2}" % (*[_INTEGER] * 5, _INTEGER),
        _INVALID: rb"\x04",
        _REFERENCE: rb"(?:\x05%b)+" % _INTEGER,  # the references of a whole stack at once
        _KERNEL: rb"\x06%b\x00" % _TEXT,
        _GC: rb"\x07",
        _IDLE: rb"\x08",
        _TIME: rb"\x09(%b)" % _INTEGER,
        _MEMORY: rb"\x0a%b" % _INTEGER,
        _STRING: rb"\x0b(%b)(%b)\x00" % (_INTEGER, _TEXT),
        _STRING_REFERENCE: rb"\x0c%b" % _INTEGER,
        _USE: rb"\x0d(%b)(%b)(%b)" % (*[_INTEGER] * 3,),
    }.items()
}
_KEYS: Final = re.compile(rb"\x05(%b)" % _INTEGER)
_UNKNOWN: Final = Frame("", "<unknown>", 0)


class MojoError(EngineError):
    """The data is not MOJO of the version that is supported."""


class MojoParser:
    """Turns the bytes of one stream into stacks. For use by one thread.

    Attributes:
        version: the version of the Python that is sampled; an empty string until it was read from the stream.
    """

    def __init__(self) -> None:
        self.version = ""
        self._rest = b""
        self._has_begun = False
        self._strings: dict[bytes, str] = {}
        self._frames: dict[bytes, Frame] = {}
        self._runs: dict[bytes, tuple[Frame, ...]] = {}
        self._defined = self._remembered = 0
        self._use: Use | None = None
        self._begin_stack(None)

    def feed(self, data: bytes) -> list[Stack]:
        """Return the stacks that the data completes; a stack is complete when the next one begins.

        Raises:
            MojoError: the data is not MOJO of the version that is supported; the parser cannot be used any more.
            EngineFullError: the stream has defined more than `MAX_DEFINED`; likewise.
        """
        buffer = self._rest + data
        at = 0 if self._has_begun else self._read_head(buffer)
        stacks: list[Stack] = []
        while at < len(buffer) and self._has_begun:
            kind = buffer[at]
            pattern = _PATTERNS.get(kind)
            if pattern is None:
                raise MojoError(f"the stack reader's output has an event of the unknown kind {kind}")
            match = pattern.match(buffer, at)
            if match is None:
                if len(buffer) - at > MAX_EVENT:
                    raise MojoError(f"the stack reader's output has an event of the kind {kind} that does not end")
                break
            self._add(kind, match, stacks)
            at = match.end()
        self._rest = buffer[at:]
        return stacks

    def _read_head(self, buffer: bytes) -> int:
        if buffer[: len(_MAGIC)] != _MAGIC[: len(buffer)]:
            raise MojoError("the stack reader's output is not MOJO")
        if len(buffer) <= len(_MAGIC):
            return 0
        if buffer[len(_MAGIC)] != VERSION:
            raise MojoError(f"the stack reader's output is MOJO {buffer[len(_MAGIC)]}; supported: {VERSION}")
        self._has_begun = True
        return len(_MAGIC) + 1

    def _add(self, kind: int, match: re.Match[bytes], stacks: list[Stack]) -> None:
        if kind == _REFERENCE:
            self._add_frames(match[0])
        elif kind == _TIME:
            self._seconds = max(0, integer(match[1])) / 1e6
        elif kind == _STACK:
            if self._thread is not None:
                stacks.append(self._stack(*self._thread))
            self._begin_stack((integer(match[1]), _thread_id(match[2])))
        elif kind == _FRAME:
            lines = [max(0, integer(each)) for each in match.groups()[3:]]
            self._define_frame(match[1], match[2], match[3], *lines)
        elif kind == _STRING:
            self._define_string(match[1], match[2])
        elif kind == _INVALID:
            self._is_broken = True
        elif kind == _GC:
            self._is_collecting = True
        elif kind == _IDLE:
            self._is_idle = True
        elif kind == _USE:
            self._use = Use(integer(match[1]) / 1e9, integer(match[2]), bool(integer(match[3])))
        elif kind == _METADATA and match[1] == b"stack_reader":
            self.version = match[2][:20].decode("ascii", "replace")

    def _define_string(self, key: bytes, text: bytes) -> None:
        string = text.decode("utf-8", "replace")
        if self._strings.get(key) != string:
            self._count(len(text))
            self._strings[key] = string

    def _define_frame(self, key: bytes, file_key: bytes, scope_key: bytes, line: int, definition_line: int) -> None:
        """Define a frame; a repeated definition makes no other frame."""
        file, scope = (self._strings.get(each, _UNKNOWN.scope) for each in (file_key, scope_key))
        known = self._frames.get(key)
        place = (file, scope, line, definition_line)
        if known is None or (known.file, known.scope, known.line, known.definition_line) != place:
            self._count(0)
            self._frames[key] = Frame(*place)
            if known is not None:
                self._runs.clear()

    def _count(self, size: int) -> None:
        self._defined += size + _ENTRY_BYTES
        if self._defined > MAX_DEFINED:
            raise EngineFullError(
                f"the stack reader's output has defined more than {MAX_DEFINED >> 20} MiB of names and places"
            )

    def _add_frames(self, run: bytes) -> None:
        frames = self._runs.get(run)
        if frames is None:
            frames = tuple(self._frames.get(key, _UNKNOWN) for key in _KEYS.findall(run))
            if _UNKNOWN in frames:
                self._is_broken = True
            else:
                self._remember(run, frames)
        self._stack_frames += frames
        if len(self._stack_frames) > MAX_FRAMES:
            raise MojoError(f"the stack reader's output has a stack of more than {MAX_FRAMES} frames")

    def _remember(self, run: bytes, frames: tuple[Frame, ...]) -> None:
        self._remembered += len(frames)
        if self._remembered > _MAX_RUNS or len(self._runs) >= LARGE - 1:
            self._runs.clear()
            self._remembered = len(frames)
        self._runs[run] = frames

    def _begin_stack(self, thread: tuple[int, int] | None) -> None:
        self._thread = thread
        self._stack_frames: tuple[Frame, ...] = ()
        self._seconds = 0.0
        self._is_broken = self._is_collecting = self._is_idle = False
        self._use = None

    def _stack(self, interpreter: int, thread_id: int) -> Stack:
        flags = (self._is_broken, self._is_collecting, self._is_idle)
        return Stack(interpreter, thread_id, self._stack_frames, self._seconds, *flags, self._use)


def integer(packed: bytes) -> int:
    """Return an integer of the format."""
    value = packed[0] & 0x3F
    for place, byte in enumerate(packed[1:]):
        value |= (byte & 0x7F) << 6 + 7 * place
    return -value if packed[0] & 0x40 else value


def _thread_id(text: bytes) -> int:
    try:
        thread_id = int(text, 16)
    except ValueError:
        thread_id = -1
    if not 0 <= thread_id < 1 << 64:
        raise MojoError(f"the stack reader's output has a thread {text[:40]!r}; allowed: a hexadecimal number")
    return thread_id
