"""The benchmarks run; their figures are not checked."""

from __future__ import annotations

import importlib
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("pairs")


def test_fan_out_is_measured_with_every_byte_compared(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    servers = ["threaded", "naive"]
    command = [sys.executable, str(BENCH / "fanout.py"), "--quick", "--rounds", "1", "--json", str(file)]
    finished = subprocess.run(
        [*command, "--cells", "2 KB×10", "--servers", *servers], capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    assert "CPU per delivered message" in finished.stdout
    runs = json.loads(file.read_text())["cells"]["2 KB×10"]
    assert {name: len(results) for name, results in runs.items()} == dict.fromkeys(servers, 1)


@pytest.mark.parametrize(("count", "rank"), [(2, 1), (5, 1), (6, 1), (8, 1), (9, 2), (20, 6), (40, 14)])
def test_the_interval_of_a_median_leaves_out_as_many_values_as_the_tables_say(
    pairs: ModuleType, count: int, rank: int
) -> None:
    values = [float(number) for number in range(1, count + 1)]
    found = pairs.median_interval(random.sample(values, count))
    assert found == ((count + 1) / 2, rank, count + 1 - rank)


def test_the_interval_contains_the_true_median_of_any_distribution_in_95_percent(pairs: ModuleType) -> None:
    chance = random.Random(2026)
    inside = 0
    for _ in range(1000):
        found = pairs.median_interval([chance.expovariate(1) for _ in range(20)])
        inside += found.low <= math.log(2) <= found.high
    assert 940 <= inside <= 980  # 0.959 of 1,000: order statistics of 20 values


def test_a_pair_is_the_work_without_and_with_the_tool_whatever_their_order(pairs: ModuleType) -> None:
    class SlowWhenOn:
        def __init__(self, work: str, tool: dict[str, float]) -> None:
            self.on, self.factor = False, tool["factor"]

        def __enter__(self) -> SlowWhenOn:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def switch(self, on: bool) -> None:
            self.on = on

        def work(self, units: int) -> dict[str, float]:
            return {"wall": units * (self.factor if self.on else 1.0), "cpu": units}

        def finish(self) -> dict[str, float]:
            return {"on": self.on}

    setting = pairs.Setting("slow", {"factor": 1.25}, SlowWhenOn)
    result = pairs.measure("compute", 100, [setting], fours=10)["slow"]
    assert len(result["pairs"]) == 20
    assert pairs.cost(result["pairs"], "wall") == (25, 25, 25)
    assert pairs.cost(result["pairs"], "cpu") == (0, 0, 0)
    assert result["on"] is False


def test_sampling_is_measured_by_switching_it_in_one_process(pairs: ModuleType) -> None:
    profiler = importlib.import_module("profiler")
    settings = {setting.name: setting for setting in profiler.COMPUTE}
    names = ["server idle", "in-process, wall clock, 1 ms"]
    results = pairs.measure("compute", 5, [settings[name] for name in names], fours=1)
    assert [len(results[name]["pairs"]) for name in names] == [2, 2]
    table = profiler.sampling_table({name: pairs.summary(result) for name, result in results.items()})
    assert re.search(r"in-process, wall clock, 1 ms *\| [-+]\d+\.\d % \(.* … .*\) .*/s", table)


def test_stalls_are_measured_beside_as_much_time_without_a_snapshot(pairs: ModuleType) -> None:
    profiler = importlib.import_module("profiler")
    found = profiler.run_stalls(4000, {"kind": "snapshot"}, 2)
    assert {name: len(values) for name, values in found.items()} == {"seconds": 2, "stalls": 2, "without": 2}
    assert re.search(
        r"plain *\| \d+\.\d\d *\| \d+ / \d+ / \d+ ms *\| \d+ / \d+ / \d+ ms", profiler.stalls_table({"plain": found})
    )
