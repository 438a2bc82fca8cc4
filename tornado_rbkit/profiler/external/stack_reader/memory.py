"""Reads the memory of another process."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from io import FileIO
from typing import NamedTuple

_WORD = struct.Struct("<Q")


class ReadError(Exception):
    """The process has ended, does not run a supported Python, or its memory changed while it was read."""


class Mapping(NamedTuple):
    """A part of a process's memory, from /proc/PID/maps.

    Attributes:
        begin: its address.
        end: the address after it.
        is_writable: whether the process may read and write it.
        offset: where it begins in the file that is mapped there.
        path: that file, an empty string if there is none.
    """

    begin: int
    end: int
    is_writable: bool
    offset: int
    path: str


class Memory:
    """The memory of a process.

    Raises:
        OSError: the process may not be read.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._file = FileIO(f"/proc/{pid}/mem")
        self._descriptor = self._file.fileno()

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes.

        Raises:
            ReadError: there is no such memory.
        """
        try:
            data = os.pread(self._descriptor, size, address)
        except (OSError, OverflowError) as error:
            raise ReadError("the memory cannot be read") from error
        if len(data) != size:
            raise ReadError("the process has ended")
        return data

    def word(self, address: int) -> int:
        """Return the 64-bit number at an address."""
        number: int = _WORD.unpack(self.read(address, 8))[0]
        return number

    def half(self, address: int) -> int:
        """Return the 32-bit number at an address."""
        return int.from_bytes(self.read(address, 4), "little")

    def mappings(self) -> Iterator[Mapping]:
        """Give the parts of the memory, in the order of their addresses."""
        with open(f"/proc/{self.pid}/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                addresses, rights, offset, _, _, *path = line.rstrip("\n").split(None, 5)
                begin, end = (int(each, 16) for each in addresses.split("-"))
                yield Mapping(begin, end, rights[:2] == "rw", int(offset, 16), path[0] if path else "")

    def close(self) -> None:
        """Close the memory. May be called twice."""
        self._file.close()


class Fields:
    """Some fields of a C structure, which are read at once.

    Attributes:
        size: bytes from the beginning of the structure to the end of the last of these fields.
        unpack: returns the fields, in the order in which they were given, from a buffer and the structure's place.

    Args:
        offsets: the offset of each field, by ``structure.field``.
        structure: the name of the structure.
        fields: the fields, each as ``name:format``, with a format of `struct`.

    Raises:
        ReadError: two fields overlap.
    """

    def __init__(self, offsets: dict[str, int], structure: str, fields: str) -> None:
        names = [field.partition(":") for field in fields.split()]
        places = [(offsets[f"{structure}.{name}"], kind) for name, _, kind in names]
        ordered = sorted(places)
        self._begin = self.size = ordered[0][0]
        text = ""
        for offset, kind in ordered:
            if offset < self.size:
                raise ReadError("two fields of a structure overlap")
            text += f"{offset - self.size}x{kind}"
            self.size = offset + struct.calcsize(kind)
        order = [ordered.index(place) for place in places]
        self.unpack = _unpack(f"<{self._begin}x{text}", order)
        self._unpack_rest = _unpack(f"<{text}", order)

    def read(self, memory: Memory, address: int) -> tuple[int, ...]:
        """Return the fields of the structure at an address."""
        return self._unpack_rest(memory.read(address + self._begin, self.size - self._begin), 0)


def _unpack(text: str, order: list[int]) -> Callable[[bytes, int], tuple[int, ...]]:
    unpack = struct.Struct(text).unpack_from
    if order == sorted(order):
        return unpack

    def unpack_in_order(data: bytes, at: int) -> tuple[int, ...]:
        values = unpack(data, at)
        return tuple([values[index] for index in order])

    return unpack_in_order
