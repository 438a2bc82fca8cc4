"""Measures the cost of compression: once for all clients on the I/O thread or the web loop, and per client in Tornado.

    pip install -e '.[bench]'
    python bench/deflate.py [--rounds N] [--quick] [--json FILE]

Level 1 throughout, messages as recorded from a real rbkit. The first client inflates and compares everything; all
others must receive the same bytes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from measure import Report, Runs, median, options, ratio, rounds, short, table
from rig import NAIVE, THREADED, UNTHREADED, deliver, rig

PLAIN: Final = "not compressed"
SETTINGS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "shared, threaded": (THREADED, {"bridge": {"compression_level": 1}}),
    "shared, unthreaded": (UNTHREADED, {"bridge": {"compression_level": 1}}),
    "per client, naive": (NAIVE, {"compression": 1}),
    PLAIN: (THREADED, {}),
}
LOADS: Final = ((1, 8_000), (10, 8_000), (100, 1_500))


def measure(clients: int, count: int, name: str) -> dict[str, Any]:
    """Run one setting."""
    server, settings = SETTINGS[name]
    with rig(server, clients, deflate=name != PLAIN, **settings) as running:
        facts = deliver(running, "recorded", count, deflated=name != PLAIN)
    deliveries = clients * count
    return {
        "us_per_delivery": facts["cpu"] / deliveries * 1e6,
        "deliveries_per_second": deliveries / facts["seconds"],
        "ratio": facts["bytes"] / facts["received"] if "received" in facts else 1.0,
    }


def main() -> None:
    """Measure and print."""
    arguments = options("Measure what compression costs.").parse_args()
    report = Report(arguments)
    measured: dict[int, Runs] = {}
    for clients, count in LOADS:
        count = max(20, count // 50) if arguments.quick else count
        title = f"recorded×{clients}"
        measured[clients], _ = rounds(title, tuple(SETTINGS), arguments.rounds, partial(measure, clients, count))
    report.head()
    names = tuple(SETTINGS)
    for title, key, pattern in (
        ("CPU per delivered message, µs", "us_per_delivery", "{:.0f}"),
        ("Deliveries a second", "deliveries_per_second", "{:,.0f}"),
        ("Bytes published : bytes on the wire", "ratio", "{:.1f}"),
    ):
        print(f"\n{title}\n")
        rows = [
            [str(clients), *(pattern.format(median(runs[name], key)) for name in names)]
            for clients, runs in measured.items()
        ]
        print(table(("clients", *names), rows))
    print("\nMedians of the ratios within the rounds\n")
    rows = []
    for clients, runs in measured.items():
        threaded, unthreaded, own, _ = (runs[name] for name in names)
        faster = ratio(threaded, unthreaded, "deliveries_per_second")
        rows.append([str(clients), short(faster), short(ratio(threaded, own, "us_per_delivery"))])
    heads = ("clients", "deliveries a second, threaded : unthreaded", "CPU, shared : per client")
    print(table(heads, rows))
    report.add("runs", {str(clients): runs for clients, runs in measured.items()})
    report.write()


if __name__ == "__main__":
    main()
