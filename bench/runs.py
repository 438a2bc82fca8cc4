"""Runs the measured process: plainly, under the profiler's server, or under a peer."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


def run_plainly(work: str, amount: int, tool: dict[str, Any]) -> dict[str, Any]:
    """Run without a server or a separate peer; the process may run a tool in itself."""
    if tool["kind"] == "pyinstrument" and importlib.util.find_spec("pyinstrument") is None:
        raise UnavailableError("not installed")
    with process(work, amount, tool) as run:
        run.hear()
        facts = run.ask(do="go")
        run.finish()
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
            facts = run.ask(do="go")
            messages = run.hear()["messages"]
            run.finish()
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
        assert set(kinds) <= {6}, "an idle server published more than vitals"
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
    """Attach py-spy before the work begins, and count its samples."""
    spy = shutil.which("py-spy", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if spy is None:
        raise UnavailableError("not installed")
    with tempfile.TemporaryDirectory() as folder, process(work, amount, tool) as run:
        file = Path(folder, "samples.txt")
        command = [spy, "record", "--pid", str(run.hear()["pid"]), "--rate", str(tool["rate"])]
        command += ["--format", "raw", "--output", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as peer:
            timer = threading.Timer(PATIENCE_SECONDS, peer.kill)
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
                facts = run.ask(do="go")
                run.finish()
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
            facts = run.ask(do="go")
            run.finish()
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
            run.ask(do="mark")
            time.sleep(1.0)
            quiet = run.ask(do="read")["stall"]
            run.ask(do="mark")
            facts = run.ask(do="snapshot")
            facts |= run.ask(do="read")
            run.tell(do="stop")
            run.finish()
            assert facts["traces"] >= objects // 4 * 3, "tracemalloc traced too little"
            return facts | {"quiet": quiet, "built": ready["built"]}

        import zmq

        subscriber = Subscriber(ready["pub"])
        try:
            run.ask(do="mark")
            time.sleep(1.0)
            quiet = run.ask(do="read")["stall"]
            requests: Any
            with zmq.Context.instance().socket(zmq.REQ) as requests:
                requests.setsockopt(zmq.LINGER, 0)
                requests.setsockopt(zmq.RCVTIMEO, int(PATIENCE_SECONDS * 1000))
                requests.connect(ready["req"])
                run.ask(do="mark")
                began = time.perf_counter()
                requests.send(b"objectspace_snapshot")
                assert requests.recv() == b"ok"
                seconds = time.perf_counter() - began
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
