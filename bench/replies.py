"""Measures the round trip of a command, alone and while data is published.

    pip install -e '.[bench]'
    python bench/replies.py [--rounds N] [--quick] [--json FILE]

One more client requests a handshake a few milliseconds after each reply; it also reads the published data, as every
client does. The direct way, REQ to REP without a bridge, is the limit.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Final

import zmq
from clients import Client, masked
from measure import Report, Runs, median, options, percentile, rounds, table
from rig import NAIVE, THREADED, UNTHREADED, Rig, rig

DIRECT: Final = "direct"
SERVERS: Final = (THREADED, UNTHREADED, NAIVE)
_INTERVAL_SECONDS: Final = 0.002
FLOODS: Final = (
    ("alone", "2000", 0),
    ("200 B at 5,000/s", "200", 5_000),
    ("2 KB at 5,000/s", "2000", 5_000),
    ("20 KB at 2,000/s", "20000", 2_000),
    ("200 KB at 300/s", "200000", 300),
)


def measure(flood: tuple[str, str, float], count: int, name: str) -> dict[str, Any]:
    """Send a number of commands under one load."""
    with rig(name, 1) as running:
        return round_trips(running, flood, count)


def round_trips(running: Rig, flood: tuple[str, str, float], count: int, path: str = "/ws") -> dict[str, Any]:
    """Send a number of commands on one more connection."""
    _, kind, rate = flood
    running.clients.tell(do="drain")
    asking = Client(running.port, path=path)
    asking.until_reply(masked(b"handshake", 1))
    if rate:
        running.feed.tell(do="flood", kind=kind, rate=rate)
        time.sleep(0.3)
    seconds = []
    for _ in range(count):
        asking.drain(_INTERVAL_SECONDS)
        began = time.perf_counter()
        asking.until_reply(masked(b"handshake", 1))
        seconds.append(time.perf_counter() - began)
    direct = ask_directly(running, count)
    sent = running.feed.ask(do="stop")["sent"] if rate else 0
    assert asking.messages_seen or not rate, "nothing was published"
    return {
        "p50": 1000 * percentile(seconds, 50),
        "p99": 1000 * percentile(seconds, 99),
        "direct_p50": 1000 * percentile(direct, 50),
        "direct_p99": 1000 * percentile(direct, 99),
        "published": sent,
    }


def ask_directly(running: Rig, count: int) -> list[float]:
    """Do the same without a bridge."""
    seconds = []
    with zmq.Context.instance().socket(zmq.REQ) as requests:
        requests.linger = 0
        requests.connect(running.replies)
        for _ in range(count):
            time.sleep(_INTERVAL_SECONDS)
            began = time.perf_counter()
            requests.send(b"handshake")
            requests.recv()
            seconds.append(time.perf_counter() - began)
    return seconds[1:]


def main() -> None:
    """Measure and print."""
    arguments = options("Measure how long a command takes.").parse_args()
    count = 20 if arguments.quick else 400
    report = Report(arguments)
    measured: dict[str, Runs] = {}
    for flood in FLOODS:
        measured[flood[0]], _ = rounds(flood[0], SERVERS, arguments.rounds, partial(measure, flood, count))
    report.head()
    print("\nRound trip of a command, ms, p50 / p99\n")
    rows = []
    for name, runs in measured.items():
        cells = [f"{median(runs[server], 'p50'):.2f} / {median(runs[server], 'p99'):.2f}" for server in SERVERS]
        direct = [run for server in SERVERS for run in runs[server]]
        rows.append([name, *cells, f"{median(direct, 'direct_p50'):.2f} / {median(direct, 'direct_p99'):.2f}"])
    print(table(("published meanwhile", *SERVERS, DIRECT), rows))
    report.add("floods", measured)
    report.write()


if __name__ == "__main__":
    main()
