"""The facts that a CPU sample has beside rbkit's: names of threads and tasks, states, definition lines."""

from __future__ import annotations

import _thread
import asyncio
import gc
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, starmap
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiler.conftest import PATIENCE, Client, raw_events
from tests.profiler.test_cpu import running, until_asleep
from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.collection_times import START, STOP, Collections, CollectionTimes
from tornado_rbkit.profiler.cpu import CPUSampler
from tornado_rbkit.profiler.packing import pack_facts, pack_frame, pack_sample, pack_stack, pack_time
from tornado_rbkit.protocol import CPUSample, DecodeError, EventCollection, EventType, decode

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="states are read on Linux")
text = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


def decoded(*samples: bytes) -> list[CPUSample]:
    message = decode(EventBatcher().collection(samples, 0.0))
    assert isinstance(message, EventCollection)
    return [event for event in message.events if isinstance(event, CPUSample)]


@given(
    text, text, text, st.lists(st.none() | st.integers(0, 1 << 40), min_size=1, max_size=20), st.integers(0, 1 << 63)
)
def test_facts_of_any_size_are_read_as_they_were_packed(
    name: str | None, task: str | None, state: str | None, lines: list[int | None], thread: int
) -> None:
    frames = [pack_frame("f", "m.f", "m.py", 3, singleton=False, definition_line=line) for line in lines]
    (sample,) = decoded(pack_sample(pack_time(1.0), pack_stack(frames, thread, pack_facts(name, task, state))))
    assert (sample.thread_name, sample.task_name, sample.thread_state) == (name, task, state)
    assert [(frame.definition_line, frame.thread_id) for frame in sample.frames] == [(line, thread) for line in lines]


def test_a_fact_of_another_type_is_refused() -> None:
    facts = (msgpack.packb(19) + msgpack.packb(1),)
    sample = pack_sample(pack_time(1.0), pack_stack([pack_frame("f", "f", "f", 1, singleton=False)], 1, facts))
    with pytest.raises(DecodeError, match="string is expected"):
        decoded(sample)


def one_tick(sampler: CPUSampler, ticks: int = 1) -> dict[str | None, CPUSample]:
    """Return the last sample of each thread by the thread's name."""
    sampler._batcher.take(0.0, flush=True)
    sampler._tick(ticks, sampler.interval)
    samples: list[CPUSample] = []
    for message in sampler._batcher.take(0.0, flush=True):
        collection = decode(message)
        assert isinstance(collection, EventCollection)
        samples += [event for event in collection.events if isinstance(event, CPUSample)]
    return {sample.thread_name: sample for sample in samples}


def planted(stop: threading.Event) -> None:
    stop.wait()


def test_a_sample_has_the_name_of_its_thread_and_the_lines_where_functions_begin() -> None:
    with running(planted) as (ident,):
        until_asleep(ident)
        (thread,) = [each for each in threading.enumerate() if each.ident == ident]
        names = ["first name", "second name"]
        for thread.name in names:
            assert thread.name in one_tick(CPUSampler(EventBatcher()))
        sample = one_tick(CPUSampler(EventBatcher()))[names[-1]]
    lines = {frame.method_name: frame.definition_line for frame in sample.frames}
    assert lines["planted"] == planted.__code__.co_firstlineno
    assert sample.frames[0].definition_line == threading.Condition.wait.__code__.co_firstlineno


def test_only_the_innermost_frame_has_the_facts_of_the_thread(client: Client) -> None:
    with running(planted) as (thread,):
        client.ask(b"start_cpu_profiling")
        client.events(CPUSample, lambda found: any(sample.frames[0].thread_id == thread for sample in found))
    stacks = [sample[2] for sample in raw_events(client.messages[-1], EventType.CPU_SAMPLE)]
    assert all(19 in frames[0] for frames in stacks if frames[0][15] == thread)
    for frames in stacks:
        assert not any({19, 20, 21} & frame.keys() for frame in frames[1:])


def test_the_running_task_is_named_and_no_other() -> None:
    """Two loops on two threads, each with a task that computes and one that sleeps."""
    go, done = threading.Barrier(3), threading.Event()

    async def compute() -> None:
        go.wait()
        done.wait()

    async def both(name: str) -> None:
        tasks = [asyncio.create_task(asyncio.sleep(0), name="asleep"), asyncio.create_task(compute(), name=name)]
        await asyncio.gather(*tasks)

    names = ("crunch orders", "crunch prices")
    threads = [threading.Thread(target=lambda name=name: asyncio.run(both(name)), name=f"of {name}") for name in names]
    for thread in threads:
        thread.start()
    go.wait()
    samples = one_tick(CPUSampler(EventBatcher()))
    done.set()
    for thread in threads:
        thread.join()
    assert {name: samples[f"of {name}"].task_name for name in names} == {name: name for name in names}


def locked(lock: threading.Lock) -> None:
    with lock:
        pass


def computing(stop: threading.Event) -> None:
    while not stop.is_set():
        pass


@linux
def test_states_tell_a_lock_from_a_wait_and_from_a_computation() -> None:
    lock, stop, ours, theirs = threading.Lock(), threading.Event(), *socket.socketpair()
    functions: dict[str, tuple[Callable[[], object], str]] = {
        "locked": (lambda: locked(lock), "lock"),
        "idle": (stop.wait, "waiting"),
        "receiving": (lambda: ours.recv(1), "waiting"),
        "computing": (lambda: computing(stop), "running"),
    }
    expected = {name: state for name, (_, state) in functions.items()}
    threads = [threading.Thread(target=function, name=name) for name, (function, _) in functions.items()]
    sampler = CPUSampler(EventBatcher())

    def states() -> dict[str | None, str | None]:
        time.sleep(0.001)
        return {name: sample.thread_state for name, sample in one_tick(sampler).items() if name in functions}

    seen: Counter[tuple[str | None, str | None]] = Counter()
    with ours, theirs, lock:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE
        while states() != expected:  # they may have started only now
            assert time.monotonic() < deadline, "they do not wait"
        for _ in range(50):
            seen.update(states().items())
        stop.set()
        theirs.send(b"x")
    for thread in threads:
        thread.join()
    assert all(seen[name, state] > 40 for name, state in expected.items()), seen


def test_what_a_collection_delayed_is_charged_to_the_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = CPUSampler(EventBatcher())
    with running(planted) as (thread,):
        now = time.time()
        monkeypatch.setattr(real_time, "time", lambda: now)
        sampler._collections._ended.extend((thread, now - 0.0055, now - 0.0015))
        sampler._collections._ended.extend((threading.get_ident(), now - 1, now))
        sampler._tick(10, 0.001)
    samples = [each for message in sampler._batcher.take(0.0, flush=True) for each in decode(message).events]  # type: ignore[union-attr]
    states = [each.thread_state == "gc" for each in samples if each.frames[0].thread_id == thread]  # type: ignore[union-attr]
    assert states == [False] * 4 + [True] * 4 + [False] * 2
    assert sampler._collections.of(thread) == []


def test_collections_are_recorded_by_thread_until_the_stop() -> None:
    times = CollectionTimes()
    before = list(gc.callbacks)
    gc.collect()  # so that the next one is not due before the one that is recorded
    times.start()
    began = time.time()
    gc.collect()
    ended = time.time()
    times.stop()
    times.stop()
    gc.collect()
    assert gc.callbacks == before
    [(first, last)] = times.of(threading.get_ident())
    assert began <= first <= last <= ended
    assert times.of(1) == []


@pytest.fixture
def recording() -> Iterator[None]:
    """Record collections, as the memory profile and the sampler do; nothing else is called by the collector."""
    collections = Collections()
    gc.collect()
    before = list(gc.callbacks)
    gc.callbacks.clear()
    collections.begin()
    yield
    collections.end()
    gc.callbacks[:] = before
    assert [phase for phase, _, thread in collections.take() if thread == threading.get_ident()][-2:] == [START, STOP]


@pytest.mark.usefixtures("recording")
def test_a_signal_that_arrives_in_a_collection_is_not_lost() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt("of the host")

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt, match="of the host"):
            # no bytecode of the host runs between the two
            any(chain(starmap(_thread.interrupt_main, ((),)), starmap(gc.collect, ((),))))
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize("hook", ["settrace", "setprofile"])
def test_the_hosts_tracers_do_not_see_that_collections_are_recorded(hook: str) -> None:
    seen: list[str] = []
    before: Any = getattr(sys, hook.replace("set", "get"))()
    getattr(sys, hook)(lambda frame, event, argument: seen.append(frame.f_code.co_filename))
    try:
        gc.collect()
    finally:
        getattr(sys, hook)(before)
    assert not [file for file in seen if file != __file__]
