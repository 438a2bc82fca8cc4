"""Web servers, task queues, event loops and tools with the profiler, by `run` and by two lines in the program."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from tests.fake_rbkit import free_port
from tests.profiler.conftest import Client, wait_until
from tornado_rbkit.profiler import RunningServer, list_servers
from tornado_rbkit.protocol import CPUSample, Handshake, decode

if sys.platform == "win32":
    pytest.skip("these hosts fork, or end at a signal", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("runtime_folder")

_T = TypeVar("_T")
_PATIENCE = 60.0  # seconds
_TWO_LINES = "from tornado_rbkit import profiler\nprofiler.start_server()\n"

PROGRAMS = {
    "wsgi.py": """
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
""",
    "asgi.py": """
import os

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
""",
    "flask_app.py": """
import os
import flask

app = flask.Flask(__name__)
app.get("/")(lambda: str(os.getpid()))
""",
    "django_app.py": """
import os, sys
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse
from django.urls import path

settings.configure(DEBUG=True, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="secret")
urlpatterns = [path("", lambda request: HttpResponse(str(os.getpid())))]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
""",
    "celery_app.py": """
from celery import Celery

app = Celery(broker="memory://")
""",
    "plain.py": """
import sys

sys.stdin.read()
""",
    "asyncio_app.py": """
import asyncio, sys

def main(run):
    async def wait():
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    run(wait())
""",
    "uvloop_app.py": """
import uvloop
from asyncio_app import main

main(uvloop.run)
""",
    "trio_app.py": """
import sys, trio

async def main():
    await trio.to_thread.run_sync(sys.stdin.read)

trio.run(main)
""",
    "test_app.py": """
import sys

def test_it():
    sys.stdin.read()
""",
}

WEB_SERVERS = {
    "gunicorn": "-m gunicorn -b 127.0.0.1:PORT wsgi:app",
    "gunicorn-gthread": "-m gunicorn -b 127.0.0.1:PORT -k gthread --threads 2 wsgi:app",
    "gunicorn-gevent": "-m gunicorn -b 127.0.0.1:PORT -k gevent wsgi:app",
    "gunicorn-preload": "-m gunicorn -b 127.0.0.1:PORT --preload --workers 2 wsgi:app",
    "uvicorn-reload": "-m uvicorn --port PORT --lifespan off --reload asgi:app",
    "uvicorn-workers": "-m uvicorn --port PORT --lifespan off --workers 2 asgi:app",
    "flask-debug": "-m flask --app flask_app run --debug --port PORT",
    "django-runserver": "django_app.py runserver PORT",
}

OTHERS = {
    "uvloop": "uvloop_app.py",
    "trio": "trio_app.py",
    "debugpy": "-X frozen_modules=off -m debugpy --listen PORT plain.py",
    "coverage": "-m coverage run plain.py",
    "dev-mode": "-X dev -W error plain.py",
    "pytest": "-m pytest -s -q -p no:cacheprovider -o asyncio_default_fixture_loop_scope=function test_app.py",
}


class Host(NamedTuple):
    process: subprocess.Popen[bytes]
    port: int
    by_run: bool
    output: Path

    def until(self, look: Callable[[], _T | None], what: str) -> _T:
        """Return the first true result of `look`."""
        deadline = time.monotonic() + _PATIENCE
        while not (found := look()):
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, f"not within {_PATIENCE:g} s: {what}\n{self.output.read_text()}"
            time.sleep(0.02)
        return found

    def serving_pid(self) -> int:
        """Return the pid of the process that answers requests; 0 before the first answer."""
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            return int(urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=_PATIENCE).read())
        return 0

    def end(self, stop: Callable[[], object]) -> None:
        """Stop the program; it must end as without the profiler, and no server may be left."""
        stop()
        assert self.process.wait(_PATIENCE) == 0, self.output.read_text()
        output = self.output.read_text()
        assert not [line for line in output.splitlines() if line.startswith(("Traceback", "Exception"))], output
        wait_until(lambda: not list_servers(), "the processes of the program have ended, too")


@pytest.fixture(params=["run", "two-lines"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Host]]:
    """Return a function that starts a host by a command line."""
    by_run = request.param == "run"
    hosts: list[Host] = []

    def run(command: str) -> Host:
        for name, text in PROGRAMS.items():
            (tmp_path / name).write_text(text if by_run else _TWO_LINES + text)
        port = free_port()
        arguments = command.replace("PORT", str(port)).split()
        options: list[str] = []
        while arguments[0] in ("-X", "-W"):
            options, arguments = [*options, *arguments[:2]], arguments[2:]
        with open(tmp_path / "output", "wb") as output:
            process = subprocess.Popen(
                [sys.executable, *options, *(["-m", "tornado_rbkit", "run"] if by_run else []), *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=tmp_path,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
            )
        hosts.append(Host(process, port, by_run, tmp_path / "output"))
        return hosts[-1]

    yield run
    for host in hosts:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(host.process.pid, signal.SIGKILL)
        host.process.communicate()


def assert_is_profiled(server: RunningServer) -> None:
    with Client(server.pub, server.req) as client:
        handshake = decode(client.ask(b"handshake"))
        assert isinstance(handshake, Handshake)
        assert handshake.pid == server.pid
        assert client.ask(b"start_cpu_profiling") == b"ok"
        client.events(CPUSample, lambda found: found)
        assert client.ask(b"stop_cpu_profiling") == b"ok"


def server_of(pid: int) -> RunningServer | None:
    return next((server for server in list_servers() if server.pid == pid), None)


@pytest.mark.parametrize("host", WEB_SERVERS)
def test_the_process_that_serves_requests_is_profiled(start: Callable[[str], Host], host: str) -> None:
    started = start(WEB_SERVERS[host])
    pid = started.until(started.serving_pid, "requests are answered")
    if host == "gunicorn-preload" and not started.by_run:
        pid = started.process.pid  # the workers are forked from the process that has run the lines
    server = started.until(lambda: server_of(pid), "its profiler is found")
    if started.by_run:
        name = WEB_SERVERS[host].removeprefix("-m ").split()[0]
        assert server.name in {f"{name} · worker {number} ({pid})" for number in (1, 2)}
    assert_is_profiled(server)
    started.end(started.process.terminate)


def test_the_workers_of_celery_are_profiled(start: Callable[[str], Host]) -> None:
    started = start("-m celery -A celery_app worker --loglevel info --concurrency 2 --without-gossip --without-mingle")
    count = 3 if started.by_run else 1  # by the lines only the process that forks the workers
    started.until(lambda: len(list_servers()) == count, "the profilers are found")
    servers = list_servers()
    if started.by_run:
        assert sorted(server.name.partition(" (")[0] for server in servers) == [
            "celery",
            "celery · worker 1",
            "celery · worker 2",
        ]
    for server in servers:
        assert_is_profiled(server)
    started.until(lambda: "ready." in started.output.read_text(), "the worker is ready")
    started.end(started.process.terminate)


@pytest.mark.parametrize("host", OTHERS)
def test_a_program_in_its_event_loop_or_tool_is_profiled(start: Callable[[str], Host], host: str) -> None:
    started = start(OTHERS[host])
    server = started.until(lambda: server_of(started.process.pid), "its profiler is found")
    assert_is_profiled(server)
    assert started.process.stdin is not None
    started.end(started.process.stdin.close)
