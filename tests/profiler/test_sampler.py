"""The CPU sampler where something is wrong: errors, foreign interpreters, deep stacks, hundreds of threads."""

from __future__ import annotations

import itertools
import sys
import threading
import time

import msgpack
import pytest

from tests.profiler.conftest import PATIENCE, Client
from tests.profiler.python import python
from tests.profiler.test_cpu import running, sleeper
from tornado_rbkit import profiler
from tornado_rbkit.profiler import frames
from tornado_rbkit.profiler.batcher import BATCH_BYTES, EventBatcher
from tornado_rbkit.profiler.cpu import BYTES_PER_SECOND, SHARE, CPUSampler, Pace
from tornado_rbkit.protocol import CPUSample, Handshake, decode


def fail(*_: object) -> int:
    raise LookupError("the planted fault")


@pytest.mark.logs_errors
def test_a_sampler_that_fails_starts_again_once_and_says_so(
    client: Client, server: profiler.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sys.getswitchinterval()
    sampler = server.call(lambda profile: profile.cpu)
    assert isinstance(sampler, CPUSampler)
    tick, failures = sampler._tick, itertools.count()
    monkeypatch.setattr(sampler, "_tick", lambda *ticks: fail() if next(failures) == 10 else tick(*ticks))
    assert client.ask(b"start_cpu_profiling") == b"ok"
    client.events(CPUSample, lambda found: len(found) > 200 and "failed" in str(server.status()["cpu"]["trouble"]))
    status = server.status()["cpu"]
    assert status["enabled"]
    assert status["trouble"] == "the CPU sampler failed (LookupError: the planted fault); it was started again"
    monkeypatch.setattr(sampler, "_tick", fail)
    assert sampler._thread is not None
    assert sampler._thread.join(PATIENCE)
    status = server.status()["cpu"]
    assert not status["enabled"]
    assert status["trouble"] == "the CPU sampler failed (LookupError: the planted fault); CPU sampling is off"
    assert sys.getswitchinterval() == before
    facts = msgpack.unpackb(client.ask(b"handshake"), strict_map_key=False)[2]
    assert (facts["cpu_profiling_enabled"], facts["trouble"]) == (0, status["trouble"])
    assert isinstance(decode(client.ask(b"handshake")), Handshake)
    monkeypatch.setattr(sampler, "_tick", tick)
    sampler.interval = 0.1  # a busy machine would reach a lower rate than 1000/s, which would be reported
    assert client.ask(b"start_cpu_profiling") == b"ok"
    assert server.status()["cpu"]["trouble"] is None
    assert b"trouble" not in client.ask(b"handshake")


def test_threads_of_another_gil_are_never_read(
    client: Client, server: profiler.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "CPU sampling is off: the process has a sub-interpreter with another GIL, whose threads cannot be read"
    others: list[str] = []
    monkeypatch.setattr(frames, "_list_interpreters", lambda: [*frames._known, *others])
    assert client.ask(b"start_cpu_profiling") == b"ok"
    sampler = server.call(lambda profile: profile.cpu)
    assert isinstance(sampler, CPUSampler)
    client.events(CPUSample, bool)
    monkeypatch.setattr(frames, "_shares_gil", lambda interpreter: False)
    others.append("another")
    assert sampler._thread is not None
    assert sampler._thread.join(PATIENCE)
    assert (server.status()["cpu"]["enabled"], server.status()["cpu"]["trouble"]) == (False, reason)
    assert client.ask(b"start_cpu_profiling") == reason.encode()
    with pytest.raises(profiler.SamplingError, match="sub-interpreter"):
        profiler.start_profiling(enable_cpu_profiling=True)
    monkeypatch.setattr(frames, "_shares_gil", lambda interpreter: True)
    monkeypatch.setattr(frames, "_known", set(frames._known))
    assert client.ask(b"start_cpu_profiling") == b"ok"


def test_a_process_without_a_gil_is_not_sampled(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "has_gil", lambda: False)
    assert client.ask(b"start_cpu_profiling").startswith(b"CPU sampling is off: this interpreter runs without a GIL")


if sys.version_info >= (3, 12):  # an interpreter may have a GIL of its own

    def test_a_sub_interpreter_ends_the_sampling_before_it_can_crash_the_process() -> None:
        interpreters = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
        output = python(
            f"""
import logging, os, threading, time
import {interpreters} as interpreters
from tornado_rbkit import profiler
logging.disable()
server = profiler.start_profiling("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", enable_cpu_profiling=True,
                                  cpu_engine="in-process")
reads, writes = os.pipe()
code = f"import select\\nwhile not select.select([{{reads}}], [], [], 0)[0]: pass"
def run():
    interpreter = interpreters.create()
    interpreters.run_string(interpreter, code)
    interpreters.destroy(interpreter)
threads = [threading.Thread(target=run) for _ in range(2)]
for thread in threads:
    thread.start()
while server.status()["cpu"]["enabled"]:
    time.sleep(0.01)
os.close(writes)
for thread in threads:
    thread.join()
print(server.status()["cpu"]["trouble"])
"""
        )
        assert output.endswith("sub-interpreter with another GIL, whose threads cannot be read\n")


def _down(depth: int, reached: threading.Event, stop: threading.Event) -> None:
    if depth:
        _down(depth - 1, reached, stop)
    else:
        reached.set()
        stop.wait()


def test_messages_stay_small_however_deep_the_stacks_are() -> None:
    batcher = EventBatcher()
    sampler = CPUSampler(batcher)
    reached, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=_down, args=(900, reached, stop))
    thread.start()
    reached.wait()
    for _ in range(50):
        sampler._tick(1, 0.001)
    stop.set()
    thread.join()
    sizes = [len(message) for message in batcher.take(time.time(), flush=True)]
    assert sum(sizes) > 3 * BATCH_BYTES
    assert max(sizes) < 1.2 * BATCH_BYTES


class TestThePace:
    def test_is_what_was_requested_while_ticks_are_cheap(self) -> None:
        pace = Pace(0.001)
        for _ in range(100):
            pace.adapt(0.00009, 10_000)
        assert pace.interval == 0.001

    @pytest.mark.parametrize(("cpu_seconds", "size"), [(0.005, 1000), (0.00001, 800_000)])
    def test_keeps_the_cost_within_the_budget_and_recovers(self, cpu_seconds: float, size: float) -> None:
        pace = Pace(0.001)
        pace.adapt(cpu_seconds, size)
        assert cpu_seconds / pace.interval <= SHARE * 1.0001
        assert size / pace.interval <= BYTES_PER_SECOND * 1.0001
        assert pace.interval == pytest.approx(0.05)
        for _ in range(200):
            pace.adapt(0.00001, 1000)
        assert pace.interval == 0.001


def test_hundreds_of_threads_lower_the_rate_and_the_status_says_so(client: Client, server: profiler.Server) -> None:
    with running(*[sleeper] * 300):
        server.call(lambda profile: profile.cpu.start(0.0001))
        client.events(CPUSample, lambda _: "instead of 10000/s" in str(server.status()["cpu"]["trouble"]))
        status = server.status()["cpu"]
    assert status["achieved_rate"] < 5000
