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


def child(work: str, amount: int, tool: dict[str, Any]) -> None:
    """Report the server's endpoints, if any; wait for an order, work, and report the cost."""
    facts: dict[str, Any] = {"pid": os.getpid()}
    server: Any = None
    if tool["kind"] in ("server", "cpu", "memory", "snapshot"):
        from tornado_rbkit import profiler

        engine = tool.get("engine", "in-process")
        server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "bench", cpu_engine=engine)
        facts |= {"pub": server.pub, "req": server.req}
    if tool.get("tracing"):
        import tracemalloc

        tracemalloc.start()
    if work == "heap":
        heap_child(amount, facts)
    else:
        say(**facts)
        next(orders())
        say(**timed(_WORK[work], amount, tool, server))
    if server is not None:
        from tornado_rbkit import profiler

        profiler.stop_server()
        say(messages=server.status()["messages"])


def timed(work: Callable[[int], dict[str, Any]], amount: int, tool: dict[str, Any], server: Any) -> dict[str, Any]:
    """Do the work under a tool that runs in this process; return the seconds, and the tool's own figures."""
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
