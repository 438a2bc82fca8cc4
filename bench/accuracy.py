"""Compares the shares that the CPU samplers report with the truth, on programs that know the truth.

    python bench/accuracy.py [--seconds S] [--interval SECONDS] [--engines ENGINE ...] [--busy N]

Every program runs in a fresh process for each clock and each sampler: ours inside the process, ours outside
(``cpu_engine="external"``), and austin alone, up to Python 3.13. Its functions note how long they ran (wall clock) and
computed (the thread's CPU clock); the table compares their shares of the noted time with their shares of the samples,
in percent, as ``reported (true)`` of the same run. Our samplers report a part of the time as ``(between samples)``,
because they do not know where the thread computed; that part is added, in percent of the functions' time. So no
function may have more than its true share, nor less than its true share without that part: ``off`` is the largest
difference beyond these bounds, in points. With ``--busy``, other programs that compute all the time, each in a session
of its own, share the processors. Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, Final

from measure import find_austin

from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.cpu import CPUSampler
from tornado_rbkit.profiler.external.own_process import OwnSampler
from tornado_rbkit.protocol import CPUSample, EventCollection, decode

SPENT: Final[dict[str, Counter[str]]] = {"wall": Counter(), "cpu": Counter()}
_NOTE: Final = threading.Lock()


def noted(name: str, act: Callable[[], object]) -> None:
    """Call `act`, and add its duration to the time of `name`."""
    wall, cpu = time.perf_counter(), time.thread_time()
    act()
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    with _NOTE:
        SPENT["wall"][name] += wall
        SPENT["cpu"][name] += cpu


def burn(seconds: float) -> None:
    clock = time.thread_time
    end = clock() + seconds
    while clock() < end:
        pass


def heavy(seconds: float) -> None:
    burn(seconds)


def light(seconds: float) -> None:
    burn(seconds)


def in_c(numbers: list[int]) -> None:
    for _ in range(10):
        sum(numbers)  # keeps the GIL


def receive(sock: socket.socket) -> None:
    sock.recv(65536)


def bursts(seconds: float, end: float) -> None:
    """2 : 1 within bursts, and a sleep of the same length after each."""
    while time.monotonic() < end:
        noted("heavy", partial(heavy, seconds * 2 / 3))
        noted("light", partial(light, seconds / 3))
        time.sleep(seconds)


def gil_held(end: float) -> None:
    numbers = list(range(20_000))
    while time.monotonic() < end:
        noted("in_c", partial(in_c, numbers))
        noted("heavy", partial(heavy, 0.003))


def waits(end: float) -> None:
    """A thread that parses the data that another thread sends every three milliseconds."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        while not stop.wait(0.003):
            theirs.send(b"x")

    stop = threading.Event()
    sender = threading.Thread(target=send)
    sender.start()
    while time.monotonic() < end:
        noted("receive", partial(receive, ours))
        noted("heavy", partial(heavy, 0.002))
    stop.set()
    sender.join()


def contention(end: float) -> None:
    lock = threading.Lock()

    def locked() -> None:
        with lock:
            burn(0.001)

    def work() -> None:
        while time.monotonic() < end:
            noted("locked", locked)
            noted("light", partial(light, 0.0005))

    in_threads(4, work)


def naps(end: float) -> None:
    """Four threads that compute for 0.3 ms each, and then wait for a lock that is held during naps of 1.5 ms."""
    lock = threading.Lock()

    def index() -> None:
        with lock:
            time.sleep(0.0015)

    def work() -> None:
        while time.monotonic() < end:
            noted("heavy", partial(heavy, 0.0003))
            noted("index", index)

    in_threads(4, work)


def periodic(end: float) -> None:
    """A thread that computes for 0.3 ms at the beginning of each millisecond, as often as the sampler looks."""
    due = time.monotonic()
    while due < end:
        heavy_and_light(0.0002)
        due = max(due + 0.001, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def phases(end: float) -> None:
    """A function that computes half of the time and then waits, beside one that computes."""
    middle = (time.monotonic() + end) / 2
    while time.monotonic() < end:
        is_late = time.monotonic() > middle
        noted("either", partial(either, 0.003, computes=not is_late))
        noted("light", partial(light, 0.0015))


def either(seconds: float, computes: bool) -> None:
    clock = time.thread_time if computes else time.perf_counter
    end = clock() + seconds
    while clock() < end:
        if not computes:
            time.sleep(seconds / 3)


def files(end: float) -> None:
    data = bytes(100_000)
    with tempfile.TemporaryFile() as file:
        while time.monotonic() < end:
            noted("synced", partial(synced, file, data))
            noted("light", partial(light, 0.002))


def synced(file: IO[bytes], data: bytes) -> None:
    file.seek(0)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def short_lives(end: float) -> None:
    """Threads that live for 5 ms, one after the other."""
    while time.monotonic() < end:
        in_threads(1, partial(heavy_and_light, 0.003))
        time.sleep(0.001)


def many_threads(end: float) -> None:
    def work() -> None:
        while time.monotonic() < end:
            heavy_and_light()
            time.sleep(0.2)

    in_threads(50, work)


def heavy_and_light(seconds: float = 0.002) -> None:
    noted("heavy", partial(heavy, seconds))
    noted("light", partial(light, seconds / 2))


def tasks(end: float) -> None:
    async def task(name: str, act: Callable[[float], None], seconds: float) -> None:
        while time.monotonic() < end:
            noted(name, partial(act, seconds))
            await asyncio.sleep(0.002)

    async def both() -> None:
        await asyncio.gather(task("heavy", heavy, 0.002), task("light", light, 0.001))

    asyncio.run(both())


def in_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


ENGINES: Final = ("in-process", "external", "austin")
FUNCTIONS: Final = {
    "bursts of 0.3 ms": "heavy",
    "bursts of 3 ms": "heavy",
    "bursts of 30 ms": "heavy",
    "C keeps the GIL": "in_c",
    "recv beside parse": "receive",
    "lock contention": "locked",
    "naps beside a lock": "heavy",
    "50 threads": "heavy",
    "threads of 5 ms": "heavy",
    "each millisecond": "heavy",
    "computes, then waits": "either",
    "fsync": "synced",
    "asyncio, 2 : 1": "heavy",
}
"""The function whose share is shown."""

PROGRAMS: Final[dict[str, Callable[[float], None]]] = {
    "bursts of 0.3 ms": partial(bursts, 0.0003),
    "bursts of 3 ms": partial(bursts, 0.003),
    "bursts of 30 ms": partial(bursts, 0.03),
    "C keeps the GIL": gil_held,
    "recv beside parse": waits,
    "lock contention": contention,
    "naps beside a lock": naps,
    "50 threads": many_threads,
    "threads of 5 ms": short_lives,
    "each millisecond": periodic,
    "computes, then waits": phases,
    "fsync": files,
    "asyncio, 2 : 1": tasks,
}


def measure(program: str, clock: str, engine: str, seconds: float, interval: float) -> dict[str, Any]:
    """Run a program under a sampler in this process; return its true and its reported shares."""
    batcher = EventBatcher()
    sampler: CPUSampler | OwnSampler = CPUSampler(batcher) if engine == "in-process" else OwnSampler(batcher, engine)
    sampler.clock_type = clock
    if engine == "austin":
        input("ready\n")  # it is attached from outside
    else:
        sampler.start(interval)
    PROGRAMS[program](time.monotonic() + seconds)
    sampler.stop()
    told: Counter[str] = Counter()
    names = SPENT["wall"].keys() | {"(between samples)"}
    for message in batcher.take(time.time(), flush=True):
        collection = decode(message)
        assert isinstance(collection, EventCollection)
        for event in collection.events:
            if isinstance(event, CPUSample):
                told.update([next((frame.method_name for frame in event.frames if frame.method_name in names), "")])
    told.pop("", None)
    true, all_shares = shares(SPENT[clock]), shares(told)
    between = all_shares.get("(between samples)", 0.0)
    del told["(between samples)"]
    over = [all_shares.get(name, 0.0) - part for name, part in true.items()]
    off = max(0.0, *over, *(-each - between for each in over))
    return {"true": true, "told": shares(told), "between": between, "off": off}


def run(program: str, clock: str, engine: str, seconds: float, interval: float) -> dict[str, Any]:
    """Run a program in a fresh process, under a sampler there or under austin."""
    command = [sys.executable, __file__, f"--seconds={seconds}", f"--interval={interval}"]
    child = subprocess.Popen(
        [*command, "--only", program, clock, engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as file:  # a pipe could fill up
        austin = None
        if engine == "austin":
            assert child.stdout is not None
            child.stdout.readline()
            mode = "-Ps" if clock == "cpu" else "-P"
            austin = subprocess.Popen(
                [find_austin(), mode, f"-i{int(interval * 1e6)}", f"-o{file.name}", f"-p{child.pid}"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(0.5)  # it attaches
        output, _ = child.communicate("\n")
        found: dict[str, Any] = json.loads(output)
        if austin is not None:
            austin.wait()
            found["told"] = told_by_austin(file.read(), set(found["true"]))
        return found


def told_by_austin(output: str, names: set[str]) -> dict[str, float]:
    """Return the shares of functions in collapsed stacks, whose frames are FILE:FUNCTION:LINE."""
    told: Counter[str] = Counter()
    for line in output.splitlines():
        stack, _, micros = line.rpartition(" ")
        if line.startswith("P") and micros.isdigit():
            functions = (
                frame.split(":")[-2].rpartition(".")[2] for frame in reversed(stack.split(";")) if ".py:" in frame
            )
            told[next((function for function in functions if function in names), "")] += int(micros)
    told.pop("", None)
    return shares(told)


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Run programs that compute all the time; sessions share the processors, so each has its own."""
    command = [sys.executable, "-c", f"import os\nwhile os.getppid() == {os.getpid()}: pass"]
    spinners = [subprocess.Popen(command, start_new_session=True) for _ in range(programs)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def shares(parts: Counter[str]) -> dict[str, float]:
    return {name: 100 * part / max(1e-9, parts.total()) for name, part in parts.items()}


def main() -> None:
    """Run every program with both clocks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each run (default: %(default)s)")
    parser.add_argument("--interval", type=float, default=0.001, help="between two samples (default: %(default)s s)")
    parser.add_argument("--only", nargs=3, metavar=("PROGRAM", "CLOCK", "ENGINE"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=ENGINES[:-1] if sys.version_info >= (3, 14) else ENGINES
    )
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="other programs that compute all the time")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(*options.only, options.seconds, options.interval)))
        return
    with busy(options.busy):
        print_table(options)
    print("load", *(f"{load:.1f}" for load in os.getloadavg()))


def print_table(options: argparse.Namespace) -> None:
    heads = [f"{clock}: {engine}" for clock in ("CPU", "wall") for engine in options.engines]
    print(f"| program | function | {' | '.join(heads)} |")
    print("| --- " * (len(heads) + 2) + "|")
    for program, function in FUNCTIONS.items():
        cells = []
        for clock in ("cpu", "wall"):
            for engine in options.engines:
                found = run(program, clock, engine, options.seconds, options.interval)
                cells.append(f"{found['told'].get(function, 0.0):.0f} ({found['true'][function]:.0f})")
                if engine != "austin":
                    cells[-1] += f", between {found['between']:.0f}, off {found['off']:.0f}"
        print(f"| {program} | {function} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
