"""The settings of a bridge, checked once, before anything is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tornado_rbkit.protocol import CommandError, parse_command
from tornado_rbkit.upstream.options import MIB, UpstreamOptions, check_seconds, check_whole, option_error
from tornado_rbkit.upstream.sockets import ZmqEndpoint
from tornado_rbkit.upstream.types import Endpoint


@dataclass(frozen=True, kw_only=True)
class BridgeSettings(UpstreamOptions):
    """The arguments of `tornado_rbkit.Bridge`, described there. Immutable, so any thread may read it.

    `endpoint` is always set: to the ZMQ endpoints of `pub` and `req` unless another one is given.

    Raises:
        EndpointError: `pub` or `req` cannot be connected to.
        ValueError: another setting has a wrong type or is out of its range.
    """

    pub: str | None = None
    req: str | None = None
    endpoint: Endpoint | None = None
    default_encoding: Literal["binary", "escaped"] = "binary"
    connect_timeout: float = 2.0
    command_timeouts: Mapping[str, float] = field(default_factory=dict)
    max_clients: int = 1024
    max_backlog_bytes: int = 64 * MIB
    stall_timeout: float = 60.0
    ping_interval: float = 15.0
    ping_timeout: float | None = None
    idle_grace: float = 30.0
    stop_when_idle: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.endpoint is None:
            self._set("endpoint", ZmqEndpoint.or_default(self.pub, self.req))
        elif self.pub is not None or self.req is not None:
            raise option_error("endpoint", self.endpoint, "None if pub or req is given")
        elif not isinstance(self.endpoint, Endpoint):
            raise option_error("endpoint", self.endpoint, "an endpoint, or None for pub and req")
        if not isinstance(self.stop_when_idle, bool):
            raise option_error("stop_when_idle", self.stop_when_idle, "True or False")
        if self.default_encoding not in ("binary", "escaped"):
            raise ValueError(f"default_encoding={self.default_encoding!r} is unknown; allowed: binary, escaped")
        for name in ("connect_timeout", "ping_interval", "idle_grace"):
            self._set(name, check_seconds(name, getattr(self, name)))
        self._set("stall_timeout", check_seconds("stall_timeout", self.stall_timeout, zero=False))
        if self.ping_timeout is not None:
            self._set("ping_timeout", check_seconds("ping_timeout", self.ping_timeout))
        for name in ("max_clients", "max_backlog_bytes"):
            self._set(name, check_whole(name, getattr(self, name)))
        self._set("command_timeouts", _command_timeouts(self.command_timeouts))


def _command_timeouts(given: Any) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise option_error("command_timeouts", given, "a mapping from commands to seconds")
    for command in given:
        try:
            parse_command(command, "any")
        except (CommandError, TypeError, AttributeError):
            allowed = "one line of printable ASCII"
            raise option_error("command_timeouts key", command, allowed, between=" ") from None
    return {name: check_seconds(f"command_timeouts[{name!r}]", seconds, zero=False) for name, seconds in given.items()}
