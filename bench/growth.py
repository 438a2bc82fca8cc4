"""Measures how the cost grows with clients, with the size of messages, and with targets on one I/O thread.

    pip install -e '.[bench]'
    python bench/growth.py [--rounds N] [--quick] [--json FILE] [--plot FILE.png]

The first two are bursts, of the bridge with its thread and of the naive handler. For the third, each target publishes
2 KB 500 times a second to a client of its own, and the bridges share one `IOLoopThread`, or the web loop.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any, Final

from fanout import Cell
from fanout import measure as measure_cell
from measure import Report, Runs, child, cpu_seconds, median, options, ratio, rounds, short, table
from rig import NAIVE, THREADED, UNTHREADED, server

CLIENTS: Final = ((1, 15_000), (3, 10_000), (10, 8_000), (30, 4_000), (100, 1_500), (300, 500), (1000, 150))
SIZES: Final = (
    (200, 15_000),
    (1_000, 8_000),
    (2_000, 8_000),
    (5_000, 4_000),
    (20_000, 2_000),
    (50_000, 800),
    (200_000, 200),
)
TARGETS: Final = (1, 2, 4, 8, 16)
_RATE: Final = 500


def measure_targets(count: int, seconds: float, name: str) -> dict[str, Any]:
    """Run a number of targets; return the CPU seconds per second."""
    with contextlib.ExitStack() as stack:
        feeds = [stack.enter_context(child("feed.py", "publish")) for _ in range(count)]
        replies = [stack.enter_context(child("feed.py", "reply")) for _ in range(count)]
        clients = stack.enter_context(child("clients.py"))
        endpoints = [
            [feed.hear()["endpoint"], reply.hear()["endpoint"]] for feed, reply in zip(feeds, replies, strict=True)
        ]
        measured = stack.enter_context(server(name, {"feeds": endpoints}))
        port = measured.hear()["port"]
        for number in range(count):
            clients.ask(do="connect", port=port, clients=1, path=f"/rbkit/{number}/ws" if count > 1 else "/ws")
        for feed in feeds:
            feed.tell(do="sync")
        clients.ask(do="sync")
        messages = int(_RATE * seconds)
        for feed in feeds:
            feed.ask(do="load", kind="2000", count=messages)
        clients.ask(do="expect", kind="2000", count=messages)
        before = cpu_seconds(measured.pid)
        clients.tell(do="receive")
        for feed in feeds:
            feed.tell(do="go", rate=_RATE)
        took = clients.hear()["seconds"]
        return {"cpu_per_second": (cpu_seconds(measured.pid) - before) / took}


def plot(file: Path, clients: dict[int, Runs], sizes: dict[int, Runs], targets: dict[int, Runs]) -> None:
    """Draw all three."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (first, second, third) = pyplot.subplots(1, 3, figsize=(13, 4))
    for axes, results, key, names, title, label in (
        (first, clients, "us_per_delivery", (NAIVE, THREADED), "burst, 2 KB", "clients"),
        (second, sizes, "us_per_delivery", (NAIVE, THREADED), "burst, 10 clients", "bytes of a message"),
        (third, targets, "cpu_per_second", (THREADED, UNTHREADED), f"2 KB, {_RATE}/s and a client each", "targets"),
    ):
        for name in names:
            axes.plot(list(results), [median(runs[name], key) for runs in results.values()], "o-", label=name)
        axes.set(title=title, xlabel=label, ylabel="CPU, µs per delivery" if key == "us_per_delivery" else "CPU, s/s")
        axes.set_xscale("log")
        if key == "us_per_delivery":
            axes.set_yscale("log")
        axes.set_ylim(bottom=0 if key == "cpu_per_second" else None)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def main() -> None:
    """Measure, print and draw."""
    parser = options("Measure how the cost grows.", 3)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as the suffix says: .png, .svg, .pdf")
    arguments = parser.parse_args()
    part = 20 if arguments.quick else 1
    report = Report(arguments)

    def sweep(title: str, cells: dict[int, Cell]) -> dict[int, Runs]:
        return {
            at: rounds(f"{title} {at}", (THREADED, NAIVE), arguments.rounds, partial(measure_cell, cell))[0]
            for at, cell in cells.items()
        }

    clients = sweep("clients", {count: Cell("2000", count, max(5, messages // part)) for count, messages in CLIENTS})
    sizes = sweep("size", {size: Cell(str(size), 10, max(5, messages // part)) for size, messages in SIZES})
    targets = {
        count: rounds(
            f"targets {count}",
            (THREADED, UNTHREADED),
            arguments.rounds,
            partial(measure_targets, count, 0.5 if arguments.quick else 3.0),
        )[0]
        for count in TARGETS
    }
    report.head()
    for title, results in (("clients, 2 KB", clients), ("bytes of a message, 10 clients", sizes)):
        rows = [
            [
                f"{at:,}",
                f"{median(runs[NAIVE], 'us_per_delivery'):.1f}",
                f"{median(runs[THREADED], 'us_per_delivery'):.2f}",
                short(ratio(runs[THREADED], runs[NAIVE], "us_per_delivery")),
                f"{median(runs[THREADED], 'us_per_message'):.1f}",
            ]
            for at, runs in results.items()
        ]
        heads = (title, "naive, µs of CPU per delivery", "threaded", "ratio", "threaded, per message")
        print(f"\n{table(heads, rows)}")
    rows = [
        [str(count), *(f"{median(runs[name], 'cpu_per_second'):.3f}" for name in (THREADED, UNTHREADED))]
        for count, runs in targets.items()
    ]
    heads = (f"targets, 2 KB at {_RATE}/s each", "on one I/O thread, CPU per second", "on the web loop")
    print(f"\n{table(heads, rows)}")
    if arguments.plot:
        plot(arguments.plot, clients, sizes, targets)
    report.add("clients", {str(at): runs for at, runs in clients.items()})
    report.add("sizes", {str(at): runs for at, runs in sizes.items()})
    report.add("targets", {str(at): runs for at, runs in targets.items()})
    report.write()


if __name__ == "__main__":
    main()
