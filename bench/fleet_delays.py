"""The delays of a fleet's targets: of forty beside a large one, and of a small one behind a slow link."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final

from fleet_rig import PATH, Fleet, stamped, wait_for
from measure import Child, Runs, median, ratio, short, table

ALONE: Final = "alone"
BESIDE: Final = "beside"
_BIG: Final = (400_000, 55.0)  # bytes, messages per second: 22 MB/s
_SLOW_LINK: Final = 4_000_000  # bytes per second


def follow(
    publisher: Child, viewers: Child, targets: Sequence[int], of: Sequence[int], seconds: float
) -> dict[str, Any]:
    """Publish for some seconds, then wait until everything has arrived or is reported; return the delays meanwhile."""
    figures: dict[str, Any] = {}

    def look() -> list[dict[str, Any]]:
        viewers.ask(do="read")
        time.sleep(0.1)
        figures.update(viewers.ask(do="figures", of=of))
        views: list[dict[str, Any]] = figures["views"]
        return views

    def first() -> bool:
        publisher.tell(do="once")
        return all(view["received"] for view in look())

    wait_for(first, "every viewer gets data")
    viewers.ask(do="mark")
    viewers.ask(do="read")
    publisher.tell(do="publish", targets=targets)
    time.sleep(seconds)
    sent = publisher.ask(do="sent")["sent"]
    meanwhile = viewers.ask(do="figures", of=of)
    arrived = [view["mb"] for view in meanwhile["views"]]
    wait_for(lambda: all(view["last"] == sent[view["target"]] - 1 for view in look()), "the last message arrives")
    with contextlib.suppress(RuntimeError):  # then the table shows two different figures
        wait_for(lambda: all(view["told"] == view["missing"] for view in look()), "all losses are reported")
    return {**meanwhile, "views": figures["views"], "mb": arrived}


def measure_others(hosts: int, count: int, bridges: int, seconds: float, setting: str) -> dict[str, Any]:
    """Watch targets of 0.4 MB/s, perhaps beside one of 22 MB/s on the first host."""
    loads = [(20_000, 20.0)] * count + [_BIG]
    with contextlib.ExitStack() as stack:
        publisher, viewers, endpoints = stack.enter_context(stamped(loads))
        fleet = Fleet(stack)
        homes = {f"h{host}": range(host, count, hosts) for host in range(hosts)}
        for host, targets in homes.items():
            named = {f"t{number}": endpoints[number] for number in targets}
            fleet.agent(host, named | ({"big": endpoints[count]} if host == "h0" else {}))
        fronts = [fleet.bridge() for _ in range(bridges)]
        for front in fronts:
            wait_for(lambda front=front: len(front.targets()) >= count + 1, "all targets are listed")  # type: ignore[misc]
        for host, targets in homes.items():
            for number in targets:
                connect(viewers, number, fronts[number % bridges].port, f"{host}~t{number}")
        connect(viewers, count, fronts[0].port, "h0~big")
        chosen = range(count + 1) if setting == BESIDE else range(count)
        facts = follow(publisher, viewers, list(chosen), list(range(count)), seconds)
    others = [view for view in facts["views"] if view["target"] != count]
    return {
        "p50": facts["p50"],
        "p99": facts["p99"],
        "received": sum(view["received"] for view in others),
        "missing": sum(view["missing"] for view in others),
        "told": sum(view["told"] for view in others),
        "big_mb_per_second": facts["mb"][-1] / seconds,
    }


def connect(viewers: Child, target: int, port: int, name: str) -> None:
    viewers.ask(do="connect", target=target, port=port, path=PATH.format(name))


def show_others(count: int, hosts: int, bridges: int, results: Runs) -> None:
    heads = ("", "p50, ms", "p99, ms", "received", "missing", "reported", "22 MB/s target gets, MB/s")
    rows = [
        [
            name,
            f"{median(runs, 'p50'):.0f}",
            f"{median(runs, 'p99'):.0f}",
            *(f"{sum(run[key] for run in runs):,}" for key in ("received", "missing", "told")),
            f"{median(runs, 'big_mb_per_second'):.1f}",
        ]
        for name, runs in results.items()
    ]
    print(
        f"\nDelay of {count} targets of 0.4 MB/s on {hosts} hosts, {bridges} bridges, alone and beside one of 22 MB/s"
    )
    print(f"(ratio of the p99: {short(ratio(results[BESIDE], results[ALONE], 'p99'))}; goal: 2)\n")
    print(table(heads, rows))


def measure_slow(seconds: float, setting: str) -> dict[str, Any]:
    """Watch a 0.4 MB/s target behind a link of 4 MB/s, perhaps beside one of 22 MB/s, which a good bridge gets too."""
    loads = [(2_000, 200.0), _BIG, _BIG]
    with contextlib.ExitStack() as stack:
        publisher, viewers, (small, big, _) = stack.enter_context(stamped(loads))
        fleet = Fleet(stack)
        fleet.agent("h0", {"small": small, "big": big})
        _, port = fleet.wire(_SLOW_LINK)
        slow, good = fleet.bridge(port), fleet.bridge()
        for front in (slow, good):
            wait_for(lambda front=front: len(front.targets()) >= 2, "both targets are listed")  # type: ignore[misc]
        connect(viewers, 0, slow.port, "h0~small")
        connect(viewers, 1, slow.port, "h0~big")
        connect(viewers, 1, good.port, "h0~big")
        facts = follow(publisher, viewers, [0, 1] if setting == BESIDE else [0], [0], seconds)
    little, large, free = facts["views"]
    return {
        "p50": facts["p50"],
        "p99": facts["p99"],
        "small_missing": little["missing"],
        "received": large["received"],
        "missing": large["missing"],
        "told": large["told"],
        "good_missing": free["missing"],
        "slow_mb_per_second": facts["mb"][1] / seconds,
        "good_mb_per_second": facts["mb"][2] / seconds,
    }


def show_slow(results: Runs) -> None:
    heads = ("small target", "p50, ms", "p99, ms", "large one got", "missing", "reported", "MB/s", "good bridge, MB/s")
    keys = ("received", "missing", "told")
    rows = [
        [
            name,
            f"{median(runs, 'p50'):.0f}",
            f"{median(runs, 'p99'):.0f}",
            *(f"{sum(run[key] for run in runs):,}" for key in keys),
            f"{median(runs, 'slow_mb_per_second'):.1f}",
            f"{median(runs, 'good_mb_per_second'):.1f}",
        ]
        for name, runs in results.items()
    ]
    lost = sum(run["small_missing"] + run["good_missing"] for runs in results.values() for run in runs)
    print(
        "\nA bridge behind a link of 4 MB/s: a target of 0.4 MB/s, alone and beside one of 22 MB/s (goals: p50 50 ms;"
    )
    print(f"missing = reported). Missing in the small target and at the good bridge: {lost}\n")
    print(table(heads, rows))
