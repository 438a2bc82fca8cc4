"""Published messages as a bridge encodes them."""

from __future__ import annotations

from collections.abc import Iterable

from tornado_rbkit.frames import Buffer, Chunk, Encoding, encode_in_slices


def encode_data(payloads: Iterable[Buffer], encoding: Encoding, *, compression_level: int = 1) -> list[Chunk]:
    """Encode published messages as chunks, without pauses."""
    slices = encode_in_slices(payloads, encoding, compression_level=compression_level)
    while True:
        try:
            next(slices)
        except StopIteration as end:
            chunks: list[Chunk] = end.value
            return chunks
