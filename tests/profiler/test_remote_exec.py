"""The command ``attach --inject`` and `sys.remote_exec`; collected on Python 3.14 and newer only."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from tests.patient import PATIENT
from tests.profiler.conftest import wait_until
from tornado_rbkit import RbkitClient
from tornado_rbkit.profiler import list_servers
from tornado_rbkit.protocol import CPUSample, Handshake, ObjectSpaceDump

pytestmark = pytest.mark.usefixtures("runtime_folder")

COMPUTING = "def work():\n while True: sum(range(1000))\nprint('ready', flush=True)\nwork()"
BLOCKED = "print('ready', flush=True)\nwhile input(): print('line', flush=True)"


class Popen(subprocess.Popen[str]):
    """A process with pipes, ended at the end of its block."""

    def __init__(self, *command: str) -> None:
        pipe = subprocess.PIPE
        super().__init__([sys.executable, *command], stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def __exit__(self, *error: object) -> None:
        self.kill()
        super().__exit__(None, None, None)


@contextmanager
def program(code: str, *options: str) -> Iterator[Popen]:
    with Popen(*options, "-c", code) as process:
        assert stream(process.stdout).readline() == "ready\n"
        yield process


def command(pid: int) -> Popen:
    return Popen(*PATIENT, "attach", "--inject", str(pid))


def stream(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def url_of(process: Popen) -> str:
    """Return the address that the command prints; on a slow machine it may first report that it waits."""
    lines = []
    for line in stream(process.stderr):
        if match := re.search(r"http://\S+", line):
            return match[0]
        lines.append(line)
    raise AssertionError("".join(lines))


def interrupt(process: Popen) -> tuple[int, str]:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def printed(process: Popen) -> tuple[str, str]:
    assert process.poll() is None, "it runs on"
    process.kill()
    return process.communicate(timeout=60)


async def test_the_page_has_the_full_profiler_of_the_process() -> None:
    with program(COMPUTING) as target, command(target.pid) as attached:
        async with RbkitClient(url_of(attached).replace("http", "ws").replace("?", "ws?")) as rbkit:
            handshake = await rbkit.command("handshake")
            assert isinstance(handshake, Handshake)
            assert handshake.pid == target.pid
            for name in ("start_cpu_profiling", "start_memory_profile", "objectspace_snapshot"):
                assert await rbkit.command(name) == "ok"
            missing: set[type] = {CPUSample, ObjectSpaceDump}
            async for event in rbkit.events():
                missing.discard(type(event))
                if not missing:
                    break
        assert interrupt(attached) == (0, "")
        assert list_servers() == []
        wait_until(lambda: len(os.listdir(f"/proc/{target.pid}/task")) == 1, "its threads have ended")
        assert printed(target) == ("", "")


@pytest.mark.parametrize("options", [["-I"], ["-I", "-S"], ["-E", "-s", "-P", "-O"], ["-X", "dev"]])
def test_the_options_of_the_process_do_not_matter(options: list[str]) -> None:
    with program(COMPUTING, *options) as target, command(target.pid) as attached:
        url_of(attached)
        assert interrupt(attached) == (0, "")
        assert printed(target) == ("", "")


def test_a_blocked_main_thread_is_reported_and_the_script_withdrawn() -> None:
    with program(BLOCKED) as target, command(target.pid) as attached:
        line = stream(attached.stderr).readline()
        assert f"process {target.pid} " in line
        assert re.search(r"has not run the profiler after 3 s: its main thread waits .* \(Ctrl-C withdraws", line)
        status, errors = interrupt(attached)
        assert (status, "was withdrawn" in errors) == (1, True)
        assert target.communicate("x\n\n", timeout=60) == ("line\n", ""), "it runs as if nothing had happened"
        assert target.returncode == 0


def test_a_main_thread_runs_the_profiler_once_it_executes_python_code() -> None:
    with program(BLOCKED) as target, command(target.pid) as attached:
        assert "has not run the profiler" in stream(attached.stderr).readline()
        stream(target.stdin).write("x\n")
        stream(target.stdin).flush()
        url_of(attached)
        assert [server.pid for server in list_servers()] == [target.pid]
        assert interrupt(attached) == (0, "")
        assert target.communicate("\n", timeout=60) == ("line\n", "")


def test_a_killed_command_leaves_no_profiler() -> None:
    with program(COMPUTING) as target, command(target.pid) as attached:
        url_of(attached)
        attached.kill()
        wait_until(lambda: list_servers() == [], "the profiler has ended")
        assert printed(target) == ("", "")


def test_a_process_that_forbids_it_is_refused_with_the_reason() -> None:
    with program(COMPUTING, "-X", "disable-remote-debug") as target, command(target.pid) as attached:
        _, errors = attached.communicate(timeout=60)
        assert (attached.returncode, errors.count("\n")) == (1, 1)
        assert "takes no scripts: PYTHON_DISABLE_REMOTE_DEBUG or -X disable-remote-debug was set at" in errors
        assert printed(target) == ("", "")


def test_a_script_that_an_audit_hook_refuses_is_reported_once() -> None:
    hook = "import sys\ndef hook(event, _):\n if event == 'cpython.remote_debugger_script': raise OSError('no')\n"
    with program(f"{hook}sys.addaudithook(hook)\n{COMPUTING}") as target, command(target.pid) as attached:
        _, errors = attached.communicate(timeout=60)
        lines = [line for line in errors.splitlines() if "has not run the profiler" not in line]  # on a busy machine
        assert (attached.returncode, len(lines)) == (1, 1)
        assert "has executed the script without effect: an audit hook" in lines[0]
        output, errors = printed(target)
        assert (output, errors.count("Audit hook failed for remote debugger script")) == ("", 1)


def test_the_end_of_the_process_ends_the_command() -> None:
    with program(COMPUTING) as target, command(target.pid) as attached:
        url_of(attached)
        target.kill()
        target.wait()
        _, errors = attached.communicate(timeout=60)
        assert (attached.returncode, errors) == (
            0,
            f"tornado-rbkit: process {target.pid} (python -c def work():) has ended\n",
        )


KINDS = {
    "asyncio": """
import asyncio
async def task():
    while True:
        await asyncio.sleep(0.001)
async def main():
    print("ready", flush=True)
    await asyncio.gather(*(task() for _ in range(10)))
asyncio.run(main())
""",
    # logging: see the docstring of `injection` for a process that forks just while it is imported
    "forks": """
import logging, os
print("ready", flush=True)
while True:
    pid = os.fork()
    if not pid:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
""",
    "imports": """
import importlib, sys
print("ready", flush=True)
while True:
    for name in ("json", "uuid", "csv"):
        sys.modules.pop(name, None)
        importlib.import_module(name)
""",
    "signals": """
import signal, time
signal.signal(signal.SIGALRM, lambda number, frame: caught.append(number))
caught = []
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
print("ready", flush=True)
while True:
    before = len(caught)
    while len(caught) == before:
        time.sleep(0.001)
""",
    "traced": """
import sys
sys.settrace(lambda frame, event, argument: None)
seen = []
sys.monitoring.use_tool_id(3, "test")
sys.monitoring.register_callback(3, sys.monitoring.events.PY_START, lambda code, offset: seen.append(code) or 1 / 1)
sys.monitoring.set_events(3, sys.monitoring.events.PY_START)
print("ready", flush=True)
while True:
    sum(range(1000))
""",
    "without a folder or descriptors": """
import os, sys, tempfile
folder = tempfile.mkdtemp()
os.chdir(folder)
os.rmdir(folder)
print("ready", flush=True)
for number in range(3):
    os.close(number)
while True:
    sum(range(1000))
""",
    "threads": """
import threading, time
def work():
    while True:
        sum(range(100)); time.sleep(0.001)
for _ in range(10):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
while True:
    time.sleep(0.01)
    assert threading.active_count() == 11
""",
    "gevent": """
from gevent import monkey
monkey.patch_all()
import threading, time
def work():
    while True:
        sum(range(100)); time.sleep(0.001)
threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
while True:
    time.sleep(0.01)
""",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_does_not_notice_it(kind: str) -> None:
    with program(KINDS[kind]) as target:
        for _ in range(2):
            with command(target.pid) as attached:
                url_of(attached)
                assert interrupt(attached) == (0, "")
        assert printed(target) == ("", "")
