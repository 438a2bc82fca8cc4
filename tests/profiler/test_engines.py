"""The CPU engines, alike: a thread of this process, and a program beside it; and the choice between them."""

from __future__ import annotations

import os
import platform
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from tests.profiler.conftest import PATIENCE, Client, internal_thread_names, wait_until
from tests.profiler.python import python
from tests.profiler.test_cpu import burner, running, sleeper
from tornado_rbkit import profiler
from tornado_rbkit.profiler import follow, running_time
from tornado_rbkit.profiler.arguments import ENGINE_VARIABLE
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.external import detached, own_process, program
from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.threads import internal_native_ids, internal_threads
from tornado_rbkit.protocol import CPUSample

if not sys.platform.startswith("linux"):
    pytest.skip("the external engine works on Linux only", allow_module_level=True)

Start = Callable[[str], tuple[profiler.Server, Client]]

EXTERNAL = f"stack reader {platform.python_version() if sys.version_info >= (3, 11) else '3.10'}"
"""The name of the external engine; Python 3.10 does not show its full version from outside."""


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a server with an engine, and a client; nothing of either may be left."""
    clients: list[Client] = []

    def run(engine: str) -> tuple[profiler.Server, Client]:
        server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "test", cpu_engine=engine)
        clients.append(Client(server.pub, server.req))
        return server, clients[-1]

    yield run
    for client in clients:
        client.__exit__(None, None, None)
    profiler.stop_server()
    assert internal_thread_names() == set()
    wait_until(lambda: not helpers(), "the helper ends")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer for the first stack."""
    monkeypatch.setattr(own_process, "_PATIENCE", PATIENCE)


def helpers(pid: int | None = None) -> list[int]:
    """Return the processes that sample a process, by default this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        target = str(pid or os.getpid()).encode()
        if b"".join(words[3:4]).endswith(b"stack_reader") and words[4] == target:
            found.append(int(entry.name))
    return found


engines = pytest.mark.parametrize("engine", ["in-process", "external", "auto"])


@engines
@pytest.mark.parametrize("clock", [b"use_wall_time", b"use_cpu_time"])
def test_the_functions_of_a_thread_that_computes_are_seen(start: Start, engine: str, clock: bytes) -> None:
    server, client = start(engine)
    with running(burner) as (thread,):
        assert client.ask(clock) == b"ok"
        assert client.ask(b"start_cpu_profiling") == b"ok"

        def stacks(samples: list[CPUSample]) -> set[tuple[str | None, ...]]:
            of_thread = (sample.frames for sample in samples if _of(sample, thread))
            return {tuple(frame.method_name for frame in frames[-6:]) for frames in of_thread}

        outer = ("burner", "run", "_bootstrap_inner", "_bootstrap")
        expected = {("_burn", name, *outer) for name in ("two_thirds", "one_third")}
        client.events(CPUSample, lambda found: expected <= stacks(found))
    name = "in-process" if engine == "in-process" else EXTERNAL
    assert (server.status()["cpu"]["engine"], facts(client).get("cpu_engine")) == (name, name)
    assert "cpu_engine_reason" not in facts(client)
    assert facts(client).get("cpu_shortest_burst") == (0.003 if engine == "in-process" else None)


@engines
def test_threads_and_functions_have_the_same_names(start: Start, engine: str) -> None:
    _, client = start(engine)
    with running(sleeper) as (thread,):
        (name,) = [each.name for each in threading.enumerate() if each.ident == thread]
        client.ask(b"start_cpu_profiling")
        samples = client.events(CPUSample, lambda found: sum(_of(each, thread) for each in found) > 200)
    last = [sample for sample in samples if _of(sample, thread)][-1]
    assert (last.thread_name, last.thread_state) == (name, "waiting")
    found = [
        (frame.label, frame.file, frame.definition_line) for frame in last.frames if frame.method_name == "sleeper"
    ]
    code = sleeper.__code__  # the label has no qualified name on 3.10, from outside
    assert [(label.rpartition(".")[0], *rest) for label, *rest in found] == [
        ("tests.profiler.test_cpu", code.co_filename, code.co_firstlineno)
    ]
    assert not {sample.frames[0].thread_id for sample in samples} & (internal_threads() | internal_native_ids())


def facts(client: Client) -> dict[str, Any]:
    """Return the facts of the handshake."""
    return dict(msgpack.unpackb(client.ask(b"handshake"), strict_map_key=False)[2])


def _of(sample: CPUSample, thread: int) -> bool:
    return sample.frames[0].thread_id == thread


def fake(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Put a shell script in the place of the interpreter that runs the helper."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(program, "_find_python", lambda: str(path))


@pytest.mark.logs_errors
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "stack reader has ended"),
        ("exec sleep 60", "no stack was read within a second"),
        ("exec yes", "the stack reader's output is not MOJO"),
    ],
)
@pytest.mark.parametrize("engine", ["external", "auto"])
def test_an_engine_that_does_not_work_is_replaced_or_said(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, script: str, reason: str
) -> None:
    fake(monkeypatch, tmp_path, script)
    if "sleep" in script:
        monkeypatch.setattr(own_process, "_PATIENCE", 1.0)
    server, client = start(engine)
    client.ask(b"start_cpu_profiling")
    field = "engine_reason" if engine == "auto" else "trouble"
    wait_until(lambda: reason in str(server.status()["cpu"][field]), reason)
    status = server.status()["cpu"]
    if engine == "auto":
        client.events(CPUSample, lambda found: found)
        assert reason in facts(client)["cpu_engine_reason"]
        assert (facts(client)["cpu_engine"], facts(client)["cpu_profiling_enabled"]) == ("in-process", 1)
    else:
        assert status["enabled"] == ("sleep" in script), "it may be slow"
        assert facts(client)["cpu_profiling_enabled"] == ("sleep" in script)


def test_an_engine_that_is_not_there_is_replaced_or_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> str:
        raise EngineError("no interpreter is found")

    monkeypatch.setattr(program, "_find_python", missing)
    server, client = start("auto")
    assert facts(client)["cpu_engine"] is None, "it is not chosen yet"
    assert client.ask(b"start_cpu_profiling") == b"ok"
    client.events(CPUSample, lambda found: found)
    expected = ("in-process", "no interpreter is found")
    assert (facts(client)["cpu_engine"], facts(client)["cpu_engine_reason"]) == expected
    assert caplog.text == "", "this is the state of many installations, and no fault"
    assert client.ask(b"stop_cpu_profiling") == b"ok"
    sampler = server.call(lambda profile: profile.cpu)
    monkeypatch.setattr(sampler, "_engine", "external")
    assert client.ask(b"start_cpu_profiling").startswith(b"CPU sampling is off: no interpreter is found")


def test_a_python_that_is_not_known_is_the_reason(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message that the helper prints is lost, because its error output is not the error output of the program."""
    fake(monkeypatch, tmp_path, "exit 1")
    monkeypatch.setattr("tornado_rbkit.profiler.external.stack_reader.layouts.VERSIONS", ())
    server, client = start("auto")
    client.ask(b"start_cpu_profiling")
    client.events(CPUSample, lambda found: found)
    reason = rf"stack reader has ended: it runs CPython {EXTERNAL.split()[-1]}; known: 3\.10 to 3\.15"
    assert re.fullmatch(reason, server.status()["cpu"]["engine_reason"])


def test_stacks_that_change_while_they_are_read_end_the_external_engine(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornado_rbkit.profiler.external.sampler._is_error", lambda stack: True)
    server, client = start("auto")
    client.ask(b"start_cpu_profiling")
    wait_until(lambda: server.status()["cpu"]["engine"] == "in-process", "it falls back")
    assert "of the stacks changed while they were read" in server.status()["cpu"]["engine_reason"]
    client.events(CPUSample, lambda found: found)


@pytest.mark.parametrize("engine", ["external", "auto"])
def test_a_helper_that_stops_working_is_replaced_or_said(
    start: Start, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    server, client = start(engine)
    client.ask(b"start_cpu_profiling")
    client.events(CPUSample, lambda found: found)
    [helper] = helpers()
    os.kill(helper, signal.SIGSTOP)
    monkeypatch.setattr(own_process, "_PATIENCE", 1.0)
    field = "engine_reason" if engine == "auto" else "trouble"
    wait_until(lambda: server.status()["cpu"][field] == "no stack was read within a second", "it is noticed")
    assert server.status()["cpu"]["engine"] == ("in-process" if engine == "auto" else EXTERNAL)
    if engine == "external":
        os.kill(helper, signal.SIGCONT)
        wait_until(lambda: server.status()["cpu"]["trouble"] is None, "it works again")


def test_a_helper_that_cannot_end_because_it_gets_no_processor_does_not_delay_the_program(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = start("external")
    client.ask(b"start_cpu_profiling")
    client.events(CPUSample, lambda found: found)
    [helper] = helpers()
    os.kill(helper, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(own_process.DetachedEngine, "_kill", lambda self, number: None)
        assert client.ask(b"stop_cpu_profiling") == b"ok"
    assert helpers() == [helper]
    os.kill(helper, signal.SIGKILL)


class Silent:
    """An external sampler whose engine has read some stacks, and reads no more."""

    enabled, failure, trouble, clock_type, interval = True, None, None, "wall", 0.001

    def __init__(self) -> None:
        self.looks = 5

    def status(self) -> dict[str, Any]:
        return {"looks": self.looks, "error_share": 0.0}

    def stop(self) -> None:
        self.enabled = False


@pytest.mark.parametrize(("step", "times"), [(0.25, 4), (60.0, 2)], ids=["the helper", "this process"])
def test_the_engine_stays_while_a_process_gets_no_processor(
    monkeypatch: pytest.MonkeyPatch, step: float, times: int
) -> None:
    """The helper for a second, or this process again and again, and its threads with it."""
    now = 1000.0
    monkeypatch.undo()  # the patience of the other tests
    monkeypatch.setattr(running_time, "real_time", SimpleNamespace(monotonic=lambda: now))
    sampler, silent = own_process.OwnSampler(EventBatcher(), "external"), Silent()
    sampler._outside = silent  # type: ignore[assignment]
    for _ in range(3):
        silent.looks += 1
        sampler.watch()
        for _ in range(times):
            now += step
            sampler.watch()
        assert sampler.trouble is None
    for _ in range(times):
        now += step
        sampler.watch()
    assert sampler.trouble == "no stack was read within a second"
    silent.looks += 1
    sampler.watch()
    assert sampler.trouble is None


def test_the_clock_may_change_and_the_engine_may_stop_and_start(start: Start) -> None:
    server, client = start("external")
    server.call(lambda profile: setattr(profile.cpu, "interval", 0.02))  # so that the client keeps up

    def states(samples: list[CPUSample]) -> set[str | None]:
        return {sample.thread_state for sample in samples[-20:]}

    with running(burner, sleeper):
        for _ in range(2):
            client.ask(b"use_cpu_time", b"start_cpu_profiling")
            client.events(CPUSample, lambda found: found and "waiting" not in states(found))
            client.ask(b"use_wall_time")
            client.events(CPUSample, lambda found: "waiting" in states(found))
            client.ask(b"stop_cpu_profiling")
            assert not server.status()["cpu"]["enabled"]
            wait_until(lambda: not helpers(), "the helper ends")


def test_the_helper_is_no_child_of_the_program() -> None:
    output = python(
        """
import os, time
from tornado_rbkit import profiler
server = profiler.start_profiling("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", enable_object_trace=False,
                                  enable_gc_stats=False, enable_cpu_profiling=True, cpu_engine="external")
while not server.status()["cpu"]["samples"]:
    time.sleep(0.01)
try:
    os.wait()
except ChildProcessError:
    print("no child")
"""
    )
    assert output == "no child\n"


def test_a_process_forked_while_the_helper_starts_keeps_no_sampler_alive(
    monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    copies: list[int] = []
    begin = detached.start

    def copying(command: list[str], environment: dict[str, str], output: int) -> int:
        copies.append(os.dup(output))  # as a process has that is forked now
        return begin(command, environment, output)

    monkeypatch.setattr(own_process, "start", copying)
    try:
        server, client = start("external")
        with running(burner):
            client.ask(b"start_cpu_profiling")
            client.events(CPUSample, lambda found: found)
            os.kill(helpers()[0], signal.SIGKILL)
            wait_until(lambda: server.status()["cpu"]["losses"] == 1, "its end is noticed")
            client.ask(b"stop_cpu_profiling")
            wait_until(lambda: not helpers(), "the helper ends")
    finally:
        for copy in copies:
            os.close(copy)


def test_the_helper_is_allowed_to_read_the_process_where_yama_restricts_that(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[int] = []
    monkeypatch.setattr(own_process, "yama_rule", lambda: "kernel.yama.ptrace_scope is 1")
    monkeypatch.setattr(own_process, "allow_tracer", allowed.append)
    _, client = start("external")
    client.ask(b"start_cpu_profiling")
    client.events(CPUSample, lambda found: found)
    assert allowed == [-1, *helpers()]


@pytest.mark.skipif(os.path.exists("/proc/sys/kernel/yama"), reason="the system has Yama, and does not refuse")
def test_a_system_that_refuses_the_helper_is_said() -> None:
    with pytest.raises(EngineError, match=r"prctl\(PR_SET_PTRACER\) failed: Invalid argument"):
        own_process.allow_tracer(-1)


def test_the_environment_chooses_the_engine(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, "fast")
    with pytest.raises(profiler.ArgumentError, match="RBKIT_CPU_ENGINE='fast' is unknown; allowed: auto, ext"):
        profiler.start_server()
    with pytest.raises(profiler.ArgumentError, match="cpu_engine=1 is unknown"):
        profiler.start_server(cpu_engine=1)  # type: ignore[arg-type]
    monkeypatch.setenv(ENGINE_VARIABLE, "external")
    server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    sampler = server.call(lambda profile: profile.cpu)
    assert isinstance(sampler, own_process.OwnSampler)
    assert sampler._engine == "external"


def test_without_a_choice_the_engine_is_auto(start: Start) -> None:
    server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    sampler = server.call(lambda profile: profile.cpu)
    assert isinstance(sampler, own_process.OwnSampler)
    assert sampler._engine == "auto"


HOST = f"""
import os, select, signal, sys, time
from tornado_rbkit import profiler
from tornado_rbkit.profiler.external import detached, own_process, program
own_process._PATIENCE = 60
server = profiler.start_profiling("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", enable_object_trace=False,
                                  enable_gc_stats=False, enable_cpu_profiling=True)
while not server.status()["cpu"]["samples"]:
    time.sleep(0.01)
assert server.status()["cpu"]["engine"] == {EXTERNAL!r}, server.status()["cpu"]
"""


@pytest.mark.parametrize("end", ["SIGKILL", "SIGINT", "os._exit", "exec", "fork"])
def test_the_helper_ends_with_the_program_and_not_before(end: str) -> None:
    """Ctrl-C reaches the program's process group only; a child that was forked meanwhile does not keep the helper."""
    script = """
if sys.argv[1] == "fork" and not os.fork():
    sys.stdin.read()
    os._exit(0)
try:
    print(os.getpid(), flush=True)
    while not select.select([sys.stdin], [], [], 0.1)[0]:  # a signal just before a read would be noticed after it
        pass
except KeyboardInterrupt:
    before = server.status()["cpu"]["samples"]
    while server.status()["cpu"]["samples"] < before + 2000:
        time.sleep(0.01)
    print("sampled on", flush=True)
    sys.stdin.readline()
if sys.argv[1] == "exec":
    os.execvp("sleep", ["sleep", "60"])
os._exit(0)
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOST + script, end]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == f"{process.pid}\n"
        [helper] = helpers(process.pid)
        watched = os.pidfd_open(helper)
        if end == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)
            assert process.stdout.readline() == "sampled on\n"
            assert helpers(process.pid) == [helper]
        if end in ("os._exit", "exec"):
            process.stdin.write("\n")
            process.stdin.flush()
        else:
            process.kill()
        assert select.select([watched], [], [], PATIENCE)[0], "the helper runs on"
        os.close(watched)
        process.kill()


def test_a_program_without_a_working_folder_or_free_descriptors_is_sampled() -> None:
    output = python(
        """
import os, resource, tempfile, time
from tornado_rbkit import profiler
from tornado_rbkit.profiler.external import detached, own_process, program
own_process._PATIENCE = 60
server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")

def engine():
    server.call(lambda profile: profile.cpu.start())
    while not server.status()["cpu"]["samples"]:
        time.sleep(0.01)
    server.call(lambda profile: profile.cpu.stop())
    return server.status()["cpu"]["engine"], server.status()["cpu"]["engine_reason"]

with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
print(engine())
used = max(map(int, os.listdir("/proc/self/fd")))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError:
    print(engine())
"""
    )
    reason = f"stack reader cannot be run: {program._find_python()}: Too many open files"
    assert output == f"({EXTERNAL!r}, None)\n('in-process', {reason!r})\n"


def test_patched_programs_are_sampled_inside(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_process.OwnSampler, "_patched", lambda _: "gevent")
    _, client = start("auto")
    client.ask(b"start_cpu_profiling")
    client.events(CPUSample, lambda found: found)
    assert facts(client)["cpu_engine_reason"] == "gevent has replaced the functions that wait for a process"


@engines
def test_a_program_that_is_followed_is_sampled_each_ten_milliseconds(
    monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, engine)
    server = follow._start(follow.Followed("family", "name", 0), "name")
    try:
        with Client(server.pub, server.req) as client:
            assert client.ask(b"start_cpu_profiling") == b"ok"
            assert server.status()["cpu"]["interval"] == 0.01
            thread = threading.get_ident()
            samples = client.events(CPUSample, lambda found: sum(_of(each, thread) for each in found) > 50)
    finally:
        profiler.stop_server()
    times = sorted(sample.timestamp for sample in samples if _of(sample, thread))
    assert (times[-1] - times[0]) / len(times) > 4, "milliseconds between two samples"
