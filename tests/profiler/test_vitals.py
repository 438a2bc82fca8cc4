"""The vitals: one gc_stats event a second while anybody subscribes, and what their figures say."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_rbkit import recorded
from tests.profiler.conftest import PATIENCE, Client, raw_events
from tests.profiler.python import python
from tornado_rbkit import profiler
from tornado_rbkit.profiler import profile as profile_module
from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.vitals import Vitals, process_figures
from tornado_rbkit.protocol import EventType, GCStats

LINUX = sys.platform.startswith("linux")
OWN = {"process_rss", "process_cpu_ms", "process_threads", "gc_pause_ms"}


def seen_subscribers(server: profiler.Server) -> bool:
    return server.call(lambda profile: profile._outlet.has_subscribers)


def wait_for(server: profiler.Server, subscribed: bool) -> None:
    deadline = time.monotonic() + PATIENCE
    while seen_subscribers(server) is not subscribed:
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: subscribed is {subscribed}"


@contextmanager
def reads(server: profiler.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Make vitals due as soon as they were read, and give the times at which they were."""
    monkeypatch.setattr(profile_module, "VITALS_SECONDS", 0.0)
    profile = server.call(lambda profile: profile)
    read, times = profile.read_vitals, list[float]()

    def note() -> Any:
        times.append(time.monotonic())
        return read()

    with monkeypatch.context() as patch:
        patch.setattr(profile, "read_vitals", note)
        yield times


class Audience:
    """An outlet with subscribers."""

    has_subscribers = True

    def __init__(self) -> None:
        self.flushes = 0

    def send_all(self, events: Sequence[bytes]) -> None:
        raise AssertionError("nothing else is sent")

    def flush(self) -> None:
        self.flushes += 1

    def yield_to_host(self) -> bool:
        return True


def test_vitals_come_without_any_profile(client: Client) -> None:
    client.events(GCStats, lambda found: len(found) >= 3)
    assert not any(raw_events(message, EventType.OBJ_CREATED) for message in client.messages)


@given(st.lists(st.integers(1, 5000).map(lambda each: each / 1024), min_size=1, max_size=50))
def test_vitals_come_once_a_second_however_late_the_server_wakes(waits: list[float]) -> None:
    now, times = 1000.0, list[float]()
    outlet = Audience()
    profile = profile_module.Profile("x", EventBatcher(), outlet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile_module, "real_time", SimpleNamespace(monotonic=lambda: now))
        patch.setattr(profile, "read_vitals", dict)
        for wait in waits:
            due = profile.publish_vitals()
            assert due is not None
            assert 0 < due <= 1
            if outlet.flushes > len(times):
                times.append(now)
            now += wait
    assert times[0] == 1000.0
    assert all(each >= 1000.0 + number for number, each in enumerate(times))
    longest = max([1.0, *waits])
    assert len(times) >= (times[-1] - times[0]) / (1 + longest)


def test_nothing_is_read_or_sent_without_a_subscriber(
    server: profiler.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reads(server, monkeypatch) as times:
        for _ in range(20):
            server.call(lambda profile: None)
        assert (times, server.status()["messages"]) == ([], 0)
        with Client(server.pub, server.req) as client:
            client.events(GCStats, lambda found: found)
        wait_for(server, subscribed=False)
        count, messages = len(times), server.status()["messages"]
        for _ in range(20):
            server.call(lambda profile: None)
        assert (len(times), server.status()["messages"]) == (count, messages)


def test_vitals_continue_until_the_last_of_several_subscribers_has_left(server: profiler.Server) -> None:
    with Client(server.pub, server.req) as client:
        client.events(GCStats, lambda found: found)
        with Client(server.pub, server.req) as other:
            other.events(GCStats, lambda found: found)
        client.events(GCStats, lambda found: len(found) >= 2)
        client.sub.subscribe(b"of one message only")
        client.sub.unsubscribe(b"of one message only")
        client.events(GCStats, lambda found: len(found) >= 2)
        client.sub.unsubscribe(b"")
        wait_for(server, subscribed=False)
        client.sub.subscribe(b"")
        client.events(GCStats, lambda found: found)
    wait_for(server, subscribed=False)


def test_other_messages_of_a_subscriber_are_ignored(client: Client, server: profiler.Server) -> None:
    with zmq.Context() as context, context.socket(zmq.XSUB) as sub:
        sub.linger = 0
        sub.connect(server.pub)
        for number in range(3000):
            sub.send_multipart([b"not a subscription %d" % number, b"", b"more"])
        client.events(GCStats, lambda found: len(found) >= 2)
        assert client.ask(b"trigger_gc") == b"ok"


def test_no_reply_waits_while_subscribers_come_and_go(client: Client, server: profiler.Server) -> None:
    with zmq.Context() as context:
        for number in range(50):
            with context.socket(zmq.SUB) as sub:
                sub.linger = 0
                sub.subscribe(b"%d" % number)
                sub.connect(server.pub)
                assert client.ask(b"use_wall_time") == b"ok"
    assert client.ask(b"use_wall_time") == b"ok"


def test_a_program_can_switch_the_vitals_off() -> None:
    server = profiler.start_profiling(
        "tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "quiet", enable_object_trace=False, enable_gc_stats=False
    )
    try:
        with Client(server.pub, server.req) as client:
            wait_for(server, subscribed=True)
            for _ in range(20):
                client.ask(b"handshake")
            assert server.status()["messages"] == 0
            client.ask(b"start_memory_profile")
            client.ask(b"stop_memory_profile")
            client.ask(b"handshake")
            list(client.waiting())
            assert not any(raw_events(message, EventType.GC_STATS) for message in client.messages)
            profiler.start_profiling(enable_object_trace=False)
            client.events(GCStats, lambda found: found)
            assert not server.status()["memory"]["enabled"]
    finally:
        profiler.stop_server()


@pytest.mark.logs_errors
def test_vitals_that_cannot_be_read_for_a_while_are_reported_and_come_again(
    server: profiler.Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Any:
        failed.set()
        raise MemoryError("the planted fault")

    failed = threading.Event()
    monkeypatch.setattr(profile_module, "VITALS_SECONDS", 0.01)
    patched = pytest.MonkeyPatch()
    patched.setattr(server.call(lambda profile: profile), "read_vitals", fail)
    with Client(server.pub, server.req) as client:
        for _ in range(2):
            failed.clear()
            assert failed.wait(PATIENCE)
        assert b"the vitals cannot be read (MemoryError: the planted fault)" in client.ask(b"handshake")
        assert server.status()["vitals"] == {"trouble": "the vitals cannot be read (MemoryError: the planted fault)"}
        patched.undo()
        client.events(GCStats, len)
        assert b"vitals" not in client.ask(b"handshake")
    assert [record.getMessage() for record in caplog.records] == ["the vitals cannot be read; this is logged once"]


def test_the_figures_have_rbkits_keys_and_our_own(client: Client) -> None:
    (ours, *_) = client.events(GCStats, lambda found: found)
    rubys = next(
        event
        for _, channel, _, payload in recorded("memory")
        if channel == 1
        for event in raw_events(payload, EventType.GC_STATS)
    )
    mandatory = {key for key in rubys[2] if not key.startswith("remembered_wb")}
    assert set(ours.stats) - OWN == mandatory
    for key in ("count", "minor_gc_count", "major_gc_count", "heap_live_slots", "total_freed_objects"):
        assert type(ours.stats[key]) is int
    assert ours.stats["count"] == int(ours.stats["minor_gc_count"]) + int(ours.stats["major_gc_count"])
    assert all(type(value) is int or value == "" for value in ours.stats.values())


def test_only_a_memory_profile_knows_the_number_of_objects(client: Client) -> None:
    """Which is how a client without the handshake can tell vitals from a memory profile."""
    (stats, *_) = client.events(GCStats, lambda found: found)
    assert stats.stats["old_objects"] == ""
    client.ask(b"start_memory_profile")
    client.events(GCStats, lambda found: found and int(found[-1].stats["old_objects"] or 0) > 100)
    client.ask(b"stop_memory_profile")
    client.events(GCStats, lambda found: found and found[-1].stats["old_objects"] == "")


def test_the_resident_memory_the_cpu_time_and_the_threads_are_those_of_the_process() -> None:
    output = python(
        """
import sys, threading, time
from tornado_rbkit.profiler.vitals import Vitals

vitals = Vitals()
before = vitals.read(0)
held = b"x" * 50_000_000
began = time.process_time()
while time.process_time() < began + 0.05:
    pass
done = threading.Event()
threads = [threading.Thread(target=done.wait) for _ in range(5)]
for thread in threads:
    thread.start()
after = vitals.read(0)
done.set()
for thread in threads:
    thread.join()

def grown(key):
    return after[key] - before[key]

assert grown("process_cpu_ms") >= 49, (before, after)
if sys.platform == "linux":
    assert grown("process_rss") > 40_000_000, (before, after)
    assert grown("process_threads") == 5, (before, after)
    assert after["process_rss"] == after["total_heap_size"]
else:
    assert "process_rss" not in after
print("compared")
"""
    )
    assert output == "compared\n"


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_a_process_that_has_ended_has_no_figures() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:  # a fork beside threads is warned of
        child.wait()
    assert process_figures(child.pid) == {}


def test_pauses_are_known_where_the_interpreter_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = [{**each, "duration": 0.25} for each in gc.get_stats()]
    assert ("gc_pause_ms" in Vitals().read(0)) is ("duration" in gc.get_stats()[0])
    monkeypatch.setattr(gc, "get_stats", lambda: statistics)
    assert Vitals().read(0)["gc_pause_ms"] == 750


def test_blocks_are_counted_as_rarely_as_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now, counts = [0.0], list[float]()

    def count() -> int:
        counts.append(now[0])
        now[0] += 0.005
        return len(counts)

    monkeypatch.setattr(real_time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(sys, "getallocatedblocks", count)
    vitals = Vitals()
    told = []
    for _ in range(20):
        told.append(vitals.read(0)["heap_live_slots"])
        now[0] += 1.0
    assert told == sorted(told)
    assert len(counts) * 0.005 <= 0.001 * now[0] + 0.005


def test_no_object_is_listed_for_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(generation: int | None = None) -> list[object]:
        raise AssertionError("a list of a million objects takes 15 ms with the GIL held")

    monkeypatch.setattr(gc, "get_objects", fail)
    assert Vitals().read(5)["old_objects"] == 5
    assert Vitals().read(0)["old_objects"] == ""


def test_the_traced_memory_is_told_when_it_is_traced() -> None:
    assert Vitals().read(0)["total_memsize"] == ""
    tracemalloc.start()
    try:
        assert int(Vitals().read(0)["total_memsize"]) > 0
    finally:
        tracemalloc.stop()


if sys.version_info >= (3, 12):  # an interpreter may have a GIL of its own

    def test_blocks_are_not_counted_beside_interpreters_with_their_own_gil() -> None:
        """The memory of such an interpreter is given back to the system while another counts blocks."""
        output = python(
            """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
from tornado_rbkit.profiler.vitals import Vitals
calls = []
count = sys.getallocatedblocks
sys.getallocatedblocks = lambda: calls.append(1) or count()
from tornado_rbkit.profiler.budget import Budget
def use():
    budget = Budget()
    budget.begin()
    budget.note(0.1)
    budget.allows()
    return repr(Vitals().read(0)["heap_live_slots"] or None), len(calls)
kept = interpreters.create()
print(*use())
interpreters.destroy(kept)
del kept
blocks, number = use()
print(int(blocks) > 0, number)
"""
        )
        assert output.split() == ["None", "0", "True", "3"]
