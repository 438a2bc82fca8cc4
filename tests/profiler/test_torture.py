"""A few minutes' worth of crash tests in seconds; CONTRIBUTING.md tells how to run them for longer."""

from __future__ import annotations

import sys

import pytest

from tests.profiler.torture.__main__ import torture

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the hosts use fork and signals")


@pytest.mark.parametrize("seed", range(4))
def test_a_host_survives_the_profiler_and_every_command(seed: int) -> None:
    survived, printed = torture(seed, 1.0, [sys.executable, "-X", "dev"])
    assert survived, printed
