"""Encodes stacks as MOJO (see `mojo`)."""

from __future__ import annotations


class Output:
    """Stacks as MOJO. Strings and places are defined once."""

    def __init__(self, version: str) -> None:
        self.data = bytearray(b"MOJ\x03\x01%b\x00%b\x00" % (b"stack_reader", version.encode()))
        self._strings: dict[str, bytes] = {}
        self._places: dict[tuple[str, str, int, int], bytes] = {}

    def place(self, file: str, scope: str, line: int, first_line: int) -> bytes:
        """Return the reference to a line of a function that begins in its first line."""
        place = (file, scope, line, first_line)
        if place not in self._places:
            key = integer(len(self._places))
            names = self._string(file) + self._string(scope)
            self.data += b"\x03" + key + names + integer(line) + integer(first_line) + b"\x00\x00"
            self._places[place] = b"\x05" + key
        return self._places[place]

    def _string(self, text: str) -> bytes:
        if text not in self._strings:
            key = self._strings[text] = integer(len(self._strings))
            self.data += b"\x0b" + key + text.replace("\0", "").encode("utf-8", "replace") + b"\x00"
        return self._strings[text]

    def add(
        self, head: bytes, places: bytes, is_broken: bool, is_collecting: bool, clock: bytes, microseconds: int
    ) -> None:
        """Add the stack of a thread, and what `Clocks` returned for it."""
        flags = b"\x04" * is_broken + b"\x07" * is_collecting
        self.data += head + places + flags + clock + b"\x09" + integer(microseconds)


def integer(value: int) -> bytes:
    """Return a number in the format."""
    packed = bytearray((value & 63,))
    value >>= 6
    while value:
        packed[-1] |= 128
        packed.append(value & 127)
        value >>= 7
    return bytes(packed)
