"""Programs patched by gevent and eventlet: the profiler's threads are real, and its data are the program's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.profiler.conftest import PATIENCE

GREENLETS = """
import signal, sys, threading, time
from tests.profiler.conftest import Client
from tornado_rbkit import profiler
from tornado_rbkit.protocol import CPUSample, ObjCreated

class Made:
    pass

turns = []
watched = [True]

def greenlet():
    kept = []
    while watched:
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
        kept.append(Made())
        del kept[:-1000]
        turns.append(1)
        time.sleep(0.001)  # gives way to the other greenlets

def watch():
    # the client waits in libzmq, so it has a process of its own
    import subprocess
    code = '''
import sys
from tests.profiler.conftest import Client
from tornado_rbkit.protocol import CPUSample, ObjCreated
with Client(*sys.argv[1:]) as client:
    assert client.ask(b"start_cpu_profiling") == b"ok"
    assert client.ask(b"start_memory_profile") == b"ok"
    seen = set()
    while not {"greenlet", "Made"} <= seen:
        for event in client.next().events:
            if isinstance(event, CPUSample):
                seen.update(frame.method_name for frame in event.frames)
            elif isinstance(event, ObjCreated):
                seen.add(event.class_name.rpartition(".")[2])
    assert client.ask(b"objectspace_snapshot") == b"ok"
    assert client.ask(b"stop_cpu_profiling", b"stop_memory_profile") == b"ok"
print("seen")
'''
    child = subprocess.Popen([sys.executable, "-c", code, server.pub, server.req], stdout=subprocess.PIPE, text=True)
    output = child.communicate()[0]
    watched.clear()
    print(output, end="")

server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "the signals are the program's"
assert threading.active_count() == 1
threads = [threading.Thread(target=greenlet, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
watcher = threading.Thread(target=watch)
watcher.start()
watcher.join()
assert turns
profiler.stop_server()
print("end")
"""

PATCH = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals are looked at")
@pytest.mark.parametrize("library", PATCH)
def test_a_program_of_greenlets_is_profiled_by_real_threads(library: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", f"{PATCH[library]}\n{GREENLETS}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
    )
    assert (ended.returncode, ended.stdout) == (0, "seen\nend\n"), ended.stderr
