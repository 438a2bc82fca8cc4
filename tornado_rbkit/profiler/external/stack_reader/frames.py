"""Walks the frames of a thread."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .codes import Codes, Contents
from .layouts import Layout
from .memory import Memory, ReadError

MAX_DEPTH = 1000
"""Frames of one stack that are read, innermost first."""

_OWNED_BY_THREAD, _OWNED_BY_GENERATOR, _OWNED_BY_FRAME_OBJECT = 0, 1, 2  # _frameowner
_OWNED_BY_C = (3, 4)  # FRAME_OWNED_BY_INTERPRETER and FRAME_OWNED_BY_CSTACK of 3.14; the latter is 3 before
_OWNERS = range(5)
_EXECUTING = 0  # PyFrameState
_CHUNK = 16_384  # bytes that every piece of a thread's data stack has
_MANY = 10_000  # pieces of a data stack; more means that the list is broken
_PIECE = struct.Struct("<QQ")  # the beginning of a piece of a data stack: the piece before it, and its size


class Frames:
    """The frames of CPython 3.11 and newer, most of which lie in pieces of the thread's data stack."""

    def __init__(self, memory: Memory, layout: Layout) -> None:
        self._memory = memory
        self._fields = layout.fields("frame", "executable:Q previous:Q instruction:Q owner:b")
        # A stack that ends at another frame, or with a generator, was read at a call or when a generator was left.
        is_3_11 = layout.version == (3, 11)  # which has no frames of C code
        self._outermost = (_OWNED_BY_THREAD, _OWNED_BY_FRAME_OBJECT) if is_3_11 else _OWNED_BY_C

    def walk(self, codes: Codes, frame: int, chunk: int, contents: Contents) -> Iterator[bytes]:
        """Give the references to the places of a stack, innermost first; add the memory that was read to `contents`.

        Args:
            codes: the code objects of the interpreter.
            frame: the address of the innermost frame.
            chunk: the address of the newest piece of the data stack.
            contents: receives what was read.

        Raises:
            ReadError: the stack changes meanwhile.
        """
        size, unpack = self._fields.size, self._fields.unpack
        base, data = chunk, b""
        depth = owner = python_owner = 0
        while frame and depth < MAX_DEPTH:
            at = frame - base
            if not data and 0 < at <= _CHUNK - size:
                data = self._memory.read(base, at + size)
                contents.append((base, data))
            if 0 < at <= len(data) - size:
                executable, previous, instruction, owner = unpack(data, at)
            else:
                alone = self._memory.read(frame, size)
                executable, previous, instruction, owner = unpack(alone, 0)
                if owner == _OWNED_BY_THREAD:
                    base, data = self._piece(frame, base)
                    contents.append((base, data))
                else:
                    contents.append((frame, alone))
            if owner not in _OWNERS:
                raise ReadError("a frame of C code has ended")
            if owner not in _OWNED_BY_C and (executable or depth):  # else it has just ended
                code = codes.code(executable)
                place = code.places.get(instruction)
                if place is None:
                    place = codes.place(code, executable, instruction)
                depth, python_owner = depth + 1, owner
                yield place
            frame = previous
        if not frame and (owner not in self._outermost or python_owner == _OWNED_BY_GENERATOR):
            raise ReadError("the outer frames are not there")

    def _piece(self, frame: int, chunk: int) -> tuple[int, bytes]:
        """Return the piece of the data stack that has a frame, `chunk` or one before it."""
        for _ in range(_MANY):
            previous, size = _PIECE.unpack(self._memory.read(chunk, _PIECE.size))
            if chunk < frame < chunk + size:
                return chunk, self._memory.read(chunk, frame - chunk + self._fields.size)
            chunk = previous
        raise ReadError("the data stack is broken")


class FrameObjects:
    """The frames of CPython 3.10, each of which is an object."""

    def __init__(self, memory: Memory, layout: Layout) -> None:
        self._memory = memory
        self._fields = layout.fields("frame", "previous:Q executable:Q generator:Q instruction:i state:b")

    def walk(self, codes: Codes, frame: int, chunk: int, contents: Contents) -> Iterator[bytes]:
        """Give the references to the places of a stack; see `Frames.walk`."""
        size, unpack = self._fields.size, self._fields.unpack
        generator = 0
        for _ in range(MAX_DEPTH):
            if not frame:
                if generator:  # it was read when the generator was left
                    raise ReadError("the outer frames are not there")
                return
            data = self._memory.read(frame, size)
            contents.append((frame, data))
            previous, executable, generator, instruction, state = unpack(data, 0)
            if state != _EXECUTING:
                raise ReadError("a frame has just begun or ended")
            code = codes.code(executable)
            place = code.places.get(instruction)
            if place is None:
                place = codes.place(code, executable, instruction)
            yield place
            frame = previous
