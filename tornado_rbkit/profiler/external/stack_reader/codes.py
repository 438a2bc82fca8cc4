"""Reads code objects of a process, and remembers them."""

from __future__ import annotations

import math

from .layouts import Layout
from .lines import Lines, deltas, locations
from .memory import Memory, ReadError
from .output import Output

_KIND_BIT = 2  # in the state of a string; then 3 bits of its kind, whether it is compact, whether it is ASCII
_TAGS = 3  # bits of a reference on the stack
_LONG = 1 << 20  # bytes of a name or of a table of lines
_TRUST = 0.25  # of the time for which a code object was seen unchanged, it is not compared again
_MAX_TRUST = 0.1  # seconds
_NEAR = 1024  # bytes between the beginnings of two pieces of memory that are read at once

Contents = list[tuple[int, bytes]]
"""Memory that was read: addresses, and what was there."""


class Code:
    """A code object that was seen at an address.

    Attributes:
        places: the references to its places in the output, by instruction.
        due: the time at which it must be compared with the process's memory.
    """

    __slots__ = ("_contents", "_since", "due", "file", "lines", "places", "scope")

    def __init__(self, file: str, scope: str, lines: Lines, contents: Contents, since: float) -> None:
        self.file = file
        self.scope = scope
        self.lines = lines
        self.places: dict[int, bytes] = {}
        self.due = self._since = since
        self._contents = joined(contents)

    def is_unchanged(self, memory: Memory, now: float) -> bool:
        """Return whether the process's memory is as it was."""
        self.due = now + min(_MAX_TRUST, _TRUST * (now - self._since))
        return is_unchanged(memory, self._contents)


def joined(contents: Contents) -> list[Contents]:
    """Return contents in groups that can each be read at once: what lies between them is small."""
    groups: list[Contents] = []
    for address, data in sorted(contents):
        if not groups or address - groups[-1][-1][0] > _NEAR:
            groups.append([])
        groups[-1].append((address, data))
    return groups


def is_unchanged(memory: Memory, groups: list[Contents]) -> bool:
    """Return whether the memory still has these contents, which `joined` has returned."""
    try:
        for group in groups:
            begin = group[0][0]
            now = memory.read(begin, max(address + len(data) for address, data in group) - begin)
            if not all(now.startswith(data, address - begin) for address, data in group):
                return False
    except ReadError:  # it has been returned to the system
        return False
    return True


class Codes:
    """The code objects that were seen in one interpreter.

    When a code object is freed, another one can take its address. From CPython 3.14 on the interpreter counts the
    freed ones. Before, the memory is compared: at each look in the beginning, and then after a quarter of the time for
    which it has been seen, at most a tenth of a second.

    Attributes:
        generation: the interpreter's count; None before CPython 3.14.
        now: the time of the current look.
        due: the earliest time at which a code object of the current stack must be compared.
    """

    def __init__(self, memory: Memory, layout: Layout, output: Output, generation: int | None) -> None:
        self.generation = generation
        self.now = 0.0
        self.due = math.inf
        self._memory = memory
        self._output = output
        self._at = layout.at
        self._is_3_10 = layout.version == (3, 10)
        self._codes: dict[int, Code] = {}
        self._types: set[int] = set()

    def code(self, executable: int) -> Code:
        """Return the code object to which a frame refers.

        Raises:
            ReadError: it is none, or has just been freed.
        """
        code = self._codes.get(executable)
        if code is None or (self.now >= code.due and not code.is_unchanged(self._memory, self.now)):
            code = self._codes[executable] = self._read(executable & ~_TAGS)
        if code.due < self.due:
            self.due = code.due
        return code

    def place(self, code: Code, executable: int, instruction: int) -> bytes:
        """Return the reference to an instruction's place; nothing for code that the program does not have."""
        if code.file == code.scope == "__init__":  # around a class's __init__ (_Py_InitCleanup)
            place = b""
        else:
            begin = (executable & ~_TAGS) + self._at.get("code.instructions", 0)
            offset = 2 * instruction if self._is_3_10 else instruction - begin
            place = self._output.place(code.file, code.scope, code.lines.line(offset), code.lines.first)
        code.places[instruction] = place
        return place

    def _read(self, address: int) -> Code:
        at, memory = self._at, self._memory
        kind = memory.word(address + at["object.type"])
        if kind not in self._types:
            if memory.read(memory.word(kind + at["type.name"]), 5) != b"code\x00":
                raise ReadError("a frame has no code")
            self._types.add(kind)
        begin = address + at["code.first_line"]
        fields = memory.read(begin, at["code.linetable"] + 8 - at["code.first_line"])

        def pointer(name: str) -> int:
            return int.from_bytes(fields[at[name] - at["code.first_line"] :][:8], "little")

        contents = [(begin, fields)]
        file = self._text(pointer("code.file"), contents)
        scope = self._text(pointer("code.qualname"), contents)
        table = pointer("code.linetable")
        size = memory.word(table + at["bytes.count"])
        if size > _LONG:
            raise ReadError("a table of lines is too long")
        contents.append((table + at["bytes.value"], memory.read(table + at["bytes.value"], size)))
        line = int.from_bytes(fields[:4], "little", signed=True)
        lines = Lines(contents[-1][1], line, deltas if self._is_3_10 else locations)
        return Code(file, scope, lines, contents, self.now if self.generation is None else math.inf)

    def _text(self, address: int, contents: Contents) -> str:
        """Return a string of the process (see PyASCIIObject, PyCompactUnicodeObject and PyUnicodeObject)."""
        at, memory = self._at, self._memory
        begin = address + at["unicode.length"]
        head = memory.read(begin, at["unicode.state"] + 4 - at["unicode.length"])
        length, state = int.from_bytes(head[:8], "little"), int.from_bytes(head[-4:], "little")
        width, is_compact, is_ascii = state >> _KIND_BIT & 7, state >> _KIND_BIT & 8, state >> _KIND_BIT & 16
        if width not in (1, 2, 4) or length > _LONG:
            raise ReadError("a name is no string")
        if is_compact:
            data = address + at["unicode.ascii_size" if is_ascii else "unicode.compact_size"]
        else:  # of a subclass of str
            data = memory.word(address + at["unicode.compact_size"])
        text = memory.read(data, length * width)
        contents += [(begin, head), (data, text)]
        return text.decode({1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}[width], "surrogatepass")
