"""Processes that nobody prepared, sampled from outside."""

from __future__ import annotations

import json
import operator
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.profiler.conftest import PATIENCE, Client, wait_until
from tests.profiler.external.conftest import Start, children
from tests.profiler.test_cpu import Diary
from tornado_rbkit.profiler import list_servers
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.cpu import BYTES_PER_SECOND
from tornado_rbkit.profiler.external import program
from tornado_rbkit.profiler.external.engine import EngineError, Frame, Stack
from tornado_rbkit.profiler.external.process import ProcessError, RunningProcess, module_name
from tornado_rbkit.profiler.external.profile import Attachment, attach
from tornado_rbkit.profiler.external.sampler import MAX_LOST, ExternalSampler
from tornado_rbkit.protocol import CPUSample, EventCollection, GCStats, Handshake, decode

if not sys.platform.startswith("linux"):
    pytest.skip("attach works on Linux only", allow_module_level=True)

Attached = Callable[[int], tuple[Attachment, Client]]

BURNER = """
    import json, sys, threading, time

    diary = []

    def two_thirds():
        burn(0.002)

    def one_third():
        burn(0.001)

    def burn(seconds):
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    class Job:
        def run(self):
            while True:
                for function in (two_thirds, one_third):
                    diary.append((time.time(), function.__name__))
                    function()

    threading.Thread(target=Job().run, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:  # prints when its functions began for each line
        print(json.dumps(diary), flush=True)
"""

SLEEPER = """
    import sys
    print("ready", flush=True)
    sys.stdin.read()
"""


def functions(sample: CPUSample) -> list[str]:
    """Return the functions of a stack, innermost first."""
    return [str(frame.method_name) for frame in sample.frames]


def turns(samples: list[CPUSample]) -> list[str]:
    """Return which of the burner's two functions is in each sample of its thread."""
    return [name for sample in samples for name in ("two_thirds", "one_third") if name in functions(sample)]


def ask(process: subprocess.Popen[str]) -> Diary:
    """Return when the burner has called its two functions."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    diary = Diary()
    for moment, name in json.loads(process.stdout.readline()):
        diary.note(name, moment)
    return diary


clocks = pytest.mark.parametrize("clock", [b"use_wall_time", b"use_cpu_time"])


@clocks
def test_two_functions_have_the_shares_that_they_spend(start: Start, attached: Attached, clock: bytes) -> None:
    process = start(BURNER)
    _, client = attached(process.pid)
    client.ask(clock)
    client.events(CPUSample, turns)
    began = time.time()
    samples: list[CPUSample] = []
    names: list[str] = []
    while sum(map(operator.ne, names, names[1:])) < 1000:  # see the test of `cpu` with as many
        new = [each for each in client.events(CPUSample, turns) if turns([each]) and each.timestamp / 1000 > began]
        samples += new
        names += turns(new)
    share = 2 / 3
    if clock == b"use_wall_time":
        true = Counter(map(ask(process).at, samples))
        share = true["two_thirds"] / true.total()
    assert names.count("two_thirds") / len(names) == pytest.approx(share, abs=0.12)


@clocks
def test_every_interpreter_s_stacks_are_read_to_the_outer_end(
    start: Start, attached: Attached, interpreter: str, clock: bytes
) -> None:
    process = start(BURNER, interpreter)
    _, client = attached(process.pid)
    client.ask(clock)
    outer = ("run", "run", "_bootstrap_inner", "_bootstrap")
    expected = {("burn", name, *outer) for name in ("two_thirds", "one_third")}
    client.events(CPUSample, lambda found: expected <= {tuple(functions(each)) for each in found})


def test_a_frame_has_the_file_line_and_names_that_it_has_inside(start: Start, attached: Attached) -> None:
    process = start(BURNER)
    _, client = attached(process.pid)
    samples = client.events(CPUSample, lambda found: any("two_thirds" in functions(each) for each in found))
    sample = next(each for each in samples if "two_thirds" in functions(each))
    frame = sample.frames[functions(sample).index("run")]
    assert frame.file == str(process.args[1])  # type: ignore[index]
    assert frame.line == 1 + BURNER.splitlines().index(" " * 20 + "function()")
    assert frame.label in ("target.Job.run", "target.run"), "Python 3.10 has no qualified name"
    thread = sample.frames[-1]
    assert (thread.label.partition(".")[0], {each.thread_id for each in sample.frames}) == (
        "threading",
        {thread.thread_id},
    )
    assert os.path.exists(f"/proc/{process.pid}/task/{thread.thread_id}")


def test_the_wall_clock_shows_waiting_threads_and_the_cpu_clock_does_not(start: Start, attached: Attached) -> None:
    process = start(BURNER)
    _, client = attached(process.pid)

    def threads(samples: list[CPUSample]) -> set[int]:
        return {sample.frames[0].thread_id for sample in samples}

    samples = client.events(CPUSample, lambda found: len(found) > 500 and len(threads(found)) == 2)
    assert process.pid in threads(samples), "the main thread waits for its standard input"
    client.ask(b"use_cpu_time")
    client.events(CPUSample, lambda found: found[-400:] and threads(found[-400:]) == threads(found) - {process.pid})


def test_threads_have_samples_in_proportion_to_their_cpu_time(start: Start, attached: Attached) -> None:
    """A thread that naps is seen running, while it waits for a processor, longer than it computes."""
    process = start(
        """
        import sys, threading, time
        def burn(seconds):
            end = time.thread_time() + seconds
            while time.thread_time() < end:
                pass
        def work(busy, nap):
            while True:
                burn(busy)
                time.sleep(nap)
        for arguments in ((0.02, 0.001), (0.0002, 0.001), (0.0002, 0.001)):
            threading.Thread(target=work, args=arguments, daemon=True).start()
        print("ready", flush=True)
        sys.stdin.read()
        """
    )
    _, client = attached(process.pid)
    threads = [int(name) for name in os.listdir(f"/proc/{process.pid}/task") if int(name) != process.pid]

    def used() -> Counter[int]:
        nanoseconds = {thread: Path(f"/proc/{process.pid}/task/{thread}/schedstat").read_text() for thread in threads}
        return Counter({thread: int(text.split()[0]) // 1000 for thread, text in nanoseconds.items()})

    def moment() -> tuple[float, Counter[int]]:
        """Return the time and the CPU time of the threads in microseconds, both read within 10 ms."""
        while True:
            now = time.time()
            found = used()
            if time.time() < now + 0.01:
                return now, found

    client.ask(b"use_cpu_time")
    [first, *_] = client.events(CPUSample, lambda found: len(found) > 500)
    assert first.frames[0].thread_id in threads
    began, before = moment()
    samples: list[CPUSample] = []
    while (used() - before).total() < 2e6:
        samples += client.events(CPUSample, lambda found: found)
    ended, after = moment()
    samples += client.events(CPUSample, lambda found: found and found[-1].timestamp / 1000 > ended)
    of_this_time = [sample for sample in samples if began < sample.timestamp / 1000 <= ended]
    found, true = Counter(sample.frames[0].thread_id for sample in of_this_time), after - before
    for thread in threads:
        assert found[thread] / found.total() == pytest.approx(true[thread] / true.total(), abs=0.05)


def test_the_samples_come_at_the_rate_and_the_time_they_were_taken(start: Start, attached: Attached) -> None:
    process = start(BURNER)
    attachment, client = attached(process.pid)
    client.events(CPUSample, lambda found: found)
    samples = client.events(CPUSample, lambda found: len(found) > 4000)
    times = [sample.timestamp / 1000 for sample in samples if sample.frames[0].thread_id == process.pid]
    assert time.time() - PATIENCE < times[0] <= times[-1] < time.time() + 1
    # A busy machine leaves gaps that are longer than what is made up for.
    assert statistics.median(map(operator.sub, times[1:], times)) == pytest.approx(0.001, rel=0.25)
    status = attachment.server.status()["cpu"]
    assert re.fullmatch(r"stack reader 3\.1\d(\.\d+)?", status["engine"])
    assert (status["trouble"], status["requested_rate"]) == (None, 1000)


def test_the_server_is_announced_and_answers_as_the_process(start: Start, attached: Attached) -> None:
    process = start(SLEEPER)
    attachment, client = attached(process.pid)
    [listed] = list_servers()
    assert (listed.pid, listed.name, listed.req) == (process.pid, process.args[1], attachment.server.req)  # type: ignore[index]
    handshake = decode(client.ask(b"handshake"))
    assert isinstance(handshake, Handshake)
    assert (handshake.pid, handshake.process_name, handshake.pwd) == (process.pid, listed.name, os.getcwd())
    assert (handshake.cpu_profiling_enabled, handshake.object_trace_enabled) == (1, 0)
    assert client.ask(b"stop_cpu_profiling") == b"ok"
    assert children() == []
    for command in (b"start_memory_profile", b"trigger_gc", b"objectspace_snapshot"):
        answer = client.ask(command)
        assert b"is not possible from outside a process" in answer
        assert b"`attach --inject`" in answer
    assert client.ask(b"start_cpu_profiling") == b"ok"
    client.events(CPUSample, lambda found: found)


def test_the_resident_memory_of_the_process_is_published(start: Start, attached: Attached) -> None:
    process = start(
        """
        import sys
        held = b"x" * 200_000_000
        print("ready", flush=True)
        sys.stdin.read()
        """
    )
    _, client = attached(process.pid)
    [stats, *_] = client.events(GCStats, lambda found: found)
    assert isinstance(stats.stats["total_heap_size"], int)
    with open(f"/proc/{process.pid}/statm") as file:
        assert stats.stats["total_heap_size"] == pytest.approx(int(file.read().split()[1]) * 4096, rel=0.2)
    kinds = [stats.stats[f"process_{kind}"] for kind in ("pss", "private", "anonymous", "swap")]
    assert all(type(kind) is int for kind in kinds)
    pss, private, anonymous, swap = kinds
    assert anonymous + swap >= 200_000_000, "the program holds as much"  # type: ignore[operator]
    assert stats.stats["total_heap_size"] >= pss >= private  # type: ignore[operator]


def test_a_deep_recursion_is_cut_off_at_its_outer_end(start: Start, attached: Attached, interpreter: str) -> None:
    process = start(
        """
        import sys
        sys.setrecursionlimit(100_000)
        def down(levels):
            if levels:
                return down(levels - 1)
            return innermost()
        def innermost():
            print("ready", flush=True)
            sys.stdin.read()
        down(8000)
        """,
        interpreter,
    )
    attachment, client = attached(process.pid)
    [sample, *_] = client.events(CPUSample, lambda found: found)
    assert functions(sample) == ["innermost"] + ["down"] * 999
    assert attachment.trouble is None
    read = len(client.messages)
    samples = client.events(CPUSample, lambda found: len(found) > 50)
    size = sum(map(len, client.messages[read:])) / len(samples)
    rate = attachment.server.status()["cpu"]["achieved_rate"]
    assert rate * size < 2 * BYTES_PER_SECOND < 1000 * size, "deep stacks are sampled rarely"


def test_many_threads_are_sampled_alike(start: Start, attached: Attached) -> None:
    process = start(
        """
        import sys, threading
        stop = threading.Event()
        for _ in range(100):
            threading.Thread(target=stop.wait, daemon=True).start()
        print("ready", flush=True)
        sys.stdin.read()
        """
    )
    _, client = attached(process.pid)
    samples = client.events(CPUSample, lambda found: len(found) > 5000)
    times: dict[int, list[float]] = {}
    for sample in samples:
        times.setdefault(sample.frames[0].thread_id, []).append(sample.timestamp)
    assert len(times) == 101
    # Of the first and the last look, each of which may be repeated 21 times, only some threads have arrived.
    began, ended = max(each[0] for each in times.values()), min(each[-1] for each in times.values())
    counts = {thread: sum(began < time < ended for time in each) for thread, each in times.items()}
    assert max(counts.values()) - min(counts.values()) <= 2, counts


def test_a_process_whose_threads_come_and_go_is_sampled_on(start: Start, attached: Attached) -> None:
    process = start(
        """
        import sys, threading
        def churn():
            while True:
                threading.Thread(target=sum, args=(range(1000),)).start()
        threading.Thread(target=churn, daemon=True).start()
        print("ready", flush=True)
        sys.stdin.read()
        """
    )
    attachment, client = attached(process.pid)
    client.events(CPUSample, lambda found: sum("churn" in functions(each) for each in found) > 200)
    assert attachment.failure is None


class _LosesSight:
    """An engine that looks twice and takes the process for one that has ended."""

    name = "engine"
    has_ended_well = True

    def start(self, interval: float) -> None:
        frame = Frame("file", "function", 1)
        self._output: list[list[Stack]] = [[Stack(0, 1, (frame,), interval, False, False)] * 2]

    def wait(self) -> bool:
        return bool(self._output)

    def read(self) -> list[Stack]:
        return self._output.pop()

    def stop(self) -> None:
        self._output.clear()

    close = abandon = stop


def test_an_engine_that_loses_sight_of_the_process_is_replaced_each_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with subprocess.Popen([sys.executable, "-c", "open(0).read()"], stdin=subprocess.PIPE) as process:
        sampler = ExternalSampler(EventBatcher(), RunningProcess(process.pid), _LosesSight, lambda: None)
        sampler.start()
        wait_until(lambda: sampler.status()["losses"] > 3, "it is replaced")
        assert sampler.enabled
        assert caplog.text.count("is started again") == 1, "it is logged once"
        wait_until(lambda: sampler.status()["lost_share"] > MAX_LOST, "the time without an engine is counted")
        assert "of the time: engine has lost sight of the process" in str(sampler.trouble)
        sampler.stop()
        assert sampler.status()["lost_share"] < 1


class _LearnsItsName(_LosesSight):
    """An engine that knows its version once it has read something."""

    def read(self) -> list[Stack]:
        self.name = "engine 1.0"
        return super().read()


def test_the_version_of_the_engine_is_known_with_the_first_sample() -> None:
    names: list[str] = []

    class Batcher(EventBatcher):
        def add(self, event: bytes) -> None:
            names.append(sampler.status()["engine"])

    with subprocess.Popen([sys.executable, "-c", "open(0).read()"], stdin=subprocess.PIPE) as process:
        sampler = ExternalSampler(Batcher(), RunningProcess(process.pid), _LearnsItsName, lambda: None)
        sampler.start()
        wait_until(lambda: names, "a sample is published")
        sampler.stop()
    assert names[0] == "engine 1.0"


def test_a_sample_has_the_state_of_its_own_look() -> None:
    """Also of a thread that computes and waits by turns."""
    stack = Stack(0, 1, (Frame("file", "function", 1),), 0.001, is_broken=False, is_collecting=False)
    collecting = stack._replace(is_collecting=True)
    looks = [stack, stack._replace(is_idle=True), collecting, collecting._replace(is_idle=True)]
    batcher = EventBatcher()
    with subprocess.Popen([sys.executable, "-c", "open(0).read()"], stdin=subprocess.PIPE) as process:
        sampler = ExternalSampler(batcher, RunningProcess(process.pid), _LosesSight, lambda: None)
        sampler._publish([*looks, stack])  # the last one completes the look before
        sampler._publish_ticks()
    published = map(decode, batcher.take(time.time(), flush=True))
    events = [event for message in published if isinstance(message, EventCollection) for event in message.events]
    states = [event.thread_state for event in events if isinstance(event, CPUSample)]
    assert states == ["running", "waiting", "gc", "waiting"]


def test_sampling_ends_with_the_process(start: Start, attached: Attached) -> None:
    process = start(SLEEPER)
    attachment, client = attached(process.pid)
    client.events(CPUSample, lambda found: found)
    process.kill()
    wait_until(lambda: attachment.failure is not None, "the end of the process is noticed")
    assert not attachment.process.is_alive(), "a zombie is no process"
    assert "has ended" in str(attachment.failure)
    handshake = decode(client.ask(b"handshake"))
    assert isinstance(handshake, Handshake)
    assert not handshake.cpu_profiling_enabled


def test_the_program_that_a_process_executes_is_sampled_next(
    start: Start, attached: Attached, caplog: pytest.LogCaptureFixture
) -> None:
    process = start(
        """
        import os, sys
        def before():
            print("ready", flush=True)
            sys.stdin.readline()
        before()
        os.execv(sys.executable, [sys.executable, "-c", "def after():\\n  import sys; sys.stdin.read()\\nafter()"])
        """
    )
    attachment, client = attached(process.pid)
    client.events(CPUSample, lambda found: any("before" in functions(each) for each in found))
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    client.events(CPUSample, lambda found: any("after" in functions(each) for each in found))
    assert attachment.failure is None
    assert "has executed another program" in caplog.text


def test_a_process_that_executes_something_else_is_not_sampled_any_more(start: Start, attached: Attached) -> None:
    process = start(
        """
        import os, sys
        print("ready", flush=True)
        sys.stdin.readline()
        os.execvp("sleep", ["sleep", "60"])
        """
    )
    attachment, client = attached(process.pid)
    client.events(CPUSample, lambda found: found)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    wait_until(lambda: attachment.failure is not None, "it is noticed")
    assert attachment.process.is_alive()
    assert "it does not run CPython 3.10 to 3.15" in str(attachment.failure)


def test_the_program_is_started_again_once(start: Start, attached: Attached, caplog: pytest.LogCaptureFixture) -> None:
    process = start(SLEEPER)
    attachment, client = attached(process.pid)
    client.events(CPUSample, lambda found: found)
    [first] = children()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "has ended; it is started again" in caplog.text, "its end is noticed")
    looks = attachment.server.status()["cpu"]["looks"]
    wait_until(lambda: attachment.server.status()["cpu"]["looks"] > looks, "it is started again")
    [second] = children()
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: attachment.failure is not None, "its second end is noticed")
    assert attachment.trouble is not None
    assert attachment.server.status()["cpu"]["engine"] + " has ended" in attachment.trouble
    handshake = decode(client.ask(b"handshake"))
    assert isinstance(handshake, Handshake)
    assert not handshake.cpu_profiling_enabled
    client.ask(b"start_cpu_profiling")
    client.events(CPUSample, lambda found: found)
    assert attachment.trouble is None


@pytest.mark.parametrize("times", [20])
def test_starting_and_stopping_quickly_leaves_nothing_behind(start: Start, attached: Attached, times: int) -> None:
    process = start(SLEEPER)
    _, client = attached(process.pid)
    for _ in range(times):
        client.ask(b"stop_cpu_profiling")
        assert children() == []
        client.ask(b"start_cpu_profiling")
    client.events(CPUSample, lambda found: found)


def refusal(pid: int) -> str:
    with pytest.raises((ProcessError, EngineError)) as caught:
        attach(pid)
    assert list_servers() == []
    return str(caught.value)


def test_a_pid_that_is_not_there_is_refused(start: Start) -> None:
    process = start(SLEEPER)
    process.kill()
    process.wait()
    assert refusal(process.pid).startswith(f"there is no process {process.pid}")


def test_a_zombie_is_refused(start: Start) -> None:
    process = start(SLEEPER)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert "zombie" in refusal(process.pid)


def test_a_thread_is_refused_with_the_pid_of_its_process(start: Start) -> None:
    process = start(BURNER)
    [thread] = {int(each) for each in os.listdir(f"/proc/{process.pid}/task")} - {process.pid}
    assert refusal(thread) == f"{thread} is a thread of process {process.pid}; give the pid of the process"


def test_this_process_is_refused() -> None:
    assert "is the process of this command" in refusal(os.getpid())


def test_a_program_that_is_not_python_is_refused() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert refusal(process.pid).endswith("(sleep) cannot be read: it does not run CPython 3.10 to 3.15")
        finally:
            process.kill()


def test_a_process_of_another_user_is_refused_with_the_user(start: Start) -> None:
    """Root gives up its rights first; other users try a process of root."""
    pid = start(SLEEPER).pid if os.geteuid() == 0 else 1
    script = f"""
import os
from tornado_rbkit.profiler.external.process import ProcessError, RunningProcess
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
try:
    RunningProcess({pid})
except ProcessError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"process {pid} cannot be read: it belongs to user root (0); run attach as that user, or ")
    assert "--cap-add=SYS_PTRACE" in said


def fake(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Put a shell script in the place of the interpreter that runs the program."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(program, "_find_python", lambda: str(path))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'no module' >&2; exit 1", "cannot be read: no module"),
        ("kill -SEGV $$", "cannot be read: exit status -11"),
        ("exec sleep 60", r"stack reader did not read process \d+ .* within 0.5 s"),
    ],
)
def test_a_program_that_does_not_work_is_reported(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, reason: str
) -> None:
    process = start(SLEEPER)
    fake(monkeypatch, tmp_path, script)
    if "sleep" in script:
        monkeypatch.setattr("tornado_rbkit.profiler.external.child._PATIENCE", 0.5)
    with pytest.raises(EngineError, match=reason):
        attach(process.pid)


def test_output_that_is_not_mojo_ends_sampling_with_the_reason(
    start: Start,
    attached: Attached,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    process = start(SLEEPER)
    fake(monkeypatch, tmp_path, '[ "$#" = 4 ] || exec yes')
    attachment, _ = attached(process.pid)
    wait_until(lambda: attachment.failure is not None, "it is noticed")
    assert str(attachment.failure) == "the stack reader's output is not MOJO"
    assert caplog.text.count("it is started again") == 1


def test_the_threads_end(start: Start, attached: Attached) -> None:
    process = start(SLEEPER)
    before = set(threading.enumerate())
    attachment, _ = attached(process.pid)
    attachment.server.stop()
    assert set(threading.enumerate()) <= before
    assert list_servers() == []


def test_the_cells_of_a_notebook_are_in_main() -> None:
    assert module_name("/tmp/ipykernel_4711/2542604542.py") == "__main__"
    assert module_name("/srv/ipykernel_tools/shop.py") == "shop"
