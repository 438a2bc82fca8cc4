"""A script in an interpreter of its own, where warnings are errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import without_slowness
from tests.profiler.conftest import PATIENCE


def python(script: str, **environment: str) -> str:
    """Run a script; it must end well and say nothing on stderr. Returns what it printed."""
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
    )
    errors = without_slowness(ended.stderr)
    assert (ended.returncode, errors) == (0, ""), f"{ended.returncode}: {errors}"  # this module is not rewritten
    return ended.stdout
