"""Runs the measured process: plainly, under the profiler's server, or under a peer."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from measure import PATIENCE_SECONDS, Child, UnavailableError


@contextmanager
def process(work: str, amount: int, tool: dict[str, Any], launcher: Sequence[str] = ()) -> Iterator[Child]:
    """Start bench/work.py, which works on request."""
    order = json.dumps({"work": work, "amount": amount, "tool": tool})
    started = Child([sys.executable, *launcher, str(Path(__file__).with_name("work.py")), order])
    try:
        yield started
    finally:
        started.end()


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
        """Wait for the last of `expected` messages, and check that all have arrived, in order."""
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


class Target:
    """The measured process, which works on request, and the tool that is switched on and off in it meanwhile."""

    def __init__(self, work: str, tool: dict[str, Any], launcher: Sequence[str] = ()) -> None:
        self.tool = tool
        self.resources = ExitStack()
        self.run = self.resources.enter_context(process(work, 0, tool, launcher))
        self.ready = self.run.hear()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exception: object) -> None:
        self.resources.close()

    def switch(self, on: bool) -> None:
        """Switch the tool; return when it is on or off."""
        self.run.ask(do="switch", on=on)

    def work(self, units: int) -> dict[str, Any]:
        """Let the process do a fixed amount of work; return the cost."""
        return self.run.ask(do="work", units=units)

    def finish(self) -> dict[str, Any]:
        """End the process; check and return what the tool has found."""
        facts = self.run.ask(do="end")
        self.run.finish()
        return facts


class WithPyinstrument(Target):
    """pyinstrument runs in the process."""

    def __init__(self, work: str, tool: dict[str, Any]) -> None:
        if importlib.util.find_spec("pyinstrument") is None:
            raise UnavailableError("not installed")
        super().__init__(work, tool)

    def finish(self) -> dict[str, Any]:
        facts = super().finish()
        assert facts["samples"], "pyinstrument took no samples"
        return facts


class Served(Target):
    """The profiler's own server runs in the process; this process is a subscriber."""

    def __init__(self, work: str, tool: dict[str, Any]) -> None:
        super().__init__(work, tool)
        self._subscriber = Subscriber(self.ready["pub"])
        self.resources.callback(self._subscriber.stop)

    def finish(self) -> dict[str, Any]:
        facts = super().finish()
        if self.tool["kind"] == "server":  # each of its servers has counted its messages
            self._subscriber.stop()
        else:
            self._subscriber.close(facts["messages"])
        kinds, found = count_events(self._subscriber)
        facts["megabytes"] = sum(map(len, self._subscriber.messages)) / 1e6
        if self.tool["kind"] == "server":
            assert set(kinds) <= {6}, "an idle server published more than vitals"
        elif self.tool["kind"] == "cpu":
            assert found["heavy"], "no samples arrived"
            facts |= {"samples": kinds[9], "heavy": found["heavy"], "light": found["light"]}
        else:
            assert found["nodes"], "no objects were reported"
            facts |= {"samples": kinds[0] + kinds[1], "saw": "objects"}
        return facts


def count_events(subscriber: Subscriber) -> tuple[Counter[int], Counter[str]]:
    """Count the received events by type; and the samples in the functions of the work, and its objects."""
    kinds: Counter[int] = Counter()
    found: Counter[str] = Counter()
    for event in subscriber.events():
        kinds[event[0]] += 1
        if event[0] == 9:
            found.update({frame[12] for frame in event[2]} & {"heavy", "light"})
        elif event[0] == 0 and event[2][4] == "__main__.Node":
            found["nodes"] += 1
    return kinds, found


class WithPySpy(Target):
    """py-spy samples the process from outside. It is started anew each time."""

    def __init__(self, work: str, tool: dict[str, Any]) -> None:
        search = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        spy = shutil.which("py-spy", path=search)
        if spy is None:
            raise UnavailableError("not installed")
        super().__init__(work, tool)
        self._file = Path(self.resources.enter_context(tempfile.TemporaryDirectory()), "samples.txt")
        self._command = [spy, "record", "--pid", str(self.run.pid), "--rate", str(tool["rate"])]
        self._command += ["--format", "raw", "--output", str(self._file)]
        self._spy: subprocess.Popen[str] | None = None
        self._found: Counter[str] = Counter()
        self._cpu_outside = 0.0
        self.resources.callback(self._end)

    def switch(self, on: bool) -> None:
        if not on:
            self._end()
        elif self._spy is None:
            self._start()

    def _start(self) -> None:
        self._spy = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._spy.stdout
        reported = []
        for line in self._spy.stdout:
            reported.append(line.strip())
            if "Sampling process" in line:
                return
        raise UnavailableError(" ".join(filter(None, reported[:3])) or "it ended without a word")

    def _end(self) -> None:
        if self._spy is None:
            return
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._spy.send_signal(signal.SIGINT)
        reported, _ = self._spy.communicate(timeout=PATIENCE_SECONDS)
        self._spy = None
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._cpu_outside += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if not self._file.exists():
            raise UnavailableError("no samples: " + " ".join(reported.split()))
        for line in self._file.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            frames = {frame.partition(" ")[0] for frame in stack.split(";")}
            for name in ("samples", *(frames & {"heavy", "light"})):
                self._found[name] += int(count)
        self._file.unlink()

    def finish(self) -> dict[str, Any]:
        return super().finish() | self._found | {"cpu_outside": self._cpu_outside}


def run_plainly(work: str, amount: int, tool: dict[str, Any]) -> dict[str, Any]:
    """Do the work once in a fresh process, without a server."""
    return run_once(Target(work, tool), amount)


def run_once(opened: Target, amount: int) -> dict[str, Any]:
    with opened as target:
        target.switch(True)
        facts = target.work(amount)
        facts |= target.finish()
    if target.tool.get("tracing"):
        assert facts["traced"], "tracemalloc traced nothing"
        facts["samples"], facts["saw"] = facts["traced"], "bytes at the peak"
    return facts


def run_memray(work: str, amount: int, tool: dict[str, Any]) -> dict[str, Any]:
    if importlib.util.find_spec("memray") is None:
        raise UnavailableError("not installed")
    import memray

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "memray.bin")
        launcher = ["-m", "memray", "run", "--quiet", "--output", str(file), *tool["options"]]
        facts = run_once(Target(work, tool, launcher), amount)
        with memray.FileReader(file) as reader:
            facts["samples"] = reader.metadata.total_allocations
        facts["megabytes"] = file.stat().st_size / 1e6
    assert facts["samples"], "memray recorded no allocations"
    facts["saw"] = "allocations"
    return facts


def run_heap(objects: int, tool: dict[str, Any]) -> dict[str, Any]:
    """Take one heap snapshot, with this profiler or with tracemalloc."""
    with process("heap", objects, tool) as run:
        ready = run.hear()
        if tool["kind"] != "snapshot":
            quiet = longest_gap(run, 1.0)
            run.ask(do="mark")
            facts = run.ask(do="snapshot")
            facts |= run.ask(do="read")
            run.tell(do="stop")
            run.finish()
            assert facts["traces"] >= objects // 4 * 3, "tracemalloc traced too little"
            return facts | {"quiet": quiet, "built": ready["built"]}

        subscriber = Subscriber(ready["pub"])
        try:
            quiet = longest_gap(run, 1.0)
            began = time.perf_counter()
            seconds = take_snapshot(run, ready["req"])
            facts = run.ask(do="read")
            run.tell(do="stop")
            messages = run.hear()["messages"]
            run.finish()
            subscriber.close(messages)
        finally:
            subscriber.stop()
    dumps = rows = places = 0
    total = None
    for event in subscriber.events():
        if event[0] != 5:  # vitals
            continue
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


def run_stalls(objects: int, tool: dict[str, Any], count: int) -> dict[str, list[float]]:
    """Take snapshots of one process; return the seconds and the longest gap of each, and of as long without one."""
    found: dict[str, list[float]] = {"seconds": [], "stalls": [], "without": []}
    with process("heap", objects, tool) as run:
        ready = run.hear()
        subscriber = Subscriber(ready["pub"])
        try:
            for _ in range(count):
                found["seconds"].append(take_snapshot(run, ready["req"]))
                found["stalls"].append(run.ask(do="read")["stall"])
                found["without"].append(longest_gap(run, found["seconds"][-1]))
                subscriber.messages.clear()  # the next ones would need as much memory again
            run.tell(do="stop")
            assert run.hear()["messages"] > count, "nothing was published"
            run.finish()
        finally:
            subscriber.stop()
    return found


def take_snapshot(run: Child, endpoint: str) -> float:
    """Take a snapshot of a process that has marked the beginning; return the seconds."""
    import zmq

    requests: Any
    with zmq.Context.instance().socket(zmq.REQ) as requests:
        requests.setsockopt(zmq.LINGER, 0)
        requests.setsockopt(zmq.RCVTIMEO, int(PATIENCE_SECONDS * 1000))
        requests.connect(endpoint)
        run.ask(do="mark")
        began = time.perf_counter()
        requests.send(b"objectspace_snapshot")
        assert requests.recv() == b"ok"
        return time.perf_counter() - began


def longest_gap(run: Child, seconds: float) -> float:
    """Return the longest gap that the process's thread sees while nothing is requested."""
    run.ask(do="mark")
    time.sleep(seconds)
    gap: float = run.ask(do="read")["stall"]
    return gap
