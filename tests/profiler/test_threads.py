"""The profiler's threads, which the host's program does not see."""

from __future__ import annotations

import sys
import threading

import pytest

from tests.profiler.conftest import Client, internal_thread_names
from tests.profiler.python import python
from tornado_rbkit import profiler
from tornado_rbkit.profiler.threads import Flag, InternalThread, internal_logger
from tornado_rbkit.protocol import CPUSample


def test_a_program_that_joins_or_counts_all_threads_does_not_wait_for_the_profiler() -> None:
    output = python(
        """
import threading
from tornado_rbkit import profiler
profiler.start_profiling("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", enable_cpu_profiling=True)
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join()
while threading.active_count() > 1:
    pass
print("end")
"""
    )
    assert output == "end\n"


def test_hooks_of_the_host_do_not_run_on_the_profilers_threads(server: profiler.Server, client: Client) -> None:
    calls: list[str] = []

    def hook(frame: object, event: str, argument: object) -> None:
        calls.append(event)

    threading.setprofile(hook)
    threading.settrace(hook)
    try:
        profiler.start_profiling(enable_cpu_profiling=True)  # starts the sampler's thread
        client.events(CPUSample, lambda found: len(found) >= 20)
    finally:
        threading.setprofile(None)
        threading.settrace(None)
    assert calls == []


def test_logging_leaves_no_thread_in_threading(caplog: pytest.LogCaptureFixture) -> None:
    before = set(threading.enumerate())
    seen: list[set[threading.Thread]] = []

    def warn() -> None:
        internal_logger("tests.profiler").warning("%s", "here")
        seen.append(set(threading.enumerate()))

    assert InternalThread(warn, "test").join(60)
    (left,) = seen
    assert left <= before, "a thread of an earlier test may end meanwhile"
    (record,) = caplog.records
    assert record.getMessage() == "here"
    if sys.version_info >= (3, 11):
        assert record.funcName == "warn"


class TestAFlag:
    def test_wakes_every_waiting_thread_and_stays_set(self) -> None:
        flag = Flag()
        assert not flag.wait(0.0)
        woken: list[bool] = []
        threads = [InternalThread(lambda: woken.append(flag.wait(60)), f"waits {at}") for at in range(3)]
        flag.set()
        flag.set()
        assert all(thread.join(60) for thread in threads)
        assert woken == [True, True, True]
        assert flag.is_set()
        assert flag.wait()

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="states are read on Linux")
    def test_holds_no_object_that_the_collector_lists_while_a_thread_waits(self) -> None:
        output = python(
            """
import gc, time
from tornado_rbkit.profiler.run_state import RUNNING, RunStates
from tornado_rbkit.profiler.threads import Flag, InternalThread

flag, seconds, states = Flag(), float("12345.5"), RunStates()
thread = InternalThread(lambda: flag.wait(seconds), "waits")
while not thread.native_id or states.state(thread.native_id) == RUNNING:
    time.sleep(0.001)
gc.disable()
items = [item for item in gc.get_objects() if type(item) in (dict, tuple)]
values = lambda item: item.values() if type(item) is dict else item
print([item for item in items if item is not globals() and any(value is seconds for value in values(item))])
flag.set()
thread.join()
"""
        )
        assert output == "[]\n"

    def test_may_be_set_by_many_threads_at_once(self) -> None:
        for _ in range(200):
            flag, start = Flag(), Flag()

            def strike(start: Flag = start, flag: Flag = flag) -> None:
                start.wait()
                flag.set()
                flag.wait()

            threads = [InternalThread(strike, "strikes") for _ in range(4)]
            start.set()
            assert all(thread.join(60) for thread in threads)


def test_an_ended_thread_is_not_listed() -> None:
    thread = InternalThread(lambda: None, "short")
    assert thread.join(60)
    assert not thread.is_alive()
    assert "short" not in internal_thread_names()
