"""Programs that are started so that this process never sees them as children."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.profiler.python import python

if not sys.platform.startswith("linux"):
    pytest.skip("processes are detached on Linux only", allow_module_level=True)

from tornado_rbkit.profiler.external import detached
from tornado_rbkit.profiler.external.engine import EngineError

_FACTS = """
import json, os, signal, sys
print(json.dumps({
    "pid": os.getpid(), "session": os.getsid(0), "arguments": sys.argv[1:],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "ignored": [each for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN],
    "descriptors": sorted(each for each in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + each)),
    "variable": os.environ.get("RBKIT_TEST"), "parent": os.getppid(),
}))
"""


def run(*arguments: str) -> dict[str, object]:
    """Start a detached Python, and return the facts that it prints."""
    source, target = os.pipe()
    try:
        pid = detached.start([sys.executable, "-S", "-c", _FACTS, *arguments], {"RBKIT_TEST": "ü"}, target)
    finally:
        os.close(target)
    with open(source, "rb") as output:
        facts = json.loads(output.read())
    assert facts["pid"] == pid
    return dict(facts)


def test_it_has_its_own_session_signals_and_descriptors() -> None:
    handle, fd = signal.getsignal(signal.SIGUSR1), os.dup(1)
    os.set_inheritable(fd, True)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        facts = run("a b", "$HOME")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGUSR1, handle)
        os.close(fd)
    assert facts["session"] == facts["pid"]
    assert (facts["arguments"], facts["variable"]) == (["a b", "$HOME"], "ü")
    assert facts["blocked"] == []
    assert facts["descriptors"] == ["0", "1", "2"]
    assert facts["ignored"] == [signal.SIGPIPE, signal.SIGXFSZ], "those that Python ignores itself"
    assert facts["parent"] != os.getpid()


def test_it_is_started_as_well_where_the_c_library_cannot_close_all_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As glibc before 2.34."""
    monkeypatch.setattr(detached, "_close_from", None)
    fd = os.dup(1)
    os.set_inheritable(fd, True)
    try:
        assert run()["descriptors"] == ["0", "1", "2"]
    finally:
        os.close(fd)


def test_a_program_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="none cannot be executed"):
        detached.start([str(tmp_path / "none")], {}, 1)


def test_nothing_is_left_of_a_hundred_starts() -> None:
    """No child, no descriptor, no memory."""
    output = python(
        """
import gc, os
from pathlib import Path
from tornado_rbkit.profiler.external import detached

def state():
    gc.collect()
    return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("\\n")

def start(count):
    for _ in range(count):
        detached.start(["/bin/true"], {}, 1)

start(10)
before = state()
start(100)
descriptors, maps = state()
assert descriptors == before[0], (before, descriptors)
assert maps <= before[1] + 5, (before, maps)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child")
"""
    )
    assert output == "no child\n"


def test_a_host_that_waits_for_any_child_sees_only_its_own() -> None:
    """`os.wait` waits on, its signal handler does not run, and the program's end is as invisible as its start."""
    output = python(
        """
import os, signal, subprocess, threading
from pathlib import Path
from tornado_rbkit.profiler.external import detached

handled = []
signal.signal(signal.SIGCHLD, lambda *_: handled.append(1))
own = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)

def start():
    for _ in range(20):
        source, target = os.pipe()
        detached.start(["/bin/true"], {}, target)
        os.close(target)
        os.read(source, 1)  # until it has ended
        os.close(source)
    children = Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text().split()
    assert os.waitpid(-1, os.WNOHANG) == (0, 0)
    print("children:", children == [str(own.pid)], handled, flush=True)
    own.stdin.close()

thread = threading.Thread(target=start)
thread.start()
pid, status = os.wait()
print("ended:", pid == own.pid, status, handled)
own.returncode = status
thread.join()
"""
    )
    assert output == "children: True []\nended: True 0 [1]\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("libc.prctl(36, 1, 0, 0, 0)", "adopts orphans"),  # PR_SET_CHILD_SUBREAPER
        ("os.getpid = lambda: 1", "PID 1 .* --init"),
        ("libc.prctl(4, 0, 0, 0, 0); os.geteuid = lambda: 1000", "has changed its user"),  # PR_SET_DUMPABLE
        (
            "os.geteuid = lambda: 1000; detached.yama_scope = lambda: '2'; process.yama_scope = lambda: '2'",
            "only root",
        ),
    ],
)
def test_a_host_that_cannot_be_sampled_so_is_reported(change: str, reason: str) -> None:
    output = python(
        f"""
import ctypes, os
from tornado_rbkit.profiler.external import detached, process
libc = ctypes.CDLL(None)
detached.check_host()
{change}
try:
    detached.check_host()
except detached.EngineError as error:
    print(error)
"""
    )
    assert re.search(reason, output), output


def test_the_reason_of_a_call_that_has_failed_is_reported() -> None:
    assert detached.prctl(-1, 0, 0, 0, 0) == -1
    assert detached.last_error() == os.strerror(errno.EINVAL)
