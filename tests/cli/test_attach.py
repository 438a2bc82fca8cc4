"""The command attach: a page, an announced profiler and an end for a process that was not prepared."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.here import record_until, run_here
from tests.cli.test_program import beside, url_in
from tests.patient import PATIENT
from tests.profiler.conftest import PATIENCE, wait_until
from tests.profiler.external.conftest import children
from tornado_rbkit import RbkitClient
from tornado_rbkit.profiler import list_servers
from tornado_rbkit.protocol import CPUSample, Handshake
from tornado_rbkit.recording.recording import events, read

if not sys.platform.startswith("linux"):
    pytest.skip("attach works on Linux only", allow_module_level=True)

PROGRAM = """
import sys, threading
def work():
    while True:
        sum(range(1000))
threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


pytestmark = pytest.mark.usefixtures("runtime_folder")


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    path = tmp_path / "app.py"
    path.write_text(PROGRAM)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, str(path)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.fixture
def command(program: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The command, attached to the program."""
    line = [sys.executable, *PATIENT, "attach", str(program.pid)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def address(command: subprocess.Popen[str]) -> str:
    assert command.stderr is not None
    url = url_in(command.stderr.readline())
    assert re.search(r"\?token=\S{20,}$", url), "the page demands a token"
    return url


async def test_the_page_has_the_live_stacks_of_the_program(
    program: subprocess.Popen[str], command: subprocess.Popen[str]
) -> None:
    url = address(command)
    async with RbkitClient(beside(url, "ws")) as rbkit:
        handshake = await rbkit.command("handshake")
        assert isinstance(handshake, Handshake)
        assert (handshake.pid, handshake.cpu_profiling_enabled) == (program.pid, 1)
        async for event in rbkit.events():
            if isinstance(event, CPUSample) and event.frames[0].method_name == "work":
                break
    [server] = list_servers()
    assert server.pid == program.pid


def test_what_is_published_can_be_recorded(
    program: subprocess.Popen[str], command: subprocess.Popen[str], tmp_path: Path
) -> None:
    url, output = address(command), tmp_path / "app.rec"
    recorded = record_until(lambda data: b"work" in data, "--cpu", "-o", str(output), "--url", beside(url, "ws"))
    assert recorded.returncode == 0, recorded.stderr
    with output.open("rb") as file:
        seen = {event.frames[0].method_name for event in events(read(file), []) if isinstance(event, CPUSample)}
    assert "work" in seen


def test_it_ends_with_the_program(
    program: subprocess.Popen[str], command: subprocess.Popen[str], tmp_path: Path
) -> None:
    address(command)
    program.kill()
    _, errors = command.communicate(timeout=60)
    assert (command.returncode, errors) == (
        0,
        f"tornado-rbkit: process {program.pid} ({tmp_path / 'app.py'}) has ended\n",
    )
    assert list_servers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_the_program_continues(
    program: subprocess.Popen[str], command: subprocess.Popen[str], number: signal.Signals
) -> None:
    address(command)
    command.send_signal(number)
    _, errors = command.communicate(timeout=60)
    assert (command.returncode, errors) == (0, "")
    assert program.poll() is None
    assert list_servers() == []


def test_the_sampling_program_ends_with_a_command_that_is_killed(
    program: subprocess.Popen[str], command: subprocess.Popen[str]
) -> None:
    address(command)
    # It is started beside the web server.
    (sampling,) = wait_until(lambda: children(command.pid), "the sampling program runs")
    watched = os.pidfd_open(sampling)
    command.kill()
    try:
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        assert poll.poll(int(PATIENCE * 1000)), "it runs on"
    finally:
        os.close(watched)


@pytest.mark.parametrize("text", ["0", "-5", "app", "2147483648", ""])
def test_what_is_not_a_pid_is_refused(text: str) -> None:
    ended = run_here("attach", "--", text)
    assert ended.returncode == 2
    assert "is not a pid; allowed: 1 to 2147483647" in ended.stderr


def test_a_process_that_cannot_be_sampled_is_refused_in_one_line(program: subprocess.Popen[str]) -> None:
    program.kill()
    program.wait()
    command = [sys.executable, "-m", "tornado_rbkit", "attach", str(program.pid)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert ended.stderr.startswith(f"tornado-rbkit: there is no process {program.pid} ")


def test_a_program_may_be_attached_to_beside_its_own_profiler(tmp_path: Path) -> None:
    """The announcement of one is not taken for an old one of the other."""
    path = tmp_path / "app.py"
    path.write_text("from tornado_rbkit import profiler\nprofiler.start_server()\n" + PROGRAM)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, str(path)], stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        line = [sys.executable, *PATIENT, "attach", str(program.pid)]
        with subprocess.Popen(line, stderr=pipe, text=True) as command:
            address(command)
            assert [server.pid for server in list_servers()] == [program.pid] * 2
            command.terminate()
        assert [server.pid for server in list_servers()] == [program.pid]
        program.kill()
