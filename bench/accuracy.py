"""Measures how accurate the CPU sampler's shares are, on programs that measure the true shares.

    python bench/accuracy.py [--seconds S] [--interval SECONDS]

Every program runs in a fresh process for each clock. Its functions note how long they ran (wall clock) and computed
(the thread's CPU clock); the table compares their shares of the noted time with their shares of the samples, in
percent. ``between`` is the share of samples on the CPU clock that have no stack: the thread slept at every tick.
Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.cpu import CPUSampler
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


def many_threads(end: float) -> None:
    def work() -> None:
        while time.monotonic() < end:
            heavy_and_light()
            time.sleep(0.2)

    in_threads(50, work)


def heavy_and_light() -> None:
    noted("heavy", partial(heavy, 0.002))
    noted("light", partial(light, 0.001))


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


PROGRAMS: Final[dict[str, Callable[[float], None]]] = {
    "bursts of 0.3 ms": partial(bursts, 0.0003),
    "bursts of 3 ms": partial(bursts, 0.003),
    "bursts of 30 ms": partial(bursts, 0.03),
    "C keeps the GIL": gil_held,
    "recv beside parse": waits,
    "lock contention": contention,
    "50 threads": many_threads,
    "asyncio, 2 : 1": tasks,
}


def measure(program: str, clock: str, seconds: float, interval: float) -> dict[str, Any]:
    """Run a program under the sampler in this process; return its true and reported shares."""
    batcher = EventBatcher()
    sampler = CPUSampler(batcher)
    sampler.clock_type = clock
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
    between = told.pop("(between samples)", 0) / max(1, told.total())
    told.pop("", None)
    return {"true": shares(SPENT[clock]), "told": shares(told), "between": 100 * between, "rate": sampler.status()}


def shares(parts: Counter[str]) -> dict[str, float]:
    return {name: 100 * part / max(1e-9, parts.total()) for name, part in parts.items()}


def main() -> None:
    """Run every program with both clocks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each run (default: %(default)s)")
    parser.add_argument("--interval", type=float, default=0.001, help="between two samples (default: %(default)s s)")
    parser.add_argument("--only", nargs=2, metavar=("PROGRAM", "CLOCK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(*options.only, options.seconds, options.interval)))
        return
    print("| program | function | CPU: true | CPU: reported | wall: true | wall: reported | between |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for program in PROGRAMS:
        found = {}
        for clock in ("cpu", "wall"):
            command = [
                sys.executable,
                __file__,
                "--seconds",
                str(options.seconds),
                "--interval",
                str(options.interval),
            ]
            ended = subprocess.run([*command, "--only", program, clock], stdout=subprocess.PIPE, check=True)
            found[clock] = json.loads(ended.stdout)
        name = next(name for name in ("receive", "in_c", "locked", "heavy") if name in found["cpu"]["true"])
        figures = [found[clock][kind].get(name, 0.0) for clock in ("cpu", "wall") for kind in ("true", "told")]
        cells = [*(f"{figure:.0f}" for figure in figures), f"{found['cpu']['between']:.0f}"]
        print(f"| {program} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
