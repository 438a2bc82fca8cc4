"""The bound on the profiling data that waits for one client. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from tornado_rbkit.frames import Chunk

_ENTRY_COST: Final = 256
"""Bytes of overhead counted for each queued chunk, so that many small chunks do not exceed the bound."""


class Backlog:
    """A bounded queue of profiling data for one client; past the bound the oldest data is dropped and counted.

    A chunk that was taken still counts until its bytes are released.

    Attributes:
        size: bytes that wait, or were taken and not released.
        dropped: messages dropped so far.
        unreported: messages lost and not yet reported to the client; the owner adds to it and resets it.
    """

    def __init__(self, max_bytes: int) -> None:
        """Create an empty queue; `max_bytes` bounds `size`. A larger chunk passes when nothing else waits."""
        self.size = self.dropped = self.unreported = 0
        self._max_bytes = max_bytes
        self._chunks: deque[Chunk] = deque()

    def __bool__(self) -> bool:
        """Return whether chunks wait."""
        return bool(self._chunks)

    @property
    def messages(self) -> int:
        """Number of messages that wait."""
        return sum(chunk.messages for chunk in self._chunks)

    @property
    def is_over_the_bound(self) -> bool:
        """Whether something would have to be dropped if nothing is exempt."""
        return self.size + _ENTRY_COST * (len(self._chunks) - 1) > self._max_bytes

    def extend(self, chunks: Sequence[Chunk]) -> None:
        """Add chunks. Call `trim` afterwards."""
        self._chunks.extend(chunks)
        self.size += sum(chunk.size for chunk in chunks)

    def take(self) -> Chunk:
        """Remove and return the oldest chunk, which must exist. Call `release` for its bytes."""
        return self._chunks.popleft()

    def release(self, size: int) -> None:
        """Stop counting bytes that were taken."""
        self.size -= size

    def trim(self, begun: Chunk | None, unsent: int) -> None:
        """Drop the oldest data until the rest is within the bound; one chunk larger than the bound is exempt.

        Args:
            begun: the chunk that is being sent and is finished in any case, None if there is none.
            unsent: bytes of it that are not sent.
        """
        under_way = unsent if begun is not None and begun.size > self._max_bytes else 0
        while self._chunks:
            passes = not under_way and self._chunks[0].size > self._max_bytes
            exempt = self._chunks[0].size if passes else under_way
            cost = self.size - exempt + _ENTRY_COST * (len(self._chunks) - 1)
            if cost <= self._max_bytes or len(self._chunks) == int(passes):
                return
            oldest = self._chunks[int(passes)]
            del self._chunks[int(passes)]
            self.size -= oldest.size
            self.dropped += oldest.messages
            self.unreported += oldest.messages

    def close(self, begun: int = 0) -> None:
        """Drop everything, and count `begun` messages that were taken as dropped; nothing remains to be reported."""
        self.dropped += self.messages + begun
        self._chunks.clear()
        self.size = 0
