"""The I/O thread: its loop, its ZMQ context, its end, and what a fork leaves of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
import zmq

from tests.conftest import Serve, ask, closing, until
from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge, IOLoopThread
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.upstream.sockets import ProfilerSockets


def used() -> tuple[int, int]:
    """Return how many descriptors this process has, and threads that are not Python's, as libzmq's."""
    known = {thread.native_id for thread in threading.enumerate()}  # of executors, too, which start when they like
    return len(os.listdir("/proc/self/fd")), sum(int(name) not in known for name in os.listdir("/proc/self/task"))


class TestContext:
    async def test_is_one_for_all_bridges_on_a_thread(self, serve: Serve, rbkit: FakeRbkit) -> None:
        thread = IOLoopThread()
        thread.start()
        servers = [await serve(Bridge(**rbkit.endpoints, threaded=thread, idle_grace=60)) for _ in range(21)]

        async def open_and_leave(count: int) -> tuple[int, int]:
            for server in servers[len(rbkit.received) : count]:
                (await server.connected()).close()
            await until(lambda: len(rbkit.received) == count, "all have asked for their handshake")
            await until(
                lambda: not any(server.bridge.stats()["clients"] for server in servers), "only profilers are connected"
            )
            return used()

        descriptors, threads = await open_and_leave(1)
        await open_and_leave(21)
        await until(lambda: used()[1] <= threads, f"at most {threads} threads are left")
        most = descriptors + 20 * (8 + 2)  # 8 each, and 2 of the profiler, which is in here too
        await until(lambda: used()[0] <= most, f"at most {most} descriptors are left")
        for server in servers:
            await server.close()
        thread.stop()
        await until(lambda: used()[0] < descriptors, "the context is ended with the thread")

    def test_has_room_for_more_sockets_than_libzmq_s_default(self) -> None:
        thread = IOLoopThread()
        thread.start()
        seen: list[int] = []
        thread.io_loop.add_callback(lambda: seen.append(thread.context().get(zmq.MAX_SOCKETS)))
        thread.stop()
        assert seen == [16384]


class TestEnd:
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.logs_errors
    async def test_before_its_time_is_told_to_the_clients_and_ends_what_is_in_flight(
        self, serve: Serve, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch, shared: bool
    ) -> None:
        opened: list[ProfilerSockets] = []
        open_sockets = ProfilerSockets.open

        def note_and_open(sockets: ProfilerSockets) -> None:
            opened.append(sockets)
            open_sockets(sockets)

        monkeypatch.setattr(ProfilerSockets, "open", note_and_open)
        thread = IOLoopThread()
        if shared:
            thread.start()
        server = await serve(Bridge(**rbkit.endpoints, threaded=thread if shared else True))
        connection = await server.connected()
        await ask(connection, "handshake")
        rbkit.answering.clear()
        await connection.write_message("trigger_gc")
        await until(lambda: b"trigger_gc" in rbkit.received, "it is in flight")
        opened[0]._io_loop.add_callback(sys.exit)
        code, reason = await closing(connection)
        assert code == 1013
        assert "cannot connect to the rbkit server: the I" in str(reason)
        assert server.bridge.state is State.IDLE
        assert server.bridge.stats()["commands_waiting"] == 0
        rbkit.answering.set()
        if shared:
            again = await server.connect()
            assert "is not running; start it before its first client" in str((await closing(again))[1])
            with pytest.raises(RuntimeError, match="stopped before its bridges were closed"):
                await server.bridge.close()
            server.bridge = Bridge()  # which the fixture may close
            thread.stop()
        else:
            assert await ask(await server.connected(), "trigger_gc") == b"0ok"

    def test_is_told_at_once_where_it_has_come_and_never_after_it_was_taken_back(self) -> None:
        told: list[str] = []
        thread = IOLoopThread()
        thread.start()

        def first() -> None:
            told.append(threading.current_thread().name)

        def second() -> None:
            told.append("second")

        thread.call_at_end(first)
        thread.call_at_end(second)
        thread.forget_at_end(second)
        thread.stop()
        assert told == ["rbkit-io"]
        thread.call_at_end(second)
        assert told == ["rbkit-io", "second"]
        thread.forget_at_end(second)

    def test_closes_sockets_that_nobody_closed(self, rbkit: FakeRbkit) -> None:
        thread = IOLoopThread()
        thread.start()
        sockets: list[zmq.Socket[bytes]] = []

        def leave_one_open() -> None:
            sockets.append(thread.context().socket(zmq.SUB))
            sockets[0].connect(rbkit.pub)

        thread.io_loop.add_callback(leave_one_open)
        thread.stop()
        assert sockets[0].closed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
class TestFork:
    def test_a_thread_started_before_it_is_an_error_that_says_so_and_nothing_to_stop(self) -> None:
        assert in_a_child(
            """
            thread = IOLoopThread()
            thread.start()
            if not os.fork():
                print(thread.is_alive())
                try:
                    thread.io_loop
                except RuntimeError as error:
                    print(error)
                thread.stop()
                os._exit(0)
            os.wait()
            print(thread.is_alive(), type(thread.io_loop).__name__)
            thread.stop()
            """
        ) == [
            "False",
            "the thread rbkit-io was started before this process was forked; start it after the fork",
            "True AsyncIOLoop",
        ]

    def test_a_client_is_told_that_the_thread_was_started_too_early(self, rbkit: FakeRbkit) -> None:
        lines = in_a_child(
            f"""
            async def visit(bridge):
                server = HTTPServer(Application(rbkit_routes(bridge)))
                sockets = bind_sockets(0, "127.0.0.1")
                server.add_sockets(sockets)
                try:
                    async with RbkitClient(f"ws://127.0.0.1:{{sockets[0].getsockname()[1]}}/rbkit/ws") as client:
                        print(await client.command("trigger_gc"))
                except ConnectionLost as error:
                    print(error.code, error.reason)
                await bridge.close()
                server.stop()

            thread = IOLoopThread()
            thread.start()
            bridge = patient(Bridge({rbkit.pub!r}, {rbkit.req!r}, threaded=thread))
            if not os.fork():
                logging.disable(logging.WARNING)
                asyncio.run(visit(bridge))
                os._exit(0)
            os.wait()
            asyncio.run(visit(bridge))
            thread.stop()
            """
        )
        assert lines == [
            "1013 cannot connect to the rbkit server: the thread rbkit-io was started before this process was forked; "
            "start it after the fork",
            "ok",
        ]

    @pytest.mark.parametrize("made", ["before", "after"])
    def test_a_process_of_several_leaves_profiling_on_for_the_clients_of_the_others(
        self, rbkit: FakeRbkit, made: str
    ) -> None:
        lines = in_a_child(
            f"""
            async def visit(bridge):
                server = HTTPServer(Application(rbkit_routes(bridge)))
                sockets = bind_sockets(0, "127.0.0.1")
                server.add_sockets(sockets)
                async with RbkitClient(f"ws://127.0.0.1:{{sockets[0].getsockname()[1]}}/rbkit/ws") as client:
                    print(await client.command("start_cpu_profiling"))
                await bridge.close()
                server.stop()

            def make():
                return patient(Bridge({rbkit.pub!r}, {rbkit.req!r}))

            bridge = make() if {made!r} == "before" else None
            try:
                tornado.process.fork_processes(1, max_restarts=0)
                asyncio.run(visit(bridge or make()))
            except SystemExit:
                pass
            """
        )
        assert lines == ["ok"]
        assert rbkit.enabled == {"cpu_profiling"}
        assert b"stop_cpu_profiling" not in rbkit.received


def in_a_child(program: str) -> list[str]:
    """Run a program that forks, and return the lines that it and its child print."""
    imports = """
        import asyncio, logging, os, sys
        import tornado.process
        from tornado.httpserver import HTTPServer
        from tornado.netutil import bind_sockets
        from tornado.web import Application
        from tests.patient import patient
        from tornado_rbkit import Bridge, ConnectionLost, IOLoopThread, RbkitClient, rbkit_routes
        sys.stdout.reconfigure(write_through=True)
    """
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(imports) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()
