"""The server: commands and their answers, endpoints, fork, and the end of the process."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from pathlib import Path

import msgpack
import pytest
import zmq

from tests.fake_rbkit import free_port, recorded
from tests.profiler.conftest import PATIENCE, Client, internal_thread_names, shape
from tests.profiler.python import python
from tornado_rbkit import profiler
from tornado_rbkit.profiler.batcher import BATCH_EVENTS, FLUSH_SECONDS, EventBatcher
from tornado_rbkit.profiler.packing import pack
from tornado_rbkit.profiler.threads import internal_threads
from tornado_rbkit.protocol import COMMANDS, EventCollection, Handshake, RbkitError, decode, message_counter


@pytest.mark.parametrize("command", sorted(COMMANDS - {"handshake"}))
def test_every_command_is_answered_ok(client: Client, command: str) -> None:
    assert client.ask(command.encode()) == b"ok"


@pytest.mark.parametrize(
    "request_parts",
    [
        [b""],
        [b"\0"],
        [b"\0handshake"],
        [b"no such command"],
        [b"HANDSHAKE"],
        [b"handshake\n"],
        [b"\xff" * 100_000],
        [b"start_cpu_profiling", b""],
        [b"", b"", b""],
    ],
)
def test_everything_else_is_answered_ok_and_the_server_continues(client: Client, request_parts: list[bytes]) -> None:
    assert client.ask(*request_parts) == b"ok"
    assert isinstance(decode(client.ask(b"handshake")), Handshake)


def test_every_part_of_a_multipart_request_is_run(client: Client) -> None:
    assert client.ask(b"use_cpu_time", b"start_memory_profile", b"bogus") == b"ok"
    handshake = decode(client.ask(b"handshake"))
    assert isinstance(handshake, Handshake)
    assert handshake.object_trace_enabled


def test_the_handshake_has_the_nine_fields_of_rbkit_and_four_of_our_own(client: Client) -> None:
    reply = client.ask(b"handshake")
    ruby = next(payload for _, _, command, payload in recorded("commands") if command == "handshake")
    ours, theirs = (msgpack.unpackb(each, strict_map_key=False) for each in (reply, ruby))
    assert ours[2].pop("allocation_tracing_enabled") == 0
    assert ours[2].pop("cpu_interval") == 0.001
    assert ours[2].pop("cpu_engine") == "in-process"
    assert ours[2].pop("cpu_shortest_burst") == 0.003
    assert shape(ours) == shape(theirs)
    handshake = decode(reply)
    assert isinstance(handshake, Handshake)
    assert handshake.pid == os.getpid()
    assert handshake.pwd == str(Path.cwd())
    assert handshake.process_name == "test"
    assert handshake.rbkit_protocol_version == "2.1"
    assert (handshake.object_trace_enabled, handshake.cpu_profiling_enabled) == (False, False)
    assert (handshake.clock_type, handshake.cpu_profiling_mode) == ("wall", "sampling")
    assert abs(handshake.timestamp - time.time() * 1000) < 60_000


def test_the_handshake_tells_what_is_enabled(client: Client) -> None:
    for command, field, value in [
        (b"start_memory_profile", "object_trace_enabled", True),
        (b"stop_memory_profile", "object_trace_enabled", False),
        (b"start_cpu_profiling", "cpu_profiling_enabled", True),
        (b"stop_cpu_profiling", "cpu_profiling_enabled", False),
    ]:
        client.ask(command)
        assert getattr(decode(client.ask(b"handshake")), field) is value, command


@pytest.mark.logs_errors
def test_a_memory_profile_that_fails_starts_again_once_and_says_so(
    client: Client, server: profiler.Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    profile = server.call(lambda profile: profile)
    failures = [MemoryError("first")]
    work = profile.memory.work

    def fail_sometimes() -> float | None:
        if failures:
            raise failures.pop()
        return work()

    assert client.ask(b"start_memory_profile") == b"ok"  # first, because it forgets an earlier failure
    monkeypatch.setattr(profile.memory, "work", fail_sometimes)
    while failures:
        client.ask(b"handshake")
    client.ask(b"handshake")  # is answered once the server's thread has dealt with the failure
    assert server.status()["memory"]["enabled"]
    again = "the memory profile failed (MemoryError: first); it was started again"
    assert server.status()["memory"]["trouble"] == again
    failures.append(MemoryError("second"))
    while server.status()["memory"]["enabled"]:
        client.ask(b"handshake")
    off = "the memory profile failed (MemoryError: second); memory profiling is off"
    assert server.status()["memory"]["trouble"] == off
    assert off.encode() in client.ask(b"handshake")
    assert [record.getMessage() for record in caplog.records] == [
        "the memory profile failed; it was started again",
        "the memory profile failed; memory profiling is off",
    ]
    assert client.ask(b"start_memory_profile") == b"ok"
    assert server.status()["memory"]["trouble"] is None


@pytest.mark.logs_errors
def test_a_command_that_fails_is_answered_with_the_error(
    client: Client, server: profiler.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = server.call(lambda profile: profile)

    def fail() -> bytes:
        raise LookupError("the planted fault")

    monkeypatch.setitem(profile._commands, b"trigger_gc", fail)
    assert client.ask(b"trigger_gc") == b"the command failed: LookupError: the planted fault"
    monkeypatch.setattr(profile.memory, "last_comparison", fail)
    client.ask(b"start_memory_profile")
    assert client.ask(b"stop_memory_profile") == b"the command failed: LookupError: the planted fault"
    assert not server.status()["memory"]["enabled"], "it was stopped nevertheless"
    assert isinstance(decode(client.ask(b"handshake")), Handshake)


def test_an_idle_server_answers_at_once(client: Client) -> None:
    """Rbkit looks each 50 ms; here it takes 0.2 ms, on a busy machine not each time."""
    client.ask(b"handshake")
    deadline = time.monotonic() + PATIENCE
    while True:
        began = time.perf_counter()
        client.ask(b"handshake")
        if time.perf_counter() - began < 0.02:
            return
        assert time.monotonic() < deadline


def test_a_taken_port_is_an_error_that_names_the_endpoint(server: profiler.Server) -> None:
    script = f"""
from tornado_rbkit import profiler, RbkitError
for kind in (RbkitError, OSError):
    try:
        profiler.start_server("tcp://127.0.0.1:*", {server.req!r})
    except kind as error:
        assert {server.req!r} in str(error), error
        assert error.errno and error.endpoint == {server.req!r}
    else:
        raise AssertionError("it started")
"""
    python(script)


def test_a_second_start_elsewhere_is_an_error_that_names_the_running_one(server: profiler.Server) -> None:
    with pytest.raises(profiler.AlreadyRunningError) as error:
        profiler.start_server("tcp://127.0.0.2:*", "tcp://127.0.0.1:1")
    assert isinstance(error.value, RbkitError)
    assert server.pub in str(error.value)
    assert server.req in str(error.value)
    assert error.value.server is server


def test_the_ports_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pub, req = free_port(), free_port()
    monkeypatch.setenv("RBKIT_PUB_PORT", str(pub))
    monkeypatch.setenv("RBKIT_REQ_PORT", str(req))
    try:
        server = profiler.start_server()
        assert (server.pub, server.req) == (f"tcp://127.0.0.1:{pub}", f"tcp://127.0.0.1:{req}")
    finally:
        profiler.stop_server()


@pytest.mark.parametrize("port", ["x", "0", "65536", "-1", "1.5"])
def test_a_port_in_the_environment_that_is_invalid_is_named(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("RBKIT_REQ_PORT", port)
    with pytest.raises(profiler.BindError, match="RBKIT_REQ_PORT"):
        profiler.start_server("tcp://127.0.0.1:*")


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://nonsense", "tcp://127.0.0.1:99999", "ipc://@abstract"])
def test_an_endpoint_that_is_invalid_is_named(endpoint: str) -> None:
    with pytest.raises(profiler.BindError, match=endpoint):
        profiler.start_server(endpoint, "tcp://127.0.0.1:*")


@pytest.mark.skipif(os.name == "nt", reason="ipc:// is for Unix")
def test_ipc_sockets_are_their_owners_alone(tmp_path: Path) -> None:
    pub, req = tmp_path / "pub", tmp_path / "req"
    umask = os.umask(0)
    try:
        server = profiler.start_server(f"ipc://{pub}", f"ipc://{req}")
        assert [stat.S_IMODE(path.stat().st_mode) for path in (pub, req)] == [0o600, 0o600]
        with Client(server.pub, server.req) as client:
            assert client.ask(b"trigger_gc") == b"ok"
            with pytest.raises(AssertionError):
                python(f"from tornado_rbkit import profiler; profiler.start_server({server.pub!r}, {server.req!r})")
            assert client.ask(b"trigger_gc") == b"ok"
    finally:
        os.umask(umask)
        profiler.stop_server()
    assert not pub.exists()


@pytest.mark.skipif(os.name == "nt", reason="ipc:// is for Unix")
def test_the_umask_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(mask: int) -> int:
        raise AssertionError("it is every thread's")

    monkeypatch.setattr(os, "umask", fail)
    server = profiler.start_server(f"ipc://{tmp_path}/pub", "tcp://127.0.0.1:*")
    profiler.stop_server()
    assert server.pub == f"ipc://{tmp_path}/pub"


@pytest.mark.skipif(os.name == "nt", reason="ipc:// is for Unix")
def test_the_socket_file_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    endpoints = f"ipc://{tmp_path}/pub", f"ipc://{tmp_path}/req"
    python(f"import os; from tornado_rbkit import profiler; profiler.start_server(*{endpoints}); os._exit(0)")
    assert (tmp_path / "pub").exists()
    try:
        server = profiler.start_server(*endpoints)
        with Client(server.pub, server.req) as client:
            assert client.ask(b"trigger_gc") == b"ok"
    finally:
        profiler.stop_server()
    assert not (tmp_path / "pub").exists()


@pytest.mark.parametrize("path", ["x" * 200, "missing/socket"])
def test_a_path_that_cannot_be_a_socket_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(profiler.BindError, match=path):
        profiler.start_server("tcp://127.0.0.1:*", f"ipc://{tmp_path}/{path}")
    assert profiler.current_server() is None


def test_the_sockets_are_made_on_the_thread_that_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    makers: set[str] = set()
    make = zmq.Context.socket

    def socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
        makers.update(internal_thread_names())
        assert threading.get_ident() in internal_threads()
        return make(context, kind)

    monkeypatch.setattr(zmq.Context, "socket", socket)
    profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    profiler.stop_server()
    assert makers == {"rbkit-server"}


def test_a_server_that_cannot_start_leaves_nothing(server: profiler.Server) -> None:
    python(
        f"""
import os, threading
from tornado_rbkit import profiler
open_before = len(os.listdir("/dev/fd"))
for _ in range(3):
    try:
        profiler.start_server("tcp://127.0.0.1:*", {server.req!r})
    except profiler.BindError:
        assert threading.active_count() == 1
        assert len(os.listdir("/dev/fd")) == open_before
"""
    )


def test_a_file_in_the_way_of_an_ipc_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    with pytest.raises(profiler.BindError, match="precious"):
        profiler.start_server(f"ipc://{path}", "tcp://127.0.0.1:*")
    assert path.read_text() == "precious"


def test_stopping_twice_and_starting_again() -> None:
    endpoints = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    for _ in range(3):
        server = profiler.start_server(*endpoints)
        with Client(server.pub, server.req) as client:
            client.ask(b"start_memory_profile")
        profiler.stop_server()
        profiler.stop_server()
        assert not server.running


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_no_server_and_leaves_its_parents_alone() -> None:
    output = python(
        """
import gc, os, sys, warnings
from tests.profiler.conftest import Client
from tornado_rbkit import profiler
warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
with Client(server.pub, server.req) as client:
    client.ask(b"start_memory_profile")
    client.ask(b"start_cpu_profiling")
child = os.fork()
if child == 0:
    assert not server.running
    profiler.stop_server()
    gc.collect()
    assert not gc.callbacks
    own = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    with Client(own.pub, own.req) as childs:
        assert childs.ask(b"handshake")
    sys.stdout.write("child ")
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
with Client(server.pub, server.req) as client:
    client.ask(b"handshake")
print("parent")
"""
    )
    assert output == "child parent\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="descriptors are listed on Linux")
def test_a_child_that_outlives_its_parent_does_not_hold_the_port() -> None:
    output = python(
        """
import os, sys, warnings
from tornado_rbkit import profiler
warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
endpoints = server.pub, server.req
read, write = os.pipe()
born, bear = os.pipe()
child = os.fork()
if child == 0:
    os.close(write)
    os.write(bear, b"!")
    os.read(read, 1)  # until the parent is done
    os._exit(0)
os.read(born, 1)
profiler.stop_server()
profiler.start_server(*endpoints)
os.close(write)
os.waitpid(child, 0)
print("again")
"""
    )
    assert output == "again\n"


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "profiler.stop_server()", "del server; gc.collect()"])
def test_the_process_ends_without_a_sound(end: str) -> None:
    output = python(
        f"""
import gc, sys
from tests.profiler.conftest import Client
from tornado_rbkit import profiler
server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
with Client(server.pub, server.req) as client:
    client.ask(b"start_memory_profile")
    client.ask(b"start_cpu_profiling")
{end}
"""
    )
    assert output == ""


def test_importing_starts_nothing() -> None:
    python(
        """
import gc, threading
from tornado_rbkit import profiler
assert threading.active_count() == 1
assert not gc.callbacks
"""
    )


def test_batches_have_400_events_or_those_of_a_second() -> None:
    batcher = EventBatcher()
    event = pack({0: 4, 1: 1.0})
    assert batcher.take(1000.0) == []
    for _ in range(BATCH_EVENTS - 1):
        batcher.add(event)
    assert batcher.take(1000.9) == []
    batcher.add(event)
    batcher.add(event)
    (full,) = batcher.take(1000.9)
    (rest,) = batcher.take(1001.0)
    for counter, (message, events) in enumerate([(full, BATCH_EVENTS), (rest, 1)]):
        decoded = decode(message)
        assert isinstance(decoded, EventCollection)
        assert decoded.message_counter == counter == message_counter(message[:23])
        assert len(decoded.events) == events
        assert list(msgpack.unpackb(message, strict_map_key=False)) == [0, 1, 9, 2]


def test_the_server_sleeps_until_a_batch_is_expected_to_be_full() -> None:
    batcher = EventBatcher()
    assert len(batcher.take(1000.0, flush=True)) == 0
    assert batcher.wait(1000.0) is None, "nothing waits"
    batcher.add(b"")
    assert batcher.wait(1000.1) == pytest.approx(0.9), "the rest of the second"
    for _ in range(BATCH_EVENTS // 4 - 1):
        batcher.add(b"")
    assert batcher.take(1000.1) == []
    assert batcher.wait(1000.1) == pytest.approx(0.3), "a quarter of a batch has come in 0.1 s"
    assert batcher.wait(1000.99) == FLUSH_SECONDS
    assert batcher.take(1000.2) == []
    assert batcher.wait(1000.2) == pytest.approx(0.8), "no more events have come"
    assert batcher.wait(900.0) == pytest.approx(1.0), "the clock was set back"
    for _ in range(30 * BATCH_EVENTS):
        batcher.add(b"")
    assert len(batcher.take(1000.3)) == 30
    assert batcher.wait(1000.3) == FLUSH_SECONDS, "many events come"


@pytest.mark.parametrize("events", [0, 15, 16, 65_535, 65_536])
def test_a_collection_of_any_length_is_valid(events: int) -> None:
    message = decode(EventBatcher().collection([pack({0: 4, 1: 1.0})] * events, 5.0))
    assert isinstance(message, EventCollection)
    assert len(message.events) == events
    assert message.timestamp == 5000.0
