"""The profiler starts, ends, hangs and returns: its clients are notified, and no command is repeated."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable

import pytest
import zmq
from tornado.websocket import WebSocketClientConnection

from tests.conftest import Serve, ask, closing, receive, receive_data, until
from tests.fake_rbkit import FakeRbkit, collection, free_port, rbkit_process
from tornado_rbkit import Bridge, EndpointError
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.bridge.session import Session
from tornado_rbkit.frames import Buffer
from tornado_rbkit.protocol import message_counter
from tornado_rbkit.upstream.source import SocketSource
from tornado_rbkit.upstream.types import ConnectionState


async def next_notice(connection: WebSocketClientConnection, prefix: bytes) -> bytes:
    """Return the next message with this prefix, skipping all others."""
    while True:
        message = await receive(connection)
        assert isinstance(message, bytes)
        if message.startswith(prefix):
            return message


class TestNeverThere:
    async def test_closes_with_1013_within_connect_timeout_and_names_the_endpoint(
        self, serve: Serve, threaded: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        patience: list[float] = []
        await_profiler = Session.await_profiler

        def note(session: Session, timeout: float, give_up: Callable[[], None]) -> None:
            patience.append(timeout)
            await_profiler(session, timeout, give_up)

        monkeypatch.setattr(Session, "await_profiler", note)
        req = f"tcp://127.0.0.1:{free_port()}"
        bridge = Bridge(f"tcp://127.0.0.1:{free_port()}", req, threaded=threaded, connect_timeout=0.3)
        server = await serve(bridge)
        started = time.monotonic()
        connection = await server.connect()
        assert await closing(connection) == (1013, f"rbkit server is not running at {req}")
        assert time.monotonic() - started > 0.25
        assert patience == [0.3]

    async def test_lets_commands_wait_no_longer_than_their_client(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pub, req = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
        server = await serve(Bridge(pub, req, connect_timeout=1.5))  # more than ZMQ waits to connect again
        connection = await server.connect()
        await connection.write_message("start_cpu_profiling")
        await closing(connection)
        monkeypatch.setattr(Session, "await_profiler", lambda *_: None)  # a busy machine takes longer to connect
        with FakeRbkit(pub, req) as rbkit:
            other = await server.connected()
            assert await ask(other, "trigger_gc") == b"0ok"
            assert rbkit.received == [b"handshake", b"trigger_gc"]

    async def test_tries_again_for_the_next_client(
        self, serve: Serve, threaded: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pub, req = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
        server = await serve(Bridge(pub, req, threaded=threaded, connect_timeout=1.5))
        assert (await closing(await server.connect()))[0] == 1013
        monkeypatch.setattr(Session, "await_profiler", lambda *_: None)
        with FakeRbkit(pub, req):
            assert await ask(await server.connected(), "trigger_gc") == b"0ok"

    async def test_only_one_of_its_sockets_is_not_enough(
        self, serve: Serve, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        in_time: list[Callable[[], None]] = []
        monkeypatch.setattr(Session, "await_profiler", lambda session, timeout, give_up: in_time.append(give_up))
        pub = f"tcp://127.0.0.1:{free_port()}"
        server = await serve(Bridge(pub, rbkit.req))
        connection = await server.connect()
        trouble = f"no rbkit server at {pub}; reconnecting every second"
        await until(lambda: server.bridge.stats()["trouble"] == trouble, "the other socket is connected")
        in_time[0]()
        assert await closing(connection) == (1013, f"rbkit server is not running at {pub}")


async def test_started_after_the_bridge_is_found_within_connect_timeout(serve: Serve, threaded: bool) -> None:
    pub, req = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    server = await serve(Bridge(pub, req, threaded=threaded, connect_timeout=60))
    connection = await server.connect()
    await connection.write_message("trigger_gc")
    with FakeRbkit(pub, req) as rbkit:
        assert await receive(connection) == b"0ok"
        message = rbkit.publish_collection()
        assert await receive(connection) == b"1" + message


async def test_killed_with_a_command_in_flight_answers_unavailable_and_never_repeats_it(
    serve: Serve, threaded: bool
) -> None:
    with rbkit_process() as process:
        # told by the connection's end, not by the time-out
        timeouts = dict.fromkeys(("trigger_gc", "use_cpu_time"), 3600.0)
        server = await serve(Bridge(**process.endpoints, threaded=threaded, command_timeouts=timeouts))
        connection = await server.connected()
        await ask(connection, "start_memory_profile")
        process.freeze()  # so that the command is in flight for certain
        await connection.write_message("trigger_gc")
        await connection.write_message("use_cpu_time")
        await until(lambda: server.bridge.stats()["commands_waiting"] == 2, "the commands are under way")
        process.kill()
        assert (await next_notice(connection, b"0error:")).startswith(b"0error:unavailable trigger_gc: ")
        assert (await next_notice(connection, b"0error:")).startswith(b"0error:unavailable use_cpu_time: ")
        with FakeRbkit(process.pub, process.req) as successor:
            await next_notice(connection, b"0server:connected")
            await next_notice(connection, b"0server:restarted")
            assert await ask(connection, "use_wall_time") == b"0ok"
            assert successor.received == [b"handshake", b"use_wall_time"]


async def test_restarted_on_the_same_ports_is_reported_and_continues_without_reconnecting(
    serve: Serve, threaded: bool
) -> None:
    with rbkit_process() as process:
        server = await serve(Bridge(**process.endpoints, threaded=threaded))
        connection = await server.connected()
        await ask(connection, "start_memory_profile")
        await receive_data(connection)
        first = process.pid
        process.kill()
        assert await next_notice(connection, b"0server") == b"0server:disconnected"
        assert (await ask(connection, "handshake")).startswith(b"0error:unavailable")
        process.start()
        assert await next_notice(connection, b"0server") == b"0server:connected"
        assert await next_notice(connection, b"0server") == b"0server:restarted"
        facts = server.bridge.stats()["handshake"]
        assert facts["pid"] == process.pid != first
        assert not facts["object_trace_enabled"]
        assert await ask(connection, "start_memory_profile") == b"0ok"
        assert message_counter(await receive_data(connection)) == 0, "the new process counts from 0"


async def test_a_process_replaced_while_messages_of_the_one_before_are_taken_is_told_before_its_own(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, threaded: bool
) -> None:
    """A loop that is slow takes messages of both before it has seen that the connection was lost."""
    pub, req = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    take = SocketSource.take
    replaced: list[FakeRbkit] = []
    with contextlib.ExitStack() as stack:
        rbkit = stack.enter_context(FakeRbkit(pub, req))

        def take_slowly(source: SocketSource, max_bytes: int, max_messages: int) -> tuple[list[Buffer], bool]:
            payloads, emptied = take(source, max_bytes, max_messages)
            if not replaced and any(message_counter(payload) == 51 for payload in payloads):
                replaced.append(rbkit)
                rbkit.stop()
                successor = FakeRbkit(pub, req)
                successor.pid += 1
                stack.enter_context(successor).publish_collection()
                while message_counter(payloads[-1]) != 0:
                    more, emptied = take(source, max_bytes, max_messages)
                    payloads += more
            return payloads, emptied

        monkeypatch.setattr(SocketSource, "take", take_slowly)
        server = await serve(Bridge(pub, req, threaded=threaded))
        connection = await server.connected()
        rbkit.counter = 50
        for _ in range(2):
            rbkit.publish_collection()
        received: list[str | bytes] = []
        while received[-1:] != [b"1" + collection(0)]:
            received.append(await receive(connection))
        bridge, pid = server.bridge, rbkit.pid + 1
        await until(lambda: bridge.handshake and bridge.handshake.pid == pid, "the bridge knows the new process")
        await connection.write_message("trigger_gc")
        while received[-1] != b"0ok":
            received.append(await receive(connection))
    before = received[: received.index(b"1" + collection(0))]
    assert [message for message in received if message[:1] == b"1"] == [b"1" + collection(n) for n in (50, 51, 0)]
    told = [b"0server:disconnected", b"0server:connected", b"0server:restarted"]
    assert [message for message in received if message[:7] == b"0server"] == told
    assert set(told) < set(before)


async def test_a_counter_that_begins_again_tells_a_restart_under_the_same_pid(serve: Serve, threaded: bool) -> None:
    pub, req = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    server = await serve(Bridge(pub, req, threaded=threaded))
    with FakeRbkit(pub, req) as rbkit:
        connection = await server.connected()
        rbkit.counter = 50
        rbkit.publish_collection()
        await receive_data(connection)
    await next_notice(connection, b"0server:disconnected")
    with FakeRbkit(pub, req) as rbkit:
        await next_notice(connection, b"0server:connected")
        await until(lambda: len(rbkit.received) == 1, "the bridge asks who is there")
        rbkit.publish_collection()
        assert await next_notice(connection, b"0server") == b"0server:restarted"
        assert message_counter(await receive_data(connection)) == 0


async def test_a_lost_connection_to_the_same_process_is_not_a_restart(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    connection = await server.connected()
    await until(lambda: server.bridge.stats()["handshake"], "the handshake is known")
    server.bridge.on_connection(ConnectionState((rbkit.req,)))
    server.bridge.on_connection(ConnectionState())
    assert await next_notice(connection, b"0server") == b"0server:disconnected"
    assert await next_notice(connection, b"0server") == b"0server:connected"
    rbkit.publish_collection()
    await until(lambda: rbkit.received.count(b"handshake") == 2, "the bridge asks again")
    assert await ask(connection, "trigger_gc") == b"0ok"


class TestStopped:
    async def test_every_waiting_command_gets_a_timeout_at_the_time_of_the_first(
        self, serve: Serve, threaded: bool
    ) -> None:
        with rbkit_process() as process:
            timeouts = {"trigger_gc": 1.0, "use_cpu_time": 0.1}  # the waiting commands expire first
            server = await serve(Bridge(**process.endpoints, threaded=threaded, command_timeouts=timeouts))
            connection = await server.connected()
            await ask(connection, "handshake")
            process.freeze()
            started = time.monotonic()
            commands = ("trigger_gc", "use_cpu_time", "use_cpu_time", "use_cpu_time")
            await asyncio.gather(*map(connection.write_message, commands))  # all are there when the first is sent
            assert (await next_notice(connection, b"0error")).startswith(b"0error:timeout no reply to trigger_gc")
            for _ in range(3):
                error = await next_notice(connection, b"0error")
                assert error.startswith(b"0error:timeout use_cpu_time: not sent within 0.1 s")
            assert time.monotonic() - started > 0.9
            process.send_signal(signal.SIGCONT)
            assert await ask(connection, "handshake") != b"0ok"

    async def test_a_late_reply_goes_to_nobody(self, serve: Serve, rbkit: FakeRbkit, threaded: bool) -> None:
        bridge = Bridge(**rbkit.endpoints, threaded=threaded, command_timeouts={"trigger_gc": 0.2})
        server = await serve(bridge)
        connection = await server.connected()
        rbkit.reply[b"trigger_gc"] = b"late"
        assert await ask(connection, "handshake") == b"0" + rbkit.handshake()
        rbkit.answering.clear()
        assert (await ask(connection, "trigger_gc")).startswith(b"0error:timeout")
        rbkit.answering.set()
        assert await ask(connection, "use_cpu_time") == b"0ok"
        assert await ask(connection, "handshake") == b"0" + rbkit.handshake()
        assert rbkit.received.count(b"trigger_gc") == 1

    async def test_a_client_that_opens_meanwhile_stays(
        self, serve: Serve, threaded: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with rbkit_process() as process:
            server = await serve(Bridge(**process.endpoints, threaded=threaded, connect_timeout=0.3))
            with monkeypatch.context() as patch:
                patch.setattr(Session, "await_profiler", lambda *_: None)  # a busy machine takes longer to connect
                await ask(await server.connected(), "handshake")
            process.freeze()
            newcomer = await server.connect()
            with pytest.raises(asyncio.TimeoutError):
                await receive(newcomer, timeout=0.6)
            process.send_signal(signal.SIGCONT)
            assert await ask(newcomer, "trigger_gc") == b"0ok"


async def test_a_command_channel_killed_by_another_program_times_out_and_data_continues(
    serve: Serve, rbkit: FakeRbkit, threaded: bool
) -> None:
    timeouts = {"trigger_gc": 0.3}
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, command_timeouts=timeouts))
    connection = await server.connected()
    await ask(connection, "handshake")
    kill_command_channel(rbkit)
    assert (await ask(connection, "trigger_gc")).startswith(b"0error:timeout")
    assert server.bridge.stats()["answers"] is False
    message = rbkit.publish_collection()
    assert await receive_data(connection) == message


async def test_what_was_lost_on_the_way_is_counted_and_told(serve: Serve, rbkit: FakeRbkit, threaded: bool) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    connection = await server.connected()
    rbkit.publish_collection()
    await receive_data(connection)
    rbkit.counter += 7
    rbkit.publish_collection()
    assert await next_notice(connection, b"0dropped") == b"0dropped:7"
    assert server.bridge.stats()["messages_missed"] == 7


def kill_command_channel(rbkit: FakeRbkit) -> None:
    """Send an empty request, as any program on the machine can; rbkit never answers it."""
    with zmq.Context() as context, context.socket(zmq.REQ) as req:
        req.linger = 0
        req.connect(rbkit.req)
        req.send(b"")
        while not rbkit.dead:
            assert not req.poll(2)


async def test_a_bridge_continues_with_a_profiler_at_other_endpoints(
    serve: Serve, rbkit: FakeRbkit, threaded: bool
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    connection = await server.connected()
    await ask(connection, "start_memory_profile")
    with FakeRbkit() as other:
        server.bridge.retarget(other.pub, other.req)
        notices = [await next_notice(connection, b"0server") for _ in range(3)]
        assert notices == [b"0server:disconnected", b"0server:connected", b"0server:restarted"]
        assert (await ask(connection, "trigger_gc")) == b"0ok"
        assert b"trigger_gc" in other.received
        assert b"trigger_gc" not in rbkit.received
        rbkit.publish_collection()
        message = other.publish_collection()
        assert await receive_data(connection) == message
        assert server.bridge.stats()["pub"] == other.pub
        await server.bridge.close()
        assert b"stop_memory_profile" not in other.received, "it was not started there"


async def test_endpoints_that_are_invalid_change_nothing(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    connection = await server.connected()
    with pytest.raises(EndpointError):
        server.bridge.retarget("nonsense", rbkit.req)
    assert (await ask(connection, "trigger_gc")) == b"0ok"


async def test_a_command_in_flight_is_ended_when_the_bridge_is_retargeted(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    connection = await server.connected()
    kill_command_channel(rbkit)
    await connection.write_message("trigger_gc")
    await until(lambda: server.bridge.stats()["commands_waiting"], "it is under way")
    with FakeRbkit() as other:
        server.bridge.retarget(other.pub, other.req)
        while True:
            message = await receive(connection)
            if not message.startswith(b"0server"):  # type: ignore[arg-type]
                break
        assert message.startswith(b"0error:unavailable")  # type: ignore[arg-type]
        await until(lambda: server.bridge.state is State.CONNECTED, "the other one is connected")
        assert (await ask(connection, "trigger_gc")) == b"0ok"
        await server.bridge.close()
