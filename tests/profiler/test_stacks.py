"""Sampling a piece of work without a server."""

from __future__ import annotations

import threading
import time

from tornado_rbkit.profiler.stacks import sampled_stacks
from tornado_rbkit.profiler.threads import internal_thread_names


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_the_work_and_the_threads_it_starts_are_seen_and_no_others() -> None:
    stop = threading.Event()
    before = threading.Thread(target=stop.wait)
    before.start()
    with sampled_stacks() as stacks:
        beside = threading.Thread(target=busy, args=(0.2,))
        beside.start()
        busy(0.2)
        beside.join()
    stop.set()
    before.join()
    seen: dict[int, int] = {}
    for sample, count in stacks.samples():
        if any(frame.method_name == "busy" for frame in sample.frames):
            seen[sample.frames[0].thread_id] = seen.get(sample.frames[0].thread_id, 0) + count
        assert sample.frames[0].thread_id != before.ident
    assert seen.keys() == {threading.get_ident(), beside.ident}
    assert internal_thread_names() == set()


def test_stacks_that_are_alike_are_counted_once() -> None:
    with sampled_stacks() as stacks:
        threading.Event().wait(0.2)
    counts = [count for sample, count in stacks.samples() if sample.frames[0].method_name == "wait"]
    assert max(counts) > 1
    assert len(counts) < sum(counts)
