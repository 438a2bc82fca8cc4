"""The CPU clock charges a thread's time to the stacks that computed, not to the stack that waits."""

from __future__ import annotations

import dis
import gc
import itertools
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from tests.profiler.conftest import PATIENCE, Client, wait_until
from tornado_rbkit.profiler import clocks, cpu, real_time, run_state
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.clocks import Due, ThreadClocks
from tornado_rbkit.profiler.cpu import CPUSampler
from tornado_rbkit.profiler.frames import Place, read_stacks
from tornado_rbkit.profiler.run_state import RUNNING, WAITING, RunStates, can_wait
from tornado_rbkit.profiler.threads import Flag, InternalThread
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
        computing = Counter[int]()
        # They may have started only now.
        wait_until(lambda: all(states.state(native_id) != RUNNING for native_id in ids[1:]), "they wait")
        for _ in range(50):
            time.sleep(0.001)
            computing.update(at for at, native_id in enumerate(ids) if states.state(native_id) == RUNNING)
        stop.set()
        theirs.send(b"x")
        lock.release()
    assert computing[0] == 50
    assert computing[1] + computing[2] < 10


PROMPTLY = 0.00002  # seconds until a thread is woken


class States:
    """A state that a test chooses."""

    def __init__(self) -> None:
        self.now = WAITING
        self.reads = 0

    def state(self, native_id: int) -> str:
        self.reads += 1
        return self.now


class Simulated:
    """A thread and its clocks: a test says when the thread runs and when the sampler looks.

    `code` has an instruction at which a thread may wait, a call, and one at which it cannot, the jump of a loop.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, interval: float | None) -> None:
        self.states = States()
        self.cpu = self.foreign = self.switches = 0
        self.interval = interval
        monkeypatch.setattr(clocks, "run_states", lambda: self.states)
        monkeypatch.setattr(real_time, "clock_gettime_ns", lambda clock: self.cpu)
        monkeypatch.setattr(real_time, "process_time_ns", lambda: self.cpu + self.foreign)
        monkeypatch.setattr(real_time, "thread_time_ns", lambda: 0)
        monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_nvcsw=self.switches))
        self.clocks = ThreadClocks()
        self.this = threading.get_ident()
        instructions = list(dis.get_instructions(burn))
        self.call = next(each.offset for each in instructions if each.opname.startswith("CALL"))
        self.jump = next(each.offset for each in instructions if not can_wait(burn.__code__, each.offset))
        self.look(PROMPTLY, waited=False)

    def look(self, late: float, *, waited: bool, lasti: int | None = None, ticks: int = 1) -> Due | None:
        """Return the due samples, or None if the thread did not run since the last look."""
        self.switches += 2 if waited else 1
        if self.this in self.clocks.look(late, by_cpu=self.interval is not None):
            return None
        place: Place = (burn.__code__, self.call if lasti is None else lasti, {})
        return self.clocks.due(self.this, place, ticks, self.interval)


def test_time_is_charged_when_the_thread_is_seen_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Simulated(monkeypatch, 0.001)
    thread.cpu += 10_000_000
    due = thread.look(PROMPTLY, waited=False)
    assert due is not None
    assert (due.seen, due.unseen) == (0, 0), "it waits: its stack did not use this"
    thread.states.now = RUNNING
    seen = 0
    for _ in range(1000):
        thread.cpu += 1_000_000
        due = thread.look(PROMPTLY, waited=True)
        assert due is not None
        assert due.unseen == 0
        seen += due.seen
    assert seen == pytest.approx(1010, abs=2 * clocks._SPREAD), "the earlier time is not lost"


def test_a_thread_that_was_woken_is_not_charged_for_what_it_computed_before_it_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs, in the call that waited, but nobody had the GIL when the sampler came."""
    thread = Simulated(monkeypatch, 0.001)
    thread.states.now = RUNNING
    thread.look(PROMPTLY, waited=False)
    monkeypatch.setattr(real_time, "monotonic_ns", lambda: 10**15 + 1000 * thread.cpu)  # after a long time
    monkeypatch.setattr(clocks, "_chance", SimpleNamespace(random=lambda: 0.1))
    for waited in (False, False, True):
        thread.cpu += 10_000_000
        due = thread.look(PROMPTLY, waited=waited, ticks=20)
        assert due is not None
        assert (due.seen, due.unseen) == (30 if waited else 0, 0)
    thread.cpu += 10_000_000
    monkeypatch.setattr(real_time, "monotonic_ns", lambda: thread.cpu)
    monkeypatch.setattr(clocks, "cpu_nanoseconds", lambda native_id: thread.cpu + 1_000)
    due = thread.look(PROMPTLY, waited=False, ticks=20)
    assert due is not None
    assert due.seen == 10, "its clock runs on: it computes in C without the GIL"


def test_time_of_a_thread_that_is_never_seen_computing_is_reported_without_a_stack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thread = Simulated(monkeypatch, 0.001)
    thread.cpu += int(clocks.UNSEEN_SECONDS * 1e9) + 1_000_000
    due = thread.look(PROMPTLY, waited=False)
    assert due is not None
    assert (due.seen, due.unseen) == (0, 51)


def test_where_states_cannot_be_read_every_thread_counts_as_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Simulated(monkeypatch, 0.001)
    monkeypatch.setattr(run_state, "_ATTEMPTS", 0)
    monkeypatch.setattr(clocks, "run_states", run_state.RunStates)  # not the one that this process already has
    thread.clocks = ThreadClocks()
    thread.look(PROMPTLY, waited=False)
    thread.cpu += 40_000_000
    due = thread.look(PROMPTLY, waited=False)
    assert due is not None
    assert (due.state, due.seen, due.unseen) == (None, 21, 0)


@pytest.mark.parametrize("interval", [None, 0.001])
@pytest.mark.parametrize("period", [0.0003, 0.0011, 0.005, 0.02])
@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("gil", [0.00005, 0.0006])
@pytest.mark.parametrize("processor", [0.2, 1.0])
def test_a_place_is_reported_with_its_share_or_the_time_is_reported_without_a_place(
    monkeypatch: pytest.MonkeyPatch, interval: float | None, period: float, share: float, gil: float, processor: float
) -> None:
    """The thread computes for a part of each period, first at one place, a call, then at another, and waits.

    While it computes, it has a processor for a part of the time, as on a busy machine. The sampler gets the GIL at
    once while it waits, else after `gil` seconds, or when the thread begins to wait.
    """
    thread = Simulated(monkeypatch, interval)
    chance = random.Random(1)
    monkeypatch.setattr(clocks, "_chance", random.Random(2))
    told = Counter[str]()
    first, computing = 0.5 * share * period, share * period
    due_at = 0.0
    for _ in range(int(6_000 / processor)):
        due_at += chance.uniform(0.0005, 0.0015)
        at = due_at % period
        seen_at = due_at if at >= computing else due_at + min(gil, computing - at)
        late, waited = PROMPTLY + seen_at - due_at, at < computing
        thread.cpu = int(1e9 * processor * (seen_at // period * computing + min(seen_at % period, computing)))
        at = seen_at % period
        begins = seen_at > due_at and at < 1e-12  # rounded: it begins to wait
        place = "waits" if begins or at >= computing - 1e-12 else "one" if at < first else "two"
        thread.states.now = WAITING if place == "waits" else RUNNING
        due = thread.look(late, waited=waited, lasti=thread.jump if place == "two" else None)
        if due is None:
            told[place] += interval is None
        else:
            told[place] += due.seen
            told["unseen"] += due.unseen
    whole = period if interval is None else computing
    true = {"one": first / whole, "two": (computing - first) / whole, "waits": 1 - computing / whole}
    shares = {name: told[name] / told.total() for name in (*true, "unseen")}
    for name, part in true.items():
        assert shares[name] - 0.03 <= part <= shares[name] + shares["unseen"] + 0.03, (name, shares, true)
    if processor == 1.0:
        assert shares["unseen"] <= min(1.0, gil / computing) * computing / whole + 0.03, "only what it missed"


def test_a_thread_that_did_not_run_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Simulated(monkeypatch, None)
    thread.cpu += 1_000
    due = thread.look(PROMPTLY, waited=False)
    assert due is not None
    assert due.thread is not None
    due.thread.event, due.thread.name = b"its stack", threading.current_thread().name
    reads = thread.states.reads
    assert thread.look(PROMPTLY, waited=False) is None
    threading.current_thread().name, before = "another name", threading.current_thread().name
    due = thread.look(PROMPTLY, waited=False)
    threading.current_thread().name = before
    assert due is not None, "its event has the former name"
    assert due.state == WAITING
    assert thread.states.reads == reads, "its state is still known"
    thread.cpu += 1_000
    due = thread.look(PROMPTLY, waited=False)
    assert due is not None
    assert due.thread is not None
    assert due.thread.event is None


def test_nothing_is_read_while_no_thread_runs_but_a_thread_without_a_clock_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thread = Simulated(monkeypatch, 0.001)
    thread.look(PROMPTLY, waited=False)
    thread.look(PROMPTLY, waited=False)
    stirred = [thread.clocks.stirred]
    for ran in ("cpu", "foreign"):
        setattr(thread, ran, 50_000)
        for _ in range(2):
            thread.clocks.look(PROMPTLY, by_cpu=True)
            stirred.append(thread.clocks.stirred)
    assert stirred == [False, True, False, True, False]
    for _ in range(10):
        thread.foreign += 10_000  # a little at a time
        thread.clocks.look(PROMPTLY, by_cpu=True)
        stirred.append(thread.clocks.stirred)
    assert stirred[5:].count(True) == 3, "little by little it is noticed"
    assert thread.clocks.due(-1, (burn.__code__, 0, {}), 1, None).thread is None
    thread.clocks.look(PROMPTLY, by_cpu=True)
    assert thread.clocks.stirred, "a thread without a clock is sampled at every tick"


def test_a_thread_that_computes_at_each_look_computes_steadily_and_one_that_had_no_gil_meanwhile_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thread = Simulated(monkeypatch, None)
    steady = []
    for waited in (True, True, True, False, True, True, True):
        thread.cpu += 1_000_000
        thread.look(0.00005, waited=waited)
        steady.append(thread.clocks.steady)
    assert steady == [False, False, True, False, False, False, True]
    thread.switches += 2  # it waits for the GIL before the tick is due, and gets it at once
    thread.clocks.forget_waits()
    thread.look(PROMPTLY, waited=False)
    assert not thread.clocks.steady


def test_waits_for_the_gil_do_not_change_what_a_prompt_look_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread gives the GIL up just when the sampler, which waits for it already, is due."""
    thread = Simulated(monkeypatch, None)
    thread.cpu += 1_000
    thread.look(0.000001, waited=True)
    thread.cpu += 1_000
    due = thread.look(PROMPTLY, waited=False)
    assert due is not None
    assert (due.seen, due.unseen) == (1, 0), "it is not late"


@pytest.mark.parametrize("interval", [None, 0.001])
def test_a_thread_that_was_just_woken_did_not_hold_the_gil_for_which_a_thread_without_a_clock_kept_the_look_waiting(
    monkeypatch: pytest.MonkeyPatch, interval: float | None
) -> None:
    thread = Simulated(monkeypatch, interval)
    unseen = 0
    for _ in range(1000):
        thread.cpu += 10_000
        thread.foreign += 5_000_000
        due = thread.look(0.005, waited=True, ticks=5)
        assert due is not None
        unseen += due.unseen
    assert unseen == pytest.approx(5000 * 0.002, abs=20) if interval is None else unseen <= 10


@pytest.mark.parametrize("started", [True, False])
def test_a_thread_that_started_since_the_last_look_is_charged_for_all_it_computed_since_then(
    monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    """Other threads may get a clock late: a thread of C when it asks for its `threading.Thread`."""
    thread = Simulated(monkeypatch, 0.001)
    moment = 0
    monkeypatch.setattr(real_time, "monotonic_ns", lambda: moment)
    thread.look(PROMPTLY, waited=False)
    del thread.clocks.threads[thread.this]
    thread.states.now = RUNNING
    thread.cpu += 4_000_000 if started else 3_600_000_000_000
    moment += 4_000_000
    due = thread.look(0.004, waited=True, ticks=8)
    assert due is not None
    assert due.seen + due.unseen == 4


def test_a_clock_that_goes_back_is_another_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Simulated(monkeypatch, None)
    thread.cpu += 10_000_000
    before = thread.look(PROMPTLY, waited=False)
    thread.cpu = 1_000_000
    after = thread.look(PROMPTLY, waited=False)
    assert before is not None
    assert after is not None
    assert after.thread is not before.thread


def test_the_time_for_which_a_call_held_the_gil_is_known_from_the_clock_of_its_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thread = Simulated(monkeypatch, None)
    held = []
    for used, late, waited in ((80, 0.08, True), (1, 0.08, True), (80, 0.04, True), (80, 0.08, False)):
        thread.cpu += used * 1_000_000
        thread.look(late, waited=waited)
        held.append(round(thread.clocks.held_nanoseconds / 1e6))
    assert held == [80, 1, 40, 0], "milliseconds"


@pytest.mark.parametrize(("held", "ticks"), [(0, 21), (0.08, 81), (5.0, 101)])
def test_all_ticks_are_made_up_for_that_a_call_held_the_gil_for(
    monkeypatch: pytest.MonkeyPatch, held: float, ticks: int
) -> None:
    sampler = CPUSampler(EventBatcher())
    stop = threading.Event()
    with thread(stop.wait):
        sampler._tick(1, 0.001)
        monkeypatch.setattr(ThreadClocks, "held_nanoseconds", int(held * 1e9))
        made_up = sampler._tick(101, 0.001, late=0.1)[0]
        stop.set()
    assert made_up == ticks


def wait_in_every_way(
    stop: threading.Event, pipe: int, queue: SimpleQueue[None], lock: threading.Lock
) -> list[Callable[[], object]]:
    def loop() -> None:
        while not stop.wait():
            pass

    def loop_over_a_file() -> None:
        with open(pipe, "rb", closefd=False) as file:
            for _ in file:
                pass

    def enter() -> None:
        with lock:
            pass

    def iterate() -> None:
        for _ in iter(queue.get, None):
            pass

    return [loop, loop_over_a_file, enter, iterate, queue.get, lambda: list(iter(queue.get, None))]


def test_only_at_a_call_can_a_thread_wait() -> None:
    """A thread that computes is found at a jump or at a call, one that waits never at a jump."""
    stop, queue, lock, (reads, writes) = threading.Event(), SimpleQueue[None](), threading.Lock(), os.pipe()
    ways = wait_in_every_way(stop, reads, queue, lock)
    states = RunStates()
    lock.acquire()
    threads = [threading.Thread(target=way) for way in ways]
    for each in threads:
        each.start()
    deadline = time.monotonic() + PATIENCE
    while True:  # until they wait, each at its last place
        stacks = read_stacks()
        places = [stacks[each.ident or 0][0] for each in threads]
        waiting = [states.state(each.native_id or 0) != RUNNING for each in threads]
        if all(waiting) and all(can_wait(code, lasti) for code, lasti, *_ in places):
            break
        assert time.monotonic() < deadline, (waiting, places)
    stop.set()
    lock.release()
    os.close(writes)
    for _ in threads:
        queue.put(None)
    for each in threads:
        each.join()
    os.close(reads)

    def compute() -> None:
        number = 0
        while not stop.is_set() or number < 1000:
            for _ in range(100):
                number += 1

    stop.clear()
    seen = 0
    with thread(compute) as computing:
        while not seen and time.monotonic() < deadline:
            stack = read_stacks().get(computing.ident or 0)
            seen += stack is not None and stack[0][0] is compute.__code__ and not can_wait(*stack[0][:2])
            time.sleep(0)
        stop.set()
    assert seen, "no jump was seen"


def note_switch_intervals(stop: threading.Event, seen: set[float]) -> None:
    """Compute, and note the switch intervals that are set meanwhile, in seconds."""
    while not stop.is_set():
        burn(0.001)
        seen.add(round(sys.getswitchinterval(), 6))


@pytest.mark.parametrize("host", [0.005, 0.00005])
def test_the_sampler_waits_for_the_gil_before_a_tick_is_due_while_one_thread_computes(
    client: Client, host: float, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(host)
    stop = threading.Event()
    seen: set[float] = set()
    client.ask(b"start_cpu_profiling")
    with thread(partial(note_switch_intervals, stop, seen)):
        client.events(CPUSample, lambda found: min(host, cpu.LEAD) in seen and len(found) > 200)
        stop.set()
    client.ask(b"stop_cpu_profiling")
    assert sys.getswitchinterval() == pytest.approx(host), "not a microsecond less"


def test_the_switch_interval_is_longer_while_threads_compute_at_once(client: Client) -> None:
    stop = threading.Event()
    seen: set[float] = set()
    compute = partial(note_switch_intervals, stop, seen)
    host = sys.getswitchinterval()
    client.ask(b"use_cpu_time", b"start_cpu_profiling")
    with thread(compute), thread(compute):
        client.events(CPUSample, lambda found: 0.0005 in seen and len(found) > 200)
        stop.set()
    client.ask(b"stop_cpu_profiling")
    assert sys.getswitchinterval() == host


@pytest.mark.parametrize("native_id", [0, -1, 1 << 22, 1 << 28, 1 << 40])
def test_a_number_that_is_no_id_of_a_thread_has_no_clock(native_id: int) -> None:
    assert clocks.cpu_nanoseconds(native_id) is None


@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.CDLL(None).fork()"])
def test_the_main_thread_of_a_forked_child_has_a_clock_and_a_name(fork: str) -> None:
    """Up to Python 3.13, and later if C code forks, `threading` keeps the id that the thread has in the parent."""
    script = f"""
import ctypes, os, threading
from tornado_rbkit.profiler import clocks
from tornado_rbkit.profiler.external.own_process import OwnProcess
if {fork} == 0:
    main = threading.main_thread()
    found = clocks.ThreadClocks()._find(main.ident)
    assert found is not None and found.native_id == os.getpid(), found
    assert OwnProcess().thread(os.getpid()) == (main.ident, "MainThread")
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    finished = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_the_gil_is_found_however_late_the_thread_computes_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not taken for what a thread shows that waits for its memory."""
    looks, has_processor = itertools.count(), Flag()
    call = RunStates._call

    class Wait(Flag):
        def wait(self, timeout: float | None = None) -> bool:
            if next(looks) == 2 * run_state._ATTEMPTS:
                has_processor.set()
            return super().wait(timeout)

    def begin_late(run: Callable[[], None], name: str) -> InternalThread:
        def later() -> None:
            has_processor.wait()
            run()

        return InternalThread(later, name)

    calls = itertools.count()
    monkeypatch.setattr(run_state, "Flag", Wait)
    monkeypatch.setattr(run_state, "InternalThread", begin_late)
    monkeypatch.setattr(
        RunStates, "_call", lambda *thread: [b"-1", b"0x1", b"0x2"] if next(calls) < 5 else call(*thread)
    )
    found = RunStates()
    assert (found._futex, found._is_gil(run_state.run_states()._gil)) == (run_state.run_states()._futex, True)


def test_a_thread_that_waits_for_its_memory_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    states = run_state.run_states()
    monkeypatch.setattr(states, "_call", lambda native_id: [b"-1", b"0x7ffe5d2ad478", b"0x7f0eb7d0bc8a"])
    assert states.state(1) == RUNNING


def test_a_second_measurement_of_the_run_states_makes_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class would be reported as one that the program has made."""
    monkeypatch.setattr(run_state, "_ATTEMPTS", 0)

    def classes() -> set[int]:
        with pytest.raises(OSError, match="cannot be read"):
            RunStates()
        return {id(item) for item in gc.get_objects() if issubclass(type(item), type)}

    classes()
    gc.collect()
    before = classes()
    assert classes() <= before
