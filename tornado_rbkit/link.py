"""A connecting ZMQ socket that knows whether its peer is there."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream
from zmq.utils.monitor import parse_monitor_message

from tornado_rbkit.protocol import RbkitError

_log = logging.getLogger(__name__)

_TCP: Final = re.compile(r"tcp://(\[[0-9A-Fa-f:.]+(%\w+)?\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})")
_MAX_IPC_PATH: Final = 107 if sys.platform.startswith("linux") else 103  # bytes, sockaddr_un's sun_path
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
    """An endpoint that no socket can connect to."""


def check_endpoint(endpoint: str, setting: str) -> str:
    """Return `endpoint` if a socket can connect to it.

    Args:
        endpoint: a ZMQ endpoint.
        setting: what the user calls it, for the message.

    Raises:
        EndpointError: it is neither ``tcp://HOST:PORT`` nor ``ipc://PATH``.
    """
    match = _TCP.fullmatch(endpoint)
    path = endpoint.removeprefix("ipc://")
    if (match and 0 < int(match["port"]) < 65536) or (
        path != endpoint and 0 < len(os.fsencode(path)) <= _MAX_IPC_PATH
    ):
        return endpoint
    raise EndpointError(f"{setting}={endpoint!r} is not an endpoint; allowed: tcp://HOST:PORT or ipc://PATH")


class Link:
    """One SUB or REQ socket beside a monitor of its connection. On its loop's thread only.

    Attributes:
        socket: the owner's to receive from.
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
        """Make a socket, set its options over those of all links, and begin to connect.

        Raises:
            zmq.ZMQError: there are too few file descriptors, or the endpoint is none.
        """
        self.up = False
        self.endpoint = endpoint
        self._on_change = on_change
        self._refusals = 0
        with contextlib.ExitStack() as stack:
            socket = stack.enter_context(context.socket(kind))
            for option, value in {**_OPTIONS, **options}.items():
                socket.setsockopt(option, value)
            monitor = stack.enter_context(socket.get_monitor_socket(_UP | _DOWN | _REFUSED))
            socket.connect(endpoint)
            stack.pop_all()
        self.socket = socket
        self._monitor = ZMQStream(monitor, io_loop)
        self._monitor.on_recv(self._on_event)

    def stop(self) -> None:
        """Receive no more of the monitor's events."""
        self._monitor.stop_on_recv()
        self.socket.disable_monitor()

    def close(self) -> None:
        """Close socket and monitor."""
        self._monitor.close(linger=0)
        self.socket.close(linger=0)

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
