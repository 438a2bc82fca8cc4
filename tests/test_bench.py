"""The benchmarks run; their figures are not checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent.parent / "bench"


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
