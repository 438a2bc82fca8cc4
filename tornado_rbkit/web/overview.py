"""The document of the page of all targets: their state, and the figures of their processes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol, runtime_checkable

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.bridge.summary import KnowsTargets, describe
from tornado_rbkit.profiler.vitals import process_figures

MAX_TARGETS: Final = 2000
"""Number of targets in the document."""

_LOCAL: Final = re.compile(r"ipc://|tcp://(127\.[0-9.]+|localhost|\[::1\]):")


@runtime_checkable
class KnowsHosts(Protocol):
    """A mapping of names to bridges whose targets run on several hosts."""

    def look(self) -> None:
        """Have the hosts send figures for the next seconds."""

    def host_facts(self) -> list[dict[str, Any]]:
        """Return each host's name, state, the seconds for which it has had the state, and its number of targets."""


def overview(bridges: Mapping[str, Bridge]) -> dict[str, Any]:
    """Return the named targets and their hosts, ready for JSON. Web loop only.

    Processes are looked at now and not otherwise: on other hosts, for a few seconds after each call.
    """
    named = [(name, bridge) for name, bridge in bridges.items() if name]
    hosts = bridges if isinstance(bridges, KnowsHosts) else None
    if hosts is not None:
        hosts.look()
    now = time.monotonic()
    return {
        "now": now,
        "hosts": [] if hosts is None else hosts.host_facts(),
        "targets": [_row(bridges, name, bridge, now) for name, bridge in named[:MAX_TARGETS]],
        "left_out": max(0, len(named) - MAX_TARGETS),
    }


def _row(bridges: Mapping[str, Bridge], name: str, bridge: Bridge, now: float) -> dict[str, Any]:
    figures = bridges.figures(name) if isinstance(bridges, KnowsTargets) else own_figures(bridge)
    return {
        "name": name,
        **describe(bridges, name, bridge),
        "rss": figures.get("process_rss"),
        "cpu_ms": figures.get("process_cpu_ms"),
        "at": figures.get("at", now),
    }


def own_figures(bridge: Bridge) -> dict[str, float]:
    """Return the figures of the process that sent the last handshake, if it is certainly a process of this machine.

    The pid in a handshake may be valid in another PID namespace only, such as a container's, whose ports are this
    machine's. So its working directory must be the process's.
    """
    handshake = bridge.handshake
    if handshake is None or not _LOCAL.match(bridge.req) or type(handshake.pid) is not int:
        return {}
    try:
        if os.readlink(f"/proc/{handshake.pid}/cwd") != handshake.pwd:
            return {}
    except (OSError, ValueError):  # not Linux, another user's process, or none
        return {}
    return dict(process_figures(handshake.pid))
