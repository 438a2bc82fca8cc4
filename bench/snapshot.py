"""Measures the cost of a heap snapshot, one message of 50 MB: time, memory, and pauses of the web loop.

    pip install -e '.[bench]'
    python bench/snapshot.py [--rounds N] [--quick] [--json FILE]

The time is from the message before to the last byte at the last client, which is compared. A callback on the server's
loop looks at the clock each millisecond; the longest time between two looks is the pause.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from measure import Report, Runs, median, options, rounds, table
from rig import NAIVE, NODE_PEER, PYTHON_PEERS, THREADED, UNTHREADED, deliver, rig

SERVERS: Final = (THREADED, UNTHREADED, NAIVE, *PYTHON_PEERS, NODE_PEER)
CLIENTS: Final = (1, 10)


def measure(size: int, clients: int, name: str) -> dict[str, Any]:
    """Run one server."""
    watched = name != NODE_PEER
    with rig(name, clients) as running:
        watch = partial(running.server.ask, do="watch") if watched else None
        facts = deliver(running, str(size), 1, whole=True, on_start=watch)
        pause = running.server.ask(do="longest")["longest"] if watched else None
    return {
        "seconds": facts["seconds"],
        "cpu": facts["cpu"],
        "extra": (facts["peak"] - facts["memory"]) / size,
        "pause": pause and 1000 * pause,
    }


def main() -> None:
    """Measure and print."""
    arguments = options("Measure what one large message costs.").parse_args()
    size = 5_000_000 if arguments.quick else 50_000_000
    report = Report(arguments)
    measured: dict[str, Runs] = {}
    missing: Runs = {}
    for clients in CLIENTS:
        title = f"{size // 1_000_000} MB × {clients}"
        measured[title], gone = rounds(title, SERVERS, arguments.rounds, partial(measure, size, clients))
        missing |= gone
    report.head()
    for title, results in measured.items():
        print(f"\n{title}\n")
        rows = []
        for name, runs in results.items():
            pause = "" if runs[0]["pause"] is None else f"{median(runs, 'pause'):.0f}"
            longest = "" if runs[0]["pause"] is None else f"{max(run['pause'] for run in runs):.0f}"
            cpu, seconds = f"{1000 * median(runs, 'cpu'):.0f}", f"{1000 * median(runs, 'seconds'):.0f}"
            rows.append([name, seconds, cpu, f"{median(runs, 'extra'):.1f}", pause, longest])
        heads = ("server", "ms", "CPU ms", "extra memory, × its size", "longest pause of the loop, ms", "the most")
        print(table(heads, rows))
    report.missing(missing)
    report.add("runs", measured)
    report.write()


if __name__ == "__main__":
    main()
