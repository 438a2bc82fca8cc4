"""The statistics of bridges for Prometheus. Needs the extra ``metrics``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.web.pages import PageHandler

_COUNTERS: Final = {
    "messages_in": "Profiling messages received from the profiler.",
    "bytes_in": "Bytes of profiling messages received from the profiler.",
    "messages_missed": "Profiling messages that were lost before they reached the bridge.",
    "messages_sent": "Profiling messages sent, to all clients together.",
    "messages_dropped": "Profiling messages dropped because clients were too slow.",
    "bytes_sent": "Bytes sent to clients.",
}


class BridgeCollector:
    """A prometheus_client collector for any number of bridges, labelled with their names. Web loop only."""

    def __init__(self, bridges: Mapping[str, Bridge]) -> None:
        """Collect from `bridges`, which may change between two collections."""
        self._bridges = bridges

    def collect(self) -> Iterator[Metric]:
        """Yield the current statistics."""
        stats = {name: bridge.stats() for name, bridge in self._bridges.items()}
        for key, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"rbkit_{key}", text, labels=["target"])
            for name, values in stats.items():
                counter.add_metric([name], values[key])
            yield counter
        yield _gauge("rbkit_connected", "1 while the profiler is connected.", stats, _connected)
        yield _gauge("rbkit_clients", "WebSocket clients.", stats, lambda values: len(values["clients"]))
        yield _gauge("rbkit_commands_waiting", "Commands without a reply.", stats, lambda v: v["commands_waiting"])
        yield _gauge("rbkit_bytes_waiting", "Bytes that wait for clients.", stats, _bytes_waiting)


class MetricsHandler(PageHandler):
    """The metrics that a Prometheus server scrapes."""

    async def get(self) -> None:
        """Answer with the current statistics."""
        await self.check_request()
        self.begin(CONTENT_TYPE_LATEST)
        registry = CollectorRegistry()
        registry.register(BridgeCollector(self.bridges))
        self.finish(generate_latest(registry))


def _gauge(name: str, text: str, stats: Mapping[str, dict[str, Any]], value: Any) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=["target"])
    for target, values in stats.items():
        gauge.add_metric([target], value(values))
    return gauge


def _connected(values: dict[str, Any]) -> int:
    return int(values["state"] == State.CONNECTED.value)


def _bytes_waiting(values: dict[str, Any]) -> int:
    return sum(client["bytes_waiting"] for client in values["clients"])
