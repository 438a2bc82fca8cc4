"""Measures the latency of an unrelated HTTP handler in the same application: at rest, under a paced load, in a burst.

    pip install -e '.[bench]'
    python bench/neighbours.py [--rounds N] [--quick] [--json FILE]

A prober in another process requests a page of two bytes every 5 ms over a persistent connection. It waits for each
response; requests that it could not send meanwhile are counted as if they had waited too. Only servers that are HTTP
servers too can be compared. In a burst the profiler publishes as fast as it can, and probes count from the first
message to the last byte at the clients; who is soon done is started again, until there are enough probes for a 99th
percentile.
"""

from __future__ import annotations

import socket
import threading
import time
from functools import partial
from typing import Any, Final, NamedTuple

from measure import Report, Runs, median, options, percentile, ratio, rounds, table
from rig import NAIVE, NODE_PEER, THREADED, UNTHREADED, deliver, rig

SERVERS: Final = (THREADED, UNTHREADED, NAIVE, "aiohttp", "starlette", NODE_PEER)
_INTERVAL_SECONDS: Final = 0.005
_PROBES: Final = 150  # for each second that is looked at when at rest


class Load(NamedTuple):
    """The load during the measurement."""

    name: str
    kind: str
    clients: int
    messages: int
    rate: float | None


LOADS: Final = (
    Load("at rest", "2000", 10, 1, 1),
    Load("paced, 2 KB×10 at 2,000/s", "2000", 10, 4_000, 2_000),
    Load("burst, 2 KB×10", "2000", 10, 8_000, None),
    Load("burst, 2 KB×100", "2000", 100, 1_500, None),
    Load("burst, 20 KB×10", "20000", 10, 1_500, None),
)


class Prober(threading.Thread):
    """Sends requests and records their latencies."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.seconds: list[float] = []
        self._request = f"GET /neighbour HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Send requests until `stop`."""
        while not self._stopping.wait(_INTERVAL_SECONDS):
            self.ask()

    def ask(self) -> None:
        """Send one request; a server may send the body separately from the head."""
        began = time.perf_counter()
        self._socket.sendall(self._request)
        answer = b""
        while not answer.endswith(b"\r\n\r\nok") and b"\r\n\r\n2\r\nok\r\n0\r\n\r\n" not in answer:
            data = self._socket.recv(4096)
            assert data, f"the server closed: {answer!r}"
            answer += data
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        took = time.perf_counter() - began
        while took > 0:  # the questions that were not asked meanwhile count for what they would have waited
            self.seconds.append(took)
            took -= _INTERVAL_SECONDS

    def stop(self) -> None:
        """Finish the request in progress."""
        self._stopping.set()
        self.join()


def measure(load: Load, rest_seconds: float, name: str) -> dict[str, Any]:
    """Run one server under one load, repeatedly until there are enough probes."""
    seconds: list[float] = []
    while len(seconds) < _PROBES * rest_seconds:
        with rig(name, load.clients) as running:
            prober = Prober(running.port)
            prober.ask()
            prober.seconds.clear()
            prober.start()
            if load.messages == 1:
                time.sleep(rest_seconds)
            else:
                deliver(running, load.kind, load.messages, rate=load.rate, on_start=prober.seconds.clear)
            prober.stop()
        seconds += prober.seconds
    return {
        "p50": 1000 * percentile(seconds, 50),
        "p99": 1000 * percentile(seconds, 99),
        "longest": 1000 * max(seconds),
        "probes": len(seconds),
    }


def cells(results: Runs, name: str) -> str:
    if name not in results:
        return ""
    runs = results[name]
    return f"{median(runs, 'p50'):.1f} / {median(runs, 'p99'):.1f}"


def main() -> None:
    """Measure and print."""
    arguments = options("Measure what an unrelated HTTP handler feels.").parse_args()
    loads = LOADS
    if arguments.quick:
        loads = tuple(load._replace(messages=max(1, load.messages // 50)) for load in LOADS)
    report = Report(arguments)
    measured: dict[str, Runs] = {}
    missing: Runs = {}
    for load in loads:
        run = partial(measure, load, 0.2 if arguments.quick else 2.0)
        measured[load.name], gone = rounds(load.name, SERVERS, arguments.rounds, run)
        missing |= gone
    report.head()
    print("\nLatency of an unrelated HTTP handler, ms, p50 / p99\n")
    print(
        table(
            ("load", *SERVERS),
            [[name, *(cells(runs, server) for server in SERVERS)] for name, runs in measured.items()],
        )
    )
    print()
    for name, runs in measured.items():
        print(f"{name}: p99 threaded : unthreaded {ratio(runs[THREADED], runs[UNTHREADED], 'p99'):.2f}")
    report.missing(missing)
    report.add("loads", measured)
    report.add("missing", missing)
    report.write()


if __name__ == "__main__":
    main()
