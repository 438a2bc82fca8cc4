"""Samples the stacks of a block of code in this process, without a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.cpu import CPUSampler
from tornado_rbkit.profiler.frame_cache import line_number
from tornado_rbkit.profiler.frames import read_stacks
from tornado_rbkit.profiler.packing import without_time
from tornado_rbkit.protocol import CPUSample, decode


class StackCounter(EventBatcher):
    """Counts equal samples instead of publishing them. The sampler's thread calls `add`."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[bytes] = Counter()
        self._idle = {
            (thread, tuple((code.co_filename, line_number(code, at)) for code, at, *_ in stack))
            for thread, stack in read_stacks().items()
        }

    def add(self, event: bytes) -> None:
        """Count a packed sample."""
        self._counts[without_time(event)] += 1

    def samples(self) -> Iterator[tuple[CPUSample, int]]:
        """Yield each stack and the number of times it was seen. Call this after the sampler has stopped.

        The stack in which another thread was already when this object was made is left out: there it waits for work.
        """
        for packed, count in self._counts.items():
            [sample] = decode(self.collection([packed], 0.0)).events  # type: ignore[union-attr]
            if isinstance(sample, CPUSample) and sample.frames and _place(sample) not in self._idle:
                yield sample, count


@contextmanager
def sampled_stacks(interval: float | None = None, clock: str = "wall") -> Iterator[StackCounter]:
    """Sample all threads every `interval` seconds of the clock ("wall", or "cpu" on Linux) in a ``with`` block.

    An interrupt at any moment stops the sampler; one at the very end of the block, when its traceback is released.

    Raises:
        ArgumentError: the interval is out of range.
        SamplingError: sampling could crash this process.
    """
    stacks = StackCounter()
    sampler = CPUSampler(stacks)
    sampler.clock_type = clock
    try:
        sampler.start(interval)
        yield stacks
    finally:
        try:
            sampler.stop()
        finally:
            sampler.stop()  # the first call may have been interrupted


def _place(sample: CPUSample) -> tuple[int, tuple[tuple[str, int], ...]]:
    return sample.frames[0].thread_id, tuple((frame.file, frame.line) for frame in sample.frames)
