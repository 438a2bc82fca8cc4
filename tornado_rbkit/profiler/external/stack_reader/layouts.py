"""The offsets of CPython's structures, for each minor version.

From 3.13 on CPython has a table of them for debuggers and profilers (``_Py_DebugOffsets``, PEP 768), at the beginning
of the symbol ``_PyRuntime``. Those of older versions, which are constant within a minor version, are here; what is
found by them is checked, because a distributor may have changed the structures.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable

from .memory import Fields, Memory, ReadError
from .symbols import Image, images
from .tasks import Tasks

VERSIONS = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14), (3, 15))
"""The versions of CPython whose structures are known."""

KNOWN = "{}.{} to {}.{}".format(*VERSIONS[0], *VERSIONS[-1])

COOKIE = b"xdebugpy"
"""The beginning of the table."""

_RUNTIME_SYMBOL, _VERSION_SYMBOL = "_PyRuntime", "Py_Version"
_ONLY_SINCE_3_10 = "PyModule_AddObjectRef"  # Py_Version is newer
_VERSION_3_10 = 0x030A0000

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
    (3, 13): _TABLE.replace("threads main_thread", "threads")
    .replace("code_generation x", "")
    .replace("stackpointer x", "")
    .replace("instructions x", "instructions")
    .replace("set size used table mask\n", ""),
    (3, 14): _TABLE,
    (3, 15): _TABLE.replace("interpreter frame", "interpreter frame base x x")
    .replace("chunk status", "chunk status holds_gil gil_requested exception exception_state\nexception value")
    .replace("ascii_size", "ascii_size compact_size")
    .replace("repr flags", "basicsize dictoffset repr flags\nheap_type size keys"),
}

_CONSTANT = """
object type=8
type name=24
bytes count=16 value=32
gc generations=24 youngest=96 collecting=200
"""
_CONSTANTS = {
    (3, 10): _CONSTANT
    + """
runtime interpreters=32
interpreter next=0 threads=8 id=24 gc=616
thread next=8 interpreter=16 frame=24 native_id=176 chunk=256
frame previous=24 executable=32 generator=88 instruction=96 state=108
code first_line=40 file=104 qualname=112 linetable=120
unicode length=16 state=32 ascii_size=48 compact_size=72
""",  # the identifier is a pthread_t; instead of a data stack a thread has its number; `co_name` is the only name
    (3, 11): _CONSTANT
    + """
runtime interpreters=40
interpreter next=0 threads=16 id=48 gc=648
thread next=8 interpreter=16 frame=56 native_id=160 chunk=296
c_frame frame=8
frame executable=32 previous=48 instruction=56 owner=69
code first_line=72 file=112 qualname=128 linetable=136 instructions=184
unicode length=16 state=32 ascii_size=48 compact_size=72
""",
    (3, 12): _CONSTANT
    + """
runtime interpreters=40
interpreter next=0 id=8 threads=72 gc=112
thread next=8 interpreter=16 frame=56 native_id=144 chunk=232
c_frame frame=0
frame executable=0 previous=8 instruction=56 owner=70
code first_line=68 file=112 qualname=128 linetable=136 instructions=192
unicode length=16 state=32 ascii_size=40 compact_size=56
""",
}  # Include/internal and Include/cpython, for 64-bit release builds

_THREAD = "next:Q interpreter:Q frame:Q %s:Q chunk:Q"
_THREAD_ID = "_thread_db_pthread_tid"  # of glibc, for libthread_db: a size in bits, a number, and the offset
_THREAD_IDS = {"x86_64": 720, "aarch64": 208}  # that offset; glibc before 2.34 does not export it
_MANY = 10_000  # interpreters or threads; more means that the list is broken
_ATTEMPTS = 10


class Layout:
    """The structures of the CPython that a process runs.

    Attributes:
        version: its major and minor version.
        name: its version as a text.
        at: the offset of each field, by ``structure.field``.
        first: the address of the pointer to the first interpreter.
        interpreter: fields of an interpreter: the next one, its identifier, its first thread, whether it collects
            garbage, and a number that changes when a code object is freed (from 3.14 on).
        thread: fields of a thread state: the next one, its interpreter, its innermost frame, the system's identifier
            and the newest piece of its data stack.
        c_frame: where the address of the innermost frame is, after the address in the thread state; None if it is the
            latter.
        thread_id: where the system's identifier is, after the address in the thread state; likewise.

    Raises:
        OSError: the process may not be read.
        ReadError: it runs no supported Python.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._tasks = Tasks(memory.pid)
        runtime = find_runtime(memory)
        if runtime is None:
            raise ReadError(f"it does not run CPython {KNOWN}")
        address, number, found = runtime
        self.version = _minor(number)
        self.name = f"{self.version[0]}.{self.version[1]}" + (f".{number >> 8 & 255}" if number & 0xFF else "")
        if self.version not in VERSIONS:
            raise ReadError(f"it runs {f'CPython {self.name}' if number else 'a CPython before 3.10'}; known: {KNOWN}")
        self.at = self._offsets(address)
        self.first = address + self.at["runtime.interpreters"]
        self.at["interpreter.collecting"] = self.at["interpreter.gc"] + self.at["gc.collecting"]
        has_generation = "interpreter.code_generation" in self.at
        fields = "next:Q id:Q threads:Q collecting:i" + " code_generation:Q" * has_generation
        self.interpreter = self.fields("interpreter", fields)
        self.c_frame = self.at.get("c_frame.frame")
        self.thread_id: int | None = None
        self._identify_threads(found)

    def _offsets(self, address: int) -> dict[str, int]:
        if self.version in _TABLES:
            return self._read_table(address, _TABLES[self.version])
        return _constants(_CONSTANTS[self.version])

    def _read_table(self, address: int, text: str) -> dict[str, int]:
        names = [f"{words[0]}.{name}" for words in map(str.split, text.split("\n")) if words for name in words[1:]]
        values = struct.unpack(f"<{len(names)}Q", self._memory.read(address, 8 * len(names)))
        at = dict(zip(names, values, strict=True))
        if at["header.free_threaded"]:
            raise ReadError("it runs a CPython without a GIL (free-threaded), whose stacks cannot be read")
        for name, offset in at.items():
            structure, _, field = name.partition(".")
            if not field.endswith("size") and field != "x" and offset >= at.get(f"{structure}.size", math.inf):
                raise self._unexpected()
        at.setdefault("unicode.compact_size", at["unicode.ascii_size"] + 16)
        return at

    def fields(self, structure: str, fields: str) -> Fields:
        """Return fields of a structure; see `Fields`.

        Raises:
            ReadError: the offsets cannot be true.
        """
        try:
            return Fields(self.at, structure, fields)
        except ReadError as error:
            raise self._unexpected() from error

    def _unexpected(self) -> ReadError:
        return ReadError(f"its structures are not those of CPython {self.version[0]}.{self.version[1]}")

    def _identify_threads(self, found: list[Image]) -> None:
        """Find out where the system's identifiers of the threads are, and check that the structures are as expected.

        From 3.11 on, a thread state has the identifier. In a child that C code has forked without calling
        PyOS_AfterFork_Child, as uWSGI does, it is that of the parent's thread. The true one is in glibc's thread
        descriptor, whose address is the identifier that Python uses. 3.10 has only that address.
        """
        if self.version == (3, 10):
            self._read_descriptors("native_id", found)
            self._check_often(any)
            return
        self.at.setdefault("thread.thread_id", self.at["thread.native_id"] - 8)  # the field before it
        for is_described, enough in ((False, all), (True, any), (False, any)):
            try:
                if is_described:
                    self._read_descriptors("thread_id", found)
                else:
                    self.thread, self.thread_id = self.fields("thread", _THREAD % "native_id"), None
                self._check_often(enough)
            except ReadError:
                if not is_described and enough is any:
                    raise
            else:
                return

    def _read_descriptors(self, field: str, found: list[Image]) -> None:
        self.thread, self.thread_id = self.fields("thread", _THREAD % field), _thread_id(self._memory, found)

    def _check_often(self, enough: Callable[[list[bool]], bool]) -> None:
        """Raise ReadError if the interpreters and the threads are never as the offsets say; they change meanwhile.

        Args:
            enough: whether a list, that says of each thread state whether the system knows the thread, will do.
        """
        for _ in range(_ATTEMPTS):
            try:
                self._check(enough)
            except ReadError:
                self._memory.word(self.first)  # the process may have ended
            else:
                return
        raise self._unexpected()

    def _check(self, enough: Callable[[list[bool]], bool]) -> None:
        memory, at = self._memory, self.at
        known = []
        for interpreter in chain(memory, memory.word(self.first), at["interpreter.next"]):
            if "gc.youngest" in at:  # a pointer to the generation of the youngest objects, of the same structure
                gc = interpreter + at["interpreter.gc"]
                if memory.word(gc + at["gc.youngest"]) != gc + at["gc.generations"]:
                    raise self._unexpected()
            for thread in chain(memory, memory.word(interpreter + at["interpreter.threads"]), at["thread.next"]):
                _, owner, _, identifier, _ = self.thread.read(memory, thread)
                if owner != interpreter:
                    raise self._unexpected()
                known.append(self._tasks.has(self._own_id(identifier)))
        if known and not enough(known):
            raise self._unexpected()

    def native_id(self, identifier: int) -> int | None:
        """Return the system's identifier of a thread, from the one in its state; None if it has ended."""
        return self._tasks.identifier(self._own_id(identifier))

    def _own_id(self, identifier: int) -> int:
        return identifier if self.thread_id is None else self._memory.half(identifier + self.thread_id)


def chain(memory: Memory, address: int, following: int) -> list[int]:
    """Return the addresses of the structures of a linked list.

    Raises:
        ReadError: the list has changed meanwhile, or has no end.
    """
    found = []
    while address:
        found.append(address)
        if len(found) > _MANY:
            raise ReadError("a list has no end")
        address = memory.word(address + following)
    return found


def _constants(text: str) -> dict[str, int]:
    lines = (line.split() for line in text.split("\n") if line)
    fields = ((structure, *field.split("=")) for structure, *fields in lines for field in fields)
    return {f"{structure}.{name}": int(offset) for structure, name, offset in fields}


def _thread_id(memory: Memory, found: list[Image]) -> int:
    """Return where glibc's thread descriptor, whose address is a pthread_t, has the system's identifier."""
    for image in found:
        address = image.find(_THREAD_ID)
        if address is not None:
            return memory.half(address + 8)
    machine = os.uname().machine
    if machine not in _THREAD_IDS:
        raise ReadError(f"the threads of CPython 3.10 cannot be identified on {machine}")
    return _THREAD_IDS[machine]


def find_runtime(memory: Memory) -> tuple[int, int, list[Image]] | None:
    """Return the address of `_PyRuntime` in a process, the version as in `sys.hexversion`, and the libraries.

    The version of CPython 3.10 is that of its first release, and zero stands for older versions. None is returned if
    the process does not run CPython.

    Raises:
        OSError: the process may not be read.
    """
    found = images(memory)
    writable = [mapping for mapping in memory.mappings() if mapping.is_writable]
    for image in found:
        try:
            address = image.find(_RUNTIME_SYMBOL)
            if address is None or not any(mapping.begin <= address < mapping.end for mapping in writable):
                continue  # it is not defined, or the library is only mapped as a file
            if memory.read(address, len(COOKIE)) == COOKIE:
                return address, memory.half(address + 8), found
            version = image.find(_VERSION_SYMBOL)
            if version is not None:
                return address, memory.half(version), found
            return address, _VERSION_3_10 if image.find(_ONLY_SINCE_3_10) else 0, found
        except ReadError:
            continue
    program = os.readlink(f"/proc/{memory.pid}/exe")
    for mapping in writable:  # a program that is linked statically
        if "python" in os.path.basename(mapping.path) or mapping.path == program:
            at = memory.read(mapping.begin, mapping.end - mapping.begin).find(COOKIE)
            if at >= 0:
                return mapping.begin + at, memory.half(mapping.begin + at + 8), found
    return None


def python_version(pid: int) -> int | None:
    """Return the version of the CPython in a process, see `find_runtime`; None if it runs none.

    Raises:
        OSError: the process may not be read.
    """
    memory = Memory(pid)
    try:
        runtime = find_runtime(memory)
    except ReadError:
        return None
    finally:
        memory.close()
    return None if runtime is None else runtime[1]


def _minor(number: int) -> tuple[int, int]:
    return number >> 24 & 255, number >> 16 & 255
