"""The file that a server writes, and the processes that find it."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_rbkit import free_port
from tests.profiler.conftest import Client
from tests.profiler.python import python
from tornado_rbkit import profiler
from tornado_rbkit.profiler.discovery import Announcement, unique_key
from tornado_rbkit.profiler.folder import runtime_folder
from tornado_rbkit.protocol import CPUSample, GCStats, Handshake, decode

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells it on Linux")
unix = pytest.mark.skipif(os.name == "nt", reason="owners and modes are Unix's")


def test_a_running_server_is_listed(server: profiler.Server) -> None:
    assert profiler.list_servers() == [
        profiler.RunningServer("test", os.getpid(), server.pub, server.req, server.started, here=True)
    ]


@unix
def test_the_file_is_its_owners_alone(server: profiler.Server) -> None:
    assert server.file is not None
    assert stat.S_IMODE(server.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.file.parent.stat().st_mode) == 0o700
    assert set(json.loads(server.file.read_text())) >= {"name", "pid", "pub", "req", "started"}
    assert [path.name for path in server.file.parent.iterdir()] == [server.file.name]


def test_the_file_goes_with_the_server() -> None:
    server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    assert server.file is not None
    profiler.stop_server()
    assert not server.file.exists()
    assert profiler.list_servers() == []


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise KeyboardInterrupt"])
def test_the_file_goes_with_the_process(end: str, runtime: Path) -> None:
    script = (
        "import sys; from tornado_rbkit import profiler;"
        "print(profiler.start_server('tcp://127.0.0.1:*', 'tcp://127.0.0.1:*').file)\n" + end
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip().startswith(str(runtime))
    assert list(runtime.iterdir()) == []


def test_the_file_of_a_killed_process_is_ignored_and_removed(runtime: Path) -> None:
    python(
        "import os, sys; from tornado_rbkit import profiler;"
        "profiler.start_server('tcp://127.0.0.1:*', 'tcp://127.0.0.1:*'); os._exit(0)"
    )
    assert len(list(runtime.iterdir())) == 1
    assert profiler.list_servers() == []
    assert list(runtime.iterdir()) == []


@linux
def test_a_server_that_starts_removes_the_files_of_killed_processes(runtime: Path) -> None:
    script = "import os; from tornado_rbkit import profiler; profiler.start_server(); os._exit(0)"
    for _ in range(3):
        python(script)
    assert len({path.stem for path in runtime.iterdir()}) == 1


def announced(folder: Path, **changed: object) -> Path:
    """Write a file as a server of this process would, but for some facts; return its path."""
    server = profiler.RunningServer("announced", 1, "tcp://127.0.0.1:1", "tcp://127.0.0.1:1", 1.0)
    written = Announcement("template", server).path
    assert written is not None
    path = folder / f"{unique_key()}.json"
    path.write_text(json.dumps({**json.loads(written.read_text()), "pid": os.getpid(), **changed}))
    written.unlink()
    return path


@linux
def test_a_pid_that_came_again_is_not_the_process(runtime: Path) -> None:
    path = announced(runtime, process_started=1)
    assert profiler.list_servers() == []
    assert not path.exists()


@pytest.mark.parametrize("elsewhere", [{"pid_namespace": 1}, {"pid_namespace": None}, {"host": "another.example"}])
def test_the_file_of_another_pid_namespace_or_host_is_never_removed(
    runtime: Path, elsewhere: dict[str, object]
) -> None:
    no_process = 0x7FFFFFFF
    path = announced(runtime, pid=no_process, **elsewhere)
    assert profiler.list_servers() == [], "nobody accepts connections"
    assert path.exists()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        req = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        announced(runtime, pid=no_process, req=req, **elsewhere)
        assert [server.req for server in profiler.list_servers()] == [req]


@linux
def test_nothing_is_removed_where_proc_shows_another_namespace(
    runtime: Path, server: profiler.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = announced(runtime, process_started=1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "readlink", lambda path: "1")
        assert [found.name for found in profiler.list_servers()] == ["test"]
    assert path.exists()


@linux
@pytest.mark.parametrize("endpoints", ["", "'tcp://127.0.0.1:*', 'tcp://127.0.0.1:*'"])
def test_a_killed_child_that_nobody_waited_for_is_not_listed(runtime: Path, endpoints: str) -> None:
    script = f"from tornado_rbkit import profiler; profiler.start_server({endpoints}); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert [server.pid for server in profiler.list_servers()] == [child.pid]
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now, and stays one
        assert profiler.list_servers() == []
        assert list(runtime.iterdir()) == []


@unix
@pytest.mark.parametrize("endpoints", ["", "'tcp://127.0.0.1:*', 'tcp://127.0.0.1:*'"])
def test_a_program_that_replaced_a_profiled_one_is_not_listed(runtime: Path, endpoints: str) -> None:
    script = f"""
import os, sys
from tornado_rbkit import profiler
profiler.start_server({endpoints})
os.execv(sys.executable, [sys.executable, "-c", "print(flush=True); input()"])
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert profiler.list_servers() == []
        process.communicate(b"\n")
    assert profiler.list_servers() == []
    assert list(runtime.iterdir()) == []


@unix
def test_a_program_that_replaced_itself_is_listed_once(runtime: Path) -> None:
    """Autoreload calls exec, and the new program takes the same ports."""
    ports = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    script = f"""
import os, sys
from tornado_rbkit import profiler
profiler.start_server(*{ports}, name=sys.argv[1])
if sys.argv[1] == "before":
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], "after"])
print(flush=True)
input()
"""
    command = [sys.executable, "-c", script, "before"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert [server.name for server in profiler.list_servers()] == ["after"]
        assert len(list(runtime.iterdir())) == 1
        process.communicate(b"\n")


def test_an_endpoint_is_one_process_s(runtime: Path, server: profiler.Server) -> None:
    announced(runtime, req=server.req, pid_namespace=1)
    assert [found.name for found in profiler.list_servers()] == ["test"], "the other was there before"


@unix
def test_a_stopped_process_is_still_listed(runtime: Path) -> None:
    script = "from tornado_rbkit import profiler; profiler.start_server(); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(150):  # more than its backlog takes
                assert [server.pid for server in profiler.list_servers()] == [process.pid]
        finally:
            process.send_signal(signal.SIGCONT)
        [server] = profiler.list_servers()
        with Client(server.pub, server.req) as client:
            assert client.ask(b"trigger_gc") == b"ok"
        process.communicate(b"\n")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"name": 1, "pid": 1, "pub": "", "req": "", "started": 1}',
        '{"name": "x", "pid": -1, "pub": "", "req": "", "started": 1}',
        '{"name": "x", "pid": 99999999999999, "pub": "", "req": "", "started": 1}',
        '{"name": "x", "pid": true, "pub": "", "req": "", "started": 1}',
        '{"name": "x", "pid": 1, "pub": "", "req": "", "started": 1e400}',
        '{"name": "x", "pid": 1, "pub": "", "req": "", "started": -1e300}',
        '{"name": "x", "pid": 1, "pub": "tcp://a:1\\nforged", "req": "", "started": 1}',
        "[" * 60_000,
        "\udcff",
    ],
)
def test_a_file_that_is_not_a_servers_is_ignored(server: profiler.Server, runtime: Path, content: str) -> None:
    (runtime / "x.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    (runtime / "folder.json").mkdir()
    (runtime / "link.json").symlink_to("/etc/passwd")
    assert len(profiler.list_servers()) == 1
    assert (runtime / "x.json").exists()


def test_a_name_is_reported_in_one_short_line(server: profiler.Server, runtime: Path) -> None:
    facts = {"name": "a\x1b[31m\n\tb\udcff" + "c" * 9999, "pid": os.getpid(), "pub": "", "req": "", "started": 1}
    (runtime / "x.json").write_text(json.dumps(facts))
    assert profiler.list_servers()[0].name == "a?[31m??b?" + "c" * 190


@unix
def test_a_folder_that_others_may_write_to_is_refused(runtime: Path, caplog: pytest.LogCaptureFixture) -> None:
    runtime.mkdir(mode=0o700)
    runtime.chmod(0o777)
    _profiles_without_a_file(caplog)
    with pytest.raises(profiler.RuntimeFolderError, match="chmod"):
        profiler.list_servers()


@unix
def test_a_link_in_place_of_the_folder_is_refused(
    runtime: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    runtime.symlink_to(tmp_path / "elsewhere")
    _profiles_without_a_file(caplog)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", str(tmp_path / "file" / "folder"))
    _profiles_without_a_file(caplog)


def _profiles_without_a_file(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    try:
        assert server.file is None
        with Client(server.pub, server.req) as client:
            assert client.ask(b"trigger_gc") == b"ok"
    finally:
        profiler.stop_server()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", "/a")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/b")
    assert runtime_folder() == Path("/a")
    monkeypatch.delenv("RBKIT_RUNTIME_DIR")
    assert runtime_folder() == Path("/b/rbkit")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_folder() == tmp_path / "rbkit"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_folder().parent == tmp_path
    assert runtime_folder().name.startswith("rbkit-")


@unix
def test_the_session_folder_of_another_user_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After ``su`` the variable names the folder of the user before."""
    monkeypatch.delenv("RBKIT_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    user = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: user)
    assert runtime_folder() == tmp_path / "temporary" / f"rbkit-{user}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_its_parents_file() -> None:
    output = python(
        """
import os, sys, warnings
from tornado_rbkit import profiler
warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
child = os.fork()
if child == 0:
    profiler.stop_server()
    sys.exit(0)
os.waitpid(child, 0)
print(server.file.exists(), len(profiler.list_servers()))
"""
    )
    assert output == "True 1\n"


def test_start_profiling_starts_a_server_and_what_it_is_told_to() -> None:
    server = profiler.start_profiling(
        "tcp://127.0.0.1:*",
        "tcp://127.0.0.1:*",
        "all",
        enable_object_trace=False,
        enable_cpu_profiling=True,
        cpu_sampling_interval=0.01,
    )
    try:
        with Client(server.pub, server.req) as client:
            client.events(GCStats | CPUSample, lambda found: len(found) > 5)  # type: ignore[arg-type]
            handshake = decode(client.ask(b"handshake"))
        assert isinstance(handshake, Handshake)
        assert (handshake.object_trace_enabled, handshake.cpu_profiling_enabled) == (False, True)
        assert server.status()["cpu"]["interval"] == 0.01
        assert profiler.start_profiling(enable_cpu_profiling=False) is server
        assert server.status()["cpu"]["enabled"] is False
        assert server.status()["memory"]["enabled"] is True
        with pytest.raises(profiler.AlreadyRunningError):
            profiler.start_profiling("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")
    finally:
        profiler.stop_server()


@pytest.mark.parametrize(
    "wrong",
    [
        {"clock_type": "sun"},
        {"clock_type": None},
        {"cpu_sampling_interval": 0},
        {"cpu_sampling_interval": -1},
        {"cpu_sampling_interval": float("nan")},
        {"cpu_sampling_interval": "1"},
        {"cpu_sampling_interval": True},
        {"pub": 5555},
        {"req": b"tcp://127.0.0.1:*"},
        {"req": "ipc:///tmp/a\0b"},
        {"name": 5},
    ],
)
def test_a_wrong_argument_is_named_and_starts_nothing(wrong: dict[str, object]) -> None:
    ((setting, value),) = wrong.items()
    with pytest.raises(profiler.ArgumentError, match="allowed: ") as error:
        profiler.start_profiling(**wrong)  # type: ignore[arg-type]
    assert isinstance(error.value, ValueError)
    assert str(error.value).startswith(f"{setting}={value!r} ")
    if setting in ("pub", "req", "name"):
        with pytest.raises(profiler.ArgumentError, match=setting):
            profiler.start_server(**wrong)  # type: ignore[arg-type]
    assert profiler.current_server() is None
