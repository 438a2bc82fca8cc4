"""The settings of a bridge, checked once, before anything is opened."""

from __future__ import annotations

import math
import numbers
import operator
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

from tornado_rbkit.endpoints import check_endpoint, default_endpoint
from tornado_rbkit.iothread import IOLoopThread
from tornado_rbkit.protocol import DEFAULT_PUB_PORT, DEFAULT_REQ_PORT, CommandError, parse_command

_MIB: Final = 1024 * 1024
_MIN_MESSAGE: Final = 1024  # bytes; ZMTP's own commands and rbkit's handshake have to pass
_MAX_FLUSH_INTERVAL: Final = 60.0  # seconds; nothing is delivered meanwhile


@dataclass(frozen=True, kw_only=True)
class BridgeSettings:
    """What `Bridge` takes; see there. Immutable, so it may be read on any thread.

    Raises:
        EndpointError: `pub` or `req` cannot be connected to.
        ValueError: another setting is not what it has to be.
    """

    pub: str = field(default_factory=partial(default_endpoint, "RBKIT_PUB_PORT", DEFAULT_PUB_PORT))
    req: str = field(default_factory=partial(default_endpoint, "RBKIT_REQ_PORT", DEFAULT_REQ_PORT))
    threaded: bool | IOLoopThread = True
    default_encoding: Literal["binary", "escaped"] = "binary"
    connect_timeout: float = 2.0
    command_timeouts: Mapping[str, float] = field(default_factory=dict)
    max_clients: int = 1024
    max_backlog_bytes: int = 64 * _MIB
    stall_timeout: float = 60.0
    ping_interval: float = 15.0
    ping_timeout: float | None = None
    idle_grace: float = 30.0
    stop_when_idle: bool = True
    flush_interval: float = 0.005
    max_pending_bytes: int = 32 * _MIB
    rcvhwm: int = 1000
    max_message_bytes: int = 512 * _MIB
    compression_level: int = 0

    def __post_init__(self) -> None:
        check_endpoint(self.pub, "pub")
        check_endpoint(self.req, "req")
        if not isinstance(self.threaded, bool | IOLoopThread):
            raise _refusal("threaded", self.threaded, "True, False, or an IOLoopThread")
        if not isinstance(self.stop_when_idle, bool):
            raise _refusal("stop_when_idle", self.stop_when_idle, "True or False")
        if self.default_encoding not in ("binary", "escaped"):
            raise ValueError(f"default_encoding={self.default_encoding!r} is unknown; allowed: binary, escaped")
        for name in ("connect_timeout", "ping_interval", "idle_grace"):
            self._set(name, _seconds(name, getattr(self, name)))
        self._set("flush_interval", _seconds("flush_interval", self.flush_interval, most=_MAX_FLUSH_INTERVAL))
        self._set("stall_timeout", _seconds("stall_timeout", self.stall_timeout, zero=False))
        if self.ping_timeout is not None:
            self._set("ping_timeout", _seconds("ping_timeout", self.ping_timeout))
        for name in ("max_clients", "max_backlog_bytes", "max_pending_bytes"):
            self._set(name, _whole(name, getattr(self, name)))
        self._set("rcvhwm", _whole("rcvhwm", self.rcvhwm, most=2**31 - 1))  # an int of C
        most = 2**63 - 1  # an int64_t
        size = _whole("max_message_bytes", self.max_message_bytes, least=_MIN_MESSAGE, most=most)
        self._set("max_message_bytes", size)
        level = _whole("compression_level", self.compression_level, least=0, most=9, allowed="0 (off) to 9")
        self._set("compression_level", level)
        self._set("command_timeouts", _command_timeouts(self.command_timeouts))

    def _set(self, name: str, value: object) -> None:
        """Replace a setting by its normal form, which only the constructor may do."""
        object.__setattr__(self, name, value)


def _command_timeouts(given: Any) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise _refusal("command_timeouts", given, "a mapping from commands to seconds")
    for command in given:
        try:
            parse_command(command, "any")
        except (CommandError, TypeError, AttributeError):
            allowed = "one line of printable ASCII"
            raise _refusal("command_timeouts has the command", command, allowed, between=" ") from None
    return {name: _seconds(f"command_timeouts[{name!r}]", seconds, zero=False) for name, seconds in given.items()}


def _seconds(name: str, value: Any, *, zero: bool = True, most: float = math.inf) -> float:
    """Return a duration; what it may be is finite, for that is what timers can be set to."""
    allowed = "0 or more" if zero else "more than 0"
    allowed += f", {most:g} at most" if most < math.inf else ", finite"
    try:
        seconds = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds) or seconds < 0 or seconds > most or (seconds == 0 and not zero):
        raise _refusal(name, value, f"{allowed} (seconds)")
    return seconds


def _whole(name: str, value: Any, *, least: int = 1, most: int | None = None, allowed: str = "") -> int:
    try:
        number = operator.index(value) if not isinstance(value, bool) else least - 1
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        allowed = allowed or (f"{least} or more" if most is None else f"{least} to {most}")
        raise _refusal(name, value, f"{allowed} (a whole number)")
    return number


def _refusal(name: str, value: object, allowed: str, *, between: str = "=") -> ValueError:
    return ValueError(f"{name}{between}{reprlib.repr(value)} is out of range; allowed: {allowed}")
