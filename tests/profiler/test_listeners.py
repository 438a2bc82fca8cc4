"""Unix sockets while the process runs out of file descriptors, which makes libzmq abort it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.profiler.python import python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")

EXHAUSTED = """
import io, logging, os, resource, socket
from pathlib import Path
from tests.profiler.conftest import Client
from tornado_rbkit import profiler

logged = io.StringIO()  # by the server's thread, while the files are renamed already
logging.basicConfig(stream=logged, format="%(message)s")
server = profiler.start_server(*ENDPOINTS)
files = [Path(endpoint.removeprefix("ipc://")) for endpoint in (server.pub, server.req)]

def wait(reached):
    while not reached():
        server.call(lambda _: None)

with Client(server.pub, server.req) as client:
    client.ask(b"handshake")
    strangers = [socket.socket(socket.AF_UNIX) for _ in files]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] < 197:
        taken.append(os.dup(taken[0]))
    wait(lambda: not any(file.exists() for file in files))
    taken += [os.dup(taken[0]) for _ in range(2)]
    for stranger, file in zip(strangers, files):
        print(stranger.connect_ex(str(file)) != 0)
        stranger.close()
    print(client.ask(b"trigger_gc"))
    while taken:
        os.close(taken.pop())
    wait(lambda: all(file.exists() for file in files))
    with Client(server.pub, server.req) as other:
        print(other.ask(b"trigger_gc"))
    print(client.ask(b"trigger_gc"))
profiler.stop_server()
print([file for file in files if file.exists()])
print(logged.getvalue())
"""
PRINTED = (
    "True\nTrue\nb'ok'\nb'ok'\nb'ok'\n[]\n"
    "clients can no longer connect to the profiler: "
    "less than an eighth of the file descriptors is left (ulimit -n)\n\n"
)


@pytest.mark.parametrize("files", [[], ["a", "b"]])
def test_nobody_can_connect_while_there_are_too_few_descriptors(files: list[str], tmp_path: Path) -> None:
    endpoints = [f"ipc://{tmp_path}/{file}" for file in files]
    assert python(f"ENDPOINTS = {endpoints}\n{EXHAUSTED}") == PRINTED
