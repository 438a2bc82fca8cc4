"""The profiler's side of the load: a process that publishes as rbkit does, and one that answers commands."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import zmq
from measure import order_waits, orders, say

from tornado_rbkit.protocol import message_counter

SYNC: Final = b"\xa4sync"
"""Published until every client has one; like the next two no event_collection, so nothing counts it."""
GO: Final = b"\xa2go"
END: Final = b"\xa3end"

_RECORDED: Final = Path(__file__).resolve().parent.parent / "tests" / "data"
_COUNTER_AT: Final = 14
_EVENT: Final = {0: 0, 1: 1795388437841.0, 2: {3: 70229034520360, 4: "ActiveSupport::HashWithIndifferentAccess"}}


def messages(kind: str, count: int, first: int = 0) -> Iterator[bytes]:
    """Yield event collections with their counters: of a number of bytes each, or ``recorded`` ones in turn."""
    bodies = recorded() if kind == "recorded" else [body(int(kind))]
    for counter in range(first, first + count):
        start, rest = bodies[counter % len(bodies)]
        yield start + b"\xce" + counter.to_bytes(4, "big") + rest


def body(size: int) -> tuple[bytes, bytes]:
    """Return the bytes before and after the counter in a message of `size` bytes (at least 100), most of it events."""
    packer = msgpack.Packer(autoreset=False)
    event = msgpack.packb(_EVENT)
    events = max(0, size - 200) // len(event)
    packer.pack_map_header(4)
    for item in (0, 7, 1, 1795388438444.0, 9, 1 << 31, 2):
        packer.pack(item)
    packer.pack_array_header(events + 1)
    head = packer.bytes()
    padding = 0
    for _ in range(10):
        last = msgpack.packb({**_EVENT, 2: {3: 0, 4: "." * padding}})
        missing = size - len(head) - events * len(event) - len(last)
        if not missing:
            return head[:_COUNTER_AT], head[_COUNTER_AT + 5 :] + event * events + last
        padding += missing
    raise AssertionError(f"{size} bytes cannot be made")


def handshake(**facts: object) -> bytes:
    """Return a real rbkit's reply to ``handshake``, now, and with some of its facts replaced."""
    reply = next(record[-1] for record in _records() if record[2] == "handshake")
    message = msgpack.unpackb(reply, strict_map_key=False)
    return bytes(msgpack.packb({**message, 1: time.time() * 1000, 2: {**message[2], **facts}}))


def _records() -> Iterator[list[Any]]:
    """Yield the recorded traffic of a real rbkit: seconds, channel, command and bytes."""
    for file in sorted(_RECORDED.glob("*.msgpack")):
        yield from msgpack.Unpacker(file.open("rb"), max_buffer_size=0)


def recorded() -> list[tuple[bytes, bytes]]:
    """Return the messages recorded from a real rbkit, as the bytes before and after their counters."""
    bodies = []
    for record in _records():
        message = record[-1]
        if isinstance(message, bytes) and message_counter(message) is not None:
            size = {0xCC: 2, 0xCD: 3, 0xCE: 5}.get(message[_COUNTER_AT], 1)
            bodies.append((message[:_COUNTER_AT], message[_COUNTER_AT + size :]))
    assert bodies, f"nothing recorded in {_RECORDED}"
    return bodies


def publish(endpoint: str) -> None:
    """Publish on request. Nothing is dropped at this end, however slow the receiver is."""
    with zmq.Context() as context, context.socket(zmq.PUB) as pub:
        pub.linger = 0
        pub.sndhwm = 0
        pub.bind(endpoint)
        say(endpoint=pub.getsockopt_string(zmq.LAST_ENDPOINT))
        load: list[bytes] = []
        counter = 0
        for order in orders():
            match order["do"]:
                case "load":
                    load = list(messages(order["kind"], order["count"], counter))
                    say(bytes=sum(map(len, load)))
                case "sync":
                    while not order_waits(0.005):
                        pub.send(SYNC)
                case "go":
                    counter += len(load)
                    pub.send(GO)
                    seconds = send(pub, load, order.get("rate"))
                    pub.send(END)
                    say(seconds=seconds)
                case "flood":
                    sent = flood(pub, order["kind"], order["rate"], counter)
                    counter += sent
                    say(sent=sent)


def send(pub: zmq.Socket[bytes], load: list[bytes], rate: float | None) -> float:
    """Send everything, as fast as possible or at a rate; return the seconds that it took."""
    began = time.perf_counter()
    for number, message in enumerate(load):
        if rate and (ahead := number / rate - (time.perf_counter() - began)) > 0:
            time.sleep(ahead)
        pub.send(message)
    return time.perf_counter() - began


def flood(pub: zmq.Socket[bytes], kind: str, rate: float, counter: int) -> int:
    """Send at a rate until the next order; return the number of messages."""
    began = time.perf_counter()
    for sent, message in enumerate(messages(kind, 1 << 31, counter)):
        ahead = sent / rate - (time.perf_counter() - began)
        if (ahead > 0 or sent % 64 == 0) and order_waits(max(0.0, ahead)):
            return sent
        pub.send(message)
    raise AssertionError("the counter's end")


def reply(endpoint: str) -> None:
    """Answer every command with a handshake, as rbkit's is."""
    answer = handshake()
    with zmq.Context() as context, context.socket(zmq.REP) as rep:
        rep.bind(endpoint)
        say(endpoint=rep.getsockopt_string(zmq.LAST_ENDPOINT))
        while True:
            rep.recv()
            rep.send(answer)


if __name__ == "__main__":
    {"publish": publish, "reply": reply}[sys.argv[1]]("tcp://127.0.0.1:*")
