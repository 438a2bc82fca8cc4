"""Encodes published messages into batches, a slice at a time. No I/O."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Final

from tornado_rbkit.frames import FRAGMENT_SIZE, Buffer, Chunk, Encoding, encode_in_slices
from tornado_rbkit.upstream.losses import LossCounter
from tornado_rbkit.upstream.types import Batch

MAX_DELIVERED: Final = 4 * 1024 * 1024
"""Bytes, size of an encoded batch × clients: writing them takes the web loop about a millisecond."""

MAX_MESSAGES: Final = 512
"""Number of messages in a batch."""

_SLICE: Final = FRAGMENT_SIZE * 7 // 8  # bytes encoded together; with headers and the last message they fit a chunk
_MIN_BATCH: Final = 3 * _SLICE  # bytes; smaller writes cost the kernel more per byte
_MAX_DEFLATED: Final = 8 * _SLICE  # bytes before compression, which takes about 4 ms at recorded traffic's ratio
_ENCODING_TURN: Final = 0.01  # seconds of encoding before the loop gets a turn


class BatchEncoder:
    """Messages that wait for their batch, and the next batch. On the subscriber's thread only.

    Attributes:
        encodings: the encodings in use.
        deflates: whether one of them is compressed.
        payload_bytes: bytes of payload that make a batch full.
        pending_bytes: bytes of payload that wait.
        batch: the next batch, None unless it is encoded completely.
    """

    def __init__(
        self, losses: LossCounter, *, compression_level: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Create an encoder without clients.

        Args:
            losses: counts the messages that could not be encoded.
            compression_level: 1 to 9, for clients with a compressed encoding.
            clock: returns seconds; monotonic.
        """
        self.encodings: frozenset[Encoding] = frozenset()
        self.deflates = False
        self.payload_bytes = MAX_DELIVERED
        self.pending_bytes = 0
        self.batch: Batch | None = None
        self._losses = losses
        self._compression_level = compression_level
        self._clock = clock
        self._generation = 0
        self._batch_bytes = MAX_DELIVERED
        self._pending: deque[Buffer] = deque()
        self._steps: Iterator[None] | None = None  # the next batch, between two calls of `encode`

    @property
    def has_pending(self) -> bool:
        """Whether messages wait that are not in a batch yet."""
        return bool(self._pending)

    @property
    def is_encoding(self) -> bool:
        """Whether a batch was begun and is not complete."""
        return self._steps is not None

    def set_encodings(self, encodings: Iterable[Encoding], clients: int, generation: int) -> None:
        """Set the encodings of the batches begun from now on; without any, discard all messages."""
        self.encodings = frozenset(encodings)
        self._generation = generation
        self._batch_bytes = max(_MIN_BATCH, MAX_DELIVERED // max(1, clients))
        self.deflates = any(encoding.deflate for encoding in self.encodings)
        self.payload_bytes = _MAX_DEFLATED if self.deflates else self._batch_bytes
        if not self.encodings:
            self.discard()

    def add(self, payloads: list[Buffer]) -> None:
        """Add messages, unless there are no clients."""
        if self.encodings:
            self._pending.extend(payloads)
            self.pending_bytes += sum(map(len, payloads))

    def take_batch(self) -> Batch:
        """Return the next batch, which must be complete, and forget it."""
        assert self.batch is not None
        batch, self.batch = self.batch, None
        batch.pending = self.pending_bytes
        return batch

    def discard(self) -> None:
        """Discard all messages."""
        self._pending.clear()
        self.pending_bytes = 0
        self._steps = self.batch = None

    def encode(self) -> bool:
        """Begin or continue the next batch, for up to `_ENCODING_TURN`; return whether it is complete."""
        if self.batch is None:
            steps, self._steps = self._steps or self._encode_batch(), None
            until = self._clock() + _ENCODING_TURN
            for _ in steps:
                if self._clock() >= until:
                    self._steps = steps
                    return False
        return True

    def _encode_batch(self) -> Iterator[None]:
        """Encode messages into `batch`, slice by slice, until it is full or a client joins."""
        batch = Batch({encoding: [] for encoding in self.encodings}, self._generation)
        try:
            while (
                self._pending
                and batch.generation == self._generation
                and batch.messages < MAX_MESSAGES
                and batch.size < self.payload_bytes
                and batch.encoded < self._batch_bytes
            ):
                payloads, size = self._take_slice(MAX_MESSAGES - batch.messages)
                batch.messages += len(payloads)
                batch.size += size
                largest = 0
                for encoding, chunks in batch.chunks.items():
                    more = yield from self._encode_slice(payloads, encoding)
                    chunks += more
                    largest = max(largest, sum(chunk.size for chunk in more))
                    yield
                batch.encoded += largest
        except Exception:
            self._losses.missed += batch.messages
            raise
        self.batch = batch

    def _take_slice(self, max_messages: int) -> tuple[list[Buffer], int]:
        """Take about `_SLICE` bytes of the waiting messages; return them and their size."""
        payloads: list[Buffer] = []
        size = 0
        while self._pending and size < _SLICE and len(payloads) < max_messages:
            payload = self._pending.popleft()
            payloads.append(payload)
            size += len(payload)
        self.pending_bytes -= size
        return payloads, size

    def _encode_slice(self, payloads: list[Buffer], encoding: Encoding) -> Generator[None, None, list[Chunk]]:
        """Encode a slice; stop and return no chunks once no client uses that encoding."""
        steps = encode_in_slices(payloads, encoding, compression_level=self._compression_level)
        while encoding in self.encodings:
            try:
                next(steps)
            except StopIteration as end:
                chunks: list[Chunk] = end.value
                return chunks
            yield
        return []
