"""Measures the cost of the embedded profiler, beside its peers.

    pip install -e '.[bench]'
    python bench/profiler.py [--rounds N] [--quick] [--only PART] [--json FILE]

CPU sampling and memory profiling are switched on and off in one process (see pairs.py), in four pairs a round;
``plain again`` switches nothing, so it shows the error of the method; ``only taking the GIL`` is a thread that does
nothing else at each tick.

The peers of memory profiling run in fresh processes that do a fixed amount of work. A round runs each setting once,
in an order that moves on from round to round, and what a setting costs is the median, over the rounds, of its ratio to
the plain run of the same round. Starting up, attaching and writing the result are not in the times.

The subscriber is this process: it receives every message while the work runs and looks into them afterwards. Each run
is checked: samples arrived, and the message counters go from 0 to the last without a gap.

A peer that is not installed, or may not attach, is left out with the reason. Linux.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import pairs
from measure import Report, Runs, note, options, percentile, rounds, table
from pairs import calibrate
from runs import Served, WithPyinstrument, WithPySpy, run_heap, run_memray, run_plainly, run_stalls
from work import LIVING

_HEAP_ROUNDS: Final = 3
_PACKAGES: Final = ("tornado_rbkit", "pyzmq", "msgpack", "py-spy", "pyinstrument", "memray")


class Setting(NamedTuple):
    name: str
    tool: dict[str, Any]
    run: Callable[[str, int, dict[str, Any]], dict[str, Any]] = run_plainly
    plain: str = "plain"
    """The setting whose runs its own are compared to."""
    part: int = 1
    """It does one part in so many of the work."""


def sampling(engine: str, clock: str, interval: float) -> pairs.Setting:
    """Return the setting of one of our engines, by the interval in seconds."""
    tool = {"kind": "cpu", "engine": engine, "clock": clock, "interval": interval}
    return pairs.Setting(f"{engine}, {clock} clock, {1000 * interval:.0f} ms", tool, Served)


COMPUTE: Final = (
    pairs.Setting("plain again", {"kind": "plain"}),
    pairs.Setting("server idle", {"kind": "server"}, Served),
    pairs.Setting("only taking the GIL, 1 ms", {"kind": "handover", "interval": 0.001}),
    *(
        sampling(engine, clock, interval)
        for engine in ("in-process", "external")
        for clock in ("wall", "cpu")
        for interval in (0.01, 0.001)
    ),
)
PEERS: Final = (
    pairs.Setting("py-spy record, 100 Hz", {"kind": "py-spy", "rate": 100}, WithPySpy),
    pairs.Setting("py-spy record, 1000 Hz", {"kind": "py-spy", "rate": 1000}, WithPySpy),
    pairs.Setting("pyinstrument, 10 ms", {"kind": "pyinstrument", "interval": 0.01}, WithPyinstrument),
    pairs.Setting("pyinstrument, 1 ms", {"kind": "pyinstrument", "interval": 0.001}, WithPyinstrument),
)

MEMORY: Final = (
    pairs.Setting("plain again", {"kind": "plain"}),
    pairs.Setting("memory profiling", {"kind": "memory"}, Served),
)

_PART: Final = "plain, a fifth of the work"
"""What makes the work many times slower does less of it."""

ALLOCATE: Final = (  # beside MEMORY
    Setting("plain", {"kind": "plain"}),
    Setting("plain again", {"kind": "plain"}),
    Setting(_PART, {"kind": "plain"}, plain=_PART, part=5),
    Setting("tracemalloc, 1 frame", {"kind": "plain", "tracing": True}, plain=_PART, part=5),
    Setting("memray run", {"kind": "memray", "options": []}, run_memray, plain=_PART, part=5),
    Setting(
        "memray run --trace-python-allocators",
        {"kind": "memray", "options": ["--trace-python-allocators"]},
        run_memray,
        plain=_PART,
        part=5,
    ),
)

_SLOW: Final = "objectspace_snapshot, tracemalloc on"
"""Taken once, whatever the rounds: it takes a minute."""

HEAP: Final = (
    (
        "objectspace_snapshot",
        {"kind": "snapshot"},
        "every object: class, id, size, references",
    ),
    (
        _SLOW,
        {"kind": "snapshot", "tracing": True},
        "the same with file and line",
    ),
    (
        "tracemalloc.take_snapshot()",
        {"kind": "plain", "tracing": True},
        "blocks made since tracing began: size, line; no classes, no references",
    ),
)


def measure(work: str, amount: int, settings: Sequence[Setting], count: int) -> tuple[Runs, Runs]:
    """Run every setting once in each round."""
    by_name = {setting.name: setting for setting in settings}

    def run(name: str) -> dict[str, Any]:
        setting = by_name[name]
        return setting.run(work, amount // setting.part, setting.tool)

    return rounds(work, tuple(by_name), count, run)


def measure_heap(objects: int, count: int) -> Runs:
    """Take every snapshot once in each round."""
    results: Runs = {name: [] for name, _, _ in HEAP}
    for number in range(count):
        for name, tool, _ in HEAP:
            if number and name == _SLOW:
                continue
            note(f"heap, round {number + 1} of {count}: {name}")
            results[name].append(run_heap(objects, tool))
    return results


# The tables


def known_median(runs: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def cost(runs: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    """Return percent above the plain run of the same round: the median, the least and the most."""
    ratios = [100 * (run[key] / other[key] - 1) for run, other in zip(runs, plain, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def cost_text(cost: dict[str, float]) -> str:
    return f"{cost['median']:+.1f} % ({cost['least']:+.1f} … {cost['most']:+.1f})"


def text(value: float | None, pattern: str = "{:.2f}") -> str:
    return "" if value is None else pattern.format(value)


def summary(results: Runs, settings: Sequence[Setting]) -> dict[str, dict[str, Any]]:
    """Return the medians of each setting, and its cost."""
    plain = {setting.name: results[setting.plain] for setting in settings}
    keys = ("wall", "cpu", "samples", "messages", "megabytes")
    return {
        name: {key: known_median(runs, key) for key in keys}
        | {
            "wall_cost": cost(runs, plain[name], "wall"),
            "cpu_cost": cost(runs, plain[name], "cpu"),
            "saw": runs[0].get("saw", ""),
        }
        for name, runs in results.items()
    }


def overhead_cells(name: str, facts: dict[str, Any]) -> list[str]:
    cells = [name, text(facts["wall"])]
    if name in ("plain", _PART):
        return [*cells, "", ""]
    return [*cells, cost_text(facts["wall_cost"]), cost_text(facts["cpu_cost"])]


def sampling_table(results: dict[str, dict[str, Any]]) -> str:
    """Return the costs of the settings that could be measured."""
    rows = [
        [
            name,
            str(facts["wall"]),
            str(facts["cpu"]),
            text(facts["cpu_outside"], "{:.0f} %"),
            text(facts["rate"], "{:.0f}/s"),
            text(facts["split"], "{:.2f} : 1"),
        ]
        for name, facts in results.items()
    ]
    heads = ("setting", "wall", "CPU of the process", "CPU outside, of a core", "rate reached", "split found")
    return table(heads, rows)


def allocate_table(results: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            *overhead_cells(name, facts),
            "" if facts["samples"] is None else f"{facts['samples']:,.0f} {facts['saw']}",
            text(facts["megabytes"], "{:.1f}"),
        ]
        for name, facts in results.items()
    ]
    return table(
        ("setting", "seconds", "wall, % above plain", "CPU of the process, % above plain", "reported", "MB"), rows
    )


def heap_table(results: Runs) -> str:
    delivers = {name: what for name, _, what in HEAP}
    rows = []
    for name, runs in results.items():
        what = delivers[name]
        placed, found = known_median(runs, "placed"), known_median(runs, "rows")
        if placed and found:
            what += f" of {100 * placed / found:.0f} %"
        rows.append(
            [
                f"{name} ({len(runs)}×)",
                text(known_median(runs, "seconds")),
                text(known_median(runs, "before_mb"), "{:.0f} MB"),
                text(known_median(runs, "extra_mb"), "{:+.0f} MB"),
                f"{1000 * max(run['stall'] for run in runs):.1f} ms",
                f"{1000 * max(run['quiet'] for run in runs):.1f} ms",
                text(known_median(runs, "messages"), "{:.0f}"),
                text(known_median(runs, "megabytes"), "{:.1f}"),
                text(known_median(runs, "rows") or known_median(runs, "traces"), "{:,.0f}"),
                what,
            ]
        )
    heads = ("snapshot", "seconds", "memory before", "extra peak", "longest stall", "longest without")
    return table((*heads, "messages", "MB sent", "objects or blocks", "delivers"), rows)


def stalls_table(results: dict[str, dict[str, list[float]]]) -> str:
    def quantiles(gaps: Sequence[float]) -> str:
        return " / ".join(f"{1000 * percentile(gaps, percent):.0f}" for percent in (50, 90, 100)) + " ms"

    rows = [
        [name, f"{statistics.median(found['seconds']):.2f}", quantiles(found["stalls"]), quantiles(found["without"])]
        for name, found in results.items()
    ]
    return table(("snapshot", "seconds", "longest gap: median / 90 % / most", "without a snapshot"), rows)


def main() -> None:
    """Measure and print."""
    parser = options("Measure what the embedded profiler costs, beside its peers.")
    parser.add_argument(
        "--only",
        choices=("sampling", "memory", "stalls"),
        help="measure, without peers, only CPU sampling, memory profiling, or the host's stalls by snapshots",
    )
    parser.add_argument("--objects", type=int, default=1_000_000, help="of the heap (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.objects = 20_000
    report = Report(arguments, _PACKAGES)
    missing: Runs = {}
    if arguments.only in (None, "sampling"):
        missing |= measure_sampling(report, arguments)
    if arguments.only in (None, "memory"):
        measure_memory(report, arguments)
    if arguments.only == "stalls":
        measure_stalls(report, arguments)
    if arguments.only is None:
        missing |= measure_peers_of_memory(report, arguments)
    report.missing(missing)
    report.add("missing", missing)
    report.write()


def measure_sampling(report: Report, arguments: argparse.Namespace) -> Runs:
    """Measure and print the cost of CPU sampling; return the settings that could not be measured."""
    return measure_pairs(report, arguments, COMPUTE if arguments.only else (*COMPUTE, *PEERS))


def measure_pairs(report: Report, arguments: argparse.Namespace, settings: Sequence[pairs.Setting]) -> Runs:
    """Measure and print the costs of the settings; return the settings that could not be measured."""
    fours = 2 * arguments.rounds
    units = calibrate("compute", 0.05 if arguments.quick else 0.25, 50)
    results = pairs.measure("compute", units, settings, fours)
    facts = {name: pairs.summary(result) for name, result in results.items() if "pairs" in result}
    report.head()
    print(f"load {os.getloadavg()[0]:.2f} after the runs")
    first = next(iter(facts.values()))
    print(
        f"\nPure Python with a call about each microsecond; {2 * fours} pairs of windows of {first['seconds']:.2f} s"
    )
    print("Percentages: more than without, the median of the pairs (its 95 % interval)")
    print(f"The true split is 2 : 1, measured as {first['true_split']:.2f} : 1\n")
    print(sampling_table(facts))
    report.add("compute", {"units": units, "summary": facts, "runs": results})
    return {name: [result] for name, result in results.items() if "reason" in result}


def measure_memory(report: Report, arguments: argparse.Namespace) -> None:
    """Measure and print the cost of memory profiling."""
    units = calibrate("allocate", 3.0, 300)  # in less, the profile may not afford a comparison
    fours = 2 * arguments.rounds
    results = pairs.measure("allocate", units, MEMORY, fours)
    facts = {name: pairs.summary(result) for name, result in results.items()}
    report.head()
    print(f"load {os.getloadavg()[0]:.2f} after the runs")
    seconds = facts["plain again"]["seconds"]
    print(f"\nAllocating: {1000 * units:,} nodes of four objects and more in each window, {LIVING:,} of them alive")
    print(f"at a time; {2 * fours} pairs of windows of {seconds:.2f} s, each after a fifth of the work, in which the")
    print("objects are listed for the first time.")
    print("Percentages: more than without, the median of the pairs (its 95 % interval)\n")
    rows = [
        [name, str(each["wall"]), str(each["cpu"]), text(each["samples"], "{:,.0f} objects")]
        for name, each in facts.items()
    ]
    print(table(("setting", "wall", "CPU of the process", "reported"), rows))
    report.add("memory", {"units": units, "summary": facts, "runs": results})


def measure_stalls(report: Report, arguments: argparse.Namespace) -> None:
    """Measure and print the longest gaps that a thread of the host sees while snapshots are taken."""
    results = {}
    for name, tool in (("plain", {"kind": "snapshot"}), ("tracemalloc on", {"kind": "snapshot", "tracing": True})):
        count = 4 * arguments.rounds if name == "plain" else arguments.rounds
        note(f"stalls, {count} snapshots: {name}")
        results[name] = run_stalls(arguments.objects, tool, count)
    report.head()
    print(f"load {os.getloadavg()[0]:.2f} after the runs")
    print(f"\nHeap: {arguments.objects:,} objects, a quarter each of strings, lists, dicts and instances;")
    print("a gap is between two ticks of a thread that sleeps for 1 ms, the longest during each snapshot and")
    print("during as much time without one\n")
    print(stalls_table(results))
    report.add("stalls", {"objects": arguments.objects, "runs": results})


def measure_peers_of_memory(report: Report, arguments: argparse.Namespace) -> Runs:
    """Measure and print the cost of the peers, and of snapshots; return the settings that could not be measured."""
    objects = arguments.objects
    thousands = calibrate("allocate", 4.0, 300)  # objects are looked at once a second
    allocated, missing = measure("allocate", thousands, ALLOCATE, arguments.rounds)
    heap = measure_heap(objects, min(arguments.rounds, _HEAP_ROUNDS))
    allocate_summary = summary(allocated, ALLOCATE)
    print(f"\nAllocating: {1000 * thousands:,} nodes of four objects and more, {LIVING:,} of them alive at a time")
    print("(tracemalloc and memray: a fifth of that, compared to plain runs that do a fifth)\n")
    print(allocate_table(allocate_summary))
    print(f"\nHeap: {objects:,} objects, a quarter each of strings, lists, dicts and instances;")
    print("stalls are the longest time between two ticks of a thread that sleeps for 1 ms, in all rounds\n")
    print(heap_table(heap))
    built = {name: known_median(runs, "built") for name, runs in heap.items()}
    held = known_median(heap["tracemalloc.take_snapshot()"], "held_mb")
    print(
        f"\nBuilding that heap took {text(built['objectspace_snapshot'])} s, and "
        f"{text(built['tracemalloc.take_snapshot()'])} s while tracemalloc traced, "
        f"which holds {text(held, '{:.0f}')} MB for it."
    )
    report.add("allocate", {"nodes": 1000 * thousands, "summary": allocate_summary, "runs": allocated})
    report.add("heap", {"objects": objects, "runs": heap})
    return missing


if __name__ == "__main__":
    main()
