"""The command line, as the programs that people start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.here import run_here
from tests.conftest import without_slowness
from tests.fake_rbkit import FakeRbkit, free_port
from tests.patient import PATIENT
from tests.raw import upgrade_request
from tornado_rbkit import ConnectionLost, RbkitClient
from tornado_rbkit.protocol import Handshake

COMMAND = [sys.executable, "-m", "tornado_rbkit"]
STRICT = [sys.executable, "-X", "dev", "-W", "error"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RBKIT_")}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give commands in this process the environment of those in their own."""
    for name in os.environ.keys() - ENVIRONMENT.keys():
        monkeypatch.delenv(name)


class Serving:
    """`tornado-rbkit serve`, running."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.lines: list[str] = []
        for line in process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("ready "):
                break
        else:
            assert process.stderr is not None
            pytest.fail(f"it never said ready: {process.stderr.read()}")
        self.url = self.lines[-1].removeprefix("ready ")
        found = re.search(r":(\d+)/", self.url)
        assert found
        self.port = int(found[1])
        self.ws = f"ws://127.0.0.1:{self.port}/rbkit/ws"

    def end(self) -> tuple[int, str]:
        """Wait for its end; return the exit status and what it wrote to stderr.

        That it demands no token, which is tested elsewhere, and that the machine is busy are left out.
        """
        _, errors = self.process.communicate(timeout=60)
        errors = re.sub(r"\AWARNING every user of this machine can connect .*\n", "", errors)
        return self.process.returncode, without_slowness(errors)


@pytest.fixture
def serving(rbkit: FakeRbkit) -> Iterator[Any]:
    """Return a function that starts `serve` for the fake rbkit on a free port."""
    with contextlib.ExitStack() as stack:
        yield lambda *options, **program: start(stack, rbkit, *options, **program)


def start(stack: contextlib.ExitStack, rbkit: FakeRbkit, *options: str, program: Sequence[str] = PATIENT) -> Serving:
    command = [*STRICT, *program, "serve", "--pub", rbkit.pub, "--req", rbkit.req, "--port", "0", *options]
    pipe = subprocess.PIPE
    process = stack.enter_context(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT))
    stack.callback(process.kill)
    return Serving(process)


@pytest.fixture(scope="module")
def profiler() -> Iterator[FakeRbkit]:
    with FakeRbkit() as rbkit:
        yield rbkit


@pytest.fixture(scope="module")
def plain(profiler: FakeRbkit) -> Iterator[Serving]:
    """Run one server without options, for all tests that only send commands."""
    with contextlib.ExitStack() as stack:
        yield start(stack, profiler)


def assert_one_line(completed: subprocess.CompletedProcess[str], status: int, *parts: str) -> None:
    """Fail unless a command ended with a status and one line that has these parts."""
    assert completed.returncode == status, completed.stderr
    assert "Traceback" not in completed.stderr
    lines = [line for line in completed.stderr.splitlines() if not line.startswith(("usage:", " "))]
    assert len(lines) == 1, f"one line was expected: {completed.stderr}"
    for part in parts:
        assert part in lines[0]


# serve


def test_serve_says_where_it_listens_and_answers_there(serving: Any) -> None:
    server = serving()
    assert server.lines == [f"ready http://127.0.0.1:{server.port}/rbkit/"]
    assert server.port != 0
    completed = run("send", "trigger_gc", "--url", server.ws)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "ok\n", "")


def test_serve_has_the_prefix_it_is_given(serving: Any) -> None:
    server = serving("--prefix", "/tools/profiler/")
    assert server.lines == [f"ready http://127.0.0.1:{server.port}/tools/profiler/"]
    completed = run_here("send", "trigger_gc", "--url", f"ws://127.0.0.1:{server.port}/tools/profiler/ws")
    assert completed.stdout == "ok\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to other processes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_closes_the_clients_with_1001_and_ends_it(serving: Any, number: int) -> None:
    server = serving()
    async with RbkitClient(server.ws) as first, RbkitClient(server.ws) as second:
        for client in (first, second):
            assert isinstance(await asyncio.wait_for(client.command("handshake"), 60), Handshake)
        server.process.send_signal(number)
        for client in (first, second):
            with pytest.raises(ConnectionLost) as caught:
                async for _ in client.events():
                    pass
            assert caught.value.code == 1001
        status, errors = await asyncio.to_thread(server.end)
    assert (status, errors) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to other processes")
def test_a_signal_ends_it_while_a_client_does_not_read(serving: Any, rbkit: FakeRbkit) -> None:
    server = serving()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(60)
        client.sendall(upgrade_request())
        assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
        assert run_here("send", "handshake", "--url", server.ws).returncode == 0, "the bridge is connected"
        for _ in range(4):
            rbkit.publish_collection(padding=8_000_000)
        assert client.recv(1), "the data has begun to come"
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to other processes")
def test_a_signal_ends_it_when_nobody_came(serving: Any) -> None:
    server = serving()
    server.process.send_signal(signal.SIGTERM)
    assert server.end() == (0, "")


def test_an_address_that_is_not_loopback_makes_up_a_token_and_demands_it(serving: Any) -> None:
    server = serving("--host", "0.0.0.0")
    assert server.lines[-1] == f"ready http://0.0.0.0:{server.port}/rbkit/"
    (token,) = [line.removeprefix("token ") for line in server.lines if line.startswith("token ")]
    assert len(token) >= 20
    assert_one_line(run_here("send", "trigger_gc", "--url", server.ws), 1, "token", "401")
    completed = run_here("send", "trigger_gc", "--url", server.ws, "--token", token)
    assert (completed.returncode, completed.stdout) == (0, "ok\n")
    page = f"{server.ws.replace('ws:', 'http:').removesuffix('ws')}?token={token}#view=cpu"
    assert run_here("send", "trigger_gc", "--url", page).stdout == "ok\n", "the page's own address"
    completed = run_here("send", "trigger_gc", "--url", f"{server.ws}?token={token}")
    assert (completed.returncode, completed.stdout) == (0, "ok\n")
    assert serving("--host", "0.0.0.0").lines[0] != f"token {token}", "another server has another"


def test_a_token_that_is_given_is_demanded_and_not_printed(serving: Any) -> None:
    server = serving("--token", "s3cret")
    assert "s3cret" not in "".join(server.lines)
    assert_one_line(run_here("send", "trigger_gc", "--url", server.ws, "--token", "wrong"), 1, "token")
    assert run_here("send", "trigger_gc", "--url", server.ws, "--token", "s3cret").stdout == "ok\n"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--pub", "nonsense"], ["nonsense", "tcp://"]),
        (["--req", "http://127.0.0.1:5556"], ["http://127.0.0.1:5556", "tcp://"]),
        (["--pub", "tcp://127.0.0.1:0"], ["tcp://127.0.0.1:0"]),
        (["--req", "tcp://127.0.0.1"], ["tcp://127.0.0.1"]),
        (["--req", "tcp://127.0.0.1:99999"], ["99999"]),
        (["--port", "-1"], ["port"]),
        (["--port", "70000"], ["port"]),
        *((["--port", port], ["--port", "allowed: 0 to 65535"]) for port in ("x", "1_0", "0x50", "")),
        (["--host", "no.such.host.invalid"], ["no.such.host.invalid", "--host"]),
        (["--max-clients", "-1"], ["max_clients", "-1"]),
        (["--max-clients", "0"], ["max_clients"]),
        (["--idle-grace", "-3"], ["idle_grace", "-3"]),
        (["--idle-grace", "nan"], ["idle_grace"]),
        (["--compression-level", "10"], ["compression_level", "9"]),
        (["--compression-level", "-1"], ["compression_level", "9"]),
        (["--encoding", "base64"], ["--encoding", "escaped"]),
        (["--token", ""], ["token"]),
        (["--bogus"], ["--bogus"]),
        *(
            (["--target", target], ["--target", "NAME=PUB,REQ"])
            for target in ("", "a", "a=", "a=x", "=x,y", "a=,y", "a=x,")
        ),
        (["--target", "a=x,y"], ["'x' is not an endpoint"]),
        (["--target", "ws=tcp://h:1,tcp://h:2"], ["'ws' cannot name a target"]),
        (["--target", "a=tcp://h:1,tcp://h:2"] * 2, ["two targets have the same name", "--target"]),
        (["--target", "a=tcp://h:1,tcp://h:2", "--pub", "tcp://h:1"], ["--target cannot be combined", "--pub"]),
    ],
    ids=" ".join,
)
def test_a_wrong_option_gives_one_line_that_says_what_to_do_and_status_2(options: list[str], parts: list[str]) -> None:
    assert_one_line(run_here("serve", "--port", "0", *options), 2, *parts)


def test_a_port_in_use_gives_one_line_with_the_port_and_the_option() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert_one_line(run("serve", "--port", str(port)), 2, str(port), "in use", "--port")


def test_ports_from_the_environment_that_are_no_ports_give_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBKIT_PUB_PORT", "many")
    assert_one_line(run_here("serve", "--port", "0"), 2, "many")


def test_targets_are_served_by_name(rbkit: FakeRbkit, tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "RBKIT_RUNTIME_DIR": str(tmp_path / "runtime")}
    with FakeRbkit() as other:
        targets = [f"--target={name}={each.pub},{each.req}" for name, each in (("web-1", rbkit), ("web-2", other))]
        command = [sys.executable, *PATIENT, "-q", "serve", "--port", "0", *targets]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                url = Serving(process).ws.replace("/ws", "/web-2/ws")
                assert run_here("send", "trigger_gc", "--url", url).stdout == "ok\n"
            finally:
                process.terminate()
        assert b"trigger_gc" in other.received
    assert b"trigger_gc" not in rbkit.received


@pytest.mark.skipif(sys.platform == "win32", reason="the folder's permissions are Unix's")
def test_a_program_of_any_language_announces_itself_by_a_file(rbkit: FakeRbkit, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    announcement = {"name": "puma", "pid": os.getpid(), "pub": rbkit.pub, "req": rbkit.req, "started": 1.5e9}
    (tmp_path / "puma-1.json").write_text(json.dumps(announcement))
    listed = subprocess.run(
        [*COMMAND, "list"], capture_output=True, text=True, env={**ENVIRONMENT, "RBKIT_RUNTIME_DIR": str(tmp_path)}
    )
    assert listed.stderr == ""
    assert listed.stdout.split("\t")[:4] == ["puma", str(os.getpid()), rbkit.pub, rbkit.req]


# send


def test_send_prints_a_handshake_line_by_line(plain: Serving) -> None:
    completed = run_here("send", "handshake", "--url", plain.ws)
    assert completed.returncode == 0
    assert "process_name: fake\n" in completed.stdout
    assert "rbkit_protocol_version: 2.1\n" in completed.stdout


@pytest.mark.parametrize(
    ("command", "parts"), [("bogus", ["unknown-command", "start_memory_profile"]), ("", ["invalid-command"])]
)
def test_send_of_a_command_that_is_refused_gives_one_line_and_status_1(
    plain: Serving, command: str, parts: list[str]
) -> None:
    completed = run_here("send", command, "--url", plain.ws)
    assert_one_line(completed, 1, *parts)
    assert completed.stdout == ""


def test_a_server_that_is_read_only_refuses_commands_and_says_why(serving: Any) -> None:
    assert_one_line(run_here("send", "trigger_gc", "--url", serving("--read-only").ws), 1, "forbidden", "read_only")


def test_any_command_forwards_commands_outside_the_protocol(serving: Any, rbkit: FakeRbkit) -> None:
    assert run_here("send", "bogus", "--url", serving("--any-command").ws).stdout == "ok\n"
    assert b"bogus" in rbkit.received


def test_send_to_a_server_that_is_not_there_gives_one_line_and_status_1() -> None:
    url = f"ws://127.0.0.1:{free_port()}/rbkit/ws"
    assert_one_line(run_here("send", "handshake", "--url", url), 1, url, "refused")


def test_send_to_a_profiler_that_is_not_there_gives_one_line_and_status_1(serving: Any, rbkit: FakeRbkit) -> None:
    server = serving("--req", f"tcp://127.0.0.1:{free_port()}", program=["-m", "tornado_rbkit"])
    assert_one_line(run_here("send", "handshake", "--url", server.ws), 1, "rbkit server is not running at", "1013")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:8765/", "nonsense", "", "ws://", "ws://127.0.0.1:99999/"])
def test_send_to_a_wrong_url_gives_one_line_and_an_error_status(url: str) -> None:
    completed = run_here("send", "handshake", "--url", url)
    assert completed.returncode in (1, 2)
    assert_one_line(completed, completed.returncode)


def test_send_to_a_name_that_is_not_there_says_so(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "RBKIT_RUNTIME_DIR": str(tmp_path / "runtime")}
    command = [*COMMAND, "-q", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        url = Serving(process).ws.replace("/ws", "/nobody/ws")
        try:
            answer = run_here("send", "handshake", "--url", url)
        finally:
            process.terminate()
    assert_one_line(answer, 1, url, "no profiler of that name", "404")
    assert "<" not in answer.stderr


# Help


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], ["serve", "send", "--verbose"]),
        (
            ["serve"],
            [
                *("--pub", "--req", "--host", "--port", "--prefix", "--token", "--allow-host", "--allow-origin"),
                *("--read-only", "--any-command", "--encoding", "--max-clients", "--idle-grace", "--keep-profiling"),
                "--compression-level",
            ],
        ),
        (["send"], ["COMMAND", "--url", "--token"]),
    ],
    ids=["tornado-rbkit", "serve", "send"],
)
def test_help_mentions_every_option(arguments: list[str], options: list[str]) -> None:
    completed = run_here(*arguments, "--help")
    assert (completed.returncode, completed.stderr) == (0, "")
    for option in options:
        assert re.search(rf"{option}\b", completed.stdout), f"{option} is not mentioned"


def test_no_command_gives_one_line_and_status_2() -> None:
    assert_one_line(run_here(), 2, "COMMAND")


# A terminal of another encoding


def run_in_ascii(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii", **environment}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=60, env=environment)


def test_send_prints_what_the_terminal_cannot_show_escaped(plain: Serving, profiler: FakeRbkit) -> None:
    profiler.reply[b"use_cpu_time"] = "größe".encode()
    completed = run_in_ascii("send", "use_cpu_time", "--url", plain.ws)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, b"gr\\xf6\\xdfe\n", b"")


@pytest.mark.skipif(sys.platform == "win32", reason="the folder's permissions are Unix's")
def test_list_prints_what_the_terminal_cannot_show_escaped(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    program = (
        "import sys; from tornado_rbkit import profiler; profiler.start_server(name='größe');"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**ENVIRONMENT, "RBKIT_RUNTIME_DIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        completed = run_in_ascii("list", RBKIT_RUNTIME_DIR=str(tmp_path))
        assert process.stdin is not None
        process.stdin.close()
    assert (completed.returncode, completed.stderr) == (0, b"")
    assert completed.stdout.startswith(b"gr\\xf6\\xdfe\t")
