"""Finds the dynamic symbols of a process's executable and libraries, in the process's memory (elf(5)).

The files are not needed: they may be deleted, replaced, or in a container.
"""

from __future__ import annotations

import struct

from .memory import Memory, ReadError

_SEGMENT = struct.Struct("<II4Q")  # type, flags, offset, address, physical address, size in the file
_ENTRY = struct.Struct("<QQ")
_SYMBOL = struct.Struct("<IBBHQQ")  # name, information, visibility, section, value, size
_HASH = struct.Struct("<4I")  # buckets, first symbol, words and shift of the filter
_64_BIT, _LITTLE_ENDIAN = 2, 1
_LOAD, _DYNAMIC = 1, 2
_STRINGS, _SYMBOLS, _GNU_HASH = 5, 6, 0x6FFFFEF5
_MANY = 100_000  # entries of a table; more means that it is none


class Image:
    """An executable or a library that is mapped at an address.

    Raises:
        ReadError: it is none of this kind of machine, or has no dynamic symbols.
    """

    def __init__(self, memory: Memory, address: int) -> None:
        self._memory = memory
        header = memory.read(address, 64)
        if header[:6] != b"\x7fELF" + bytes((_64_BIT, _LITTLE_ENDIAN)):
            raise ReadError("it is no 64-bit program")
        (table,) = struct.unpack_from("<Q", header, 32)
        entry_size, count = struct.unpack_from("<HH", header, 54)
        segments = [
            _SEGMENT.unpack(memory.read(address + table + entry_size * n, _SEGMENT.size)) for n in range(count)
        ]
        first = next((segment[3] for segment in segments if segment[0] == _LOAD and segment[2] == 0), 0)
        self._moved = address - first
        dynamic = next((segment for segment in segments if segment[0] == _DYNAMIC), None)
        if dynamic is None:
            raise ReadError("it is linked statically")
        table, size = dynamic[3] + self._moved, min(dynamic[5], _MANY)
        entries = dict(_ENTRY.iter_unpack(memory.read(table, size // _ENTRY.size * _ENTRY.size)))
        # glibc has changed the addresses in this table to those in memory, and musl has not.
        parts = [entries.get(kind, 0) for kind in (_STRINGS, _SYMBOLS, _GNU_HASH)]
        if not all(parts):
            raise ReadError("it has no dynamic symbols")
        self._strings, self._symbols, self._hash = (part if part >= address else part + self._moved for part in parts)

    def find(self, name: str) -> int | None:
        """Return the address of a symbol that it defines; None if it does not define it."""
        memory, wanted = self._memory, name.encode() + b"\0"
        buckets, first, words, _ = _HASH.unpack(memory.read(self._hash, _HASH.size))
        if not buckets:
            return None
        table = self._hash + _HASH.size + 8 * words
        value = _hash(name)
        index = memory.half(table + 4 * (value % buckets))
        chain = table + 4 * buckets
        for at in range(index, index + _MANY) if index >= first else ():
            found = memory.half(chain + 4 * (at - first))
            if found | 1 == value | 1:
                text, _, _, section, address, _ = _SYMBOL.unpack(
                    memory.read(self._symbols + _SYMBOL.size * at, _SYMBOL.size)
                )
                if section and memory.read(self._strings + text, len(wanted)) == wanted:
                    return int(address + self._moved)
            if found & 1:
                break
        return None


def _hash(name: str) -> int:
    """Return the value of the GNU hash function."""
    value = 5381
    for byte in name.encode():
        value = value * 33 + byte & 0xFFFFFFFF
    return value


def images(memory: Memory) -> list[Image]:
    """Return the executable and the libraries of a process, in the order of their addresses."""
    found = []
    for mapping in memory.mappings():
        if not mapping.offset and mapping.path.startswith("/"):
            try:
                found.append(Image(memory, mapping.begin))
            except (ReadError, struct.error):  # it is another kind of file
                continue
    return found
