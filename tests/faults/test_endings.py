"""Commands with a full disk, a closed terminal, or no peer: they print one line, and leave nothing running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import without_slowness
from tests.faults.conftest import Launch
from tests.faults.serving import serving
from tests.faults.steady import SteadyProcess
from tests.faults.witness import Witness
from tests.patient import PATIENT
from tornado_rbkit import RbkitClient
from tornado_rbkit.recording.recording import read

COMMAND = [sys.executable, "-X", "dev", "-W", "error", *PATIENT]


async def is_recording(url: str) -> bool:
    async with RbkitClient(url) as rbkit:
        facts = await rbkit.command("handshake")
    return facts.object_trace_enabled or bool(facts.cpu_profiling_enabled)


async def test_record_on_a_full_disk_switches_off_what_it_switched_on(launch: Launch, profiler: SteadyProcess) -> None:
    server = launch(**profiler.endpoints)
    command = [*COMMAND, "record", "-o", "/dev/full", "--cpu", "--memory", "--url", server.ws]
    async with Witness(server.ws) as viewer:  # so that the bridge does not switch it off
        finished = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
        assert without_slowness(finished.stderr) == "tornado-rbkit: /dev/full: No space left on device\n"
        assert finished.returncode == 1
        await viewer.goes_on()
        assert not await is_recording(server.ws)


async def test_record_whose_terminal_is_closed_ends_as_with_ctrl_c(
    launch: Launch, profiler: SteadyProcess, tmp_path: Path
) -> None:
    server = launch(**profiler.endpoints)
    output = tmp_path / "session"
    command = [*COMMAND, "record", "-o", str(output), "--cpu", "--url", server.ws]
    async with Witness(server.ws) as viewer:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while not await is_recording(server.ws):
                await viewer.goes_on(5)
            process.send_signal(signal.SIGHUP)
            _, errors = await asyncio.to_thread(process.communicate, timeout=60)
        assert (process.returncode, without_slowness(errors.decode())) == (0, "")
        assert not await is_recording(server.ws)
    with output.open("rb") as file:
        commands = [record.command for record in read(file) if record.command]
    assert commands[-1] == "stop_cpu_profiling"


@pytest.mark.parametrize("nohup", [False, True], ids=["", "nohup"])
async def test_serve_whose_terminal_is_closed_says_goodbye_unless_it_is_to_stay(
    profiler: SteadyProcess, tmp_path: Path, nohup: bool
) -> None:
    options = ["serve", "--port", "0", "--pub", profiler.pub, "--req", profiler.req]
    with serving(tmp_path / "log", [*(["nohup"] if nohup else []), *COMMAND, *options]) as server:
        async with Witness(server.ws) as viewer:
            await viewer.goes_on()
            server.process.send_signal(signal.SIGHUP)
            if nohup:
                await viewer.goes_on()
            else:
                assert await asyncio.to_thread(server.process.wait, 60) == 0
                await viewer.connection.wait_closed()
                assert viewer.connection.close_code == 1001


def test_export_to_a_full_disk_says_so_in_one_line(tmp_path: Path) -> None:
    recording = Path(__file__).parents[1] / "data" / "cpu.msgpack"
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "export", str(recording), "--format", "json"]
        finished = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert without_slowness(finished.stderr) == "tornado-rbkit: [Errno 28] No space left on device\n"
    assert finished.returncode == 1


def is_waited_for(status: dict[str, Any]) -> bool:
    return any(client["commands_waiting"] for client in status["clients"])  # which the bridge's own handshake is not


async def test_send_that_is_interrupted_says_nothing(launch: Launch, profiler: SteadyProcess) -> None:
    server = launch(**profiler.endpoints, command_timeouts={"trigger_gc": 3600})
    async with Witness(server.ws) as viewer:
        await viewer.goes_on()
        profiler.freeze()
        command = [*COMMAND, "send", "trigger_gc", "--url", server.ws]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            await asyncio.to_thread(server.until, is_waited_for, "a client waits for its reply")
            process.send_signal(signal.SIGINT)
            output = await asyncio.to_thread(process.communicate, timeout=60)
        profiler.send_signal(signal.SIGCONT)
    assert (output[0], without_slowness(output[1].decode()), process.returncode) == (b"", "", 130)


async def test_send_of_what_is_not_a_text_is_one_line(launch: Launch, profiler: SteadyProcess) -> None:
    server = launch(**profiler.endpoints)
    command = [*COMMAND, "send", os.fsdecode(b"\xff\xfe"), "--url", server.ws]
    finished = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert without_slowness(finished.stderr).count("\n") == 1, finished.stderr
    assert finished.returncode == 2


ESCAPES = b"HTTP/1.1 403 No\r\nContent-Length: 16\r\n\r\n\x1b[31mred\nforged\x07"


@pytest.mark.parametrize("sent", [bytes(1 << 20), ESCAPES], ids=["zeros", "escapes"])
def test_send_to_what_is_something_else_is_one_line(sent: bytes) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def stream() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(4096)
                connection.sendall(sent)

        thread = threading.Thread(target=stream)
        thread.start()
        command = [*COMMAND, "send", "handshake", "--url", f"ws://127.0.0.1:{listener.getsockname()[1]}/"]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
        thread.join()
    assert without_slowness(finished.stderr).rstrip("\n").isprintable(), finished.stderr
    assert finished.returncode == 1
