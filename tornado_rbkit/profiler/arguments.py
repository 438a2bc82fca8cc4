"""Checks the arguments of `start_server` and `start_profiling` before anything starts."""

from __future__ import annotations

import numbers
import os
import sys
from typing import Final

from tornado_rbkit.errors import RbkitError

MAX_INTERVAL: Final = 3600.0
"""The longest cpu_sampling_interval, in seconds."""

CLOCKS: Final = ("wall", "cpu")

ENGINES: Final = ("auto", "external", "in-process")
ENGINE_VARIABLE: Final = "RBKIT_CPU_ENGINE"


class ArgumentError(RbkitError, ValueError):
    """An argument cannot be used; the message names it and says what is allowed."""

    exit_status = 2


def check_server(pub: object, req: object, name: object) -> None:
    """Check the endpoints and the name of a server.

    Raises:
        ArgumentError: an argument is neither None nor usable text.
    """
    for setting, endpoint in (("pub", pub), ("req", req)):
        if endpoint is not None and not _is_text(endpoint):
            raise ArgumentError(
                f"{setting}={endpoint!r} is not an endpoint; allowed: 'tcp://HOST:PORT', 'tcp://HOST:*' or 'ipc://PATH'"
            )
    if name is not None and not isinstance(name, str):
        raise ArgumentError(f"name={name!r} is not a name; allowed: a str")


def check_interval(interval: object) -> None:
    """Check a cpu_sampling_interval.

    Raises:
        ArgumentError: it is not a number of seconds above 0 and at most `MAX_INTERVAL`.
    """
    if (
        isinstance(interval, bool)
        or not isinstance(interval, numbers.Real)
        or not 0 < float(interval) <= MAX_INTERVAL  # false for NaN
    ):
        raise ArgumentError(
            f"cpu_sampling_interval={interval!r} is out of range; allowed: seconds above 0, at most {MAX_INTERVAL:g}"
        )


def check_clock(clock_type: object) -> None:
    """Check a clock_type.

    Raises:
        ArgumentError: it is not one of `CLOCKS`.
    """
    if not isinstance(clock_type, str) or clock_type not in CLOCKS:
        raise ArgumentError(f"clock_type={clock_type!r} is unknown; allowed: {', '.join(CLOCKS)}")


def chosen_engine(cpu_engine: object) -> str:
    """Return the engine that was given, else the one in RBKIT_CPU_ENGINE, else ``"auto"``.

    Raises:
        ArgumentError: it is not one of `ENGINES`, or does not work on this system.
    """
    setting, engine = "cpu_engine", cpu_engine
    if engine is None:
        setting, engine = ENGINE_VARIABLE, os.environ.get(ENGINE_VARIABLE) or ENGINES[0]
    if not isinstance(engine, str) or engine not in ENGINES:
        raise ArgumentError(f"{setting}={engine!r} is unknown; allowed: {', '.join(ENGINES)}")
    if engine == "external" and not sys.platform.startswith("linux"):
        raise ArgumentError(f"{setting}='external' works on Linux only; allowed here: auto, in-process")
    return engine


def _is_text(value: object) -> bool:
    """Return True for text that UTF-8 can encode and that has no NUL, where libzmq would cut it off."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)
