"""What `start_server` and `start_profiling` are given, checked before anything begins."""

from __future__ import annotations

import numbers
from typing import Final

from tornado_rbkit.protocol import RbkitError

MAX_INTERVAL: Final = 3600.0
"""Seconds between two samples, at the most."""

CLOCKS: Final = ("wall", "cpu")


class ArgumentError(RbkitError, ValueError):
    """An argument that cannot be used; the message names it, and what is allowed."""


def check_server(pub: object, req: object, name: object) -> None:
    """Check where a server is to be, and what it is to be called.

    Raises:
        ArgumentError: one of them is neither None nor a text that can be used.
    """
    for setting, endpoint in (("pub", pub), ("req", req)):
        if endpoint is not None and not _is_text(endpoint):
            raise ArgumentError(
                f"{setting}={endpoint!r} is not an endpoint; allowed: 'tcp://HOST:PORT', 'tcp://HOST:*' or 'ipc://PATH'"
            )
    if name is not None and not isinstance(name, str):
        raise ArgumentError(f"name={name!r} is no name; allowed: a str")


def check_interval(interval: object) -> None:
    """Check a cpu_sampling_interval.

    Raises:
        ArgumentError: it is not a number of seconds above 0 and at most `MAX_INTERVAL`.
    """
    if (
        isinstance(interval, bool)
        or not isinstance(interval, numbers.Real)
        or not 0 < float(interval) <= MAX_INTERVAL  # NaN is neither
    ):
        raise ArgumentError(
            f"cpu_sampling_interval={interval!r} is out of range; allowed: seconds above 0, at most {MAX_INTERVAL:g}"
        )


def check_clock(clock_type: object) -> None:
    """Check a clock_type.

    Raises:
        ArgumentError: it is none of `CLOCKS`.
    """
    if not isinstance(clock_type, str) or clock_type not in CLOCKS:
        raise ArgumentError(f"clock_type={clock_type!r} is unknown; allowed: {', '.join(CLOCKS)}")


def _is_text(value: object) -> bool:
    """Return True for what libzmq, which takes the bytes up to a NUL, would take whole."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)
