"""Measures what a tool costs a process, by switching it on and off while the process works.

The process does the same amount of work again and again, for a fraction of a second each time. Its windows come in
fours, off, on, on, off or the reverse, drawn at random, so that a change of the machine's speed meets both alike. Two
neighbours are a pair, the cost is the median of the ratios of the pairs, and its interval contains the true median
with a probability of 95 %, whatever the distribution of the ratios is (order statistics of the binomial distribution).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from measure import UnavailableError, median, note
from runs import Target, run_plainly

_CONFIDENCE: Final = 0.95
_SETTLING: Final = 5
"""Before each window the process does one part in so many of the work, which is not measured."""


class Setting(NamedTuple):
    """A tool whose cost is measured, and how the process is started in which it is switched."""

    name: str
    tool: dict[str, Any]
    open: Callable[[str, dict[str, Any]], Target] = Target


Pair: TypeAlias = tuple[dict[str, Any], dict[str, Any]]
"""What the work cost with the tool off, and with the tool on."""


class Cost(NamedTuple):
    """Percent that the work costs more with the tool on: the median of the pairs, and its interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:+.1f} % ({self.low:+.1f} … {self.high:+.1f})"


def cost(pairs: Sequence[Pair], key: str) -> Cost:
    """Return the cost of a tool by one figure of the windows."""
    return median_interval([100 * (on[key] / off[key] - 1) for off, on in pairs])


def median_interval(values: Sequence[float]) -> Cost:
    """Return the median of the values, and the interval that contains the distribution's with a probability of 95 %.

    As many values are left out at each end as could, with at most half of the remaining probability, be all the
    values on that side of the median.
    """
    ordered = sorted(values)
    count = len(ordered)
    outside = left_out = 0
    while True:
        outside += math.comb(count, left_out)
        if outside / 2**count > (1 - _CONFIDENCE) / 2:
            break
        left_out += 1
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    first = max(0, left_out - 1)
    return Cost(middle, ordered[first], ordered[count - 1 - first])


def measure(work: str, units: int, settings: Sequence[Setting], fours: int) -> dict[str, dict[str, Any]]:
    """Measure each setting in a process of its own; return its pairs and what its tool has found, or the reason."""
    results: dict[str, dict[str, Any]] = {}
    for setting in settings:
        note(f"{work}, {2 * fours} pairs: {setting.name}")
        try:
            results[setting.name] = _measure(work, units, setting, fours)
        except UnavailableError as error:
            results[setting.name] = {"reason": str(error)}
    return results


def _measure(work: str, units: int, setting: Setting, fours: int) -> dict[str, Any]:
    pairs: list[Pair] = []
    seconds_on = 0.0
    with setting.open(work, setting.tool) as target:
        for _ in range(fours):
            order = random.choice(((False, True, True, False), (True, False, False, True)))
            windows = []
            for on in order:
                target.switch(on)
                settling = target.work(max(1, units // _SETTLING))
                windows.append(target.work(units))
                seconds_on += on * (settling["wall"] + windows[-1]["wall"])
            for at in (0, 2):
                pairs.append((windows[at + order[at]], windows[at + order[at + 1]]))
        target.switch(False)
        return {"pairs": pairs, "seconds_on": seconds_on} | target.finish()


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Return the costs and the other figures of a setting."""
    pairs = result["pairs"]
    windows_on = [on for _, on in pairs]
    outside = result.get("cpu_outside")
    return {
        "wall": cost(pairs, "wall"),
        "cpu": cost(pairs, "cpu"),
        "seconds": median([off for off, _ in pairs], "wall"),
        "cpu_outside": None if outside is None else 100 * outside / result["seconds_on"],
        "rate": median(windows_on, "rate") if "rate" in windows_on[0] else rate(result),
        "samples": result.get("samples"),
        "split": result["heavy"] / result["light"] if result.get("light") else None,
        "true_split": median(windows_on, "true_split") if "true_split" in windows_on[0] else None,
    }


def rate(result: dict[str, Any]) -> float | None:
    """Return the samples per second, None of a tool that takes none."""
    return result["samples"] / result["seconds_on"] if result.get("samples") else None


def calibrate(work: str, seconds: float, units: int) -> int:
    """Return the amount of work that takes `seconds` of CPU time in a plain process."""
    took = min(run_plainly(work, units, {"kind": "plain"})["cpu"] for _ in range(2))
    return max(5, round(units * seconds / float(took)))
