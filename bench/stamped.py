"""Targets whose messages carry the time, and viewers that measure how long they took.

The time is the timestamp of an event collection, in milliseconds of a clock that all processes of a machine share.
A viewer compares all other bytes with the published ones, and the missing messages with the reported ones.
"""

from __future__ import annotations

import re
import select
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import zmq
from clients import Client
from feed import body
from measure import order_waits, orders, percentile, say

_STAMP: Final = slice(5, 13)
_COUNTER: Final = slice(15, 19)
_DROPPED: Final = re.compile(rb"0dropped:(\d+)")
_STEP_SECONDS: Final = 0.005


class Target:
    """One profiler's PUB socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], size: int, rate: float) -> None:
        self.socket = context.socket(zmq.PUB)
        self.socket.sndhwm = 0
        self.socket.linger = 0
        self.socket.bind("tcp://127.0.0.1:*")
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.sent = 0
        self._rate = rate
        self._begun = 0.0
        self._before = 0
        self._head, self._rest = body(size)

    def begin(self, now: float) -> None:
        self._begun, self._before = now, self.sent

    def publish_due(self, now: float) -> None:
        """Publish the messages that are due at a time."""
        while self.sent - self._before < (now - self._begun) * self._rate:
            self.publish()

    def publish(self) -> None:
        stamp = struct.pack(">d", 1000 * time.perf_counter())
        counter = b"\xce" + self.sent.to_bytes(4, "big")
        self.socket.send(b"".join((self._head[:5], stamp, self._head[13:], counter, self._rest)), copy=False)
        self.sent += 1


def publish(loads: Sequence[tuple[int, float]]) -> None:
    """Publish on request: messages of a size, at a rate, for each target."""
    with zmq.Context() as context:
        targets = [Target(context, size, rate) for size, rate in loads]
        say(endpoints=[target.endpoint for target in targets])
        for order in orders():
            match order["do"]:
                case "publish":  # until the next order
                    now = time.perf_counter()
                    chosen = [targets[number] for number in order["targets"]]
                    for target in chosen:
                        target.begin(now)
                    while not order_waits(_STEP_SECONDS):
                        now = time.perf_counter()
                        for target in chosen:
                            target.publish_due(now)
                case "once":
                    for target in targets:
                        target.publish()
                case "sent":
                    say(sent=[target.sent for target in targets])


@dataclass
class View:
    """What one viewer of one target got."""

    target: int
    client: Client
    head: bytes
    rest: bytes
    seconds: list[float] = field(default_factory=list)
    expected: int = -1
    received: int = 0
    missing: int = 0
    told: int = 0
    size: int = 0

    def take(self, message: bytes, now: float) -> None:
        """Compare a message, and measure its delay."""
        if message[:1] == b"0":
            dropped = _DROPPED.fullmatch(message)
            self.told += int(dropped[1]) if dropped else 0
            return
        data = message[1 : 1 + _COUNTER.stop]
        counter = int.from_bytes(data[_COUNTER], "big")
        assert data.startswith(self.head[: _STAMP.start]), f"not what was published: {message[:40]!r}"
        assert len(message) == 1 + _COUNTER.stop + len(self.rest), f"message {counter} has {len(message)} bytes"
        assert message.endswith(self.rest), f"not what was published: message {counter}"
        if self.expected >= 0:
            assert counter >= self.expected, f"message {counter} comes after {self.expected - 1}"
            self.missing += counter - self.expected
        self.expected = counter + 1
        self.received += 1
        self.size += len(message) - 1
        self.seconds.append(now - struct.unpack(">d", data[_STAMP])[0] / 1000)


def view(loads: Sequence[tuple[int, float]]) -> None:
    """Read on request, until the next order."""
    views: dict[int, View] = {}
    poll = select.epoll()
    poll.register(0, select.EPOLLIN)
    for order in orders():
        match order["do"]:
            case "connect":
                head, rest = body(loads[order["target"]][0])
                client = Client(order["port"], path=order["path"])
                views[client.socket.fileno()] = View(order["target"], client, head, rest)
                poll.register(client.socket, select.EPOLLIN)
                say(connected=len(views))
            case "read":
                say(reading=True)
                read(poll, views)
            case "mark":
                for each in views.values():
                    each.seconds.clear()
                    each.size = 0
                say(marked=True)
            case "figures":
                pooled = [second for each in views.values() if each.target in order["of"] for second in each.seconds]
                say(views=[figures(each) for each in views.values()], **delays(pooled))


def read(poll: select.epoll, views: dict[int, View]) -> None:
    """Read until an order waits."""
    while True:
        ready = [number for number, _ in poll.poll()]
        if 0 in ready:
            return
        for number in ready:
            each = views[number]
            data = each.client.read()
            now = time.perf_counter()
            for message in each.client.messages(data):
                each.take(message, now)


def figures(view: View) -> dict[str, Any]:
    """Return what a viewer got."""
    return {
        "target": view.target,
        "received": view.received,
        "missing": view.missing,
        "told": view.told,
        "last": view.expected - 1,
        "mb": view.size / 1e6,
    }


def delays(seconds: Sequence[float]) -> dict[str, float]:
    """Return percentiles in ms, 0 without messages."""
    return {f"p{percent}": 1000 * percentile(seconds or [0.0], percent) for percent in (50, 99)}


if __name__ == "__main__":
    role = {"publish": publish, "view": view}[sys.argv[1]]
    try:
        role([(int(size), float(rate)) for size, rate in (each.split("x") for each in sys.argv[2:])])
    except (OSError, AssertionError) as error:
        say(failed=f"{type(error).__name__}: {error}")
