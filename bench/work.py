"""The process that bench/profiler.py measures: the work, and the tools that run in the same process."""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from measure import memory_bytes, orders, reset_peak, say

LIVING: Final = 50_000
"""Nodes that live at a time while it allocates."""

_TICK_SECONDS: Final = 0.001


def leaf(number: int) -> int:
    """Compute for about a microsecond, so that the work contains calls as programs do."""
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
    """Do `units` of work, two thirds of it in `heavy`; in pieces of random length, so that no sampler runs in step
    with them."""
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
    """One of the objects that are created and dropped: an instance with a list and a dict."""

    def __init__(self, number: int) -> None:
        self.name = f"node {number}"
        self.links: list[Any] = [self.name, []]
        self.data: dict[str, Any] = {"number": number, "links": self.links}


def allocate(units: int) -> dict[str, Any]:
    """Create `units` thousands of nodes; each drops the node that is `LIVING` nodes older."""
    living: deque[Node] = deque(maxlen=LIVING)
    for number in range(1000 * units):
        living.append(Node(number))
    return {}


class Item:
    __slots__ = ("parts",)

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts


def build(objects: int) -> list[Any]:
    """Return a number of objects: a quarter each of strings, lists, dicts and instances."""
    gc.disable()
    heap: list[Any] = []
    for number in range(objects // 4):
        text = f"text {number}"
        parts: list[Any] = [text, heap]
        heap.append({"item": Item(parts), "parts": parts})
    gc.collect()  # otherwise the first collection would happen during the measurement
    gc.enable()
    return heap


_WORK: Final[dict[str, Callable[[int], dict[str, Any]]]] = {"compute": compute, "allocate": allocate}


class Instrument:
    """A tool that runs in this process and can be switched on and off."""

    def __init__(self, tool: dict[str, Any]) -> None:
        self.tool = tool
        self.on = False
        self.ready: dict[str, Any] = {}

    def switch(self, on: bool) -> None:
        """Switch it on or off; return when it is."""
        if on != self.on:
            self.start() if on else self.stop()
            self.on = on

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def while_working(self) -> dict[str, Any]:
        """Return its figures at the end of the work."""
        return {}

    def end(self) -> dict[str, Any]:
        """Return its results."""
        return {}


class Profiler(Instrument):
    """The profiler's server, which samples stacks or compares objects while it is on."""

    def __init__(self, tool: dict[str, Any]) -> None:
        super().__init__(tool)
        from tornado_rbkit import profiler

        self._profiler = profiler
        self._where = ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
        self._serve()
        self.ready = {"pub": self._server.pub, "req": self._server.req}

    def _serve(self) -> None:
        engine = self.tool.get("engine", "in-process")
        self._server = self._profiler.start_server(*self._where, "bench", cpu_engine=engine)

    def start(self) -> None:
        self._measure(True)
        while self.tool["kind"] == "cpu" and not self._server.status()["cpu"]["achieved_rate"]:
            time.sleep(_TICK_SECONDS)  # the external engine starts a process

    def stop(self) -> None:
        self._measure(False)

    def _measure(self, on: bool) -> None:
        self._profiler.start_profiling(
            enable_object_trace=on and self.tool["kind"] == "memory",
            enable_gc_stats=self.tool["kind"] == "memory",
            enable_cpu_profiling=on and self.tool["kind"] == "cpu",
            clock_type=self.tool.get("clock", "wall"),
            cpu_sampling_interval=self.tool.get("interval", 0.001),
        )

    def while_working(self) -> dict[str, Any]:
        return {"rate": self._server.status()["cpu"]["achieved_rate"]} if self.tool["kind"] == "cpu" else {}

    def end(self) -> dict[str, Any]:
        self._profiler.stop_server()
        return {"messages": self._server.status()["messages"]}


class IdleServer(Profiler):
    """The profiler's server, which runs while it is on and has nothing to do."""

    def __init__(self, tool: dict[str, Any]) -> None:
        super().__init__(tool)
        self._where = (self._server.pub, self._server.req)
        self.on = True

    def start(self) -> None:
        self._serve()

    def stop(self) -> None:
        self._profiler.stop_server()


class Handover(Instrument):
    """A thread that takes the GIL from the work as the sampler does, and gives it back at once: the least that a
    sampler inside the process costs."""

    def __init__(self, tool: dict[str, Any]) -> None:
        super().__init__(tool)
        from tornado_rbkit.profiler.cpu import LEAD

        self._lead = LEAD

    def start(self) -> None:
        self._stopping = threading.Lock()
        self._stopping.acquire()
        self._taken, self._began = 0, time.monotonic()
        self._before = sys.getswitchinterval()
        sys.setswitchinterval(self._lead)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.acquire(timeout=max(0.0, due - self._lead - time.monotonic())):
            self._taken += 1
            due = max(due, time.monotonic() - self._lead) + self.tool["interval"]

    def stop(self) -> None:
        self._stopping.release()
        self._thread.join()
        sys.setswitchinterval(self._before)

    def while_working(self) -> dict[str, Any]:
        return {"rate": self._taken / (time.monotonic() - self._began)} if self.on else {}


class Pyinstrument(Instrument):
    """pyinstrument's profiler."""

    def __init__(self, tool: dict[str, Any]) -> None:
        super().__init__(tool)
        from pyinstrument import Profiler

        self._new = Profiler
        self._found = {"samples": 0, "heavy": 0.0, "light": 0.0}

    def start(self) -> None:
        self._running = self._new(interval=self.tool["interval"])
        self._running.start()

    def stop(self) -> None:
        records = self._running.stop().frame_records
        self._found["samples"] += len(records)
        for name in ("heavy", "light"):
            self._found[name] += sum(
                seconds for stack, seconds in records if any(frame.startswith(f"{name}\0") for frame in stack)
            )

    def end(self) -> dict[str, Any]:
        return self._found


_INSTRUMENTS: Final[dict[str, Callable[[dict[str, Any]], Instrument]]] = {
    "plain": Instrument,
    "memray": Instrument,
    "py-spy": Instrument,
    "server": IdleServer,
    "cpu": Profiler,
    "memory": Profiler,
    "snapshot": Profiler,
    "handover": Handover,
    "pyinstrument": Pyinstrument,
}


def child(work: str, amount: int, tool: dict[str, Any]) -> None:
    """Report the server's endpoints, if any, and obey the orders: work, switch the tool, end."""
    instrument = _INSTRUMENTS[tool["kind"]](tool)
    if tool.get("tracing"):
        import tracemalloc

        tracemalloc.start()
    if work == "heap":
        heap_child(amount, instrument.ready)
    else:
        say(**instrument.ready)
        for order in orders():
            if order["do"] == "work":
                say(**timed(_WORK[work], order["units"]), **instrument.while_working())
            elif order["do"] == "switch":
                instrument.switch(order["on"])
                say(on=order["on"])
            else:
                break
    traced = {}
    if tool.get("tracing"):
        traced["traced"] = tracemalloc.get_traced_memory()[1]
    say(**instrument.end(), **traced)


def timed(work: Callable[[int], dict[str, Any]], units: int) -> dict[str, Any]:
    """Do the work; return the seconds, on the wall and of this process's CPU time, and the work's own figures."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work(units)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **result}


def heap_child(objects: int, facts: dict[str, Any]) -> None:
    """Hold a heap, measure pauses each millisecond on this thread, and take orders on another: mark, read, snapshot,
    stop."""
    began = time.perf_counter()
    heap = build(objects)
    built = time.perf_counter() - began
    gaps = array("d")
    stopping = threading.Event()

    def obey() -> None:
        before = 0
        for order in orders():
            if order["do"] == "mark":
                reset_peak(os.getpid())
                before = memory_bytes(os.getpid())
                gaps[:] = array("d")
                say(marked=True)
            elif order["do"] == "read":
                longest = sorted(gaps)
                extra = memory_bytes(os.getpid(), "VmHWM") - before
                say(
                    stall=longest[-1],
                    stall_p99=longest[len(longest) * 99 // 100],
                    ticks=len(longest),
                    extra_mb=extra / 2**20,
                    before_mb=before / 2**20,
                )
            elif order["do"] == "snapshot":
                import tracemalloc

                start = time.perf_counter()
                snapshot = tracemalloc.take_snapshot()
                seconds = time.perf_counter() - start
                say(seconds=seconds, traces=len(snapshot.traces), held_mb=tracemalloc.get_tracemalloc_memory() / 2**20)
            else:
                break
        stopping.set()

    threading.Thread(target=obey, daemon=True).start()
    say(**facts, built=built, heap=len(heap))
    clock = time.perf_counter
    last = clock()
    while not stopping.is_set():
        time.sleep(_TICK_SECONDS)
        now = clock()
        gaps.append(now - last)
        last = now


if __name__ == "__main__":
    child(**json.loads(sys.argv[1]))
