"""Measures the cost of delivery, beside peers: CPU per message and client, deliveries per second, peak memory.

    pip install -e '.[bench]'
    python bench/fanout.py [--rounds N] [--quick] [--cells NAME ...] [--json FILE]

The profiler publishes a number of messages as fast as it can, or at a rate; the clients compare every byte. One server
at a time is measured, all of them once in each round; ``naive`` is the obvious handler; the other figures are medians
of the ratios to it within the rounds. ``raw`` is the limit: pyzmq and sockets in a plain loop without other work;
``raw recv`` only receives, ``raw send`` only sends.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, NamedTuple

from measure import Report, Runs, median, options, ratio, rounds, short, table
from rig import LIMITS, NAIVE, NODE_PEER, PYTHON_PEERS, THREADED, UNTHREADED, deliver, rig

SERVERS: Final = (THREADED, UNTHREADED, NAIVE, *PYTHON_PEERS, NODE_PEER)


class Cell(NamedTuple):
    """One load."""

    kind: str
    clients: int
    messages: int
    rate: float | None = None

    @property
    def name(self) -> str:
        size = (
            self.kind
            if not self.kind.isdigit()
            else f"{self.kind} B"
            if len(self.kind) < 4
            else f"{self.kind[:-3]} KB"
        )
        return f"{size}×{self.clients}" + (f" at {self.rate:g}/s" if self.rate else "")


CELLS: Final = (
    Cell("200", 1, 50_000),
    Cell("200", 10, 20_000),
    Cell("200", 100, 3_000),
    Cell("2000", 1, 20_000),
    Cell("2000", 10, 15_000),
    Cell("2000", 100, 2_000),
    Cell("2000", 1000, 200),
    Cell("20000", 1, 2_500),
    Cell("20000", 10, 2_500),
    Cell("20000", 100, 600),
    Cell("200000", 1, 280),
    Cell("200000", 10, 280),
    Cell("200000", 100, 80),
    Cell("recorded", 1, 10_000),
    Cell("recorded", 10, 5_000),
    Cell("recorded", 100, 1_000),
    Cell("2000", 10, 10_000, 5_000),
    Cell("20000", 1, 1_000, 500),
    Cell("200", 10, 300, 100),
)


def measure(cell: Cell, name: str) -> dict[str, Any]:
    """Run one server under one load."""
    with rig(name, cell.clients, kind=cell.kind, count=cell.messages) as running:
        facts = deliver(
            running, cell.kind, cell.messages, rate=cell.rate, expected=0 if name == "raw recv" else cell.messages
        )
    deliveries = cell.messages * cell.clients
    return facts | {
        "us_per_delivery": facts["cpu"] / deliveries * 1e6,
        "us_per_message": facts["cpu"] / cell.messages * 1e6,
        "deliveries_per_second": deliveries / facts["seconds"],
        "cpu_per_wall": facts["cpu"] / facts["seconds"],
        "extra_mb": (facts["peak"] - facts["memory"]) / 2**20,
    }


def line(cell: Cell, results: Runs, names: tuple[str, ...]) -> list[str]:
    """Return the ratios to the naive handler, whose own figure comes first."""
    plain = results[NAIVE]
    cells = [cell.name, f"{median(plain, 'us_per_delivery'):.0f} µs"]
    for name in names:
        cells.append(short(ratio(results[name], plain, "us_per_delivery")) if name in results else "")
    ratio_ = ratio(results[THREADED], results[UNTHREADED], "us_per_delivery") if UNTHREADED in results else None
    return [*cells, "" if ratio_ is None else short(ratio_)]


def figures(cell: Cell, results: Runs, key: str, pattern: str, names: tuple[str, ...]) -> list[str]:
    return [cell.name, *(pattern.format(median(results[name], key)) if name in results else "" for name in names)]


def main() -> None:
    parser = options("Measure what delivering costs, beside the peers.")
    parser.add_argument("--cells", nargs="+", metavar="NAME", help=", ".join(f'"{cell.name}"' for cell in CELLS))
    parser.add_argument(
        "--servers", nargs="+", metavar="NAME", choices=(*SERVERS, *LIMITS), default=(*SERVERS, *LIMITS)
    )
    arguments = parser.parse_args()
    chosen = [cell for cell in CELLS if not arguments.cells or cell.name in arguments.cells]
    if arguments.quick:
        chosen = [cell._replace(messages=max(20, cell.messages // 100)) for cell in chosen]
    report = Report(arguments)
    measured: dict[str, Runs] = {}
    missing: Runs = {}
    for cell in chosen:
        names = [name for name in arguments.servers if not (cell.rate and name in LIMITS)]
        measured[cell.name], gone = rounds(cell.name, names, arguments.rounds, partial(measure, cell))
        missing |= gone
    report.head()
    others = tuple(name for name in arguments.servers if name != NAIVE)
    print("\nCPU per delivered message: the naive handler's, and the others' ratio to it\n")
    heads = ("messages × clients", NAIVE, *others, "threaded : unthreaded")
    print(table(heads, [line(cell, measured[cell.name], others) for cell in chosen]))
    for title, key, pattern in (
        ("Deliveries a second", "deliveries_per_second", "{:,.0f}"),
        ("Peak memory above that at rest, MB", "extra_mb", "{:.0f}"),
        ("CPU used per second", "cpu_per_wall", "{:.2f}"),
    ):
        print(f"\n{title}\n")
        names_ = tuple(arguments.servers)
        rows = [figures(cell, measured[cell.name], key, pattern, names_) for cell in chosen]
        print(table(("messages × clients", *names_), rows))
    report.missing(missing)
    report.add("cells", measured)
    report.add("missing", missing)
    report.write()


if __name__ == "__main__":
    main()
