"""Four threads that compute below 50 frames, `normalise` twice as much as `score`, and wait for a lock.

One of them holds the lock while it sleeps.
"""

from __future__ import annotations

import queue
import threading
import time

INDEX_LOCK = threading.Lock()
INDEX: dict[int, int] = {}
FLUSH_SECONDS = 0.004
DEPTH = 25

JOBS: queue.Queue[int] = queue.Queue(maxsize=50)


def normalise(number: int) -> int:
    for i in range(20_000):
        number = (number * 31 + i) & 0xFFFF
    return number


def score(number: int) -> int:
    for i in range(10_000):
        number = (number * 31 + i) & 0xFFFF
    return number


class Node:
    def __init__(self, depth: int) -> None:
        self.child = Node(depth - 1) if depth else None

    def accept(self, visitor: Visitor, number: int) -> int:
        return visitor.visit(self, number)


class Visitor:
    def visit(self, node: Node, number: int) -> int:
        if node.child is not None:
            return node.child.accept(self, number)
        return normalise(number) + score(number)


def parse(number: int) -> int:
    return Node(DEPTH).accept(Visitor(), number)


def index(number: int, value: int) -> None:
    with INDEX_LOCK:
        INDEX[number % 1000] = value
        time.sleep(FLUSH_SECONDS)


def work() -> None:
    while True:
        number = JOBS.get()
        index(number, parse(number))


def main(seconds: float) -> None:
    for number in range(4):
        threading.Thread(target=work, name=f"indexer-{number}", daemon=True).start()
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        JOBS.put(number)
        number += 1


if __name__ == "__main__":
    main(600)
