"""What a host program may do with the system, the interpreter's hooks and extension modules; see `behaviours`."""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import io
import mmap
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
import types
from typing import Any

from tests.profiler.torture.behaviours import ACTIVE, ENDPOINTS, HOST_SWITCH_INTERVAL, Node, Runs, behaviour
from tornado_rbkit import profiler
from tornado_rbkit.profiler.threads import internal_threads


@behaviour
def forks(runs: Runs, chance: random.Random) -> None:
    """Fork; the child has no profiler, the host's switch interval, and a collector that works."""
    while runs():
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = _check_child()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(_wait(pid))
        assert status == 0, f"the child ended with {status}"
        time.sleep(chance.random() / 50)


def _check_child() -> int:
    if profiler.current_server() is not None:
        return 11
    if internal_threads():
        return 12
    if "switching" not in ACTIVE and abs(sys.getswitchinterval() - HOST_SWITCH_INTERVAL[0]) > 1e-9:
        return 13
    if "collector" not in ACTIVE and not gc.isenabled():
        return 14
    if "rbkit" in str(gc.callbacks):
        return 15
    return 0


def _wait(pid: int) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.001)
    os.kill(pid, 6)
    raise AssertionError("a forked child hangs")


@behaviour
def restarts(runs: Runs, chance: random.Random) -> None:
    """Stop the profiler and start it again."""
    while runs():
        profiler.stop_server()
        assert profiler.start_server(*ENDPOINTS).running
        time.sleep(chance.random() / 2)


@behaviour
def children(runs: Runs, chance: random.Random) -> None:
    """Start programs in every way."""
    while runs():
        assert subprocess.run(["true"], check=False, close_fds=chance.random() < 0.5).returncode == 0
        if hasattr(os, "posix_spawn"):
            pid = os.posix_spawn("/bin/true", ["true"], {})
            assert os.waitstatus_to_exitcode(_wait(pid)) == 0
        time.sleep(0.01)


@behaviour
def workers(runs: Runs, chance: random.Random) -> None:
    """Run functions in processes that multiprocessing forks."""
    import multiprocessing

    while runs():
        process = multiprocessing.get_context("fork").Process(target=Node)
        process.start()
        process.join(60)
        assert process.exitcode == 0, f"a worker ended with {process.exitcode}"
        process.close()
        time.sleep(0.05)


@behaviour
def switching(runs: Runs, chance: random.Random) -> None:
    """Set the switch interval; the value must be there when the profiler was stopped."""
    while runs():
        HOST_SWITCH_INTERVAL[:] = [chance.randrange(1000, 9000) / 1e6]
        sys.setswitchinterval(HOST_SWITCH_INTERVAL[0] + 1e-7)
        time.sleep(chance.random() / 100)


@behaviour
def tracing(runs: Runs, chance: random.Random) -> None:
    """Start and stop tracemalloc."""
    while runs():
        tracemalloc.start(chance.choice([1, 5, 25]))
        kept = [Node() for _ in range(100)]
        tracemalloc.get_object_traceback(kept[0])
        if chance.random() < 0.1:
            tracemalloc.take_snapshot()
        tracemalloc.stop()
        time.sleep(chance.random() / 20)


@behaviour
def descriptors(runs: Runs, chance: random.Random) -> None:
    """Use all file descriptors for a while, as a server does whose clients do not leave."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    while runs():
        taken = []
        try:
            while runs():
                taken.append(os.open(os.devnull, os.O_RDONLY))
                if len(taken) % 10 == 0:
                    time.sleep(0.02)
        except OSError:
            time.sleep(chance.random() / 2)
        finally:
            for each in taken:
                os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@behaviour
def databases(runs: Runs, chance: random.Random) -> None:
    """Use objects of extension modules."""
    import decimal
    import xml.etree.ElementTree as ElementTree
    import zlib

    lxml: Any = None
    with contextlib.suppress(ImportError):
        lxml = __import__("lxml.etree").etree
    while runs():
        connection = sqlite3.connect(":memory:")
        connection.create_function("node", 1, lambda value: len(Node(value).held))
        connection.execute("create table t (a)")
        connection.executemany("insert into t values (?)", ((number,) for number in range(100)))
        assert connection.execute("select sum(node(a)) from t").fetchone() == (100,)
        connection.close()
        tree: Any = ElementTree.fromstring("<a>" + "<b c='d'/>" * 100 + "</a>")
        assert len(tree) == 100
        if lxml is not None:
            tree = lxml.fromstring("<a>" + "<b c='d'/>" * 100 + "</a>")
            assert len(tree.xpath("//b")) == 100
        assert zlib.decompressobj().decompress(zlib.compress(b"x" * 1000)) == b"x" * 1000
        decimal.Decimal(1) / 3
        time.sleep(0.001)


def interpreters_module() -> Any:
    try:
        return __import__("_interpreters")
    except ImportError:
        return __import__("_xxsubinterpreters")


@behaviour
def interpreters(runs: Runs, chance: random.Random) -> None:
    """Create, run and destroy interpreters, which have a GIL of their own from Python 3.12 on."""
    module = interpreters_module()
    run = getattr(module, "exec", None) or module.run_string
    while runs():
        made = module.create()
        run(made, "x = [[] for _ in range(100)]")
        module.destroy(made)
        time.sleep(0.05)


@behaviour
def arrays(runs: Runs, chance: random.Random) -> None:
    """Use NumPy arrays."""
    numpy: Any = __import__("numpy")
    while runs():
        rows = numpy.zeros((100, 100))
        assert rows[:, 1].base is rows
        things = numpy.array([Node(), [], None], dtype=object)
        assert things.size == 3
        with contextlib.suppress(ValueError):  # documented: while something else refers to it
            rows.resize((50, 50))
        time.sleep(0)


@behaviour
def locks(runs: Runs, chance: random.Random) -> None:
    """Wait for each other in every way of the standard library."""
    import queue

    waiting: queue.Queue[int] = queue.Queue(3)
    condition = threading.Condition()

    def consume() -> None:
        while waiting.get() >= 0:
            with condition:
                condition.notify_all()

    consumer = threading.Thread(target=consume)
    consumer.start()
    while runs():
        waiting.put(1)
        with condition:
            condition.wait(0.001)
    waiting.put(-1)
    consumer.join()


@behaviour
def logs(runs: Runs, chance: random.Random) -> None:
    """Log while the handlers' locks are taken, and ask what `threading` knows."""
    import logging

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("torture")
    logger.addHandler(handler)
    logger.propagate = False
    lines = 0
    while runs():
        handler.acquire()
        time.sleep(0.001)
        handler.release()
        logger.warning("a line")
        lines += 1
    assert stream.getvalue().count("a line") == lines
    logger.removeHandler(handler)


@behaviour
def buffers(runs: Runs, chance: random.Random) -> None:
    """Resize and close buffers that nobody else uses."""

    class Pair(ctypes.Structure):
        _fields_ = [("a", ctypes.c_int), ("b", ctypes.py_object)]

    while runs():
        data = bytearray(100)
        numbers = array.array("l", range(100))
        mapped = mmap.mmap(-1, 4096)
        pair = Pair(1, [])
        text = io.BytesIO(b"x" * 100)
        for _ in range(50):
            data.extend(bytes(chance.randrange(1000)))
            numbers.append(1)
            text.write(b"y" * 100)
            del data[10:]
        with memoryview(data) as view:
            assert len(view) == len(data)
        data.clear()
        mapped.close()
        assert pair.a == 1
        time.sleep(0)


@behaviour
def tracers(runs: Runs, chance: random.Random) -> None:
    """Trace and profile this thread; no function of the profiler may be seen on it."""
    seen: set[str] = set()

    def note(frame: types.FrameType, event: str, argument: Any) -> Any:
        if "/tornado_rbkit/profiler/" in frame.f_code.co_filename:
            seen.add(f"{frame.f_code.co_filename}: {frame.f_code.co_name}")
        return note

    while runs():
        sys.settrace(note)
        [Node(Node()) for _ in range(200)]
        sys.settrace(None)
        sys.setprofile(note)
        [Node(Node()) for _ in range(200)]
        sys.setprofile(None)
        time.sleep(0.001)
    assert not seen, seen


@behaviour
def monitoring(runs: Runs, chance: random.Random) -> None:
    """Monitor all functions; on this thread no function of the profiler may be seen."""
    tool: Any = getattr(sys, "monitoring", None)
    if tool is None:
        return
    seen: set[str] = set()
    me = threading.get_ident()

    def note(code: types.CodeType, _: int) -> Any:
        if threading.get_ident() == me and "/tornado_rbkit/profiler/" in code.co_filename:
            seen.add(code.co_qualname)  # type: ignore[attr-defined,unused-ignore]

    tool.use_tool_id(4, "torture")
    tool.register_callback(4, tool.events.PY_START, note)
    try:
        while runs():
            tool.set_events(4, tool.events.PY_START)
            [Node(Node()) for _ in range(200)]
            tool.set_events(4, 0)
            time.sleep(0.001)
    finally:
        tool.set_events(4, 0)
        tool.free_tool_id(4)
    assert not seen, seen
