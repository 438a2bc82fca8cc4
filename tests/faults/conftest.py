"""Fixtures of the fault tests: a steady profiler and a server in front of it, each in a process."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.conftest import chromium as chromium
from tests.fake_rbkit import free_port
from tests.faults.serving import Serving, bridge_command, serving
from tests.faults.steady import SteadyProcess

Launch = Callable[..., Serving]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Raise the time-out of tests that --soak lengthens."""
    seconds: float = config.getoption("--soak")
    for item in items if seconds else ():
        item.add_marker(pytest.mark.timeout(seconds + 600), append=False)


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> float:
    """Return the seconds given with --soak, 0 by default."""
    seconds: float = request.config.getoption("--soak")
    return seconds


@contextlib.contextmanager
def _running() -> Iterator[SteadyProcess]:
    process = SteadyProcess(f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}")
    process.start()
    yield process
    process.close()


@pytest.fixture
def profiler() -> Iterator[SteadyProcess]:
    """Run a profiler that publishes 500 messages per second with known bytes."""
    with _running() as process:
        yield process


@pytest.fixture(scope="module")
def steady() -> Iterator[SteadyProcess]:
    """Run such a profiler for all tests of a module, which must not stop it."""
    with _running() as process:
        yield process


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Return a function that serves a bridge: `launch(pub=..., req=..., **options)`; it must end without an error."""
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Serving:
            log = tmp_path / f"server-{next(numbers)}.log"
            return stack.enter_context(serving(log, bridge_command(**options)))

        yield start
