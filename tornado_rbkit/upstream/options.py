"""The options of a connection to one profiler, checked once, before anything is opened."""

from __future__ import annotations

import math
import numbers
import operator
import reprlib
from dataclasses import dataclass
from typing import Any, Final

from tornado_rbkit.upstream.iothread import IOLoopThread

MIB: Final = 1024 * 1024
_MIN_MESSAGE: Final = 1024  # bytes; ZMTP's own commands and rbkit's handshake must fit
_MAX_FLUSH_INTERVAL: Final = 60.0  # seconds; nothing is delivered during one


@dataclass(frozen=True, kw_only=True)
class UpstreamOptions:
    """The arguments of `tornado_rbkit.Bridge` that concern each connection. Immutable, so any thread may read it.

    Raises:
        ValueError: an option has a wrong type or is out of its range.
    """

    threaded: bool | IOLoopThread = True
    flush_interval: float = 0.005
    max_pending_bytes: int = 32 * MIB
    rcvhwm: int = 1000
    max_message_bytes: int = 512 * MIB
    compression_level: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.threaded, bool | IOLoopThread):
            raise option_error("threaded", self.threaded, "True, False, or an IOLoopThread")
        self._set("flush_interval", check_seconds("flush_interval", self.flush_interval, most=_MAX_FLUSH_INTERVAL))
        self._set("max_pending_bytes", check_whole("max_pending_bytes", self.max_pending_bytes))
        self._set("rcvhwm", check_whole("rcvhwm", self.rcvhwm, most=2**31 - 1))  # a C int
        most = 2**63 - 1  # an int64_t
        size = check_whole("max_message_bytes", self.max_message_bytes, least=_MIN_MESSAGE, most=most)
        self._set("max_message_bytes", size)
        level = check_whole("compression_level", self.compression_level, least=0, most=9, allowed="0 (off) to 9")
        self._set("compression_level", level)

    def _set(self, name: str, value: object) -> None:
        """Replace an option by its normalized value; for the constructor only."""
        object.__setattr__(self, name, value)


def check_seconds(name: str, value: Any, *, zero: bool = True, most: float = math.inf) -> float:
    """Return a duration in seconds, which must be finite because timers need it; raise ValueError otherwise."""
    allowed = "0 or more" if zero else "more than 0"
    allowed = f"{allowed}, at most {most:g}" if most < math.inf else f"{allowed}, finite"
    try:
        seconds = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds) or seconds < 0 or seconds > most or (seconds == 0 and not zero):
        raise option_error(name, value, f"{allowed} (seconds)")
    return seconds


def check_whole(name: str, value: Any, *, least: int = 1, most: int | None = None, allowed: str = "") -> int:
    """Return a whole number within its range; raise ValueError otherwise."""
    try:
        number = operator.index(value) if not isinstance(value, bool) else least - 1
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        allowed = allowed or (f"{least} or more" if most is None else f"{least} to {most}")
        raise option_error(name, value, f"{allowed} (a whole number)")
    return number


def option_error(name: str, value: object, allowed: str, *, between: str = "=") -> ValueError:
    """Return the error for an option that is out of its range."""
    return ValueError(f"{name}{between}{reprlib.repr(value)} is out of range; allowed: {allowed}")
