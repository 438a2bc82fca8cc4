"""Programs under the embedded profiler: run, demo, list, and a server that finds them by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import py_compile
import re
import signal
import subprocess
import sys
import textwrap
import zipapp
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.simple_httpclient import HTTPStreamClosedError

from tests.cli.here import run_here
from tests.conftest import Serve, ask, closing, receive, until
from tests.fake_rbkit import FakeRbkit
from tests.patient import PATIENT
from tornado_rbkit import Bridge, RbkitClient
from tornado_rbkit.client import ConnectionLost
from tornado_rbkit.profiler import discovery
from tornado_rbkit.protocol import CPUSample, Handshake, ObjCreated
from tornado_rbkit.web.discovered import DiscoveredTargets

pytestmark = pytest.mark.usefixtures("runtime_folder")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def start(started: list[subprocess.Popen[str]], *command: str, **options: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, *PATIENT, *command], stdout=subprocess.PIPE, text=True, **options)
    started.append(process)
    return process


def url_in(line: str) -> str:
    """Return the address of the page, with the token that it may have."""
    match = re.search(r"http://[^/]+/rbkit/\S*", line)
    assert match, line
    return match[0]


def beside(url: str, path: str) -> str:
    """Return the address of a path next to the page; a WebSocket's if the path ends with ws."""
    page, _, query = url.partition("?")
    return (page.replace("http", "ws") if path.endswith("ws") else page) + path + ("?" + query if query else "")


def web_server(process: subprocess.Popen[str]) -> int:
    """Return the pid of the web server beside a program, which is not its child."""
    assert Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text() == ""
    profiler = next(server for server in discovery.list_servers() if server.pid == process.pid)
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found += [int(path.parent.name)] if profiler.req.encode() in path.read_bytes().split(b"\0") else []
    (pid,) = found
    return pid


def program(folder: Path, text: str) -> str:
    path = folder / "program.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *PATIENT, "run", *command], capture_output=True, text=True, timeout=60, **options
    )


class TestRun:
    def test_gives_a_script_its_own_arguments_path_and_name(self, tmp_path: Path) -> None:
        path = program(tmp_path, "import sys; print(sys.argv, sys.path[0], __name__, __file__)")
        finished = run(path, "--open", "-m", "x")
        assert finished.stdout == f"{[path, '--open', '-m', 'x']} {tmp_path} __main__ {path}\n"
        assert finished.returncode == 0
        assert re.fullmatch(r"tornado-rbkit: http://127\.0\.0\.1:\d+/rbkit/\?token=[\w-]{32}\n", finished.stderr)

    def test_a_program_that_starts_the_server_itself_gets_the_running_one(self, tmp_path: Path) -> None:
        text = """
        from tornado_rbkit import profiler

        print(profiler.start_server(name="mine") is profiler.current_server())
        try:
            profiler.start_server("tcp://127.0.0.1:*")
        except profiler.AlreadyRunningError as error:
            print(error.server is profiler.current_server())
        """
        finished = run(program(tmp_path, text))
        assert (finished.returncode, finished.stdout) == (0, "True\nTrue\n"), finished.stderr

    @pytest.mark.parametrize("form", ["script", "module", "module-without-a-space"])
    def test_gives_a_program_the_command_that_starts_it_again_without_the_profiler(
        self, tmp_path: Path, form: str
    ) -> None:
        path = program(tmp_path, "import json, sys; print(json.dumps(sys.orig_argv[1:]))")
        words = {"script": [path], "module": ["-m", "program"], "module-without-a-space": ["-mprogram"]}[form]
        before = ["-X", "dev", "-mtornado_rbkit"] if form == "script" else ["-X", "dev", "-m", "tornado_rbkit"]
        command = [sys.executable, *before, "run", "--port=0", *words, "-x", "y"]
        output = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path).stdout
        assert json.loads(output) == ["-X", "dev", *([path] if form == "script" else ["-m", "program"]), "-x", "y"]

    def test_runs_a_module(self, tmp_path: Path) -> None:
        (tmp_path / "some_module.py").write_text("import sys; print(sys.argv[1:], __name__)")
        assert run("-m", "some_module", "--help", cwd=tmp_path).stdout == "['--help'] __main__\n"

    @pytest.mark.parametrize(
        ("text", "status"),
        [("pass", 0), ("raise SystemExit(7)", 7), ("1 / 0", 1), ("import os; os._exit(5)", 5), ("raise OSError", 1)],
    )
    def test_leaves_the_exit_status_and_the_traceback_alone(self, tmp_path: Path, text: str, status: int) -> None:
        finished = run(program(tmp_path, text))
        assert finished.returncode == status
        assert ("Traceback" in finished.stderr) == (status == 1)

    @pytest.mark.parametrize("before", [["--"], ["--port", "0", "--"], ["--host=127.0.0.1", "--port=0", "--"]])
    def test_takes_a_script_behind_two_dashes(self, tmp_path: Path, before: list[str]) -> None:
        path = program(tmp_path, "import sys; print(sys.argv[1:])")
        assert run(*before, path, "--", "-x").stdout == "['--', '-x']\n"

    def test_takes_a_module_without_a_space(self, tmp_path: Path) -> None:
        (tmp_path / "some_module.py").write_text("import sys; print(sys.argv[1:], __name__)")
        assert run("-msome_module", "--help", cwd=tmp_path).stdout == "['--help'] __main__\n"

    @pytest.mark.parametrize("module", ["no_module", "no_module.sub"])
    def test_says_what_python_says_where_there_is_no_module(self, tmp_path: Path, module: str) -> None:
        finished = run("-m", module, cwd=tmp_path)
        assert (finished.returncode, finished.stderr) == (1, f"{sys.executable}: No module named {module}\n")

    @pytest.mark.parametrize("as_module", [True, False])
    def test_shows_a_traceback_that_begins_with_the_program(self, tmp_path: Path, as_module: bool) -> None:
        path = program(tmp_path, "def f():\n    1 / 0\nf()\n")
        command = ["-m", "program"] if as_module else [path]
        expected = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path).stderr
        shown = run(*command, cwd=tmp_path).stderr.partition("\n")[2]
        assert shown == expected

    def test_leaves_main_of_a_module_for_threads_and_pickle(self, tmp_path: Path) -> None:
        text = """
            import pickle, threading
            class A: pass
            def later():
                threading.main_thread().join()
                print(pickle.loads(pickle.dumps(A())).__class__.__name__)
            threading.Thread(target=later).start()
        """
        program(tmp_path, text)
        finished = run("-m", "program", cwd=tmp_path)
        assert (finished.stdout, finished.returncode) == ("A\n", 0), finished.stderr

    def test_leaves_main_as_it_is_for_threads_and_pickle(self, tmp_path: Path) -> None:
        text = """
            import os, pickle, sys, threading
            class A: pass
            def later():
                threading.main_thread().join()
                print(pickle.loads(pickle.dumps(A())).__class__.__name__, os.path.isabs(__file__))
            threading.Thread(target=later).start()
        """
        finished = run(os.path.basename(program(tmp_path, text)), cwd=tmp_path)
        assert (finished.stdout, finished.returncode) == ("A True\n", 0), finished.stderr

    def test_is_not_misled_by_what_lies_in_the_current_folder(self, tmp_path: Path) -> None:
        here, there = tmp_path / "here", tmp_path / "there"
        here.mkdir()
        there.mkdir()
        (here / "queue.py").write_text("raise SystemExit('the wrong one')")
        command = str(Path(sys.executable).with_name("tornado-rbkit"))  # python -m would be misled itself
        path = program(there, "import queue; print(queue.Queue.__name__)")
        finished = subprocess.run([command, "run", path], capture_output=True, text=True, cwd=here, timeout=60)
        assert finished.stdout == "Queue\n", finished.stderr

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_ends_although_a_forked_child_stays(self, tmp_path: Path) -> None:
        text = "import os, time\nif os.fork() == 0:\n    os.closerange(0, 3)\n    os.setsid()\n    time.sleep(90)"
        assert run(program(tmp_path, text)).returncode == 0, "it has not waited, else `run` would fail"

    def test_loads_no_web_server_into_the_program(self, tmp_path: Path) -> None:
        text = "import sys; print(sorted({'asyncio', 'tornado', 'tornado_rbkit.bridge'} & set(sys.modules)))"
        assert run(program(tmp_path, text)).stdout == "[]\n"

    def test_leaves_signals_and_logging_alone(self, tmp_path: Path) -> None:
        text = """
            import logging, signal
            print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), logging.getLogger().handlers)
        """
        path = program(tmp_path, text)
        alone = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
        assert run(path).stdout == alone.stdout

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ([], "no program to run"),
            (["missing.py"], "there is no script 'missing.py'; allowed: the path of a script, or a module: -m MODULE"),
            (["gunicorn", "app:app"], "'gunicorn'; allowed: the path of a script, or a module: -m gunicorn"),
            (["python", "script.py"], "'python' is not a script; leave it out"),
            ([sys.executable, "script.py"], "is not a script; leave it out"),
        ],
    )
    def test_says_in_a_line_what_is_missing(self, arguments: list[str], text: str) -> None:
        finished = run_here("run", *arguments)
        assert finished.returncode == 2
        assert text in finished.stderr
        assert finished.stderr.count("\n") == 1

    async def test_serves_the_program_while_it_runs_and_ends_with_it(
        self, tmp_path: Path, started: list[subprocess.Popen[str]]
    ) -> None:
        path = program(tmp_path, "class Leaked: pass\ninput()\nkept = [Leaked() for _ in range(1000)]\ninput()")
        process = start(started, "run", path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        assert process.stdin is not None
        url = url_in(process.stderr.readline())
        async with RbkitClient(beside(url, "ws")) as rbkit:
            handshake = await rbkit.command("handshake")
            assert isinstance(handshake, Handshake)
            assert (handshake.process_name, handshake.pid) == (path, process.pid)
            await rbkit.command("start_memory_profile")
            process.stdin.write("\n")
            process.stdin.flush()
            leaked = 0
            async for event in rbkit.events():
                leaked += isinstance(event, ObjCreated) and event.class_name == "__main__.Leaked"
                if leaked == 1000:
                    break
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
        with pytest.raises(OSError, match=r".*"):
            await AsyncHTTPClient().fetch(url)

    async def test_serves_nobody_without_the_token_of_its_address(
        self, tmp_path: Path, started: list[subprocess.Popen[str]]
    ) -> None:
        process = start(started, "run", program(tmp_path, "input()"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        url = url_in(process.stderr.readline())
        pages = [beside(url, path) for path in ("", "status", "targets", "static/app.js", "static/worker.js")]
        for page in pages:
            assert (await AsyncHTTPClient().fetch(page)).code == 200
            for wrong in (page.partition("?")[0], page + "x"):
                assert (await AsyncHTTPClient().fetch(wrong, raise_error=False)).code == 401
        async with RbkitClient(beside(url, "ws")) as rbkit:
            assert await rbkit.command("trigger_gc") == "ok"
        with pytest.raises(ConnectionLost, match="401"):
            async with RbkitClient(beside(url, "ws").partition("?")[0]):
                pass

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
    @pytest.mark.parametrize("option", [["--host", "0.0.0.0"], ["--host=0.0.0.0"]])
    async def test_can_be_reached_from_outside_with_its_token(
        self, tmp_path: Path, started: list[subprocess.Popen[str]], option: list[str]
    ) -> None:
        """As by the address of a container, which nobody knows before it runs."""
        path = program(tmp_path, "input()")
        process = start(started, "run", *option, path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        address = process.stderr.readline().split()[1]
        assert address.startswith("http://0.0.0.0:")
        url = address.replace("0.0.0.0", "127.0.0.1")
        for wanted, each in ((200, url), (401, url.partition("?")[0])):
            response = await AsyncHTTPClient().fetch(each, headers={"Host": "10.244.0.5:80"}, raise_error=False)
            assert response.code == wanted
        process.communicate("\n", timeout=60)
        assert process.returncode == 0

    def test_shows_the_token_to_nobody_but_its_user(
        self, tmp_path: Path, started: list[subprocess.Popen[str]]
    ) -> None:
        text = "import os; print(os.environ.get('RBKIT_TOKEN'), flush=True); input()"
        process = start(started, "run", program(tmp_path, text), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        assert process.stdout is not None
        token = url_in(process.stderr.readline()).partition("token=")[2]
        assert process.stdout.readline() == "None\n", "the program's environment is its own"
        server = web_server(process)
        assert token not in Path(f"/proc/{server}/cmdline").read_text()
        assert token in Path(f"/proc/{server}/environ").read_text()

    def test_takes_the_token_of_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RBKIT_TOKEN", "a&b c")
        finished = run(program(tmp_path, "pass"))
        assert re.fullmatch(r"tornado-rbkit: http://127\.0\.0\.1:\d+/rbkit/\?token=a%26b%20c\n", finished.stderr)

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no Unix sockets")
    def test_listens_where_only_its_user_can_connect(self, tmp_path: Path) -> None:
        text = """
            from tornado_rbkit import profiler
            print(profiler.current_server().pub, profiler.current_server().req)
        """
        pub, req = run(program(tmp_path, text)).stdout.split()
        assert pub.startswith("ipc://")
        assert req.startswith("ipc://")

    def test_runs_the_program_where_there_is_no_folder_to_be_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.delenv("RBKIT_RUNTIME_DIR")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "file"))
        finished = run(program(tmp_path, "print('ran')"))
        assert (finished.returncode, finished.stdout) == (0, "ran\n")
        assert "the profiler cannot be found by its name" in finished.stderr

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
    def test_says_at_its_end_that_the_web_server_ended_before(
        self, tmp_path: Path, started: list[subprocess.Popen[str]]
    ) -> None:
        process = start(started, "run", program(tmp_path, "input()"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        process.stderr.readline()
        os.kill(web_server(process), signal.SIGKILL)
        _, errors = process.communicate("\n", timeout=60)
        assert (process.returncode, errors) == (0, "tornado-rbkit: the web server was killed\n")

    @pytest.mark.skipif(os.name == "nt", reason="Windows has no exec")
    async def test_keeps_the_page_and_the_name_of_a_program_that_replaces_itself(
        self, tmp_path: Path, started: list[subprocess.Popen[str]]
    ) -> None:
        text = """
            import os, sys
            input()
            if "again" not in sys.argv:
                os.execv(sys.executable, [sys.executable, sys.argv[0], "again"])
            """
        path = program(tmp_path, text)
        process = start(started, "run", path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        assert process.stdin is not None
        url = url_in(process.stderr.readline())
        (before,) = discovery.list_servers()
        process.stdin.write("\n")
        process.stdin.flush()
        await until(lambda: [each.started for each in discovery.list_servers()] > [before.started], "it runs again")
        (after,) = discovery.list_servers()
        assert after == before._replace(started=after.started)
        async with RbkitClient(beside(url, "ws")) as rbkit:
            handshake = await rbkit.command("handshake")
            assert isinstance(handshake, Handshake)
            assert handshake.process_name == path
            process.stdin.write("\n")
            process.stdin.flush()
            with pytest.raises(ConnectionLost) as lost:
                async for _ in rbkit.events():
                    pass
            assert lost.value.code == 1001
        assert process.wait(60) == 0

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    async def test_leaves_no_files_of_processes_that_signals_have_ended(
        self, tmp_path: Path, started: list[subprocess.Popen[str]], runtime_folder: Path, number: signal.Signals
    ) -> None:
        process = start(started, "run", program(tmp_path, "input()"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        process.stderr.readline()
        server = web_server(process)
        process.send_signal(number)
        assert process.wait(60) == -number
        await until(lambda: not Path(f"/proc/{server}").exists(), "the web server has ended")
        assert list(runtime_folder.iterdir()) == []

    def test_ends_where_no_thread_can_be_started_any_more(self, tmp_path: Path) -> None:
        text = """
            import atexit, threading
            def refuse(*_):
                raise RuntimeError("can't create new thread at interpreter shutdown")
            atexit.register(setattr, threading.Thread, "start", refuse)  # as Python 3.12.1 does it for all functions
            """
        finished = run(program(tmp_path, text))
        assert (finished.returncode, finished.stderr.count("\n")) == (0, 1), finished.stderr

    async def test_ends_its_server_when_the_program_is_killed(
        self, tmp_path: Path, started: list[subprocess.Popen[str]]
    ) -> None:
        process = start(started, "run", program(tmp_path, "input()"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        url = url_in(process.stderr.readline())
        process.kill()
        process.wait()

        async def gone() -> bool:
            try:
                await AsyncHTTPClient().fetch(url)
            except HTTPStreamClosedError:  # it has taken the connection, and is ending
                return False
            except OSError:
                return True
            return False

        for _ in range(1200):
            if await gone():
                return
            await asyncio.sleep(0.05)
        pytest.fail("the server is still there")


class TestRunsWhatPythonRuns:
    @pytest.mark.parametrize("kind", ["folder", "zip", "pyc"])
    def test_besides_source_files(self, tmp_path: Path, kind: str) -> None:
        source = tmp_path / "app" / "__main__.py"
        source.parent.mkdir()
        source.write_text("import sys, beside; print(__name__, sys.argv[1:], beside.HERE)")
        (source.parent / "beside.py").write_text("HERE = 'here'")
        if kind == "zip":
            zipapp.create_archive(source.parent, tmp_path / "app.pyz")
            path = tmp_path / "app.pyz"
        elif kind == "pyc":
            path = source.parent / "app.pyc"
            py_compile.compile(str(source), str(path))
        else:
            path = source.parent
        finished = run(str(path), "--x")
        assert (finished.returncode, finished.stdout) == (0, "__main__ ['--x'] here\n"), finished.stderr

    @pytest.mark.skipif(os.name == "nt", reason="the web server is a child on Windows")
    def test_and_gives_it_no_children_but_its_own(self, tmp_path: Path) -> None:
        text = """
            import os
            if os.fork() == 0:
                os._exit(3)
            while True:
                try:
                    print(os.waitstatus_to_exitcode(os.wait()[1]))
                except ChildProcessError:
                    break
        """
        assert run(program(tmp_path, text)).stdout == "3\n"


FAMILY = """
    import json, os, subprocess, sys, time
    from tornado_rbkit import profiler

    def wait_for(names):
        deadline = time.monotonic() + 50
        while True:
            found = sorted(server.name for server in profiler.list_servers())
            if len(found) == names:
                return found
            if time.monotonic() > deadline:
                raise SystemExit(f"expected {names}: {found}")
            time.sleep(0.05)
"""
"""The beginning of a program that looks for the profilers of its processes."""


class TestFollowsChildren:
    def test_that_are_python_processes(self, tmp_path: Path) -> None:
        text = (
            FAMILY
            + """
    code = "import sys; input(); print(sys.path[1:2])"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    names = wait_for(2)
    print(names == [sys.argv[0], "program.py · worker 1 (%d)" % child.pid], flush=True)
    child.communicate(b"\\n")
    wait_for(1)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    print("program.py · worker 1 (%d)" % child.pid in wait_for(2))
    child.communicate(b"\\n")
        """
        )
        finished = run(program(tmp_path, text))
        assert finished.returncode == 0, finished.stderr
        lines = finished.stdout.splitlines()
        assert (lines[0], lines[2]) == ("True", "True"), finished.stderr
        assert "startup" not in lines[1], "the child's sys.path is as without the profiler"

    @pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
    def test_that_multiprocessing_starts_and_their_servers_end_with_them(self, tmp_path: Path, method: str) -> None:
        text = """
    import concurrent.futures, multiprocessing
    def work(number):
        return number
    if __name__ == "__main__":
        context = multiprocessing.get_context("METHOD")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            print(sum(pool.map(work, range(100))), [name.split(" (")[0] for name in wait_for(3)][1:])
        print(wait_for(1) == [sys.argv[0]])
        """.replace("METHOD", method)
        if method == "fork":  # a pool forks its second process when it is needed
            text = text.replace("print(sum", "pool.submit(wait_for, 3)\n            print(sum")
        finished = run(program(tmp_path, FAMILY + text))
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout == ("4950 ['program.py · worker 1', 'program.py · worker 2']\nTrue\n"), finished.stderr

    def test_and_imports_the_sitecustomize_of_the_environment(self, tmp_path: Path) -> None:
        (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.customized = True")
        text = f"""
            import os, subprocess, sys
            code = "print(customized, __import__('sitecustomize').__file__)"
            environment = {{**os.environ, "PYTHONPATH": os.environ["PYTHONPATH"] + os.pathsep + {str(tmp_path)!r}}}
            sys.exit(subprocess.run([sys.executable, "-c", code], env=environment).returncode)
        """
        (tmp_path / "sub").mkdir()
        finished = run(program(tmp_path / "sub", text))
        assert finished.stdout == f"True {tmp_path / 'sitecustomize.py'}\n", finished.stderr

    def test_but_not_into_another_environment(self, tmp_path: Path) -> None:
        text = """
            import subprocess, sys
            sys.exit(subprocess.run([sys.executable, "-S", "-c", "import sitecustomize"]).returncode)
        """
        assert run(program(tmp_path, text)).returncode == 0

    async def test_and_shows_them_on_the_page_of_the_program(
        self, tmp_path: Path, started: list[subprocess.Popen[str]]
    ) -> None:
        text = """
            import subprocess, sys
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            input()
            child.communicate(b"\\n")
        """
        stranger = start(
            started, "run", program(tmp_path, "input()"), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        process = start(started, "run", program(tmp_path, text), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        url = url_in(process.stderr.readline())
        names: list[str] = []
        while len(names) < 2:
            targets = json.loads((await AsyncHTTPClient().fetch(beside(url, "targets"))).body)
            names = [target["name"] for target in targets]
        assert names[0] == "program.py"
        assert re.fullmatch(r"program.py-worker-1-\d+", names[1])
        async with RbkitClient(beside(url, "ws")) as rbkit:
            handshake = await rbkit.command("handshake")
            assert isinstance(handshake, Handshake)
            assert handshake.pid == process.pid, "the WebSocket beside the page is the program's"
        assert stranger.poll() is None
        process.communicate("\n", timeout=60)

    def test_records_from_the_start_where_it_is_told_to(self, tmp_path: Path) -> None:
        text = (
            FAMILY
            + """
    def recording():
        status = profiler.current_server().status()
        return status["cpu"]["enabled"], status["memory"]["enabled"]
    print(recording(), flush=True)
    code = "from tornado_rbkit import profiler; status = profiler.current_server().status()"
    subprocess.run([sys.executable, "-c", code + "; print(status['cpu']['enabled'], status['memory']['enabled'])"])
        """
        )
        path = program(tmp_path, text)
        assert run("--cpu", path).stdout == "(True, False)\nTrue False\n"
        assert run("--memory", "--cpu", path).stdout == "(True, True)\nTrue True\n"
        assert run(path).stdout == "(False, False)\nFalse False\n"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_records_in_a_forked_child_as_in_the_program_and_prints_nothing(self, tmp_path: Path) -> None:
        text = """
            import os, time
            from tornado_rbkit import profiler
            child = os.fork() or os.fork()  # Python 3.12 and newer would warn of the profiler's threads
            if child:
                os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            while True:
                server = profiler.current_server()
                status = server and server.status()
                if status and status["cpu"]["enabled"] and status["memory"]["enabled"]:
                    break
                time.sleep(0.01)
            print(server.call(lambda profile: profile.cpu.interval), flush=True)
            os._exit(3)
        """
        finished = run("--memory", "--cpu", program(tmp_path, text))
        assert (finished.returncode, finished.stdout) == (3, "0.01\n"), finished.stderr
        assert finished.stderr.count("\n") == 1, "nothing but the address of the page is printed"


def test_a_server_beside_a_program_ends_when_its_standard_input_cannot_be_read(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with (tmp_path / "written").open("w") as written:
        server = start(started, "serve", "--port=0", f"--beside={ended.pid}", stdin=written, stderr=subprocess.PIPE)
    assert "Traceback" not in server.communicate(timeout=60)[1]
    assert server.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_demo_has_something_to_look_at_and_ends_with_status_0(
    started: list[subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = start(started, "demo", "--port", "0")
    assert process.stdout is not None
    url = url_in(process.stdout.readline())
    async with RbkitClient(beside(url, "ws")) as rbkit:
        seen: set[str] = set()
        async for event in rbkit.events():
            seen.add(type(event).__name__)
            if isinstance(event, CPUSample):
                seen.update(frame.label.rpartition(".")[2] for frame in event.frames)
            if {"ObjCreated", "ObjDestroyed", "GCStart", "discounted"} <= seen:
                break
    process.send_signal(number)
    assert process.wait(60) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are looked up in /proc")
def test_demo_ends_with_a_line_when_its_workload_is_killed(started: list[subprocess.Popen[str]]) -> None:
    process = start(started, "demo", "--port", "0", stderr=subprocess.PIPE)
    assert process.stdout is not None
    url_in(process.stdout.readline())
    (workload,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workload), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.endswith("\ntornado-rbkit: the process of the demo ended (exit status -9)\n")


@pytest.mark.parametrize(
    ("options", "environment", "told"),
    [([], {}, True), (["--token", "t"], {}, False), ([], {"RBKIT_TOKEN": "t"}, False), (["--host", "::1"], {}, True)],
)
@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_server_without_a_token_says_that_every_user_can_connect(
    started: list[subprocess.Popen[str]],
    command: str,
    options: list[str],
    environment: dict[str, str],
    told: bool,
) -> None:
    server = start(
        started, command, "--port", "0", *options, stderr=subprocess.PIPE, env={**os.environ, **environment}
    )
    assert server.stdout is not None
    url_in(server.stdout.readline())
    server.terminate()
    _, errors = server.communicate(timeout=60)
    lines = ["WARNING every user of this machine can connect to this server; --token-file FILE demands a token"]
    assert errors.splitlines() == (lines if told else [])
    assert server.returncode == 0


class TestDiscovery:
    async def test_serve_without_endpoints_shows_what_comes_and_goes(
        self, tmp_path: Path, started: list[subprocess.Popen[str]]
    ) -> None:
        server = start(started, "serve", "--port", "0")
        assert server.stdout is not None
        url = url_in(server.stdout.readline())
        targets: list[dict[str, str]] = []

        async def look() -> list[dict[str, str]]:
            targets[:] = json.loads((await AsyncHTTPClient().fetch(url + "targets")).body)
            return targets

        assert await look() == []
        process = start(started, "run", program(tmp_path, "input()"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        process.stderr.readline()
        while not await look():
            await asyncio.sleep(0.05)
        assert [target["name"] for target in targets] == ["program.py"]
        async with RbkitClient(beside(url, targets[0]["ws"])) as rbkit:
            handshake = await rbkit.command("handshake")
            assert isinstance(handshake, Handshake)
            assert handshake.pid == process.pid
        process.communicate("\n", timeout=60)
        while await look():
            await asyncio.sleep(0.05)
        server.terminate()
        assert server.wait(60) == 0

    async def test_list_shows_name_pid_and_endpoints(
        self, tmp_path: Path, started: list[subprocess.Popen[str]]
    ) -> None:
        process = start(started, "run", program(tmp_path, "input()"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        process.stderr.readline()
        listed = subprocess.run(
            [sys.executable, "-m", "tornado_rbkit", "list"], capture_output=True, text=True, check=True
        ).stdout
        name, pid, pub, req, _ = listed.split("\t")
        assert (name, int(pid)) == (str(tmp_path / "program.py"), process.pid)
        scheme = "tcp" if os.name == "nt" else "ipc"
        assert pub.startswith(f"{scheme}://")
        assert req.startswith(f"{scheme}://")

    def test_list_says_where_it_looked_when_it_finds_nothing(self, runtime_folder: Path) -> None:
        listed = subprocess.run([sys.executable, "-m", "tornado_rbkit", "list"], capture_output=True, text=True)
        assert (listed.returncode, listed.stdout) == (0, "")
        assert listed.stderr.startswith(f"tornado-rbkit: there is no process with a profiler in {runtime_folder} (")
        assert listed.stderr.count("\n") == 1

    async def test_names_are_made_fit_for_a_path_and_distinguished(
        self, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = ["/srv/my app.py", "/other/my app.py", "status", "ünter", "///", "python"]
        servers = [
            discovery.RunningServer(name, pid, rbkit.pub, rbkit.req, 0.0) for pid, name in enumerate(names, 100)
        ]
        monkeypatch.setattr("tornado_rbkit.web.discovered.list_servers", lambda: servers)
        targets = DiscoveredTargets(lambda pub, req, thread: Bridge(pub, req, threaded=thread))
        targets.scan()
        assert list(targets) == ["my-app.py", "my-app.py-101", "status-102", "nter", "python", "python-105"]

    async def test_one_that_cannot_be_served_disturbs_nobody(
        self, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        bad = discovery.RunningServer("bad", 1, "ipc://" + "x" * 200, rbkit.req, 0.0)
        good = discovery.RunningServer("good", 2, rbkit.pub, rbkit.req, 0.0)
        monkeypatch.setattr("tornado_rbkit.web.discovered.list_servers", lambda: [bad, good])
        targets = DiscoveredTargets(lambda pub, req, thread: Bridge(pub, req, threaded=thread))
        targets.scan()
        targets.scan()
        assert list(targets) == ["good"]
        assert caplog.text.count("bad cannot be served") == 1

        def fail() -> list[discovery.RunningServer]:
            raise OSError("too many open files")

        monkeypatch.setattr("tornado_rbkit.web.discovered.list_servers", fail)
        targets.scan()
        assert list(targets) == ["good"], "that one look failed does not mean that they are gone"

    async def test_viewers_continue_with_a_process_that_is_started_again(
        self, serve: Serve, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with FakeRbkit() as again:
            servers = [discovery.RunningServer("app", 1, rbkit.pub, rbkit.req, 0.0)]
            monkeypatch.setattr("tornado_rbkit.web.discovered.list_servers", lambda: list(servers))
            targets = DiscoveredTargets(lambda pub, req, thread: Bridge(pub, req))
            targets.scan()
            bridge = targets["app"]
            server = await serve(bridge)
            connection = await server.connected()
            servers.clear()
            targets.scan()
            assert targets["app"] is bridge
            servers.append(discovery.RunningServer("app", 2, again.pub, again.req, 1.0))
            targets.scan()
            assert list(targets) == ["app"]
            told = [await receive(connection) for _ in range(3)]
            assert told == [b"0server:disconnected", b"0server:connected", b"0server:restarted"]
            assert await ask(connection, "trigger_gc") == b"0ok"
            assert b"trigger_gc" in again.received
            servers.clear()
            monkeypatch.setattr("tornado_rbkit.web.discovered.KEEP_SECONDS", 0.0)
            targets.scan()
            assert list(targets) == [""]
            assert (await closing(connection))[0] == 1001

    async def test_one_that_nobody_watches_goes_at_once(
        self, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        servers = [discovery.RunningServer("app", 1, rbkit.pub, rbkit.req, 0.0)]
        monkeypatch.setattr("tornado_rbkit.web.discovered.list_servers", lambda: list(servers))
        targets = DiscoveredTargets(lambda pub, req, thread: Bridge(pub, req, threaded=thread))
        targets.scan()
        servers.clear()
        targets.scan()
        assert list(targets) == [""]

    async def test_a_folder_that_cannot_be_trusted_is_reported_once(
        self, runtime_folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        runtime_folder.mkdir()
        os.chmod(runtime_folder, 0o777)
        targets = DiscoveredTargets(lambda pub, req, thread: Bridge(pub, req, threaded=thread))
        targets.scan()
        targets.scan()
        assert caplog.text.count("processes cannot be discovered") == 1
        assert list(targets) == [""]

    async def test_following_ends_with_everything_closed(self, rbkit: FakeRbkit) -> None:
        targets = DiscoveredTargets(
            lambda pub, req, thread: Bridge(pub or rbkit.pub, req or rbkit.req, threaded=thread)
        )
        following = asyncio.create_task(targets.follow())
        await until(targets._thread.is_alive, "the thread runs")
        following.cancel()
        await asyncio.wait([following])
        assert not targets._thread.is_alive()
