"""Clients and the host cannot keep the server busy, keep the process from ending, or hide the server's end."""

from __future__ import annotations

import _thread
import gc
import logging
import os
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from operator import methodcaller
from types import FrameType
from typing import Any

import pytest

from tests.fake_rbkit import free_port
from tests.profiler.conftest import PATIENCE, Client, internal_thread_names
from tests.profiler.python import python
from tornado_rbkit import profiler
from tornado_rbkit.profiler import heap, lifecycle, threads
from tornado_rbkit.profiler import server as server_module
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.endpoints import bind_chosen, same_endpoint
from tornado_rbkit.profiler.profile import MAX_PARTS, Profile
from tornado_rbkit.profiler.threads import Flag, InternalThread
from tornado_rbkit.protocol import Handshake, decode

REFUSED = f"a request of 10000 parts was not run; allowed: {MAX_PARTS}. This is logged once"


STEPS = (("work", 0), ("objectspace_snapshot", 0), ("stop_memory_profile", 0), ("stop_memory_profile", 1))
"""Methods of a profile, and after how many turns of the host the server is being stopped."""


class Outlet:
    """What a profile publishes by; it has been told to stop after so many turns of the host."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def send_all(self, events: Sequence[bytes]) -> None:
        raise AssertionError("nothing is sent")

    def flush(self) -> None:
        pass

    has_subscribers = False

    def yield_to_host(self) -> bool:
        self.turns -= 1
        return self.turns >= 0


class TestParts:
    def test_of_a_request_with_too_many_nothing_is_run(
        self, client: Client, server: profiler.Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(2):
            assert client.ask(*[b"start_memory_profile"] * 10_000) == b"ok"
        assert [record.getMessage() for record in caplog.records] == [REFUSED]
        assert isinstance(decode(client.ask(b"handshake")), Handshake)
        assert not server.status()["memory"]["enabled"]

    def test_as_many_as_are_allowed_are_run(self, client: Client, server: profiler.Server) -> None:
        client.ask(*[b""] * (MAX_PARTS - 1), b"start_memory_profile")
        client.ask(b"handshake")
        assert server.status()["memory"]["enabled"]

    @pytest.mark.parametrize("turns", range(4))
    def test_the_rest_is_left_out_when_the_server_is_stopped(self, turns: int) -> None:
        profile = Profile("x", EventBatcher(), Outlet(turns))
        done = 0

        def count() -> bytes:
            nonlocal done
            done += 1
            return b"ok"

        profile._commands[b"count"] = count
        profile.answer([b"count"] * 4)
        assert done == turns + 1

    @pytest.mark.parametrize("second", STEPS)
    @pytest.mark.parametrize("first", STEPS)
    def test_what_is_given_up_leaves_nothing_that_runs_when_the_host_drops_it(
        self, first: tuple[str, int], second: tuple[str, int]
    ) -> None:
        """A suspended generator would end there, where the tracer of a debugger sees it."""
        outlet = Outlet(0)
        profile = Profile("x", EventBatcher(), outlet)
        profile.start_memory_profile()
        for method, turns in (first, second):
            outlet.turns = turns
            getattr(profile, method)()
        profile.close()
        run: list[str] = []
        before = sys.getprofile()
        sys.setprofile(lambda frame, event, argument: run.append(frame.f_code.co_filename))
        del profile, outlet
        gc.collect()
        sys.setprofile(before)
        assert not [file for file in run if file.startswith(os.path.dirname(heap.__file__))]

    def test_the_process_ends_in_the_middle_of_a_request(self) -> None:
        output = python(
            """
import sys
import tracemalloc
from collections.abc import Callable
from tests.profiler.conftest import Client
from tornado_rbkit import profiler
heap = [[] for _ in range(200_000)]
server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
client = Client(server.pub, server.req)
client.__enter__()
client.req.send_multipart([b"objectspace_snapshot"] * 10)
while not server.status()["snapshot_objects"]:
    pass
profiler.stop_server()
print(server.status()["snapshot_objects"] < 10 * 200_000)
client.__exit__(None, None, None)
"""
        )
        assert output == "True\n"


BUSY = """
import logging, sys, threading
from tornado_rbkit import profiler
logging.basicConfig(stream=sys.stdout, format="%(message)s")
server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
busy = threading.Event()
def never_return(profile):
    busy.set()
    threading.Event().wait()
threading.Thread(target=server.call, args=(never_return,), daemon=True).start()
busy.wait()
"""


class TestTheEndOfTheProcess:
    def test_waits_for_a_busy_server_no_longer_than_it_says(self) -> None:
        assert python(BUSY) == "the profiler's thread is still busy after 2 s; the process ends\n"

    def test_is_not_held_up_by_a_host_that_waits_for_the_server(self) -> None:
        waiting = """
thread = threading.Thread(target=profiler.start_profiling, daemon=True)
thread.start()
while not server._calls:
    pass
"""
        assert python(BUSY + waiting) == "the profiler's thread is still busy after 2 s; the process ends\n"

    @pytest.mark.parametrize("ends_after", [1, 2, 1000])
    def test_is_delayed_for_no_shorter_time_by_a_pause_of_the_process(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ends_after: int
    ) -> None:
        """The first wait may last as long as the process is stopped, in which its threads do not run either."""
        waits: list[float] = []

        class Stopping:
            def belongs_here(self) -> bool:
                return True

            def stop(self, timeout: float) -> bool:
                waits.append(timeout)
                return len(waits) == ends_after

        monkeypatch.setattr(lifecycle, "_server", Stopping())
        lifecycle._stop_at_exit()
        monkeypatch.setattr(lifecycle, "_server", None)
        assert bool(caplog.records) == (ends_after == 1000)
        assert sum(waits) <= 2.001


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ("tcp://localhost:5555", "tcp://127.0.0.1:5555"),
        ("tcp://LOCALHOST:05555", "tcp://127.0.0.1:5555"),
        ("tcp://*:5555", "tcp://0.0.0.0:5555"),
        ("tcp://[0:0::1]:5555", "tcp://[::1]:5555"),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:40001"),
        ("ipc:///tmp/../tmp/x", "ipc:///tmp/x"),
    ],
)
def test_two_spellings_of_an_endpoint_are_the_same(given: str, bound: str) -> None:
    assert same_endpoint(given, bound)
    assert same_endpoint(bound, bound)


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        ("tcp://localhost:5556", "tcp://127.0.0.1:5555"),
        ("tcp://127.0.0.2:5555", "tcp://127.0.0.1:5555"),
        ("tcp://*:5555", "tcp://127.0.0.1:5555"),
        ("ipc:///tmp/y", "ipc:///tmp/x"),
        ("ipc:///tmp/x", "tcp://127.0.0.1:5555"),
        ("tcp://127.0.0.1:5555", "ipc:///tmp/x"),
        ("tcp://127.0.0.1:*", "ipc:///tmp/x"),
    ],
)
def test_other_endpoints_are_not(given: str, bound: str) -> None:
    assert not same_endpoint(given, bound)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "*"])
def test_profiling_can_be_started_again_with_the_same_arguments(host: str) -> None:
    pub, req = f"tcp://{host}:{free_port()}", f"tcp://{host}:{free_port()}"
    try:
        server = profiler.start_profiling(pub, req)
        assert profiler.start_profiling(pub, req) is server
        assert profiler.start_profiling(pub) is server
        assert profiler.start_server(pub, req) is profiler.start_server() is server
        with pytest.raises(profiler.AlreadyRunningError):
            profiler.start_profiling(pub, pub)
        with pytest.raises(profiler.AlreadyRunningError):
            profiler.start_server(req)
    finally:
        profiler.stop_server()


class Fault(BaseException):
    """Nobody expects it."""


@pytest.mark.logs_errors
@pytest.mark.parametrize("start", [profiler.start_server, profiler.start_profiling])
def test_a_server_that_has_died_is_logged_and_can_be_started_again(
    server: profiler.Server, caplog: pytest.LogCaptureFixture, start: Callable[..., profiler.Server]
) -> None:
    def fail() -> None:
        raise Fault

    server._calls.append(fail)
    server._wake()
    assert server._thread is not None
    server._thread.join()
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == "the profiler's server has ended; start_server() starts another"
    assert record.exc_info
    assert isinstance(record.exc_info[1], Fault)
    assert profiler.current_server() is None
    with pytest.raises(RuntimeError, match="has stopped"):
        server.call(lambda profile: None)
    successor = start(server.pub, server.req)
    assert successor.running
    with Client(successor.pub, successor.req) as client:
        assert isinstance(decode(client.ask(b"handshake")), Handshake)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_child_forked_in_c_has_no_server_and_leaves_its_parents_alone() -> None:
    output = python(
        """
import ctypes, os, signal, sys, time
from pathlib import Path
from tests.profiler.conftest import Client
from tornado_rbkit import profiler
from tornado_rbkit.profiler import server as server_module
from tornado_rbkit.profiler.threads import internal_native_ids

server_module._LOOK_SECONDS = 1e6  # the server's thread sleeps until it is asked something

def fork():
    # Not while the server's thread waits for the GIL: the child's copy of the GIL would be of no use.
    while not all("poll" in Path(f"/proc/self/task/{each}/wchan").read_text() for each in internal_native_ids()):
        time.sleep(0.001)
    return ctypes.PyDLL(None).fork()  # what uWSGI does, without PyOS_AfterFork_Child

server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "parent")
profiler.lifecycle._lock.acquire()  # as another thread of the parent's might have it
child = fork()
if child == 0:
    signal.alarm(200)  # a fault is a wait for a thread that is not there
    assert not server.running
    try:
        server.call(lambda profile: None)
    except RuntimeError:
        pass
    assert profiler.current_server() is None
    profiler.stop_server()
    own = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "child")
    with Client(own.pub, own.req) as client:
        assert client.ask(b"handshake")
    sys.stdout.write("child ")
    sys.exit(0)
profiler.lifecycle._lock.release()
_, status = os.waitpid(child, 0)
assert status == 0, status
assert [found.name for found in profiler.list_servers()] == ["parent"]
with Client(server.pub, server.req) as client:
    assert client.ask(b"handshake")
while server.call(lambda profile: profile._outlet.has_subscribers):
    pass  # the server's thread does not wake for the end of the connection any more
child = fork()
if child == 0:
    signal.alarm(200)
    sys.exit(0)  # a worker that never asked
_, status = os.waitpid(child, 0)
assert status == 0, status
assert [found.name for found in profiler.list_servers()] == ["parent"]
print("parent")
"""
    )
    assert output == "child parent\n"


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("/site-packages/uvicorn/__main__.py", "uvicorn"),  # python -m uvicorn, and each of its workers
        ("tool/app.py", "tool/app.py"),
        ("__main__.py", "__main__.py"),
        ("-c", sys.executable),
        ("", sys.executable),
    ],
)
def test_the_default_name_says_what_the_process_runs(monkeypatch: pytest.MonkeyPatch, script: str, name: str) -> None:
    monkeypatch.setattr(sys, "argv", [script, "argument"])
    assert lifecycle._default_name() == name


def interrupted_at(moment: int, interrupt: Callable[[], object], work: Callable[[], object]) -> bool:
    """Do some work, and at one of its calls in the profiler what the handler of a signal may do there.

    Returns False if the work has fewer calls.
    """
    files = [module.__file__ for module in (lifecycle, server_module, threads)]
    waited = -1

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal waited
        if event == "call" and frame.f_code.co_filename in files:
            waited += 1
            if waited == moment:
                sys.setprofile(None)
                interrupt()
                sys.setprofile(count)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return waited >= moment


def start_and_stop() -> None:
    profiler.start_server()
    profiler.stop_server()


class Interrupted(Exception):
    """What the handler of a signal raises."""


def fail() -> None:
    raise Interrupted


class TestAtAnyMomentOfStartAndStop:
    @pytest.fixture(autouse=True)
    def _nothing_is_left(self) -> Iterator[None]:
        yield
        profiler.stop_server()
        assert profiler.current_server() is None
        assert internal_thread_names() == set()

    @pytest.mark.parametrize("function", [profiler.start_server, profiler.stop_server])
    def test_the_handler_of_a_signal_may_start_and_stop_the_server(self, function: Callable[[], object]) -> None:
        moment = 0
        while interrupted_at(moment, function, start_and_stop):
            profiler.stop_server()
            assert internal_thread_names() == set(), f"at call {moment}"
            moment += 1
        assert moment > 20

    def test_the_handler_of_a_signal_may_raise(self) -> None:
        moment, is_over = 0, False
        while not is_over:
            try:
                is_over = not interrupted_at(moment, fail, start_and_stop)
            except Interrupted:
                moment += 1
            profiler.stop_server()
            assert internal_thread_names() == set(), f"at call {moment}"
        assert moment > 20


class TestOnAThreadOfTheProfiler:
    """The host's finalizers may run there."""

    def test_the_server_is_stopped_without_waiting(self, server: profiler.Server) -> None:
        server.call(lambda _: profiler.stop_server())
        assert server._thread is not None
        assert server._thread.join(PATIENCE)
        assert profiler.current_server() is None

    def test_nothing_is_started_that_would_wait_for_it(self, server: profiler.Server) -> None:
        with pytest.raises(RuntimeError, match="cannot start the profiler"):
            server.call(lambda _: profiler.start_server())
        with pytest.raises(RuntimeError, match="cannot wait"):
            server.call(lambda _: server.announce())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("function", ["leave_signals_to_the_host", "original"])
def test_a_thread_that_cannot_begin_is_reported(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = threads.original

    def refuse(name: str = "") -> object:
        if name in ("", "start_new_thread"):
            raise MemoryError
        return original(name)

    with monkeypatch.context() as patched:
        patched.setattr(threads, function, refuse)
        with pytest.raises((MemoryError, RuntimeError)):
            profiler.start_server()
        assert profiler.current_server() is None
    start_and_stop()


class TestAllocationTracing:
    def test_is_refused_beside_sub_interpreters_which_it_would_crash(self) -> None:
        output = python(
            """
import tracemalloc
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
from tornado_rbkit import profiler
tracemalloc.stop()  # of -X dev
server = profiler.start_server()
def ask():
    return server.call(lambda profile: profile.answer([b"start_allocation_tracing"])), tracemalloc.is_tracing()
interpreter = interpreters.create()
print(ask())
interpreters.destroy(interpreter)
print(ask())
"""
        )
        refusal = "allocation tracing is off: tracemalloc can end a process that has sub-interpreters"
        assert output == f"(b'{refusal}', False)\n(b'ok', True)\n"

    def test_of_the_program_that_began_meanwhile_goes_on(self, server: profiler.Server) -> None:
        def ask(command: bytes) -> bytes:
            return server.call(lambda profile: profile.answer([command]))

        assert ask(b"start_allocation_tracing") == b"ok"
        tracemalloc.stop()
        tracemalloc.start(5)
        try:
            assert b"stays on" in ask(b"stop_allocation_tracing")
            assert tracemalloc.is_tracing()
        finally:
            tracemalloc.stop()
        assert ask(b"stop_allocation_tracing") == b"ok"


def test_an_interrupt_in_the_jump_of_the_loop_that_waits_for_the_sockets_stops_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to Python 3.13 no handler of the function in which the loop is covers its jump."""
    begin = Flag()
    bind = bind_chosen

    def bind_later(*arguments: Any) -> Any:
        begin.wait()
        return bind(*arguments)

    class Interrupt:
        send = _thread.interrupt_main
        is_sent = property(methodcaller("send"))  # runs no bytecode: the interrupt arrives in the caller

    looks = iter([True])  # the first pass through the loop ends without a jump

    def is_alive(_: InternalThread) -> bool:
        if next(looks, False):
            return True
        begin.set()
        return not interrupt.is_sent

    def on_signal(*_: object) -> None:
        raise KeyboardInterrupt("of the host")

    interrupt = Interrupt()
    monkeypatch.setattr(server_module, "bind_chosen", bind_later)
    monkeypatch.setattr(server_module, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(InternalThread, "is_alive", is_alive)
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        with pytest.raises(KeyboardInterrupt, match="of the host"):
            profiler.start_server()
    finally:
        signal.signal(signal.SIGINT, before)
        monkeypatch.undo()
    assert not server_module._unstopped
    assert not threads.internal_threads()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_has_nothing_of_a_server_that_is_started_or_stopped_during_the_fork() -> None:
    output = python(
        """
import os, sys, warnings
from tests.profiler.test_server_life import interrupted_at, start_and_stop
from tornado_rbkit import profiler
from tornado_rbkit.profiler.threads import internal_threads

warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
statuses = set()

def fork():
    pid = os.fork()
    if not pid:
        sockets = [name for name in os.listdir("/dev/fd") if os.path.realpath(f"/dev/fd/{name}").count("socket:")]
        os._exit(bool(internal_threads()) + 2 * bool(profiler.current_server()) + 4 * (len(sockets) > 2))
    statuses.add(os.waitpid(pid, 0)[1])

moment = 0
while interrupted_at(moment, fork, start_and_stop):
    moment += 2
print(moment > 20, statuses)
"""
    )
    assert output == "True {0}\n"
