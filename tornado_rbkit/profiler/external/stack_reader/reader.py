"""Reads the stacks of all threads of a process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from .clocks import Clocks
from .codes import Codes, Contents, is_unchanged, joined
from .frames import FrameObjects, Frames
from .layouts import Layout
from .memory import Memory, ReadError
from .output import Output, integer

_MANY = 10_000  # threads or interpreters; more means that the list is broken
_ATTEMPTS = 5  # to read a stack that changes meanwhile

Known = tuple[int, int, list[Contents], bytes, float]
"""A stack that was read: its innermost frame, its data stack, the memory that was read, the places, and until when it
is known."""


class StackReader:
    """Reads the stacks of a process.

    Raises:
        OSError: the process may not be read.
        ReadError: it does not run a supported Python.
    """

    def __init__(self, pid: int) -> None:
        self._memory = Memory(pid)
        try:
            self._layout = Layout(self._memory)
        except BaseException:
            self._memory.close()
            raise
        frames = FrameObjects if self._layout.version == (3, 10) else Frames
        self._frames = frames(self._memory, self._layout)
        self.output = Output(self._layout.name)
        self._codes: dict[int, Codes] = {}
        self._known: dict[int, Known] = {}

    def close(self) -> None:
        """Close the memory of the process. May be called twice."""
        self._memory.close()

    def check(self) -> None:
        """Raise ReadError if the process has ended, or has executed another program."""
        self._memory.word(self._layout.first)

    def look(self, microseconds: int, clocks: Clocks | None = None) -> bool:
        """Add the stacks of all threads to the output; return whether one of them is whole, or there are none.

        Args:
            microseconds: the time since the last look.
            clocks: reads what a thread has used; without it, this is not in the output.

        Raises:
            ReadError: the process has ended, or its lists have changed meanwhile.
        """
        if clocks is not None:
            clocks.begin()
        known, self._known = self._known, {}
        before, self._codes = self._codes, {}
        broken = whole = 0
        address = self._memory.word(self._layout.first)
        for _ in range(_MANY):
            if not address:
                return whole > 0 or not broken
            following, identifier, thread, collecting, *generation = self._layout.interpreter.read(
                self._memory, address
            )
            codes = before.get(address)
            counted = generation[0] if generation else None
            if codes is None or codes.generation != counted:
                codes, known = Codes(self._memory, self._layout, self.output, counted), {}
            self._codes[address] = codes
            codes.now = time.monotonic()
            head = b"\x02" + integer(self._memory.pid) + integer(identifier)
            for native_id, places, is_broken, clock in self._stacks(address, codes, thread, known, clocks):
                broken, whole = broken + is_broken, whole + (not is_broken)
                name = b"%b%x\x00" % (head, native_id)
                self.output.add(name, places, is_broken, bool(collecting), clock, microseconds)
            address = following
        raise ReadError("there are too many interpreters")

    def _stacks(
        self,
        interpreter: int,
        codes: Codes,
        thread: int,
        known: dict[int, Known],
        clocks: Clocks | None,
    ) -> Iterator[tuple[int, bytes, bool, bytes]]:
        """Give each thread's identifier, the references to its places, if they are unknown, and what it has used."""
        for _ in range(_MANY):
            if not thread:
                return
            try:
                following, frame, identifier, chunk = self._thread(interpreter, thread)
                native_id = self._layout.native_id(identifier) if frame and identifier else None
                if native_id:
                    used = b"" if clocks is None else clocks.before(native_id)
                    places = self._stack(codes, thread, known.get(thread), frame, chunk)
                    for _ in range(_ATTEMPTS - 1):
                        if places is not None:
                            break
                        _, frame, _, chunk = self._thread(interpreter, thread)
                        places = self._stack(codes, thread, None, frame, chunk)
                    if places != b"":
                        clock = b"" if clocks is None else clocks.after(native_id, used)
                        yield native_id, places or b"", places is None, clock
            except ReadError:  # the thread has ended
                return
            thread = following

    def _thread(self, interpreter: int, thread: int) -> tuple[int, int, int, int]:
        """Return the next thread state, the innermost frame, the identifier and the data stack.

        Raises:
            ReadError: the thread has ended.
        """
        following, owner, frame, identifier, chunk = self._layout.thread.read(self._memory, thread)
        if owner != interpreter:
            raise ReadError("a thread has ended")
        if frame and self._layout.c_frame is not None:
            frame = self._memory.word(frame + self._layout.c_frame)
        return following, frame, identifier, chunk

    def _stack(self, codes: Codes, thread: int, known: Known | None, frame: int, chunk: int) -> bytes | None:
        """Return the references to a stack's places, outermost first; None if the stack changes meanwhile."""
        try:
            if (
                known is not None
                and known[:2] == (frame, chunk)
                and codes.now < known[4]
                and is_unchanged(self._memory, known[2])
            ):
                self._known[thread] = known
                return known[3]
            contents: Contents = []
            codes.due = math.inf
            places = b"".join(reversed(list(self._frames.walk(codes, frame, chunk, contents))))
        except (ReadError, IndexError, UnicodeError):
            return None
        self._known[thread] = frame, chunk, joined(contents), places, codes.due
        return places
