"""A connecting ZMQ socket that knows whether its peer is there."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream
from zmq.utils.monitor import parse_monitor_message

from tornado_rbkit.protocol import RbkitError

_log = logging.getLogger(__name__)

_TCP: Final = re.compile(r"tcp://(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]*]+):(\d{1,5})")
_UP: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED  # a TCP connect alone also succeeds to a process that is stopped
_DOWN: Final = zmq.EVENT_DISCONNECTED
_REFUSED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)

_OPTIONS: Final[Mapping[int, int]] = {
    zmq.LINGER: 0,
    # A profiler that restarts is back within a second, and one that is away costs a connect a second.
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 1000,
    # What a host that vanished without a FIN looks like; heartbeats would take a long message for silence.
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 15,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.IPV6: 1,
}


class EndpointError(RbkitError, ValueError):
    """An endpoint that ZMQ could not connect to under any circumstances."""


def check_endpoint(endpoint: str, setting: str) -> str:
    """Return `endpoint` if a socket can connect to it.

    Args:
        endpoint: a ZMQ endpoint.
        setting: what the user calls it, for the message.

    Raises:
        EndpointError: it is neither ``tcp://HOST:PORT`` nor ``ipc://PATH``.
    """
    match = _TCP.fullmatch(endpoint)
    if (match and 0 < int(match[2]) < 65536) or (endpoint.startswith("ipc://") and len(endpoint) > len("ipc://")):
        return endpoint
    raise EndpointError(f"{setting}={endpoint!r} is not an endpoint; allowed: tcp://HOST:PORT or ipc://PATH")


class Link:
    """One SUB or REQ socket as a ZMQStream, beside a monitor of its connection. On its loop's thread only.

    Attributes:
        stream: the socket; it is the owner's to receive from.
        up: True while the peer has completed ZMTP's handshake.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        endpoint: str,
        io_loop: IOLoop,
        options: Mapping[int, Any],
        on_change: Callable[[], None],
    ) -> None:
        self.up = False
        self.endpoint = endpoint
        self._on_change = on_change
        self._refusals = 0
        socket = context.socket(kind)
        for option, value in {**_OPTIONS, **options}.items():
            socket.setsockopt(option, value)
        self._socket = socket
        self._monitor = ZMQStream(socket.get_monitor_socket(_UP | _DOWN | _REFUSED), io_loop)
        self._monitor.on_recv(self._on_event)
        self.stream = ZMQStream(socket, io_loop)
        socket.connect(endpoint)

    def close(self) -> None:
        """Close socket and monitor. May be called twice."""
        if self.stream.closed():
            return
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self.stream.close(linger=0)
        self.up = False

    def _on_event(self, frames: list[bytes]) -> None:
        event = parse_monitor_message(frames)["event"]
        if event & _REFUSED:
            self._refusals += 1
            if self._refusals == 1:
                _log.warning("%s is not a ZMQ socket of the kind expected (%s)", self.endpoint, zmq.Event(event).name)
            return
        self._refusals = 0
        self.up = event == _UP
        self._on_change()
