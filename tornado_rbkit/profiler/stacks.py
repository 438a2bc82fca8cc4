"""Sample the stacks of a block of code in this process, without a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.cpu import CPUSampler
from tornado_rbkit.profiler.frames import thread_ids
from tornado_rbkit.profiler.packing import without_time
from tornado_rbkit.profiler.threads import original
from tornado_rbkit.protocol import CPUSample, decode


class StackCounter(EventBatcher):
    """Counts equal samples instead of publishing them. The sampler's thread calls `add`."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[bytes] = Counter()

    def add(self, event: bytes) -> None:
        """Count a packed sample."""
        self._counts[without_time(event)] += 1

    def samples(self) -> Iterator[tuple[CPUSample, int]]:
        """Yield each stack and how often it was seen. Call it after the sampler has stopped."""
        for packed, count in self._counts.items():
            [sample] = decode(self.collection([packed], 0.0)).events  # type: ignore[union-attr]
            if isinstance(sample, CPUSample) and sample.frames:
                yield sample, count


@contextmanager
def sampled_stacks(interval: float | None = None) -> Iterator[StackCounter]:
    """Sample this thread, and threads started meanwhile, every `interval` seconds of wall time in a ``with`` block.

    Raises:
        ArgumentError: the interval is out of range.
    """
    stacks = StackCounter()
    others = thread_ids() - {original("get_ident")()}
    sampler = CPUSampler(stacks, leave_out=others)
    sampler.start(interval)
    try:
        yield stacks
    finally:
        sampler.stop()
