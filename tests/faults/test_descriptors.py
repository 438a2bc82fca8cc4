"""A server without free file descriptors: connected clients continue, new clients wait, and this is logged once."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.conftest import until, without_slowness
from tests.faults.serving import serving
from tests.faults.steady import SteadyProcess
from tests.faults.witness import Witness
from tests.patient import PATIENT
from tests.raw import Raw

COMMAND = [sys.executable, "-X", "dev", "-W", "error", *PATIENT]


async def test_connected_clients_continue_and_new_ones_wait(profiler: SteadyProcess, tmp_path: Path) -> None:
    options = ["serve", "--port", "0", "--pub", profiler.pub, "--req", profiler.req]
    with serving(tmp_path / "log", [*COMMAND, *options]) as server:
        async with Witness(server.ws) as viewer:
            await viewer.goes_on()
            limit = server.descriptors + 10
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(60):
                    await stack.enter_async_context(Raw(server.port))
                await until(
                    lambda: "new connections are not accepted for now: Too many open files (ulimit -n)" in server.log,
                    "said",
                )
                await viewer.goes_on(1000)
                assert await viewer.ask("trigger_gc") == b"ok"
            async with Witness(server.ws) as another:
                await another.goes_on()
            assert viewer.missing == viewer.told == 0
        once = [line for line in without_slowness(server.log).splitlines() if "times in short succession" not in line]
        assert len(once) == 2, server.log  # and that it demands no token


def test_a_look_for_processes_that_fails_is_not_taken_for_their_end(tmp_path: Path) -> None:
    program = """
        import os, resource
        from tornado_rbkit import profiler
        profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "found")
        used = len(os.listdir("/proc/self/fd")) - 1
        for spare in range(2):
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, 1024))
            try:
                print([server.name for server in profiler.list_servers()])
            except OSError as error:
                print(error.strerror)
    """
    environment = os.environ | {"RBKIT_RUNTIME_DIR": str(tmp_path / "rbkit")}
    code = textwrap.dedent(program)
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert finished.stdout == "Too many open files\n['found']\n", finished


def test_a_profiled_program_is_not_ended_but_told(tmp_path: Path) -> None:
    program = """
        import os, resource
        from tornado_rbkit import profiler
        used = max(map(int, os.listdir("/proc/self/fd")))
        for spare in range(1, 20):
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, 1024))
            try:
                profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
            except OSError as error:
                print(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
        print(profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*").running)
    """
    code = textwrap.dedent(program)
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.stdout == "[Errno 24] too few file descriptors are left (ulimit -n)\n" * 19 + "True\n", finished
