"""Sampling a piece of work without a server."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.profiler.conftest import PATIENCE
from tests.profiler.test_cpu import until_asleep
from tornado_rbkit.profiler.stacks import StackCounter, sampled_stacks
from tornado_rbkit.profiler.threads import internal_threads

INTERRUPTED = """
import random, signal, sys, time
from tornado_rbkit.profiler.stacks import sampled_stacks
from tornado_rbkit.profiler.threads import internal_threads
signal.signal(signal.SIGALRM, lambda *_: signal.default_int_handler(signal.SIGINT, None))
before = sys.getswitchinterval()
random.seed(1)
for number in range(500):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, 0.004))
        with sampled_stacks():
            time.sleep(0.001)
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        pass  # its traceback may hold the block that it came too early to end
    assert sys.getswitchinterval() == before, f"left lowered by interrupt {number}"
while internal_threads():
    time.sleep(0.01)
"""
"""Interrupts a block while it starts, runs or ends; a sampler that is left behind makes it run for ever."""


def busy(stacks: StackCounter) -> None:
    """Compute until some more samples were taken, of several looks even if each look is repeated for all threads."""
    enough = stacks._counts.total() + 500
    while stacks._counts.total() < enough:
        pass


def test_the_work_and_the_threads_it_starts_are_seen_and_no_others() -> None:
    stop = threading.Event()
    before = threading.Thread(target=stop.wait)
    before.start()
    until_asleep(before.ident or 0)
    with sampled_stacks() as stacks:
        beside = threading.Thread(target=busy, args=(stacks,))
        beside.start()
        busy(stacks)
        beside.join()
    stop.set()
    before.join()
    seen: dict[int, int] = {}
    for sample, count in stacks.samples():
        if any(frame.method_name == "busy" for frame in sample.frames):
            seen[sample.frames[0].thread_id] = seen.get(sample.frames[0].thread_id, 0) + count
        assert sample.frames[0].thread_id != before.ident
    assert seen.keys() == {threading.get_ident(), beside.ident}
    assert internal_threads() == set()


def test_stacks_that_are_alike_are_counted_once() -> None:
    with sampled_stacks() as stacks:
        while stacks._counts.total() < 500:
            threading.Event().wait(0.1)
    counts = [count for sample, count in stacks.samples() if sample.frames[0].method_name == "wait"]
    assert max(counts) > 1
    assert len(counts) < sum(counts)


def test_the_threads_of_a_pool_are_seen_while_they_work() -> None:
    with ThreadPoolExecutor(1) as pool:
        ident = pool.submit(threading.get_ident).result()
        with sampled_stacks() as stacks:
            pool.submit(busy, stacks).result()
    seen = {frame.method_name for sample, _ in stacks.samples() for frame in sample.frames if frame.thread_id == ident}
    assert "busy" in seen


@pytest.mark.skipif(sys.platform == "win32", reason="there is no setitimer")
def test_an_interrupt_at_any_moment_stops_the_sampler() -> None:
    subprocess.run([sys.executable, "-c", INTERRUPTED], check=True, timeout=PATIENCE)


def test_a_program_that_ends_within_the_block_does_not_wait_for_the_sampler() -> None:
    """A generator that is still alive is closed when threads are frozen already."""
    program = "from tornado_rbkit.profiler.stacks import sampled_stacks; block = sampled_stacks(); block.__enter__()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
