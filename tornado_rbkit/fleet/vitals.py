"""The figures of a host's processes on the wire: memory and CPU time, sent while a bridge looks. No I/O.

A bridge whose page of all targets is open leases them from each host, on the subject of the leases with
`VITALS_TARGET` in place of a target. The agent publishes them each `VITALS_INTERVAL` until no such lease is left.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import msgpack

VITALS_TARGET: Final = "_vitals"
"""Used in place of a target's name by a bridge that leases the figures."""

VITALS_INTERVAL: Final = 2.0
"""Seconds between two messages of an agent, and between two leases of a bridge."""

MAX_BYTES: Final = 256 * 1024
"""Bytes of a message; that of an agent with as many targets as there may be has less than half as many."""

_KEYS: Final = ("process_rss", "process_cpu_ms")
_MOST: Final = 1 << 53


class Vitals(NamedTuple):
    """The figures of the processes of a host.

    Attributes:
        at: when they were read, in monotonic seconds of the host.
        processes: by target: ``process_rss`` in bytes and ``process_cpu_ms``, without those not known.
    """

    at: float
    processes: dict[str, dict[str, float]]

    def pack(self) -> bytes:
        """Return the message."""
        listed = [[name, *map(figures.get, _KEYS)] for name, figures in self.processes.items() if figures]
        packed: bytes = msgpack.packb([self.at, listed])
        return packed

    @classmethod
    def parse(cls, data: bytes, most: int) -> Vitals | None:
        """Return the figures in a message, of so many targets at most; None if it is not valid."""
        if len(data) > MAX_BYTES:
            return None
        try:
            at, listed = msgpack.unpackb(data)
            processes = {name: _figures(values) for name, *values in listed[:most] if isinstance(name, str)}
        except (ValueError, TypeError, msgpack.UnpackException):
            return None
        return cls(at, processes) if type(at) is float and 0 <= at < math.inf else None


def _figures(values: list[Any]) -> dict[str, float]:
    known = zip(_KEYS, values, strict=False)
    return {key: value for key, value in known if type(value) is int and 0 <= value <= _MOST}
