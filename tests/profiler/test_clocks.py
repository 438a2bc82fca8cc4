"""The CPU clock charges a thread's time to the stacks that computed, not to the stack that waits."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.profiler.conftest import Client
from tornado_rbkit.profiler import clocks, run_state
from tornado_rbkit.profiler.clocks import ThreadClocks
from tornado_rbkit.profiler.run_state import RunStates
from tornado_rbkit.protocol import CPUSample

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads have CPU clocks on Linux")


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@contextmanager
def thread(function: Callable[[], object]) -> Iterator[threading.Thread]:
    started = threading.Thread(target=function)
    started.start()
    yield started
    started.join()


def test_threads_that_compute_are_told_from_threads_that_wait() -> None:
    stop = threading.Event()
    lock = threading.Lock()
    ours, theirs = socket.socketpair()
    states = RunStates()

    def compute() -> None:
        while not stop.is_set():
            burn(0.001)

    def take() -> None:
        with lock:
            pass

    lock.acquire()
    with ours, theirs, thread(compute) as one, thread(lambda: ours.recv(1)) as two, thread(take) as three:
        ids = [each.native_id or 0 for each in (one, two, three)]
        computing, seen = Counter[int](), 0
        deadline = time.monotonic() + 20
        while seen < 50 and time.monotonic() < deadline:
            time.sleep(0.001)
            runnable = [states.is_runnable(native_id) for native_id in ids]
            seen += not any(runnable[1:])  # they may have started only now
            computing.update(at for at, is_runnable in enumerate(runnable) if is_runnable)
        stop.set()
        theirs.send(b"x")
        lock.release()
    assert seen == 50
    assert computing[0] >= seen
    assert computing[1] + computing[2] < seen


class States:
    """States that a test chooses."""

    def __init__(self) -> None:
        self.is_computing = False

    def is_runnable(self, native_id: int) -> bool:
        return self.is_computing


def test_time_is_charged_when_the_thread_is_seen_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    states = States()
    monkeypatch.setattr(clocks, "run_states", lambda: states)
    of_threads = ThreadClocks()
    this = threading.get_ident()
    assert of_threads.burned([this], 0.001, 1, 20) == ({}, {})
    burn(0.010)
    assert of_threads.burned([this], 0.001, 1, 20) == ({}, {}), "it sleeps: its stack did not burn this"
    burn(0.010)
    states.is_computing = True
    seen, unseen = of_threads.burned([this], 0.001, 1, 20)
    assert seen[this] >= 20, "the earlier time is not lost"
    assert unseen == {}
    assert of_threads.computing == {this}


def test_time_of_a_thread_that_is_never_seen_computing_is_reported_without_a_stack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clocks, "run_states", States)
    of_threads = ThreadClocks()
    this = threading.get_ident()
    of_threads.burned([this], 0.001, 1, 20)
    burn(clocks.UNSEEN_SECONDS + 0.001)
    seen, unseen = of_threads.burned([this], 0.001, 1, 20)
    assert seen == {}
    assert unseen[this] >= 50


def test_where_states_cannot_be_read_every_thread_counts_as_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "_ATTEMPTS", 0)
    monkeypatch.setattr(clocks, "run_states", run_state.RunStates)  # not the one that this process already has
    of_threads = ThreadClocks()
    this = threading.get_ident()
    of_threads.burned([this], 0.001, 1, 20)
    burn(0.040)
    assert of_threads.burned([this], 0.001, 1, 20) == ({this: 21}, {})


def test_the_switch_interval_is_longer_while_threads_compute_at_once(client: Client) -> None:
    stop = threading.Event()
    seen: set[float] = set()

    def compute() -> None:
        while not stop.is_set():
            burn(0.001)
            seen.add(round(sys.getswitchinterval(), 6))

    host = sys.getswitchinterval()
    client.ask(b"use_cpu_time", b"start_cpu_profiling")
    with thread(compute), thread(compute):
        client.events(CPUSample, lambda found: 0.0005 in seen and len(found) > 200)
        stop.set()
    client.ask(b"stop_cpu_profiling")
    assert sys.getswitchinterval() == host
