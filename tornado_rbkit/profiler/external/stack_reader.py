"""Reads the stacks of a process that runs CPython 3.14 or 3.15, and writes them as MOJO (see `mojo`). Linux.

This is a program: ``python -I -S stack_reader.py PID MICROSECONDS wall|cpu``. It runs on every supported Python, needs
only the standard library, and ends with the process, with the reader of its output, or on SIGTERM.

CPython has a table of the offsets of its structures for debuggers and profilers (``_Py_DebugOffsets``, PEP 768). They
are read from /proc/PID/mem; nothing is written into the process, and it is not stopped. All interpreters of the
process are read; a thread that one of them has called from another has a stack in each. The `_remote_debugging` of the
standard library works alike, but that of 3.14 ends a stack at the first function that was called from C, it needs an
interpreter of the same version, and its fast mode in 3.15 writes into the process.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator

COOKIE = b"xdebugpy"
"""The beginning of the table."""

VERSIONS = ((3, 14), (3, 15))
"""The versions of CPython whose tables are known."""

MAX_DEPTH = 1000
"""Frames of one stack that are read, innermost first."""

_TABLE = """
header cookie version free_threaded
runtime size finalizing interpreters
interpreter size id next threads main_thread gc modules sysdict builtins gil_data gil x x x code_generation x
thread size prev next interpreter frame thread_id native_id chunk status
frame size previous executable instruction localsplus owner stackpointer x
code size file name qualname linetable first_line argcount localsplusnames localspluskinds instructions x
object size type
type size name repr flags
tuple size items count
list size items count
set size used table mask
dict size keys values
float size value
long size tag digit
bytes size count value
unicode size state length ascii_size
gc size collecting
"""  # Include/internal/pycore_debug_offsets.h of 3.14
_TABLES = {
    (3, 14): _TABLE,
    (3, 15): _TABLE.replace("interpreter frame", "interpreter frame base x x")
    .replace("chunk status", "chunk status holds_gil gil_requested exception exception_state\nexception value")
    .replace("ascii_size", "ascii_size compact_size")
    .replace("repr flags", "basicsize dictoffset repr flags\nheap_type size keys"),
}
_OWNED_BY_THREAD, _OWNED_BY_GENERATOR, _OWNED_BY_INTERPRETER = 0, 1, 3  # _frameowner; from 3 on frames of C code
_KIND_BIT = 2  # in the state of a string; then 3 bits of its kind, whether it is compact, whether it is ASCII
_TAGS = 3  # bits of a reference on the stack
_CHUNK = 16_384  # bytes that every piece of a thread's data stack has
_MANY = 10_000  # threads, interpreters or pieces of a data stack; more means that the list is broken
_LONG = 1 << 20  # bytes of a name or of a table of lines
_ATTEMPTS = 3  # to read a stack that changes meanwhile
_FLUSH_SECONDS = 0.05
_FLUSH_BYTES = 32_768
_REST = 3  # times as long as a look takes, at least, until the next one
_WORD = struct.Struct("<Q")
_PIECE = struct.Struct("<QQ")  # the beginning of a piece of a data stack: the piece before it, and its size

IsComputing = Callable[[int], bool]
"""Tells whether the thread with a native identifier computes."""

Known = tuple[int, int, "list[tuple[int, bytes]]", bytes]
"""A stack that was read: its innermost frame, its data stack, the memory that was read, and the places."""


class ReadError(Exception):
    """The process has ended, does not run a supported Python, or its memory changed while it was read."""


class Memory:
    """The memory of a process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.file = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes.

        Raises:
            ReadError: there is no such memory.
        """
        try:
            data = os.pread(self.file, size, address)
        except (OSError, OverflowError) as error:
            raise ReadError("the memory cannot be read") from error
        if len(data) != size:
            raise ReadError("the process has ended")
        return data

    def word(self, address: int) -> int:
        """Return the 64-bit number at an address."""
        number: int = _WORD.unpack(self.read(address, 8))[0]
        return number

    def close(self) -> None:
        os.close(self.file)


def find_table(memory: Memory) -> int | None:
    """Return the address of the process's table of offsets, None if it has none, as before CPython 3.13."""
    program = os.readlink(f"/proc/{memory.pid}/exe")
    with open(f"/proc/{memory.pid}/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            addresses, rights, *_, path = line.rstrip("\n").split(None, 5) if line.count(" ") > 5 else ("", "", "")
            if rights[:2] == "rw" and (path == program or "python" in path.rpartition("/")[2]):
                begin, end = (int(each, 16) for each in addresses.split("-"))
                at = memory.read(begin, end - begin).find(COOKIE)
                if at >= 0:
                    return begin + at
    return None


def python_version(pid: int) -> tuple[int, int] | None:
    """Return the major and minor version of the CPython that a process runs; None if it has no table, as up to 3.12.

    Raises:
        OSError: the process may not be read.
    """
    memory = Memory(pid)
    try:
        table = find_table(memory)
        return None if table is None else _version(memory.word(table + 8))
    except ReadError:
        return None
    finally:
        memory.close()


def _version(number: int) -> tuple[int, int]:
    return number >> 24 & 255, number >> 16 & 255


class Lines:
    """The line numbers of a code object, from its location table (Objects/locations.md of CPython)."""

    def __init__(self, table: bytes, line: int) -> None:
        self._ends: list[int] = []
        self._lines: list[int] = []
        at = end = 0
        while at < len(table):
            kind = table[at] >> 3 & 15
            end += 2 * ((table[at] & 7) + 1)
            at += 1
            if kind in (13, 14):
                line += _signed(table, at)
            elif 10 <= kind <= 12:
                line += kind - 10
            while at < len(table) and not table[at] & 128:
                at += 1
            self._ends.append(end)
            self._lines.append(0 if kind == 15 else line)

    def line(self, offset: int) -> int:
        """Return the line of the instruction at an offset in bytes, 0 if it has none."""
        entry = bisect_right(self._ends, offset)
        return self._lines[entry] if offset >= 0 and entry < len(self._lines) else 0


def _signed(table: bytes, at: int) -> int:
    value = shift = 0
    while True:
        value |= (table[at] & 63) << shift
        shift += 6
        if not table[at] & 64:
            return -(value >> 1) if value & 1 else value >> 1
        at += 1


class Output:
    """Encodes stacks as MOJO. Strings and places are defined once."""

    def __init__(self, version: str) -> None:
        self.data = bytearray(b"MOJ\x03\x01%b\x00%b\x00" % (b"stack_reader", version.encode()))
        self._strings: dict[str, bytes] = {}
        self._places: dict[tuple[str, str, int], bytes] = {}

    def place(self, file: str, scope: str, line: int) -> bytes:
        """Return the reference to a place."""
        place = (file, scope, line)
        if place not in self._places:
            key = _integer(len(self._places))
            names = self._string(file) + self._string(scope)
            self.data += b"\x03" + key + names + _integer(line) + b"\x00\x00\x00"
            self._places[place] = b"\x05" + key
        return self._places[place]

    def _string(self, text: str) -> bytes:
        if text not in self._strings:
            key = self._strings[text] = _integer(len(self._strings))
            self.data += b"\x0b" + key + text.replace("\0", "").encode("utf-8", "replace") + b"\x00"
        return self._strings[text]

    def add(
        self, head: bytes, places: bytes, is_broken: bool, is_collecting: bool, is_idle: bool, microseconds: int
    ) -> None:
        """Add the stack of a thread."""
        flags = b"\x04" * is_broken + b"\x07" * is_collecting + b"\x08" * is_idle
        self.data += head + places + flags + b"\x09" + _integer(microseconds)


def _integer(value: int) -> bytes:
    packed = bytearray((value & 63,))
    value >>= 6
    while value:
        packed[-1] |= 128
        packed.append(value & 127)
        value >>= 7
    return bytes(packed)


class Interpreter:
    """The code objects that were seen in one interpreter; forgotten when one of its code objects is freed."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.places: dict[tuple[int, int], bytes] = {}
        self.codes: dict[int, tuple[str, str, Lines]] = {}


class StackReader:
    """Reads the stacks of a process.

    Raises:
        OSError: the process may not be read.
        ReadError: it does not run a supported Python.
    """

    def __init__(self, pid: int) -> None:
        memory = self._memory = Memory(pid)
        table = find_table(memory)
        if table is None:
            raise ReadError("it does not run CPython 3.14 or 3.15")
        number = memory.word(table + 8)
        version = _version(number)
        if version not in _TABLES:
            raise ReadError(f"it runs CPython {version[0]}.{version[1]}; known: 3.14 and 3.15")
        if memory.word(table + 16):
            raise ReadError("it runs a CPython without a GIL (free-threaded), whose stacks cannot be read")
        self._read_offsets(table, _TABLES[version])
        self.output = Output(f"{version[0]}.{version[1]}.{number >> 8 & 255}")
        self._interpreters: dict[int, Interpreter] = {}
        self._known: dict[int, Known] = {}
        self._code_types: set[int] = set()

    def _read_offsets(self, table: int, text: str) -> None:
        names = [f"{words[0]}.{name}" for words in map(str.split, text.split("\n")) if words for name in words[1:]]
        values = struct.unpack(f"<{len(names)}Q", self._memory.read(table, 8 * len(names)))
        at = self._at = dict(zip(names, values, strict=True))
        self._first = table + at["runtime.interpreters"]
        at["interpreter.collecting"] = at["interpreter.gc"] + at["gc.collecting"]
        fields = "next:Q id:q threads:Q collecting:i code_generation:Q"
        self._interpreter = Fields(at, "interpreter", fields, at["interpreter.next"])
        self._thread = Fields(at, "thread", "next:Q frame:Q native_id:Q chunk:Q")
        self._frame = Fields(at, "frame", "executable:Q previous:Q instruction:Q owner:b")

    def check(self) -> None:
        """Raise ReadError if the process has ended, or has executed another program."""
        self._memory.read(self._first, 8)

    def look(self, microseconds: int, is_computing: IsComputing | None = None) -> None:
        """Add the stacks of all threads to the output.

        Args:
            microseconds: the time since the last look.
            is_computing: tells whether a thread computes; without it, this is not in the output.

        Raises:
            ReadError: the process has ended, or its lists have changed meanwhile.
        """
        known, self._known = self._known, {}
        interpreters, self._interpreters = self._interpreters, {}
        address = self._memory.word(self._first)
        for _ in range(_MANY):
            if not address:
                return
            following, identifier, thread, collecting, generation = self._interpreter.read(self._memory, address)
            interpreter = interpreters.get(address)
            if interpreter is None or interpreter.generation != generation:
                interpreter, known = Interpreter(generation), {}
            self._interpreters[address] = interpreter
            head = b"\x02" + _integer(self._memory.pid) + _integer(identifier)
            for native_id, places, *flags in self._stacks(interpreter, thread, known, is_computing):
                is_broken, is_idle = flags
                name = b"%b%x\x00" % (head, native_id)
                self.output.add(name, places, is_broken, bool(collecting), is_idle, microseconds)
            address = following
        raise ReadError("there are too many interpreters")

    def _stacks(
        self,
        interpreter: Interpreter,
        thread: int,
        known: dict[int, Known],
        is_computing: IsComputing | None,
    ) -> Iterator[tuple[int, bytes, bool, bool]]:
        """Give each thread's identifier, the references to its places, if they are unknown, and if it sleeps."""
        for _ in range(_MANY):
            if not thread:
                return
            try:
                following, frame, native_id, chunk = self._thread.read(self._memory, thread)
            except ReadError:  # the thread has ended
                return
            if frame and native_id:
                is_idle = is_computing is not None and not is_computing(native_id)
                places = self._stack(interpreter, thread, known.get(thread), frame, chunk)
                for _ in range(_ATTEMPTS - 1):
                    if places is not None:
                        break
                    try:
                        _, frame, _, chunk = self._thread.read(self._memory, thread)
                    except ReadError:
                        return
                    places = self._stack(interpreter, thread, None, frame, chunk)
                if places != b"":
                    yield native_id, places or b"", places is None, is_idle
            thread = following

    def _stack(
        self, interpreter: Interpreter, thread: int, known: Known | None, frame: int, chunk: int
    ) -> bytes | None:
        """Return the references to a stack's places, outermost first; None if the stack changes meanwhile."""
        memory = self._memory
        try:
            if (
                known is not None
                and known[:2] == (frame, chunk)
                and all(memory.read(address, len(data)) == data for address, data in known[2])
            ):
                self._known[thread] = known
                return known[3]
            pieces: list[tuple[int, bytes]] = []
            places = b"".join(reversed(list(self._walk(interpreter, frame, chunk, pieces))))
        except (ReadError, IndexError, UnicodeError):
            return None
        self._known[thread] = frame, chunk, pieces, places
        return places

    def _walk(
        self, interpreter: Interpreter, frame: int, chunk: int, pieces: list[tuple[int, bytes]]
    ) -> Iterator[bytes]:
        """Give the references to the places of a stack, innermost first; add the memory that was read to `pieces`."""
        size, unpack = self._frame.size, self._frame.unpack
        places = interpreter.places
        base, data = chunk, b""
        depth = 0
        while frame and depth < MAX_DEPTH:
            at = frame - base
            if not data and 0 < at <= _CHUNK - size:
                data = self._memory.read(base, at + size)
                pieces.append((base, data))
            if 0 < at <= len(data) - size:
                executable, previous, instruction, owner = unpack(data, at)
            else:
                alone = self._memory.read(frame, size)
                executable, previous, instruction, owner = unpack(alone, 0)
                if owner == _OWNED_BY_THREAD:
                    base, data = self._piece(frame, base)
                    pieces.append((base, data))
                else:
                    pieces.append((frame, alone))
            if owner < _OWNED_BY_INTERPRETER and (executable or depth):  # else it is of C code, or has just ended
                place = places.get((executable, instruction))
                if place is None:
                    place = places[executable, instruction] = self._place(interpreter, executable, instruction)
                depth += 1
                yield place
            frame = previous

    def _piece(self, frame: int, chunk: int) -> tuple[int, bytes]:
        """Return the piece of the data stack that has a frame, `chunk` or one before it."""
        for _ in range(_MANY):
            previous, size = _PIECE.unpack(self._memory.read(chunk, _PIECE.size))
            if chunk < frame < chunk + size:
                return chunk, self._memory.read(chunk, frame - chunk + self._frame.size)
            chunk = previous
        raise ReadError("the data stack is broken")

    def _place(self, interpreter: Interpreter, executable: int, instruction: int) -> bytes:
        address = executable & ~_TAGS
        code = interpreter.codes.get(address)
        if code is None:
            code = interpreter.codes[address] = self._code(address)
        file, scope, lines = code
        if file == scope == "__init__":  # the interpreter's own code around a class's __init__ (_Py_InitCleanup)
            return b""
        return self.output.place(file, scope, lines.line(instruction - address - self._at["code.instructions"]))

    def _code(self, address: int) -> tuple[str, str, Lines]:
        at, word = self._at, self._memory.word
        kind = word(address + at["object.type"])
        if kind not in self._code_types:
            if self._memory.read(word(kind + at["type.name"]), 5) != b"code\x00":
                raise ReadError("a frame has no code")
            self._code_types.add(kind)
        table = word(address + at["code.linetable"])
        size = word(table + at["bytes.count"])
        if size > _LONG:
            raise ReadError("a table of lines is too long")
        (line,) = struct.unpack("<i", self._memory.read(address + at["code.first_line"], 4))
        lines = Lines(self._memory.read(table + at["bytes.value"], size), line)
        return self._text(word(address + at["code.file"])), self._text(word(address + at["code.qualname"])), lines

    def _text(self, address: int) -> str:
        """Return a string of the process (see PyASCIIObject and PyCompactUnicodeObject)."""
        length = self._memory.word(address + self._at["unicode.length"])
        (state,) = struct.unpack("<I", self._memory.read(address + self._at["unicode.state"], 4))
        width, is_ascii = state >> _KIND_BIT & 7, state >> _KIND_BIT & 16
        if width not in (1, 2, 4) or length > _LONG:
            raise ReadError("a name is no string")
        begin = address + self._at["unicode.ascii_size"] + (0 if is_ascii else 16)
        encoding = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}[width]
        return self._memory.read(begin, length * width).decode(encoding, "surrogatepass")


class Fields:
    """Some fields of a C structure, in the order in which they lie there, which are read at once.

    Attributes:
        size: bytes from `begin`, an offset in the structure, to the end of the last field.
        unpack: returns the fields from a buffer and an offset, that of `begin`.
    """

    def __init__(self, offsets: dict[str, int], structure: str, fields: str, begin: int = 0) -> None:
        text, at = "<", begin
        for name, _, kind in (field.partition(":") for field in fields.split()):
            offset = offsets[f"{structure}.{name}"]
            if offset < at:
                raise ReadError("its structures are not those of CPython 3.14 or 3.15")
            text += f"{offset - at}x{kind}"
            at = offset + struct.calcsize(kind)
        self._begin = begin
        self.size = at - begin
        self.unpack = struct.Struct(text).unpack_from

    def read(self, memory: Memory, address: int) -> tuple[int, ...]:
        """Return the fields of the structure at an address."""
        return self.unpack(memory.read(address + self._begin, self.size))


class Computing:
    """Tells whether a thread computes, or waits for a processor, at this moment."""

    def __init__(self, pid: int) -> None:
        self._folder = f"/proc/{pid}/task"
        self._files: dict[int, int] = {}

    def __call__(self, native_id: int) -> bool:
        try:
            if native_id not in self._files:
                self._files[native_id] = os.open(f"{self._folder}/{native_id}/stat", os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._files[native_id], 512, 0).rpartition(b") ")[2][:1] == b"R"
        except OSError:  # it has ended
            self.forget(native_id)
            return False

    def forget(self, native_id: int) -> None:
        if native_id in self._files:
            os.close(self._files.pop(native_id))


def sample(reader: StackReader, interval: float, is_computing: IsComputing | None, output: int) -> None:
    """Look every `interval` seconds, a quarter of it sooner or later, and write to a descriptor, until SIGTERM.

    Raises:
        ReadError: the process has ended.
        BrokenPipeError: nobody reads the output any more.
    """
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    watched = select.poll()
    watched.register(output, 0)
    began = due = time.monotonic()
    told = -int(interval * 5e5)
    written = 0.0
    jitter = 1
    try:
        while not stopped:
            now = time.monotonic()
            passed = int((now - began) * 1e6)
            try:
                reader.look(passed - told, is_computing)
                told = passed
            except ReadError:
                reader.check()
            after = time.monotonic()
            if after - written >= _FLUSH_SECONDS or len(reader.output.data) > _FLUSH_BYTES:
                write(output, reader.output)
                if watched.poll(0):
                    return
                written = after
            jitter = jitter * 1103515245 + 12345 & 0x7FFFFFFF
            due = max(due + interval, after - interval / 4)
            time.sleep(max(_REST * (after - now), due + interval * (jitter / 0x7FFFFFFF - 0.5) / 2 - after))
    finally:
        write(output, reader.output)


def write(output: int, encoded: Output) -> None:
    """Write what is encoded, and forget it."""
    data, encoded.data = encoded.data, bytearray()
    while data:
        del data[: os.write(output, data)]


def main(arguments: list[str]) -> int:
    """Sample a process until it ends; with the process as the only argument, look once. Return the exit status."""
    pid = int(arguments[0])
    try:
        reader = StackReader(pid)
        if len(arguments) == 1:
            reader.look(0)
            return 0
        sample(reader, int(arguments[1]) / 1e6, Computing(pid) if arguments[2] == "cpu" else None, 1)
    except BrokenPipeError:
        return 0
    except (ReadError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # without the interpreter's end, which takes milliseconds
