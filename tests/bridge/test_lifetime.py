"""The connection lasts while there are clients, and a bridge closes everything that it opened."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import pytest
from tornado.web import RequestHandler

from tests.bridge.test_fanout import StalledClient, stall, stalled
from tests.conftest import Serve, Server, ask, closing, until
from tests.fake_rbkit import FakeRbkit
from tests.raw import upgrade_request
from tests.test_deadline import Clock, clock
from tornado_rbkit import Bridge
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.bridge.session import Session

__all__ = ["clock", "stall"]  # fixtures


def threads() -> int:
    return sum(thread.name.startswith("rbkit") for thread in threading.enumerate())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestIdle:
    async def test_the_connection_closes_idle_grace_after_the_last_viewer(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, idle_grace=0.3))
        connection = await server.connected()
        assert threads() == int(threaded)
        connection.close()
        left = time.monotonic()
        await until(lambda: server.bridge.state is State.IDLE, "it is closed")
        assert time.monotonic() - left >= 0.3
        await until(lambda: threads() == 0, "the thread has ended")
        again = await server.connected()
        assert await ask(again, "trigger_gc") == b"0ok"

    async def test_a_client_that_returns_in_time_finds_the_connection_open(
        self, serve: Serve, rbkit: FakeRbkit, clock: Clock
    ) -> None:
        """Each time the timer has run for a while, and is cancelled."""
        server = await serve(Bridge(**rbkit.endpoints, threaded=False, idle_grace=30))
        for _ in range(3):
            (await server.connected()).close()
            await until(lambda: not server.bridge.stats()["clients"], "the viewer is gone")
            await clock.run(20)
        await server.connected()
        await clock.run(20)
        assert server.bridge.state is State.CONNECTED
        assert rbkit.received == [b"handshake"], "it was connected once"

    async def test_profiling_that_was_started_here_is_stopped(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, idle_grace=0.1))
        connection = await server.connected()
        await ask(connection, "start_memory_profile")
        await ask(connection, "start_cpu_profiling")
        await ask(connection, "stop_cpu_profiling")
        connection.close()
        await until(lambda: server.bridge.state is State.IDLE, "it is closed")
        assert rbkit.received[-1] == b"stop_memory_profile"
        assert rbkit.received.count(b"stop_cpu_profiling") == 1
        assert not rbkit.enabled

    async def test_what_others_started_is_left_alone(self, serve: Serve, rbkit: FakeRbkit) -> None:
        rbkit.enabled.add("memory_profile")
        server = await serve(Bridge(**rbkit.endpoints, idle_grace=0.1))
        connection = await server.connected()
        await ask(connection, "start_memory_profile")
        connection.close()
        await until(lambda: server.bridge.state is State.IDLE, "it is closed")
        assert rbkit.enabled == {"memory_profile"}

    async def test_stop_when_idle_false_leaves_all_alone(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints, idle_grace=0.1, stop_when_idle=False))
        connection = await server.connected()
        await ask(connection, "start_memory_profile")
        connection.close()
        await until(lambda: server.bridge.state is State.IDLE, "it is closed")
        assert rbkit.enabled == {"memory_profile"}

    async def test_a_command_whose_client_left_before_it_was_sent_is_not_sent(
        self, serve: Serve, rbkit: FakeRbkit
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        stays, leaves = await server.connected(), await server.connected()
        await ask(stays, "handshake")
        rbkit.answering.clear()
        await stays.write_message("trigger_gc")
        await until(lambda: b"trigger_gc" in rbkit.received, "it is in flight")
        await leaves.write_message("start_cpu_profiling")
        await until(lambda: server.bridge.stats()["commands_waiting"] == 2, "it waits")
        leaves.close()
        await until(lambda: len(server.bridge.stats()["clients"]) == 1, "it has left")
        rbkit.answering.set()
        assert await ask(stays, "use_cpu_time") == b"0ok"
        assert b"start_cpu_profiling" not in rbkit.received


class TestClose:
    async def test_closes_clients_with_1001_and_stops_the_profiling_started_here(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tornado_rbkit.bridge.bridge._CLOSE_GRACE", 60.0)  # a busy profiler may need long
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
        connections = [await server.connected() for _ in range(3)]
        await ask(connections[0], "start_cpu_profiling")
        ends = asyncio.gather(*map(closing, connections))
        await server.bridge.close()
        assert await ends == [(1001, "server shutting down")] * 3
        assert not rbkit.enabled
        assert threads() == 0
        assert server.bridge.state is State.IDLE
        await server.bridge.close()  # twice does no harm

    async def test_refuses_who_comes_after(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        await server.bridge.close()
        assert await closing(await server.connect()) == (1013, "the server is shutting down")

    async def test_does_not_wait_for_a_profiler_that_has_stopped(self, serve: Serve, rbkit: FakeRbkit) -> None:
        timeouts = dict.fromkeys(("stop_cpu_profiling", "stop_memory_profile"), 3600.0)
        server = await serve(Bridge(**rbkit.endpoints, command_timeouts=timeouts))
        connection = await server.connected()
        await ask(connection, "start_cpu_profiling")
        await ask(connection, "start_memory_profile")
        rbkit.answering.clear()
        await asyncio.gather(closing(connection), server.bridge.close())

    async def test_aborts_a_client_that_does_not_answer_after_a_second(
        self, serve: Serve, rbkit: FakeRbkit, stall: list[StalledClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Tornado itself would wait for five."""
        aborted: list[Session] = []
        abort = Session.abort

        def note(session: Session) -> None:
            aborted.append(session)
            abort(session)

        monkeypatch.setattr(Session, "abort", note)
        server = await serve(Bridge(**rbkit.endpoints))
        (await server.connected()).close()  # the last client leaves, and another comes
        await until(lambda: not server.bridge.watched, "it has left")
        await stalled(server, stall)
        await until(lambda: server.bridge.state is State.CONNECTED, "the bridge is connected")
        started = time.monotonic()
        await server.bridge.close()
        assert time.monotonic() - started > 0.9
        assert len(aborted) == 1

    @pytest.mark.parametrize("kind", [True, False], ids=["threaded", "unthreaded"])
    def test_happens_by_itself_when_the_event_loop_ends(self, rbkit: FakeRbkit, kind: bool) -> None:
        program = f"""
            import asyncio, logging, threading
            from tornado.web import Application
            from tests.conftest import Server
            from tornado_rbkit import Bridge, rbkit_routes
            from tornado_rbkit.bridge import bridge as module

            async def main():
                bridge = Bridge({rbkit.pub!r}, {rbkit.req!r}, threaded={kind})
                server = Server.of(bridge, Application(rbkit_routes(bridge)))
                async with server.client() as client:
                    print(await client.command("start_cpu_profiling"))
                server.http.stop()

            logging.getLogger("asyncio").setLevel(logging.ERROR)  # its warnings say how slow the machine is
            module._CLOSE_GRACE = 60.0  # a busy profiler may need long
            asyncio.run(main())
            print([thread.name for thread in threading.enumerate() if thread.name.startswith("rbkit")])
        """
        finished = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert finished.stdout == "ok\n[]\n"
        assert finished.stderr == ""
        assert finished.returncode == 0
        assert not rbkit.enabled


async def test_max_clients_is_a_limit_that_the_refusal_names(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints, max_clients=2))
    first, _second = await server.connected(), await server.connected()
    assert await closing(await server.connect()) == (1013, "client limit reached (max_clients=2)")
    first.close()
    await until(lambda: len(server.bridge.stats()["clients"]) == 1, "there is room again")
    assert await ask(await server.connected(), "trigger_gc") == b"0ok"


async def test_hundreds_of_viewers_come_and_go_and_leave_nothing(
    serve: Serve, rbkit: FakeRbkit, threaded: bool
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, idle_grace=0))

    async def visit(server: Server) -> None:
        async with server.client() as client:
            assert await client.command("trigger_gc") == "ok"

    async def settle() -> tuple[int, int]:
        await until(lambda: server.bridge.state is State.IDLE and threads() == 0, "the bridge is idle")
        gc.collect()
        return descriptors(), len(gc.get_objects())

    for _ in range(50):
        await visit(server)
    descriptors_before, objects = await settle()
    visits, growth = 150, []
    for _ in range(3):  # objects that are created only once, as by an import, count in one round only
        for _ in range(visits):
            await visit(server)
        _, objects_after = await settle()
        await until(lambda: descriptors() <= descriptors_before, "the last connections are closed")
        growth.append(objects_after - objects)
        objects = objects_after
        if growth[-1] < visits:
            return
    raise AssertionError(f"at least one object is left of each of {visits} visits: {growth}")


async def test_commands_are_answered_after_any_number_of_joins_and_leaves_in_a_hurry(
    serve: Serve, rbkit: FakeRbkit, threaded: bool
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, idle_grace=0))

    async def hurry() -> None:
        for number in range(100):
            async with server.client() as client:
                asked = [asyncio.ensure_future(client.request("trigger_gc")) for _ in range(number % 3)]
                await asyncio.sleep(0)
            await asyncio.gather(*asked, return_exceptions=True)

    await asyncio.gather(*(hurry() for _ in range(3)))
    async with server.client() as client:
        assert await asyncio.wait_for(client.command("use_cpu_time"), 60) == "ok"


async def test_a_client_that_leaves_during_authorize_does_not_join(serve: Serve, rbkit: FakeRbkit) -> None:
    asked, think = asyncio.Event(), asyncio.Event()
    connections: list[Any] = []

    async def authorize(handler: RequestHandler, command: str) -> bool:
        connections.append(handler.request.connection)
        asked.set()
        await think.wait()
        return True

    server = await serve(Bridge(**rbkit.endpoints), authorize=authorize)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(upgrade_request())
    await asked.wait()
    writer.close()
    await writer.wait_closed()
    await until(lambda: connections[0].stream.closed(), "the server has seen it go")
    think.set()
    assert await ask(await server.connected(), "trigger_gc") == b"0ok"
    assert len(server.bridge.stats()["clients"]) == 1


async def test_profiling_is_stopped_although_the_reply_to_its_start_was_lost(serve: Serve, rbkit: FakeRbkit) -> None:
    cut = False
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_reply: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if is_reply and cut:
                    break
                writer.write(data)
        for one in writers:
            one.transport.abort()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", int(rbkit.req.rpartition(":")[2]))
        writers.extend((writer, there_writer))
        await asyncio.gather(pump(reader, there_writer, False), pump(there_reader, writer, True))

    between = await asyncio.start_server(proxy, "127.0.0.1", 0)
    req = f"tcp://127.0.0.1:{between.sockets[0].getsockname()[1]}"
    server = await serve(Bridge(rbkit.pub, req, idle_grace=0.2))
    connection = await server.connected()
    await until(lambda: server.bridge.stats()["handshake"], "the handshake is known")
    cut = True
    assert (await ask(connection, "start_memory_profile")).startswith(b"0error:unavailable")
    cut = False
    assert rbkit.enabled == {"memory_profile"}
    await until(lambda: server.bridge.state is State.CONNECTED, "it is connected again")
    bridge = server.bridge
    await until(lambda: bridge.handshake and bridge.handshake.object_trace_enabled, "it knows of the profiling")
    connection.close()
    while await connection.read_message() is not None:
        pass  # Tornado sees the goodbye only behind the notices
    await until(lambda: server.bridge.state is State.IDLE, "it is closed")
    assert not rbkit.enabled
    between.close()
    for one in writers:
        one.close()
        with contextlib.suppress(ConnectionError):
            await one.wait_closed()
    await between.wait_closed()


def test_a_thread_that_was_stopped_too_early_is_an_error_and_no_hang(rbkit: FakeRbkit) -> None:
    program = f"""
        import asyncio
        from tornado.web import Application
        from tests.conftest import Server
        from tornado_rbkit import Bridge, IOLoopThread, rbkit_routes

        async def main():
            thread = IOLoopThread()
            thread.start()
            bridge = Bridge({rbkit.pub!r}, {rbkit.req!r}, threaded=thread)
            server = Server.of(bridge, Application(rbkit_routes(bridge)))
            async with server.client() as client:
                print(await client.command("trigger_gc"))
                thread.stop()
                try:
                    await bridge.close()
                except RuntimeError as error:
                    print(error)
            server.http.stop()

        asyncio.run(main())
    """
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    expected = "ok\nthe IOLoopThread was stopped before its bridges were closed; stop it after them\n"
    assert finished.stdout == expected, finished.stderr


@pytest.mark.parametrize("kind", [True, False], ids=["threaded", "unthreaded"])
def test_too_few_file_descriptors_refuse_a_client_and_pass(rbkit: FakeRbkit, kind: bool) -> None:
    program = f"""
        import asyncio, logging, os, resource
        from tornado.web import Application
        from tests.conftest import Server
        from tornado_rbkit import Bridge, ConnectionLost, rbkit_routes

        async def main():
            logging.disable(logging.ERROR)  # that it is logged is not what is tested
            bridge = Bridge({rbkit.pub!r}, {rbkit.req!r}, threaded={kind})
            server = Server.of(bridge, Application(rbkit_routes(bridge)))
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            used = max(map(int, os.listdir("/proc/self/fd")))
            for spare in range(2, 12):  # with most of these libzmq would end the process
                resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + spare, hard))
                try:
                    async with server.client() as client:
                        print("answered", await client.command("handshake"))
                except ConnectionLost as error:
                    print("refused", error.code)
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
            async with server.client() as client:
                print(await client.command("trigger_gc"))
            server.http.stop()
            await bridge.close()

        asyncio.run(main())
    """
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert finished.stdout == "refused 1013\n" * 10 + "ok\n", finished.stderr
