"""Measures what a client that stops reading costs: the server's memory, and the data of the other client.

    pip install -e '.[bench]'
    python bench/slow.py [--rounds N] [--quick] [--json FILE]

Two clients; one reads nothing after the first message. The bridge's bound for a client (`max_backlog_bytes`) is the
default, 64 MiB; the others have no bound, or wait for the client that does not read.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from measure import Report, median, memory_bytes, options, rounds, table
from rig import NAIVE, NODE_PEER, PYTHON_PEERS, THREADED, UNTHREADED, deliver, rig

SERVERS: Final = (THREADED, UNTHREADED, NAIVE, *PYTHON_PEERS, NODE_PEER)
_BOUND: Final = 64 * 2**20
_SIZE: Final = 20_000
_RATE: Final = 1_000


def measure(seconds: float, name: str) -> dict[str, Any]:
    """Run one server; the client that reads must get everything."""
    with rig(name, 2, bridge={"max_backlog_bytes": _BOUND}) as running:
        before = memory_bytes(running.server.pid)
        count = int(_RATE * seconds)
        try:
            facts = deliver(running, str(_SIZE), count, rate=_RATE, stalled=1, patience=3.0)
        except RuntimeError as error:
            if "waited too long" not in str(error):
                raise
            peak = memory_bytes(running.server.pid, "VmHWM")
            return {"extra_mb": (peak - before) / 2**20, "behind": None}
    return {"extra_mb": (facts["peak"] - facts["memory"]) / 2**20, "behind": 1000 * (facts["seconds"] - count / _RATE)}


def main() -> None:
    """Measure and print."""
    arguments = options("Measure what a client costs that does not read.", 3).parse_args()
    seconds = 4.0 if arguments.quick else 8.0
    report = Report(arguments)
    measured, missing = rounds("slow", SERVERS, arguments.rounds, partial(measure, seconds))
    report.head()
    print(f"\nOne of two clients stalls, {_SIZE // 1000} KB at {_RATE:,}/s for {seconds:g} s")
    print(f"({_SIZE * _RATE * seconds / 2**20:.0f} MB); the bridge's bound is {_BOUND >> 20} MiB\n")
    rows = []
    for name, runs in measured.items():
        frozen = [run for run in runs if run["behind"] is None]
        other = (
            "gets nothing any more"
            if frozen
            else f"all, {max(0.0, median(runs, 'behind')):.0f} ms after the last was sent"
        )
        rows.append([name, f"{median(runs, 'extra_mb'):.1f}", f"{max(run['extra_mb'] for run in runs):.1f}", other])
    print(table(("server", "extra memory, MB", "the most", "the other client gets"), rows))
    report.missing(missing)
    report.add("bound_mb", _BOUND / 2**20)
    report.add("runs", measured)
    report.write()


if __name__ == "__main__":
    main()
