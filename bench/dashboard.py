"""Measures whether the dashboard stays responsive and keeps up: the longest tasks of its main thread in a real
Chromium, and the share of the published messages that its Web Worker did not receive.

    pip install '.[bench]'        # and Debian's chromium and chromium-driver
    python bench/dashboard.py [--seconds 15] [--rate 20] [--objects 1000000] [--json FILE]

A publisher in a separate process sends events as rbkit does, at a rate in MB/s, while the page opens and shows each of
its views; then it sends two heap snapshots, which are opened. Tasks of more than 50 ms are what browsers report
(PerformanceObserver "longtask").
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import msgpack
import zmq
from feed import handshake
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

EVENTS = 400
"""Events in a message of rbkit's."""

DUMP = 1000
"""Objects in an event of a snapshot, as rbkit sends them."""

FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --window-size=1280,1000"

OBSERVE = """
window.longTasks = [];
new PerformanceObserver(list => window.longTasks.push(...list.getEntries().map(entry => entry.duration)))
    .observe({type: 'longtask'});
"""


class Publisher:
    """An rbkit server in this process that sends data on request."""

    def __init__(self) -> None:
        context: zmq.Context[Any] = zmq.Context.instance()
        self.pub, self.rep = context.socket(zmq.PUB), context.socket(zmq.REP)
        for each in (self.pub, self.rep):
            each.linger = 0
            each.bind("tcp://127.0.0.1:*")
        self.counter = 0
        self.bytes = 0
        ids = [(1 << 40) + 48 * n for n in range(400_000)]
        self._born = [msgpack.packb({3: each, 4: f"Shop::Class{each % 500}"}) for each in ids]
        self._died = [msgpack.packb({3: each}) for each in ids]

    def answer(self, seconds: float) -> None:
        """Answer a command if one arrives within this time."""
        if self.rep.poll(int(seconds * 1000)):
            facts = {"pid": os.getpid(), "object_trace_enabled": 1, "cpu_profiling_enabled": 1}
            self.rep.send(handshake(**facts) if self.rep.recv() == b"handshake" else b"ok")

    def send(self, events: bytes) -> None:
        """Send an event_collection of events that are packed already."""
        head = (
            b"\x84\x00\x07\x01" + msgpack.packb(time.time() * 1000) + b"\x09" + msgpack.packb(self.counter) + b"\x02"
        )
        self.counter += 1
        self.bytes += len(head) + len(events)
        self.pub.send(head + events)

    def flood(self, seconds: float, rate: float) -> None:
        """Send events at `rate` MB/s: objects created and destroyed, collections, and some CPU samples."""
        started, sent = time.monotonic(), self.bytes
        while (elapsed := time.monotonic() - started) < seconds:
            while self.bytes - sent < rate * 1e6 * elapsed:
                self.send(self._events())
            self.answer(0.002)

    def snapshot(self, objects: int, number: int) -> None:
        """Send a snapshot in messages of twenty dumps, as the embedded profiler does; a tenth of the next one is
        new."""
        for begin in range(0, objects, 20 * DUMP):
            now = time.time() * 1000
            firsts = range(begin, min(begin + 20 * DUMP, objects), DUMP)
            self.send(msgpack.packb([self._dump(now, first, objects, number) for first in firsts]))
            self.answer(0)

    def _events(self) -> bytes:
        """Return a batch of events, most of them packed in advance, so that packing is not part of the measurement."""
        now = msgpack.packb(time.time() * 1000)
        born, died = (b"\x83\x00" + kind + b"\x01" + now + b"\x02" for kind in (b"\x00", b"\x01"))
        first = self.counter * EVENTS // 2 % len(self._born)
        after = (first + len(self._born) // 2) % len(self._born)
        others: list[dict[int, Any]] = [{0: kind, 1: time.time() * 1000} for kind in (2, 3, 4)]
        if self.counter % 50 == 0:
            others += [{0: 9, 1: time.time() * 1000, 2: self._stack()} for _ in range(10)]
        if self.counter % 500 == 0:
            figures = {"count": self.counter, "heap_live_slots": self.counter * 200, "total_heap_size": self.bytes}
            others.append({0: 6, 1: time.time() * 1000, 2: figures})
        parts = [born + payload for payload in self._born[first : first + EVENTS // 2]]
        parts += [died + payload for payload in self._died[after : after + EVENTS // 2]]
        parts += [msgpack.packb(event) for event in others]
        return b"\xdc" + len(parts).to_bytes(2, "big") + b"".join(parts)

    def _stack(self) -> list[Any]:
        """Return a stack of a program with a few hot functions."""
        depth = random.randrange(5, 40)
        names = [
            f"Shop#method_{level}_{int(random.paretovariate(1.5)) % (1 + level)}" for level in range(depth, 0, -1)
        ]
        return [{12: name, 13: name, 6: "/srv/shop.rb", 7: 1, 14: 0, 15: 1} for name in names]

    def _dump(self, now: float, first: int, total: int, number: int) -> dict[int, Any]:
        moved = number * total // 10
        objects = [
            {
                3: (n + moved) * 48,
                4: f"Shop::Class{n % 500}",
                5: [((n * 7 + k) % total + moved) * 48 for k in range(n % 5)],
                6: None,
                7: None,
                8: 40 + n % 200,
            }
            for n in range(first, min(first + DUMP, total))
        ]
        return {0: 5, 1: now, 10: number, 11: total, 2: objects}


def publish(pipe: Connection) -> None:
    """Read orders, send data, and report when that is done."""
    publisher = Publisher()
    pipe.send([each.getsockopt_string(zmq.LAST_ENDPOINT) for each in (publisher.pub, publisher.rep)])
    while True:
        if not pipe.poll(0):
            publisher.answer(0.02)
            continue
        order = pipe.recv()
        if order is None:
            return
        before, first, started = publisher.bytes, publisher.counter, time.monotonic()
        getattr(publisher, order[0])(*order[1:])
        pipe.send((publisher.bytes - before, time.monotonic() - started, publisher.counter - first))


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for flag in [*FLAGS.split(), f"--user-data-dir={tempfile.mkdtemp()}"]:
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or ""  # without it, Selenium looks for Chrome
    return webdriver.Chrome(options, Service(shutil.which("chromedriver")))


def until(driver: webdriver.Chrome, selector: str, text: str, seconds: float = 120.0) -> float:
    """Wait until an element has a text; return the seconds that it took."""
    started = time.monotonic()
    while text not in driver.find_element(By.CSS_SELECTOR, selector).get_attribute("textContent"):
        if time.monotonic() - started > seconds:
            raise SystemExit(f"the page never said {text!r}")
        time.sleep(0.05)
    return time.monotonic() - started


def click(driver: webdriver.Chrome, selector: str) -> None:
    """Click the first visible element of these."""
    next(each for each in driver.find_elements(By.CSS_SELECTOR, selector) if each.is_displayed()).click()


def received(driver: webdriver.Chrome) -> int:
    """Return how many messages the page has received, once it has caught up."""
    count, unchanged = -1, 0.0
    while unchanged < 3:
        time.sleep(0.5)
        text = driver.find_element(By.TAG_NAME, "footer").get_attribute("textContent")
        now = int(text.split(" messages")[0].replace(",", ""))
        unchanged = unchanged + 0.5 if now == count else 0.0
        count = now
    return count


def measure(driver: webdriver.Chrome, pipe: Connection, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each view under a flood, and for each step with two snapshots."""

    def row(what: str, rate: float | None = None, lost: float | None = None) -> dict[str, Any]:
        tasks = driver.execute_script("const tasks = window.longTasks; window.longTasks = []; return tasks")
        return {"what": what, "MB/s": rate, "lost": lost, "tasks": tasks}

    for view in arguments.views:
        driver.execute_script(f"location.hash = '{view}'; window.longTasks.length = 0")
        before = received(driver)
        pipe.send(("flood", arguments.seconds, arguments.rate))
        size, seconds, messages = pipe.recv()
        yield row(f"{view} view", size / seconds / 1e6, 1 - (received(driver) - before) / messages)
    footer = driver.find_element(By.TAG_NAME, "footer").get_attribute("textContent")
    print(f"the page says: {footer}", file=sys.stderr)
    if not arguments.objects:
        return
    driver.execute_script("location.hash = 'snapshots'; window.longTasks.length = 0")
    for number in (1, 2):
        pipe.send(("snapshot", arguments.objects, number))
        size, seconds, _ = pipe.recv()
        late = until(driver, ".snapshots", f"Snapshot {number}")
        what = (
            f"snapshot {number} of {arguments.objects:,} objects comes in, and is shown {late:.1f} s after it was sent"
        )
        yield row(what, size / seconds / 1e6)
    until(driver, "#view-snapshots", "changed since snapshot 1")
    yield row("the second is compared with the first")
    click(driver, "#view-snapshots tbody button")
    until(driver, ".objects", "objects not in snapshot 1")
    yield row("a class is opened")
    click(driver, ".objects tbody button")
    until(driver, "#view-snapshots .detail", "Refers to")
    yield row("an object is opened, with its way from a root")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each flood (%(default)s)")
    parser.add_argument("--rate", type=float, default=20.0, help="MB/s (%(default)s)")
    parser.add_argument("--objects", type=int, default=1_000_000, help="in each snapshot, 0 for none (%(default)s)")
    parser.add_argument(
        "--views", nargs="*", default=["memory", "objects", "cpu"], help="views to flood (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    pipe, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=publish, args=(theirs,))
    process.start()
    pub, req = pipe.recv()
    command = [sys.executable, "-m", "tornado_rbkit", "serve", "--pub", pub, "--req", req, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        driver = browser()
        try:
            driver.get(server.stdout.readline().removeprefix("ready ").strip())
            until(driver, ".state", "live")
            driver.execute_script(OBSERVE)
            rows = list(measure(driver, pipe, arguments))
        finally:
            driver.quit()
            pipe.send(None)
            server.terminate()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what | MB/s sent | lost | tasks over 50 ms | the longest |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        longest = f"{max(row['tasks']):.0f} ms" if row["tasks"] else "–"
        rate = f"{row['MB/s']:.1f}" if row["MB/s"] else ""
        lost = "" if row["lost"] is None else f"{row['lost']:.0%}"
        print(f"| {row['what']} | {rate} | {lost} | {len(row['tasks'])} | {longest} |")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
