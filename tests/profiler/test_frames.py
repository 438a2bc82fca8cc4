"""Reading other threads' stacks: nothing of the host's runs meanwhile, and the collector is left as it was."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.profiler.conftest import PATIENCE
from tests.profiler.test_cpu import until_asleep
from tornado_rbkit.profiler import frames
from tornado_rbkit.profiler.frame_cache import packed_place
from tornado_rbkit.profiler.frames import MAX_DEPTH, Place, read_place, read_stacks

UNWINDING = """
    import gc, sys, threading
    from tornado_rbkit import profiler
    from tornado_rbkit.profiler import threads

    def sampler():
        return next((ident for ident, thread in list(threads._running.items()) if thread.name == "rbkit-cpu"), None)

    class Host:
        '''Returns from its functions, and uses their memory for others, during the nth collection within a read.'''

        def __init__(self, nth):
            self.nth, self.seen = nth, [0, 0]
            self.deep, self.leave, self.left, self.end = (threading.Event() for _ in range(4))

        def run(self):
            self.down(40)
            self.overwrite(60)

        def down(self, depth):
            if depth:
                return self.down(depth - 1)
            self.deep.set()
            self.leave.wait()

        def overwrite(self, depth):
            a = b = c = d = e = f = g = h = [depth]
            if depth:
                return self.overwrite(depth - 1), a, b, c, d, e, f, g, h
            self.left.set()
            self.end.wait()

    def on_collection(phase, info):
        now = host  # the main thread replaces it as soon as this one has left
        if phase == "start" and threading.get_ident() == sampler() and now.deep.is_set():
            reading = sys._getframe(1).f_code.co_filename.endswith("uninterrupted.py")  # no collection should see it
            now.seen[reading] += 1
            if now.seen[reading] == (now.nth if reading else 50):
                now.leave.set()
                if reading:
                    now.left.wait()

    profiler.start_profiling(
        "tcp://127.0.0.1:*", "tcp://127.0.0.1:*",
        enable_object_trace=False, enable_gc_stats=False, enable_cpu_profiling=True, cpu_engine="in-process",
    )
    host = Host(1)
    gc.callbacks.append(on_collection)
    gc.set_threshold(1, 1000, 1000)
    for nth in range(2, 102):
        thread = threading.Thread(target=host.run)
        thread.start()
        host.left.wait()
        host.end.set()
        thread.join()
        host = Host(nth)
    gc.set_threshold(700)
    gc.callbacks.remove(on_collection)
    profiler.stop_server()
    print("survived")
"""

FOREIGN = """
    import gc, sys, threading, time, weakref
    from tornado_rbkit import profiler  # not amid the garbage, which would be collected during the imports
    from tornado_rbkit.profiler.heap import Snapshot
    from tornado_rbkit.profiler.references import reader, running_frames

    due = 0.0

    def let_go(*_):
        global due
        if time.monotonic() > due:  # else garbage is made faster than it is collected
            time.sleep(0.0005)
            due = time.monotonic() + 0.001

    class Node:
        def __init__(self):
            self.me = self
            watched.add(weakref.ref(self, let_go_of))

        def __del__(self):
            let_go()

    def let_go_of(reference):
        watched.discard(reference)
        let_go()

    watched = set()

    def recursion(depth):
        return recursion(depth - 1) if depth else [[n] for n in range(50)] and Node()

    def generated(depth):
        yield [depth]
        if depth:
            yield from generated(depth - 1)

    async def awaited(depth):
        return await awaited(depth - 1) if depth else recursion(3)

    def raising(depth):
        try:
            raising(depth - 1) if depth else 1 / 0
        except ZeroDivisionError as error:
            kept = error.__traceback__.tb_frame
            raise

    def work():
        while not over.is_set():
            if len(watched) > 1000:  # a thread that collects could not keep up with two that make garbage
                gc.collect()
                time.sleep(0.001)
                continue
            recursion(12)
            list(generated(12))
            try:
                awaited(12).send(None)
            except StopIteration:
                pass
            try:
                raising(12)
            except ZeroDivisionError:
                pass
            switching(12)

    try:
        from greenlet import getcurrent, greenlet
    except ImportError:
        def switching(depth): pass
    else:
        def switching(depth):
            main = getcurrent()
            def there(depth):
                main.switch(recursion(depth))
                return recursion(depth)
            other = greenlet(there)
            other.switch(depth)
            other.switch()

    def churn():
        while not over.is_set():
            threads = [threading.Thread(target=recursion, args=(5,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    over = threading.Event()
    gc.callbacks.append(let_go)
    gc.set_threshold(20, 1000, 1000)
    threads = [threading.Thread(target=target) for target in (work, work, churn)]
    for thread in threads:
        thread.start()
    READ
    over.set()
    for thread in threads:
        thread.join()
    gc.set_threshold(700)
    gc.callbacks.clear()
    print("survived")
"""
"""A host whose collections, finalizers and callbacks let other threads run; READ stands for reading its stacks."""

SAMPLE = """
    server = profiler.start_profiling(
        "tcp://127.0.0.1:*", "tcp://127.0.0.1:*", enable_cpu_profiling=True, cpu_sampling_interval=0.0005,
        clock_type=sys.argv[2], cpu_engine="in-process",
    )
    time.sleep(float(sys.argv[1]))
    while server.running and server.status()["cpu"]["samples"] <= 100:
        time.sleep(0.1)
    assert server.running, server.status()
    profiler.stop_server()
"""

SNAPSHOT = """
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        for _ in range(100):
            [type(value) for frame in running_frames() for value in reader(type(frame))(frame)[0]]
            time.sleep(0)
        for _ in Snapshot(1, []).walk():
            time.sleep(0)
            if time.monotonic() > end:  # the old garbage has grown
                break
"""


def survive(program: str, *arguments: str, seconds: float = 0.0) -> None:
    """Run a program in a process of its own: a fault may crash it, or block all of its threads."""
    command = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(program), *arguments]
    folder = Path(__file__).parents[2]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + PATIENCE, cwd=folder)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "survived\n", "")


def test_a_collection_never_lets_the_host_return_from_a_function_that_is_being_read() -> None:
    survive(UNWINDING)


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_callbacks_finalizers_generators_and_short_lived_threads_are_no_danger(
    request: pytest.FixtureRequest, clock: str
) -> None:
    seconds = 1.0 + float(request.config.option.soak)
    survive(FOREIGN.replace("READ", SAMPLE.strip()), str(seconds), clock, seconds=seconds)


def test_a_snapshot_beside_them_is_no_danger(request: pytest.FixtureRequest) -> None:
    seconds = 1.0 + float(request.config.option.soak)
    survive(FOREIGN.replace("READ", SNAPSHOT.strip()), str(seconds), seconds=seconds)


@pytest.fixture
def collecting() -> Iterator[None]:
    """Leave the collector as it was, whatever the test does to it."""
    was = gc.isenabled()
    yield
    gc.enable() if was else gc.disable()


@pytest.fixture
def other() -> Iterator[int]:
    """Return the identifier of a thread that waits."""
    lock = threading.Lock()
    with lock:
        thread = threading.Thread(target=lock.acquire)
        thread.start()
        assert thread.ident is not None
        yield thread.ident
    thread.join()


def change(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_the_host_had_it(
    monkeypatch: pytest.MonkeyPatch, collecting: None, other: int, enabled: bool
) -> None:
    during: list[bool] = []

    def look(frame: FrameType) -> Place:
        during.append(gc.isenabled())
        return read_place(frame)

    monkeypatch.setattr(frames, "read_place", look)
    change(enabled)
    assert other in read_stacks()
    assert gc.isenabled() is enabled
    assert set(during) == {enabled and sys.version_info >= (3, 12)}


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_the_host_had_it_after_an_error(
    monkeypatch: pytest.MonkeyPatch, collecting: None, other: int, enabled: bool
) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(frames, "read_place", fail)
    change(enabled)
    with pytest.raises(MemoryError):
        read_stacks()
    assert gc.isenabled() is enabled


def test_what_the_host_changes_at_the_collector_stays_so(collecting: None) -> None:
    stop = threading.Event()
    reads = 0

    def read() -> None:
        nonlocal reads
        while not stop.is_set():
            read_stacks()
            reads += 1

    interval = sys.getswitchinterval()
    reader = threading.Thread(target=read)
    reader.start()
    sys.setswitchinterval(1e-6)
    try:
        enabled = True
        while reads < 3000:
            enabled = not enabled
            change(enabled)
            for _ in range(100):
                assert gc.isenabled() is enabled
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        reader.join()


def test_no_frame_is_referred_to_afterwards() -> None:
    def wait(kept: list[object]) -> None:
        kept.append(sys._getframe())
        stop.acquire()

    stop, kept = threading.Lock(), list[object]()
    with stop:
        thread = threading.Thread(target=wait, args=(kept,))
        thread.start()
        while not kept:
            pass
        before = sys.getrefcount(kept[0])
        stacks = read_stacks()
        meanwhile = sys.getrefcount(kept[0])
        assert meanwhile == before + (sys.version_info < (3, 11))
        del stacks
        after = sys.getrefcount(kept[0])
        assert after == before
    thread.join()


def test_a_deep_stack_is_cut_at_its_outer_end() -> None:
    def down(depth: int) -> None:
        if depth:
            return down(depth - 1)
        ready.set()
        stop.wait()
        return None

    ready, stop = threading.Event(), threading.Event()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(3 * MAX_DEPTH)
    thread = threading.Thread(target=down, args=(2 * MAX_DEPTH,))
    try:
        thread.start()
        ready.wait()
        until_asleep(thread.ident or 0)
        stack = read_stacks()[thread.ident or 0]
    finally:
        stop.set()
        thread.join()
        sys.setrecursionlimit(limit)
    assert len(stack) == MAX_DEPTH
    names = [place[0].co_name for place in stack]
    assert names[0] == "wait"
    assert names[-1] == "down"


def test_neither_the_caller_nor_a_thread_that_has_ended_has_a_stack(other: int) -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    stacks = read_stacks()
    assert thread.ident not in stacks
    assert threading.get_ident() not in stacks
    assert other in stacks


def test_packing_a_frame_leaves_nothing_in_the_program_s_code_object() -> None:
    """A tuple of its variables' names would be listed as the program's from then on."""
    namespace: dict[str, object] = {}
    exec("class Host:\n def act(cls, names_that_are_new): pass", namespace)
    host = namespace["Host"]
    before = set(map(id, gc.get_objects()))
    packed = packed_place(host.act.__code__, 0, namespace)  # type: ignore[attr-defined]
    assert b"act" in packed
    made = [item for item in gc.get_objects() if id(item) not in before and type(item) is tuple]
    assert not [item for item in made if "names_that_are_new" in item]
