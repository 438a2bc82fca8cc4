"""The demo's workload has the hot function, the leak and the garbage that its docstring promises."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.profiler.conftest import Client, wait_until
from tests.profiler.test_heap import snapshot
from tornado_rbkit.profiler import workload
from tornado_rbkit.protocol import CPUSample


@pytest.fixture
def shop() -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=workload.run, args=(stop,))
    thread.start()
    yield
    stop.set()
    thread.join()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("shop")]


def _is_of_the_shop(sample: CPUSample) -> bool:
    return any(frame.file == workload.__file__ for frame in sample.frames)


def carts(client: Client) -> int:
    """Return the number of carts in a snapshot."""
    return sum(item.class_name == "tornado_rbkit.profiler.workload.Cart" for item in snapshot(client)[1])


def test_the_hot_function_and_the_leak_are_found(client: Client, shop: None) -> None:
    before = carts(client)
    client.ask(b"use_cpu_time", b"start_cpu_profiling")
    samples = client.events(CPUSample, lambda found: len([1 for sample in found if _is_of_the_shop(sample)]) >= 200)
    client.ask(b"stop_cpu_profiling")
    inner = Counter(sample.frames[0].method_name for sample in samples if _is_of_the_shop(sample))
    assert inner.most_common(1)[0][0] == "discounted", inner
    wait_until(lambda: carts(client) > before + 5, "customers have come, some time after each other")
