"""The profiler in a process that was not prepared, which executes the script as `sys.remote_exec` has it done.

`test_remote_exec` has the same with `sys.remote_exec` itself, on Python 3.14 and newer.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from tests.profiler.conftest import PATIENCE, wait_until
from tornado_rbkit.profiler import injection, list_servers, running_time
from tornado_rbkit.profiler.external.process import ProcessError, RunningProcess
from tornado_rbkit.profiler.injection import Injected, Injection
from tornado_rbkit.profiler.script_request import ScriptRequest
from tornado_rbkit.profiler.startup.bootstrap import Finder

if not sys.platform.startswith("linux"):
    pytest.skip("injection works on Linux only", allow_module_level=True)

import resource

pytestmark = pytest.mark.usefixtures("runtime_folder")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the process may take longer to stop its profiler."""
    monkeypatch.setattr(injection, "_STOP_SECONDS", PATIENCE)


PROGRAM = """
import os, sys
print("ready", flush=True)
for line in sys.stdin:
    word = line.strip()
    if word == "modules":
        print([name for name in sys.modules if name.partition(".")[0] in ("msgpack", "tornado_rbkit", "zmq")])
    elif word == "fork":
        child = os.fork()
        if child:
            print(child)
        else:
            sys.stdin.close()
            os.read(int(sys.argv[1]), 1)
            os._exit(0)
    elif word.startswith("path "):
        sys.path.insert(0, word[5:])
        print(word)
    elif word == "finder":
        asked = []
        sys.meta_path.insert(0, type("Finder", (), {"find_spec": lambda self, *names: asked.append(names)})())
        print(word)
    elif word == "asked":
        print(asked)
    elif word == "exec":
        os.execv(sys.executable, [sys.executable, "-c", "input()"])
    elif word == "start":
        sys.path.extend(sys.argv[2:])
        from tornado_rbkit import profiler
        print(profiler.start_server().pub)
    else:
        with open(word, "rb") as file:
            exec(file.read(), {})
        print("executed")
    sys.stdout.flush()
"""


class Program(subprocess.Popen[str]):
    """A program without any package; it executes what its standard input names, and nothing else."""

    def __init__(self, held: int) -> None:
        paths = {str(folder) for folder in injection._FOLDERS.values()}
        super().__init__(
            [sys.executable, "-I", "-S", "-W", "error", "-c", PROGRAM, str(held), *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[held],
        )
        assert self.read() == "ready"

    def tell(self, word: str) -> None:
        pipe(self.stdin).write(f"{word}\n")
        pipe(self.stdin).flush()

    def read(self) -> str:
        return pipe(self.stdout).readline().rstrip("\n")

    def ask(self, word: str) -> str:
        self.tell(word)
        return self.read()


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


class Caller:
    """Has a program execute scripts, as `sys.remote_exec` does, unless its main thread is blocked."""

    def __init__(self, program: Program, *, blocked: bool = False) -> None:
        self.scripts: list[str] = []
        self._program = program
        self._blocked = blocked

    def remote_exec(self, script: str) -> None:
        self.scripts.append(script)
        if not self._blocked:
            assert self._program.ask(script) == "executed"

    def main_frame(self) -> str:
        return "work (app.py:7)"


@pytest.fixture
def held() -> Iterator[int]:
    """A descriptor that keeps a forked child running until the end of the test."""
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)


@pytest.fixture
def program(held: int) -> Iterator[Program]:
    with Program(held) as program:
        yield program
        program.kill()


def request(program: Program, caller: Caller | None = None) -> Injection:
    return Injection(RunningProcess(program.pid), caller or Caller(program))  # type: ignore[arg-type]


def server_of(request: Injection) -> Injected:
    server = wait_until(request.poll, "the profiler runs")
    assert server is not None
    return server


def threads(program: Program) -> int:
    return len(os.listdir(f"/proc/{program.pid}/task"))


def test_the_profiler_runs_until_the_end_of_the_injection_and_leaves_nothing(program: Program) -> None:
    with request(program) as injected:
        server = server_of(injected)
        assert server.is_new
        assert [(found.pid, found.pub) for found in list_servers()] == [(program.pid, server.pub)]
        assert injected.is_connected()
        assert not injected._folder.exists(), "this process may be killed"
        assert threads(program) > 1
        assert injected.close()
    assert list_servers() == []
    wait_until(lambda: threads(program) == 1, "its threads have ended")
    _, errors = program.communicate("modules\n", timeout=60)
    assert (program.returncode, errors) == (0, "")


def test_the_profiler_ends_with_a_command_that_is_killed(program: Program) -> None:
    with request(program) as injected:
        server_of(injected)
    wait_until(lambda: list_servers() == [], "the profiler has ended")
    assert program.poll() is None


def test_the_last_of_two_commands_ends_the_profiler(program: Program) -> None:
    with request(program) as first, request(program) as second:
        assert server_of(first).pub == server_of(second).pub
        assert first.close()
        assert len(list_servers()) == 1
        assert second.is_connected()
        assert second.close()
        assert list_servers() == []


def test_the_profiler_of_the_process_itself_is_used_and_left(program: Program) -> None:
    pub = program.ask("start")
    with request(program) as injected:
        server = server_of(injected)
        assert (server.pub, server.is_new) == (pub, False)
        assert injected.close()
    assert [found.pub for found in list_servers()] == [pub]


def test_a_process_that_cannot_import_the_profiler_is_not_changed(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(injection, "_FOLDERS", {**injection._FOLDERS, "zmq": str(tmp_path)})
        with (
            request(program) as injected,
            pytest.raises(
                ProcessError, match=r"cannot import the profiler \(ModuleNotFoundError: No module named 'zmq'"
            ),
        ):
            server_of(injected)
    assert program.ask("modules") == "[]"
    wait_until(lambda: threads(program) == 1, "the thread that tried has ended")
    with request(program) as injected:
        assert server_of(injected).is_new, "it can be tried again"
        assert injected.close()


def test_a_profiler_that_does_not_start_is_reported(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBKIT_PUB_PORT", "none")
    with Program(held) as program:
        with (
            request(program) as injected,
            pytest.raises(ProcessError, match=r"its profiler did not start: .*RBKIT_PUB_PORT"),
        ):
            server_of(injected)
        wait_until(lambda: threads(program) == 1, "its threads have ended")
        program.kill()


def test_a_withdrawn_script_starts_nothing(program: Program, tmp_path: Path) -> None:
    caller = Caller(program, blocked=True)
    with request(program, caller) as injected:
        kept = tmp_path / "script.py"
        kept.write_bytes(Path(caller.scripts[0]).read_bytes())
        assert injected.poll() is None
        assert injected.close()
    assert caller.scripts[1:] == [os.devnull]
    assert [program.ask(script) for script in (os.devnull, str(kept))] == ["executed", "executed"]
    wait_until(lambda: threads(program) == 1, "its thread has ended")
    assert list_servers() == []
    assert program.ask("modules") == "[]"


def test_a_script_that_has_connected_too_late_starts_nothing(program: Program) -> None:
    with request(program) as injected:
        assert injected.close(), "it was not accepted yet"
    wait_until(lambda: threads(program) == 1, "its thread has ended")
    assert program.ask("modules") == "[]"


def test_another_process_is_not_told_to_start(program: Program) -> None:
    with request(program, Caller(program, blocked=True)) as injected, socket.socket(socket.AF_UNIX) as fork:
        fork.connect(str(injected._channel))
        assert injected.poll() is None
        assert fork.recv(1) == b""
        assert injected.close()


def test_a_fork_of_the_process_does_not_hold_the_connection(program: Program) -> None:
    with request(program) as injected:
        server_of(injected)
        child = int(program.ask("fork"))
        assert injected.close(), "only the parent's end matters"
    os.kill(child, signal.SIGKILL)


def test_the_end_of_the_process_is_noticed_beside_a_fork(program: Program) -> None:
    with request(program) as injected:
        server_of(injected)
        child = int(program.ask("fork"))
        program.kill()
        wait_until(lambda: not injected.is_connected(), "the process has ended")
        assert injected.close()
    os.kill(child, signal.SIGKILL)


def test_another_program_in_the_process_is_noticed(program: Program) -> None:
    with request(program) as injected:
        server_of(injected)
        program.tell("exec")
        wait_until(lambda: not injected.is_connected(), "it has called exec")
        assert injected.process.is_alive()
        assert injected.close()


def test_a_process_that_ends_before_it_runs_the_profiler_is_reported(program: Program) -> None:
    with request(program, Caller(program, blocked=True)) as injected:
        program.kill()
        with pytest.raises(ProcessError, match="has ended before it ran the profiler"):
            server_of(injected)


def test_it_is_said_what_the_main_thread_does_instead(program: Program) -> None:
    with request(program, Caller(program, blocked=True)) as injected:
        reason = "its main thread waits in a system call or for a lock, in work (app.py:7)"
        wait_until(lambda: injected.obstacle().startswith(reason), "it waits for its standard input")
        program.send_signal(signal.SIGSTOP)
        os.waitpid(program.pid, os.WUNTRACED)
        assert injected.obstacle() == f"it is stopped (kill -CONT {program.pid} continues it)"


def test_a_process_with_other_files_is_refused(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "samefile", lambda one, other: False)
    caller = Caller(program)
    with pytest.raises(ProcessError, match=r"has files of its own \(a container.* or set TMPDIR"):
        request(program, caller)
    assert caller.scripts == []


def test_looking_for_a_package_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python holds the lock of all imports; the main thread may wait for it with the lock of the module."""
    finder = Finder(injection._FOLDERS)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [])
        patch.setattr(builtins, "__import__", lambda name, *rest: pytest.fail(f"imports {name}"))
        found = {name: finder.find_spec(name) for name in (*injection._FOLDERS, "_thread", "_frozen_importlib")}
    assert None not in found.values()
    assert finder.found == {*injection._FOLDERS}


@pytest.mark.parametrize("name", ["json", "logging", "msgpack", "weakref", "zmq"])
def test_a_module_that_hides_one_of_the_profilers_is_not_executed(program: Program, tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("print('executed', flush=True)")
    program.ask(f"path {tmp_path}")
    with request(program) as injected:
        with pytest.raises(ProcessError, match=rf"{tmp_path}/{name}\.py has the name of a (module|package)"):
            server_of(injected)
        assert injected.close()
    wait_until(lambda: threads(program) == 1, "its thread has ended")
    assert program.communicate("modules\n", timeout=60) == ("[]\n", "")


def test_the_finders_of_the_process_are_not_asked(program: Program) -> None:
    program.ask("finder")
    with request(program) as injected:
        server_of(injected)
        assert injected.close()
    assert program.ask("asked") == "[]"


def test_the_log_messages_are_the_commands(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", "/proc/none")
    with Program(held) as program:
        with request(program) as injected:
            server_of(injected)
            assert [message.partition(":")[0] for message in injected.messages] == [
                "the profiler cannot be found by its name"
            ]
            assert injected.close()
        assert program.communicate(timeout=60) == ("", "")


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (resource.RLIMIT_NOFILE, r"has \d+ open files, and may have 9 \(ulimit -n\)"),
        (resource.RLIMIT_AS, r"uses \d+ MiB of at most 100 MiB of memory \(ulimit -v\); the profiler needs 512 MiB"),
        (resource.RLIMIT_DATA, r"uses \d+ MiB of at most 100 MiB of memory \(ulimit -d\); the profiler needs 512 MiB"),
    ],
)
def test_a_process_whose_limits_are_too_low_is_refused(program: Program, limit: int, reason: str) -> None:
    """Python prints an error if it cannot open the script, and a library that gets no memory ends the process."""
    number = 9 if limit == resource.RLIMIT_NOFILE else 100 << 20
    resource.prlimit(program.pid, limit, (number, number))
    caller = Caller(program)
    with pytest.raises(ProcessError, match=reason):
        request(program, caller)
    assert caller.scripts == []


def test_a_script_without_effect_is_reported_and_not_withdrawn(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injection, "_EXECUTION_SECONDS", 0.0)
    caller = Caller(program, blocked=True)
    with request(program, caller) as injected:
        assert injected.poll() is None
        monkeypatch.setattr(ScriptRequest, "was_taken", lambda self: True)
        with pytest.raises(ProcessError, match="has executed the script without effect: an audit hook"):
            server_of(injected)
        assert injected.close()
    assert len(caller.scripts) == 1


def test_a_pause_of_the_machine_is_no_time_without_effect(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(running_time, "real_time", SimpleNamespace(monotonic=lambda: now))
    with request(program, Caller(program, blocked=True)) as injected:
        monkeypatch.setattr(ScriptRequest, "was_taken", lambda self: True)
        for _ in range(5):
            assert injected.poll() is None
            now += 100.0
        assert injected.close()


def test_the_warning_about_a_fork_beside_threads_is_not_shown(program: Program) -> None:
    with request(program) as injected:
        server_of(injected)
        os.kill(int(program.ask("fork")), signal.SIGKILL)
        assert injected.close()
    _, errors = program.communicate(timeout=60)
    assert (program.returncode, errors) == (0, ""), "warnings are errors in this program"


SERVER = {"name": "app", "pub": "ipc:///a.pub", "req": "ipc:///a.req", "family": "", "folder": "", "is_new": True}


@pytest.fixture
def lying(program: Program) -> Iterator[tuple[Injection, socket.socket]]:
    """A process that sends what it likes in place of its profiler."""
    ours, its = socket.socketpair()
    with request(program, Caller(program, blocked=True)) as injected, its:
        ours.setblocking(False)
        injected._connection = ours
        yield injected, its


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"no JSON", b"\xff", b"[" * 50_000, b"1" * 5000, b"null", b"7", b'"log"', b"[]", b"{}", b'["log"]'),
        *(b'{"log": 1}', b'{"refused": {}}', b'{"log": "", "refused": ""}', b'{"name": "app"}'),
        *(
            json.dumps({**SERVER, **odd}).encode()
            for odd in ({"pub": 1}, {"req": "inproc://x"}, {"name": None}, {"family": 1}, {"is_new": "x"}, {"more": 1})
        ),
    ],
)
def test_what_no_profiler_sends_is_refused(lying: tuple[Injection, socket.socket], line: bytes) -> None:
    injected, its = lying
    its.sendall(line + b"\n")
    with pytest.raises(ProcessError, match="has sent what no profiler sends"):
        injected.poll()


def test_what_a_profiler_sends_is_taken(lying: tuple[Injection, socket.socket]) -> None:
    injected, its = lying
    its.sendall(b'{"log": "a"}\n' * 1000 + json.dumps(SERVER).encode() + b"\n")
    assert injected.is_connected()
    assert injected.messages == ["a"] * 100
    assert injected._facts == SERVER


@pytest.mark.parametrize("line", [b"x" * 1000, b'{"log": "x"}\n' * 100], ids=["no end", "log messages"])
def test_a_process_that_sends_without_end_is_not_received_without_end(
    lying: tuple[Injection, socket.socket], line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    injected, its = lying
    monkeypatch.setattr(injection, "_STOP_SECONDS", 0.3)

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                its.sendall(line)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with contextlib.suppress(ProcessError):
            for _ in range(10):
                injected.is_connected()
        assert len(injected._received) < 1_000_000
        assert not injected.close()
    finally:
        injected._clean_up()
        sender.join()
