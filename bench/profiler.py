"""What the embedded profiler costs, beside its peers.

    pip install -e '.[bench]'
    python bench/profiler.py [--rounds N] [--seconds S] [--objects N] [--json FILE]

Every run is a fresh process that does a fixed amount of work. A round runs each setting once, in an order that moves
on from round to round, and what a setting costs is the median, over the rounds, of its ratio to the plain run of the
same round; ``plain again`` is the noise. Starting up, attaching and writing the result are not in the times. The
subscriber is this process: it receives every message while the work runs and looks into them afterwards. Each run is
checked: samples arrived, and the message counters go from 0 to the last without a gap.

A peer that is not installed, or may not attach, is left out with the reason. Linux.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from measure import UnavailableError, machine, note, table

_PATIENCE_SECONDS: Final = 300.0
_TICK_SECONDS: Final = 0.001
_HEAP_ROUNDS: Final = 3
_LIVING: Final = 50_000
_PACKAGES: Final = ("tornado_rbkit", "pyzmq", "msgpack", "py-spy", "pyinstrument", "memray")

# The work; this part runs in the measured process


def leaf(number: int) -> int:
    """Take about a microsecond, so that the work has calls in it as programs have."""
    total = 0
    for step in range(20):
        total += number * step % 7
    return total


def heavy(calls: int) -> None:
    for number in range(calls):
        leaf(number)


def light(calls: int) -> None:
    for number in range(calls):
        leaf(number)


def compute(units: int) -> dict[str, Any]:
    """Do `units` of work, two thirds of it in `heavy`; in pieces of random length, so that no sampler keeps step."""
    pieces = random.Random(2026)
    heavy_seconds = light_seconds = 0.0
    clock = time.perf_counter
    for _ in range(units):
        calls = pieces.randint(200, 4000)
        first = clock()
        heavy(2 * calls)
        second = clock()
        light(calls)
        heavy_seconds += second - first
        light_seconds += clock() - second
    return {"true_split": heavy_seconds / light_seconds}


class Node:
    """One of the objects that are made and dropped: an instance with a list and a dict."""

    def __init__(self, number: int) -> None:
        self.name = f"node {number}"
        self.links: list[Any] = [self.name, []]
        self.data: dict[str, Any] = {"number": number, "links": self.links}


def allocate(units: int) -> dict[str, Any]:
    """Make `units` thousands of nodes; each drops the one that is `_LIVING` nodes older."""
    living: deque[Node] = deque(maxlen=_LIVING)
    for number in range(1000 * units):
        living.append(Node(number))
    return {}


class Item:
    __slots__ = ("parts",)

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts


def build(objects: int) -> list[Any]:
    """Return as many objects, a quarter each of strings, lists, dicts and instances."""
    gc.disable()
    heap: list[Any] = []
    for number in range(objects // 4):
        text = f"text {number}"
        parts: list[Any] = [text, heap]
        heap.append({"item": Item(parts), "parts": parts})
    gc.enable()
    return heap


_WORK: Final[dict[str, Callable[[int], dict[str, Any]]]] = {"compute": compute, "allocate": allocate}


def say(**facts: Any) -> None:
    print("@" + json.dumps(facts), flush=True)


def child(work: str, amount: int, tool: dict[str, Any]) -> None:
    """Be the measured process: say ``ready``, wait for a line, work, say what it took."""
    facts: dict[str, Any] = {"pid": os.getpid()}
    server: Any = None
    if tool["kind"] in ("server", "cpu", "memory", "snapshot"):
        from tornado_rbkit import profiler

        server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "bench")
        facts |= {"pub": server.pub, "req": server.req}
    if tool.get("tracing"):
        import tracemalloc

        tracemalloc.start()
    if work == "heap":
        heap_child(amount, facts)
    else:
        say(**facts)
        sys.stdin.readline()
        say(**timed(_WORK[work], amount, tool, server))
    if server is not None:
        from tornado_rbkit import profiler

        profiler.stop_server()
        say(messages=server.status()["messages"])


def timed(work: Callable[[int], dict[str, Any]], amount: int, tool: dict[str, Any], server: Any) -> dict[str, Any]:
    """Do the work under a tool that runs in this process; return the seconds, and what the tool says of itself."""
    pyinstrument: Any = None
    if tool["kind"] in ("cpu", "memory"):
        from tornado_rbkit import profiler

        profiler.start_profiling(
            enable_object_trace=tool["kind"] == "memory",
            enable_gc_stats=tool["kind"] == "memory",
            enable_cpu_profiling=tool["kind"] == "cpu",
            clock_type=tool.get("clock", "wall"),
            cpu_sampling_interval=tool.get("interval", 0.001),
        )
    elif tool["kind"] == "pyinstrument":
        from pyinstrument import Profiler

        pyinstrument = Profiler(interval=tool["interval"])
        pyinstrument.start()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work(amount)
    facts = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **result}
    if server is not None:
        facts["status"] = server.status()
    if pyinstrument is not None:
        records = pyinstrument.stop().frame_records
        facts["samples"] = len(records)
        for name in ("heavy", "light"):
            facts[name] = sum(
                seconds for stack, seconds in records if any(frame.startswith(f"{name}\0") for frame in stack)
            )
    if tool.get("tracing"):
        import tracemalloc

        facts["traced"] = tracemalloc.get_traced_memory()[1]
    return facts


def heap_child(objects: int, facts: dict[str, Any]) -> None:
    """Hold a heap, tick each millisecond on this thread, and take orders on another: mark, read, snapshot, stop."""
    began = time.perf_counter()
    heap = build(objects)
    built = time.perf_counter() - began
    gaps = array("d")
    stopping = threading.Event()

    def orders() -> None:
        before = 0
        for line in sys.stdin:
            order = line.strip()
            if order == "mark":
                peak_reset()
                before = memory_kb("VmRSS")
                gaps[:] = array("d")
                say(marked=True)
            elif order == "read":
                longest = sorted(gaps)
                extra = (memory_kb("VmHWM") - before) / 1024
                say(
                    stall=longest[-1],
                    stall_p99=longest[len(longest) * 99 // 100],
                    ticks=len(longest),
                    extra_mb=extra,
                    before_mb=before / 1024,
                )
            elif order == "snapshot":
                import tracemalloc

                start = time.perf_counter()
                snapshot = tracemalloc.take_snapshot()
                seconds = time.perf_counter() - start
                say(seconds=seconds, traces=len(snapshot.traces), held_mb=tracemalloc.get_tracemalloc_memory() / 2**20)
            else:
                break
        stopping.set()

    threading.Thread(target=orders, daemon=True).start()
    say(**facts, built=built, heap=len(heap))
    clock = time.perf_counter
    last = clock()
    while not stopping.is_set():
        time.sleep(_TICK_SECONDS)
        now = clock()
        gaps.append(now - last)
        last = now


def peak_reset() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def memory_kb(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise LookupError(key)


# The parent: one measured process at a time


class Process:
    """A measured process, and the lines it says."""

    def __init__(self, work: str, amount: int, tool: dict[str, Any], launcher: Sequence[str] = ()) -> None:
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `end`
        order = json.dumps({"work": work, "amount": amount, "tool": tool})
        self._process = subprocess.Popen(
            [sys.executable, *launcher, __file__, "--child", order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._timer = threading.Timer(_PATIENCE_SECONDS, self._process.kill)
        self._timer.daemon = True
        self._timer.start()

    def hear(self) -> dict[str, Any]:
        """Return the next thing it says."""
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("@"):
                facts: dict[str, Any] = json.loads(line[1:])
                return facts
        self._stderr.seek(0)
        raise RuntimeError("the measured process ended early:\n" + self._stderr.read())

    def tell(self, order: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()

    def ask(self, order: str) -> dict[str, Any]:
        self.tell(order)
        return self.hear()

    def end(self) -> None:
        """Wait for its end, which must be a good one."""
        code = self._process.wait()
        self._timer.cancel()
        self._stderr.seek(0)
        errors = self._stderr.read()
        self._stderr.close()
        assert code == 0, f"the measured process ended with {code}:\n{errors}"

    def kill(self) -> None:
        """End it, whatever it does; nothing if it has ended."""
        self._timer.cancel()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def process(work: str, amount: int, tool: dict[str, Any], launcher: Sequence[str] = ()) -> Iterator[Process]:
    started = Process(work, amount, tool, launcher)
    try:
        yield started
    finally:
        started.kill()


class Subscriber:
    """A SUB socket on a thread, which keeps every message as bytes."""

    def __init__(self, endpoint: str) -> None:
        import zmq

        self.messages: list[bytes] = []
        self.last = 0.0
        self._zmq = zmq
        self._stopping = threading.Event()
        self._socket: Any = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.setsockopt(zmq.RCVTIMEO, 100)
        self._socket.connect(endpoint)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        time.sleep(0.3)  # for the subscription to arrive; the counters tell if it did

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.messages.append(self._socket.recv())
                self.last = time.perf_counter()
            except self._zmq.Again:
                continue
        self._socket.close(0)

    def close(self, expected: int) -> None:
        """Wait for the last of `expected` messages, and check that there is each of them, in order."""
        import msgpack

        deadline = time.monotonic() + 10
        while len(self.messages) < expected and time.monotonic() < deadline:
            time.sleep(0.01)
        self.stop()
        counters = []
        for message in self.messages:
            unpacker = msgpack.Unpacker(strict_map_key=False)
            unpacker.feed(message[:64])
            unpacker.read_map_header()
            fields = [unpacker.unpack() for _ in range(6)]
            assert fields[4] == 9, "the third key is not the message_counter"
            counters.append(fields[5])
        assert counters == list(range(expected)), f"{expected} messages were sent, these arrived: {counters}"

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def events(self) -> Iterator[dict[int, Any]]:
        import msgpack

        for message in self.messages:
            yield from msgpack.unpackb(message, strict_map_key=False, unicode_errors="surrogateescape")[2]


def run_plainly(work: str, amount: int, tool: dict[str, Any]) -> dict[str, Any]:
    with process(work, amount, tool) as run:
        run.hear()
        facts = run.ask("go")
        run.end()
    if tool["kind"] == "pyinstrument":
        assert facts["samples"], "pyinstrument took no samples"
        facts["rate"] = facts["samples"] / facts["wall"]
        facts["split"] = facts["heavy"] / facts["light"] if facts["light"] else None
    if tool.get("tracing"):
        assert facts["traced"], "tracemalloc traced nothing"
        facts["samples"], facts["saw"] = facts["traced"], "bytes at the peak"
    return facts


def run_served(work: str, amount: int, tool: dict[str, Any]) -> dict[str, Any]:
    """Run under the profiler's own server, with a subscriber."""
    with process(work, amount, tool) as run:
        subscriber = Subscriber(run.hear()["pub"])
        try:
            facts = run.ask("go")
            messages = run.hear()["messages"]
            run.end()
            subscriber.close(messages)
        finally:
            subscriber.stop()
    facts["messages"] = messages
    facts["megabytes"] = sum(map(len, subscriber.messages)) / 1e6
    kinds: Counter[int] = Counter()
    found: Counter[str] = Counter()
    for event in subscriber.events():
        kinds[event[0]] += 1
        if event[0] == 9:
            names = {frame[12] for frame in event[2]}
            found.update(names & {"heavy", "light"})
        elif event[0] == 0 and event[2][4] == "__main__.Node":
            found["nodes"] += 1
    if tool["kind"] == "server":
        assert messages == 0, "an idle server published"
    elif tool["kind"] == "cpu":
        assert found["heavy"], "no samples arrived"
        facts["samples"] = kinds[9]
        facts["rate"] = facts["status"]["cpu"]["achieved_rate"]
        facts["split"] = found["heavy"] / found["light"] if found["light"] else None
    else:
        assert found["nodes"], "no objects were reported"
        facts["samples"] = kinds[0] + kinds[1]
        facts["saw"] = "objects"
    return facts


def run_py_spy(work: str, amount: int, tool: dict[str, Any]) -> dict[str, Any]:
    """Attach py-spy before the work begins, and count what it wrote."""
    spy = shutil.which("py-spy", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if spy is None:
        raise UnavailableError("not installed")
    with tempfile.TemporaryDirectory() as folder, process(work, amount, tool) as run:
        file = Path(folder, "samples.txt")
        command = [spy, "record", "--pid", str(run.hear()["pid"]), "--rate", str(tool["rate"])]
        command += ["--format", "raw", "--output", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as peer:
            timer = threading.Timer(_PATIENCE_SECONDS, peer.kill)
            timer.start()
            try:
                assert peer.stdout
                said = []
                for line in peer.stdout:
                    said.append(line.strip())
                    if "Sampling process" in line:
                        break
                else:
                    raise UnavailableError(" ".join(filter(None, said[:3])) or "it ended without a word")
                facts = run.ask("go")
                run.end()
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                said += [line.strip() for line in peer.stdout]
                peer.wait()
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
            finally:
                timer.cancel()
                if peer.poll() is None:
                    peer.kill()
        facts["cpu_outside"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found: Counter[str] = Counter()
        for line in file.read_text().splitlines() if file.exists() else ():
            stack, _, count = line.rpartition(" ")
            frames = {frame.partition(" ")[0] for frame in stack.split(";")}
            found["all"] += int(count)
            for name in frames & {"heavy", "light"}:
                found[name] += int(count)
    if not found["heavy"]:
        raise UnavailableError("no samples: " + " ".join(filter(None, said)))
    facts["said"] = [line for line in said if line]
    facts["samples"] = found["all"]
    facts["rate"] = found["all"] / facts["wall"]
    facts["split"] = found["heavy"] / found["light"] if found["light"] else None
    return facts


def run_memray(work: str, amount: int, tool: dict[str, Any]) -> dict[str, Any]:
    if importlib.util.find_spec("memray") is None:
        raise UnavailableError("not installed")
    import memray

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "memray.bin")
        launcher = ["-m", "memray", "run", "--quiet", "--output", str(file), *tool["options"]]
        with process(work, amount, tool, launcher) as run:
            run.hear()
            facts = run.ask("go")
            run.end()
        with memray.FileReader(file) as reader:
            facts["samples"] = reader.metadata.total_allocations
        facts["megabytes"] = file.stat().st_size / 1e6
    assert facts["samples"], "memray recorded no allocations"
    facts["saw"] = "allocations"
    return facts


def run_heap(objects: int, tool: dict[str, Any]) -> dict[str, Any]:
    """Take one snapshot of the heap, ours or tracemalloc's."""
    with process("heap", objects, tool) as run:
        ready = run.hear()
        if tool["kind"] != "snapshot":
            run.ask("mark")
            time.sleep(1.0)
            quiet = run.ask("read")["stall"]
            run.ask("mark")
            facts = run.ask("snapshot")
            facts |= run.ask("read")
            run.tell("stop")
            run.end()
            assert facts["traces"] >= objects // 4 * 3, "tracemalloc traced too little"
            return facts | {"quiet": quiet, "built": ready["built"]}

        import zmq

        subscriber = Subscriber(ready["pub"])
        try:
            run.ask("mark")
            time.sleep(1.0)
            quiet = run.ask("read")["stall"]
            requests: Any
            with zmq.Context.instance().socket(zmq.REQ) as requests:
                requests.setsockopt(zmq.LINGER, 0)
                requests.setsockopt(zmq.RCVTIMEO, int(_PATIENCE_SECONDS * 1000))
                requests.connect(ready["req"])
                run.ask("mark")
                began = time.perf_counter()
                requests.send(b"objectspace_snapshot")
                assert requests.recv() == b"ok"
                seconds = time.perf_counter() - began
            facts = run.ask("read")
            run.tell("stop")
            messages = run.hear()["messages"]
            run.end()
            subscriber.close(messages)
        finally:
            subscriber.stop()
    dumps = rows = places = 0
    total = None
    for event in subscriber.events():
        dumps += 1
        total = event[11]
        rows += len(event[2])
        places += sum(row[6] is not None for row in event[2])
    assert rows == total, f"{rows} objects arrived of {total}"
    assert rows >= objects, f"only {rows} objects"
    return facts | {
        "seconds": seconds,
        "seconds_to_last_message": subscriber.last - began,
        "messages": messages,
        "dumps": dumps,
        "megabytes": sum(map(len, subscriber.messages)) / 1e6,
        "rows": rows,
        "placed": places,
        "quiet": quiet,
        "built": ready["built"],
    }


# The three measurements


class Setting(NamedTuple):
    name: str
    tool: dict[str, Any]
    run: Callable[[str, int, dict[str, Any]], dict[str, Any]] = run_plainly
    plain: str = "plain"
    """The setting whose runs its own are compared to."""
    part: int = 1
    """It does one part in so many of the work."""


COMPUTE: Final = (
    Setting("plain", {"kind": "plain"}),
    Setting("plain again", {"kind": "plain"}),
    Setting("server idle", {"kind": "server"}, run_served),
    Setting("CPU sampling, wall clock, 10 ms", {"kind": "cpu", "interval": 0.01}, run_served),
    Setting("CPU sampling, wall clock, 1 ms", {"kind": "cpu", "interval": 0.001}, run_served),
    Setting("CPU sampling, cpu clock, 1 ms", {"kind": "cpu", "interval": 0.001, "clock": "cpu"}, run_served),
    Setting("py-spy record, 100 Hz", {"kind": "py-spy", "rate": 100}, run_py_spy),
    Setting("py-spy record, 1000 Hz", {"kind": "py-spy", "rate": 1000}, run_py_spy),
    Setting("pyinstrument, 10 ms", {"kind": "pyinstrument", "interval": 0.01}),
    Setting("pyinstrument, 1 ms", {"kind": "pyinstrument", "interval": 0.001}),
)

_PART: Final = "plain, a fifth of the work"
"""What makes the work many times slower does less of it."""

ALLOCATE: Final = (
    Setting("plain", {"kind": "plain"}),
    Setting("plain again", {"kind": "plain"}),
    Setting("memory profiling", {"kind": "memory"}, run_served),
    Setting(_PART, {"kind": "plain"}, plain=_PART, part=5),
    Setting("tracemalloc, 1 frame", {"kind": "plain", "tracing": True}, plain=_PART, part=5),
    Setting("memray run", {"kind": "memray", "options": []}, run_memray, plain=_PART, part=5),
    Setting(
        "memray run --trace-python-allocators",
        {"kind": "memray", "options": ["--trace-python-allocators"]},
        run_memray,
        plain=_PART,
        part=5,
    ),
)

_SLOW: Final = "objectspace_snapshot, tracemalloc on"
"""Taken once, whatever the rounds: it takes a minute."""

HEAP: Final = (
    (
        "objectspace_snapshot",
        {"kind": "snapshot"},
        "every object: class, id, size, references",
    ),
    (
        _SLOW,
        {"kind": "snapshot", "tracing": True},
        "the same with file and line",
    ),
    (
        "tracemalloc.take_snapshot()",
        {"kind": "plain", "tracing": True},
        "blocks made since tracing began: size, line; no classes, no references",
    ),
)

Rounds = dict[str, list[dict[str, Any]]]


def measure(work: str, amount: int, settings: Sequence[Setting], rounds: int) -> tuple[Rounds, dict[str, str]]:
    """Run every setting once in each round; return what they took, and why some could not."""
    results: Rounds = {setting.name: [] for setting in settings}
    missing: dict[str, str] = {}
    for number in range(rounds):
        turn = number * 3 % len(settings)
        for setting in (*settings[turn:], *settings[:turn]):
            if setting.name in missing:
                continue
            if setting.tool["kind"] == "pyinstrument" and importlib.util.find_spec("pyinstrument") is None:
                missing[setting.name] = "not installed"
                continue
            note(f"{work}, round {number + 1} of {rounds}: {setting.name}")
            try:
                results[setting.name].append(setting.run(work, amount // setting.part, setting.tool))
            except UnavailableError as error:
                missing[setting.name] = str(error)
    for name in missing:
        del results[name]
    return results, missing


def measure_heap(objects: int, rounds: int) -> Rounds:
    results: Rounds = {name: [] for name, _, _ in HEAP}
    for number in range(rounds):
        for name, tool, _ in HEAP:
            if number and name == _SLOW:
                continue
            note(f"heap, round {number + 1} of {rounds}: {name}")
            results[name].append(run_heap(objects, tool))
    return results


def calibrate(work: str, seconds: float, units: int) -> int:
    """Return how much work takes `seconds` in a plain process."""
    took = min(run_plainly(work, units, {"kind": "plain"})["wall"] for _ in range(2))
    return max(10, round(units * seconds / float(took)))


# The tables


def median(runs: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def cost(runs: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    """Return percent above the plain run of the same round: the median, the least and the most."""
    ratios = [100 * (run[key] / other[key] - 1) for run, other in zip(runs, plain, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def cost_text(cost: dict[str, float]) -> str:
    return f"{cost['median']:+.1f} % ({cost['least']:+.1f} … {cost['most']:+.1f})"


def text(value: float | None, pattern: str = "{:.2f}") -> str:
    return "" if value is None else pattern.format(value)


def summary(results: Rounds, settings: Sequence[Setting]) -> dict[str, dict[str, Any]]:
    """Return the medians of each setting, and what it costs."""
    plain = {setting.name: results[setting.plain] for setting in settings}
    keys = ("wall", "cpu", "cpu_outside", "rate", "samples", "split", "true_split", "messages", "megabytes")
    return {
        name: {key: median(runs, key) for key in keys}
        | {
            "wall_cost": cost(runs, plain[name], "wall"),
            "cpu_cost": cost(runs, plain[name], "cpu"),
            "saw": runs[0].get("saw", ""),
        }
        for name, runs in results.items()
    }


def overhead_cells(name: str, facts: dict[str, Any]) -> list[str]:
    cells = [name, text(facts["wall"])]
    if name in ("plain", _PART):
        return [*cells, "", ""]
    return [*cells, cost_text(facts["wall_cost"]), cost_text(facts["cpu_cost"])]


def compute_table(results: dict[str, dict[str, Any]], missing: dict[str, str]) -> str:
    rows = [
        [
            *overhead_cells(name, facts),
            text(facts["cpu_outside"], "{:.2f} s"),
            text(facts["rate"], "{:.0f}/s"),
            text(facts["samples"], "{:.0f}"),
            text(facts["split"], "{:.2f} : 1"),
        ]
        for name, facts in results.items()
    ]
    rows += [[f"{name} *", "", "", "", "", "", "", ""] for name in missing]
    return table(
        (
            "setting",
            "seconds",
            "wall, % above plain",
            "CPU of the process, % above plain",
            "CPU outside",
            "rate reached",
            "samples",
            "split found",
        ),
        rows,
    )


def allocate_table(results: dict[str, dict[str, Any]], missing: dict[str, str]) -> str:
    rows = [
        [
            *overhead_cells(name, facts),
            "" if facts["samples"] is None else f"{facts['samples']:,.0f} {facts['saw']}",
            text(facts["megabytes"], "{:.1f}"),
        ]
        for name, facts in results.items()
    ]
    rows += [[f"{name} *", "", "", "", "", ""] for name in missing]
    return table(
        ("setting", "seconds", "wall, % above plain", "CPU of the process, % above plain", "reported", "MB"), rows
    )


def heap_table(results: Rounds) -> str:
    delivers = {name: what for name, _, what in HEAP}
    rows = []
    for name, runs in results.items():
        what = delivers[name]
        placed, found = median(runs, "placed"), median(runs, "rows")
        if placed and found:
            what += f" of {100 * placed / found:.0f} %"
        rows.append(
            [
                f"{name} ({len(runs)}×)",
                text(median(runs, "seconds")),
                text(median(runs, "before_mb"), "{:.0f} MB"),
                text(median(runs, "extra_mb"), "{:+.0f} MB"),
                f"{1000 * max(run['stall'] for run in runs):.1f} ms",
                f"{1000 * max(run['quiet'] for run in runs):.1f} ms",
                text(median(runs, "messages"), "{:.0f}"),
                text(median(runs, "megabytes"), "{:.1f}"),
                text(median(runs, "rows") or median(runs, "traces"), "{:,.0f}"),
                what,
            ]
        )
    heads = ("snapshot", "seconds", "memory before", "extra peak", "longest stall", "longest without")
    return table((*heads, "messages", "MB sent", "objects or blocks", "delivers"), rows)


def reasons(missing: dict[str, str]) -> Iterator[str]:
    for name, reason in missing.items():
        yield f"\\* {name}: {reason}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the embedded profiler costs, beside its peers.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="what the plain work takes (default: 2)")
    parser.add_argument("--objects", type=int, default=1_000_000, help="in the heap (default: 1,000,000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything that was measured")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(**json.loads(options.child))
        return
    if not sys.platform.startswith("linux"):
        parser.error("this needs Linux")
    if options.rounds < 1 or options.seconds <= 0 or options.objects < 4:
        parser.error("--rounds, --seconds and --objects must be above 0, and the objects at least 4")

    host = machine(_PACKAGES)
    units = calibrate("compute", options.seconds, 100)
    computed, compute_missing = measure("compute", units, COMPUTE, options.rounds)
    thousands = calibrate("allocate", max(3.0, options.seconds), 300)  # objects are looked at once a second
    allocated, allocate_missing = measure("allocate", thousands, ALLOCATE, options.rounds)
    heap = measure_heap(options.objects, min(options.rounds, _HEAP_ROUNDS))

    compute_summary, allocate_summary = summary(computed, COMPUTE), summary(allocated, ALLOCATE)
    versions = ", ".join(f"{name} {number}" for name, number in host["versions"].items())
    print(
        f"{host['cpu']}, {host['cores']} cores, {host['memory_gb']} GB, {host['system']}, {host['python']}, "
        f"load {host['load_before']:.2f} before the run\n{versions}\n"
        f"rounds: {options.rounds}; percentages: the median of the rounds (the least … the most)"
    )
    print(f"\nCPU: {units} units of pure Python with a call about each microsecond; the true split is 2 : 1, measured")
    print(f"as {compute_summary['plain']['true_split']:.2f} : 1 in the plain runs\n")
    print(compute_table(compute_summary, compute_missing), *reasons(compute_missing), sep="\n")
    print(f"\nAllocating: {1000 * thousands:,} nodes of four objects and more, {_LIVING:,} of them alive at a time")
    print("(tracemalloc and memray: a fifth of that, compared to plain runs that do a fifth)\n")
    print(allocate_table(allocate_summary, allocate_missing), *reasons(allocate_missing), sep="\n")
    print(f"\nHeap: {options.objects:,} objects, a quarter each of strings, lists, dicts and instances;")
    print("stalls are the longest time between two ticks of a thread that sleeps for 1 ms, in all rounds\n")
    print(heap_table(heap))
    built = {name: median(runs, "built") for name, runs in heap.items()}
    held = median(heap["tracemalloc.take_snapshot()"], "held_mb")
    print(
        f"\nBuilding that heap took {text(built['objectspace_snapshot'])} s, and "
        f"{text(built['tracemalloc.take_snapshot()'])} s while tracemalloc traced, "
        f"which holds {text(held, '{:.0f}')} MB for it."
    )
    if options.json:
        options.json.write_text(
            json.dumps(
                {
                    "machine": host,
                    "rounds": options.rounds,
                    "compute": {"units": units, "summary": compute_summary, "runs": computed},
                    "allocate": {"nodes": 1000 * thousands, "summary": allocate_summary, "runs": allocated},
                    "heap": {"objects": options.objects, "runs": heap},
                    "missing": compute_missing | allocate_missing,
                },
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
