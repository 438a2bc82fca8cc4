"""A server without given endpoints: Unix sockets of the user, their place, and their removal by others."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_rbkit import free_port
from tests.profiler.conftest import Client, wait_until
from tests.profiler.python import python
from tornado_rbkit import profiler
from tornado_rbkit.endpoints import MAX_IPC_PATH
from tornado_rbkit.profiler import endpoints
from tornado_rbkit.profiler import server as server_module

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no Unix sockets")


@contextlib.contextmanager
def started() -> Iterator[profiler.Server]:
    try:
        yield profiler.start_server(name="test")
    finally:
        profiler.stop_server()


def files(*servers: profiler.Server) -> list[Path]:
    """Return the socket files of servers."""
    found = [endpoint for server in servers for endpoint in (server.pub, server.req)]
    assert all(endpoint.startswith("ipc://") for endpoint in found)
    return [Path(endpoint.removeprefix("ipc://")) for endpoint in found]


def answers(server: profiler.Server | profiler.RunningServer) -> bool:
    with Client(server.pub, server.req) as client:
        return client.ask(b"trigger_gc") == b"ok"


def kill_process(script: str) -> str:
    """Run a script until it has printed a line, then kill it; return the line."""
    with subprocess.Popen(
        [sys.executable, "-c", script + "\nimport time; time.sleep(60)"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        process.kill()
    return line


def test_they_are_in_the_runtime_folder_and_their_owner_s_alone(runtime: Path) -> None:
    umask = os.umask(0)
    try:
        with started() as server:
            assert {path.parent for path in files(server)} == {runtime}
            assert [stat.S_IMODE(path.stat().st_mode) for path in files(server)] == [0o600, 0o600]
            assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
            assert answers(server)
    finally:
        os.umask(umask)
    assert list(runtime.iterdir()) == []


def test_folders_above_a_new_one_are_their_owner_s_alone_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", str(tmp_path / "a" / "b"))
    umask = os.umask(0)
    try:
        with started():
            assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    finally:
        os.umask(umask)


def test_two_processes_never_collide() -> None:
    with started() as server:
        output = python(
            """
from tests.profiler.test_sockets import answers
from tornado_rbkit import profiler
profiler.start_server(name="other")
print([(server.name, answers(server)) for server in profiler.list_servers()])
"""
        )
        assert output == "[('test', True), ('other', True)]\n"
        assert answers(server)


def test_each_start_has_files_of_its_own_under_the_same_pid() -> None:
    with started() as first:
        pass
    with started() as second:
        assert not set(files(first)) & set(files(second))
        assert first.file != second.file


def test_two_servers_with_one_pid_in_different_namespaces_share_the_folder(runtime: Path) -> None:
    script = """
import os, sys
os.getpid = lambda: 1
from tornado_rbkit import profiler
profiler.start_server(name=sys.argv[1])
print(flush=True)
sys.stdin.read()
"""
    with contextlib.ExitStack() as ends:
        for name in ("a", "b"):
            command = [sys.executable, "-c", script, name]
            process = ends.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            assert process.stdout is not None
            process.stdout.readline()
        assert len(list(runtime.iterdir())) == 6
    assert list(runtime.iterdir()) == []


def test_a_second_process_takes_other_sockets_than_the_environment_s_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    monkeypatch.setenv("RBKIT_REQ_PORT", str(port))
    with started() as server:
        assert server.req == f"tcp://127.0.0.1:{port}"
        assert server.pub.startswith("ipc://")
        second = python(
            """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from tornado_rbkit import profiler
server = profiler.start_server()
assert [found.req for found in profiler.list_servers()][-1] == server.req
print(server.req)
"""
        ).splitlines()
    assert second[0] == (
        "the profiler takes another socket, which `tornado-rbkit list` shows: "
        f"RBKIT_REQ_PORT: in use by another program: tcp://127.0.0.1:{port}"
    )
    assert second[1].startswith("ipc://")


def test_a_runtime_folder_with_too_long_a_path_leaves_them_to_a_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", str(tmp_path / ("x" * MAX_IPC_PATH)))
    with started() as server:
        assert all(path.parent.name == f"rbkit-{os.getuid()}" for path in files(server))
        assert [found.req for found in profiler.list_servers()] == [server.req]
        assert answers(server)
    assert not any(path.exists() for path in files(server))
    assert caplog.records == []


def test_the_files_of_a_killed_process_are_removed_by_whoever_looks_next(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "from tornado_rbkit import profiler; print(profiler.start_server().req, flush=True)"
    for folder in (runtime, tmp_path / ("x" * MAX_IPC_PATH)):
        monkeypatch.setenv("RBKIT_RUNTIME_DIR", str(folder))
        path = Path(kill_process(script).removeprefix("ipc://"))
        assert path.is_socket()
        assert profiler.list_servers() == []
        assert not path.exists()
        assert not path.with_suffix(".pub").exists()
        assert list(folder.iterdir()) == []


def test_a_socket_that_somebody_chose_is_not_removed_with_the_file(tmp_path: Path, runtime: Path) -> None:
    chosen = tmp_path / "chosen"
    kill_process(f"from tornado_rbkit import profiler; print(profiler.start_server(req='ipc://{chosen}'), flush=True)")
    assert profiler.list_servers() == []
    assert list(runtime.iterdir()) == []
    assert chosen.is_socket()


def test_files_that_cannot_be_removed_do_not_keep_the_server_from_ending(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that gives up its privileges after the start may not remove them any more."""
    with caplog.at_level(logging.WARNING), started() as server:
        pub, req = files(server)
        unlink = Path.unlink

        def refuse(path: Path, missing_ok: bool = False) -> None:
            if path == pub:
                raise PermissionError(1, "Operation not permitted")
            unlink(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", refuse)
    assert [record.getMessage() for record in caplog.records] == [f"{pub} cannot be removed: Operation not permitted"]
    assert not req.exists()


class TestWithoutAFolder:
    @pytest.fixture(autouse=True)
    def no_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Leave no folder that can be used, as on a read-only file system."""

        def fail() -> str:
            raise FileNotFoundError(2, "No usable temporary directory found")

        monkeypatch.delenv("RBKIT_RUNTIME_DIR")
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setattr(tempfile, "gettempdir", fail)
        in_the_way = tmp_path / "file"
        in_the_way.write_text("")
        monkeypatch.setattr(endpoints, "_FOLDERS", (*endpoints._FOLDERS[:2], lambda: in_the_way / "folder"))

    def test_a_server_starts_on_a_free_port_and_says_what_that_means(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING), started() as server:
            assert server.req.startswith("tcp://127.0.0.1:")
            assert server.file is None
            assert answers(server)
            assert profiler.current_server() is server
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == 2
        assert f"every user of this machine can command the profiler at {server.req}" in warnings[0]
        assert "No usable temporary directory found" in warnings[0]
        assert "the profiler cannot be found by its name" in warnings[1]
        assert "RBKIT_RUNTIME_DIR" in warnings[1]

    def test_processes_are_not_listed_and_the_error_says_why(self) -> None:
        with pytest.raises(
            profiler.RuntimeFolderError, match=r"No usable temporary directory found.*RBKIT_RUNTIME_DIR"
        ):
            profiler.list_servers()


def test_a_socket_that_the_file_system_refuses_is_made_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems, as a shared folder of a virtual machine, have no sockets."""
    bind_to_file = endpoints._bind_to_file
    refused: list[str] = []

    def refuse(sock: object, endpoint: str) -> None:
        if not refused or refused[0].rpartition("/")[0] == endpoint.rpartition("/")[0]:
            refused.append(endpoint)
            raise OSError(95, "Operation not supported")
        bind_to_file(sock, endpoint)  # type: ignore[arg-type]

    monkeypatch.setattr(endpoints, "_bind_to_file", refuse)
    with started() as server:
        assert len(refused) == 2
        assert all(path.parent.name == f"rbkit-{os.getuid()}" for path in files(server))
        assert answers(server)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_sockets_of_its_own_and_its_parent_s_stay() -> None:
    output = python(
        """
import os, sys, warnings
from tests.profiler.test_sockets import answers, files
from tornado_rbkit import profiler
warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
server = profiler.start_server(name="parent")
child = os.fork()
if child == 0:
    own = profiler.start_server(name="child")
    assert not set(files(own)) & set(files(server))
    assert answers(own)
    assert sorted(each.name for each in profiler.list_servers()) == ["child", "parent"]
    profiler.stop_server()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert all(path.exists() for path in files(server))
assert answers(server)
profiler.stop_server()
print(os.listdir(os.environ["RBKIT_RUNTIME_DIR"]))
"""
    )
    assert output == "[]\n"


class TestCleanedAway:
    """What a cleaner of old files, or the end of a login session, removes."""

    @pytest.fixture(autouse=True)
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server_module, "_LOOK_SECONDS", 0.02)

    @pytest.mark.parametrize("removed", ["announcement", "pub", "req", "folder", "all"])
    def test_it_comes_back_and_connections_stay(self, removed: str, runtime: Path) -> None:
        with started() as server, Client(server.pub, server.req) as client:
            assert server.file is not None
            listed = profiler.list_servers()
            pub, req = files(server)
            there = {server.file, pub, req}
            for _ in range(2):
                gone = {"announcement": [server.file], "pub": [pub], "req": [req], "all": [server.file, pub, req]}
                for path in gone.get(removed, []):
                    path.unlink()
                if removed == "folder":
                    server.call(lambda _: shutil.rmtree(runtime))  # on its thread, else files may come back meanwhile
                wait_until(lambda: runtime.exists() and {*runtime.iterdir()} == there, "the files are back")
                wait_until(lambda: profiler.list_servers() == listed, "it is found, and accepts connections")
                wait_until(
                    lambda: {stat.S_IMODE(path.stat().st_mode) for path in there} == {0o600}, "they are private"
                )
                assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
                assert answers(server), "others can connect"
                assert client.ask(b"trigger_gc") == b"ok"
        assert list(runtime.iterdir()) == []

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="descriptors are listed on Linux")
    def test_it_costs_no_descriptor_each_time(self) -> None:
        with started() as server:
            assert answers(server)
            before = len(os.listdir("/dev/fd"))
            for _ in range(5):
                for path in files(server):
                    path.unlink()
                wait_until(lambda: all(path.exists() for path in files(server)), "the files are back")
                assert answers(server)
            wait_until(lambda: len(os.listdir("/dev/fd")) <= before, "the former sockets are closed")

    def test_it_comes_back_when_the_folder_can_be_used_again(
        self, runtime: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def replace() -> None:
            shutil.rmtree(runtime)
            runtime.write_text("in the way")

        with started() as server:
            server.call(lambda _: replace())  # on its thread, else the folder may come back meanwhile
            wait_until(lambda: len(caplog.records) == 2, "it is reported")
            wait_until(lambda: server.file is None, "it is not announced")
            some_looks_later = time.monotonic() + 0.1
            wait_until(lambda: time.monotonic() > some_looks_later, "time passes")
            assert len(caplog.records) == 2, "it is reported once"
            runtime.unlink()
            wait_until(lambda: server.file is not None, "it is announced")
            assert answers(server)
            assert [found.name for found in profiler.list_servers()] == ["test"]

    def test_a_server_that_has_stopped_leaves_nothing_behind(self, runtime: Path) -> None:
        for _ in range(20):
            with started() as server:
                assert server.file is not None
                server.file.unlink()
            assert list(runtime.iterdir()) == []

    def test_what_is_old_is_touched_so_that_cleaners_leave_it(self) -> None:
        with started() as server:
            path = server.file
            assert path is not None
            os.utime(path, (1.0, 1.0))
            wait_until(lambda: path.stat().st_mtime > 1.0, "it is touched")
