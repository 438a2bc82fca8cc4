"""A connecting ZMQ socket with a monitor that reports whether its peer is connected."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream
from zmq.utils.monitor import parse_monitor_message

from tornado_rbkit.deadline import Deadline
from tornado_rbkit.log_throttle import LogThrottle

_log = logging.getLogger(__name__)

_UP: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED  # a TCP connect also succeeds if the process is stopped
_DOWN: Final = zmq.EVENT_DISCONNECTED
_RETRIED: Final = zmq.EVENT_CONNECT_RETRIED
_REFUSED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_RECONNECT: Final = 1.0  # seconds
_STEADY: Final = 1.0  # seconds; a peer that violates ZMTP does so at once

_OPTIONS: Final[Mapping[int, int]] = {
    zmq.LINGER: 0,
    # A restarted profiler is reconnected within a second; an absent one costs one connect attempt per second.
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 1000,
    # Detect a host that vanished without a FIN. ZMTP heartbeats would mistake a long message for silence.
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 15,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.IPV6: 1,
}


class MonitoredSocket:
    """One SUB or REQ socket and the monitor of its connection. On its loop's thread only.

    Attributes:
        socket: the socket, for the owner to send and receive on.
        up: True from the end of the ZMTP handshake until the peer disconnects.
        refusals: number of refused connections (wrong socket type, ZMTP violation, message too long) since the last
            connection that lasted.
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
        """Create a socket and begin to connect; `options` are set in addition to the options of all sockets.

        Raises:
            zmq.ZMQError: too few file descriptors are left, or the endpoint is invalid.
        """
        self.up = False
        self.refusals = 0
        self.endpoint = endpoint
        self._io_loop = io_loop
        self._max_message_bytes = options.get(zmq.MAXMSGSIZE, -1)
        self._on_change = on_change
        self._throttle = LogThrottle()
        self._reconnect_deadline: Deadline | None = None
        with contextlib.ExitStack() as stack:
            socket = stack.enter_context(context.socket(kind))
            for option, value in {**_OPTIONS, **options}.items():
                socket.setsockopt(option, value)
            monitor = stack.enter_context(socket.get_monitor_socket(_UP | _DOWN | _REFUSED | _RETRIED))
            socket.connect(endpoint)
            stack.pop_all()
        self.socket = socket
        self._monitor = ZMQStream(monitor, io_loop)
        self._monitor.on_recv(self._on_event)

    def handle_event(self) -> bool:
        """Handle the next event of the monitor if the loop has not come to it; return whether there was one."""
        return bool(self._monitor.flush(zmq.POLLIN, limit=1))

    def stop(self) -> None:
        """Stop receiving the monitor's events."""
        self._monitor.stop_on_recv()
        self._cancel_reconnect()
        self.socket.disable_monitor()

    def close(self) -> None:
        """Close the socket and its monitor."""
        self._monitor.close(linger=0)
        self.socket.close(linger=0)

    def _on_event(self, frames: list[bytes]) -> None:
        event = parse_monitor_message(frames)["event"]
        if event & _REFUSED:
            self._refuse(f"is not a ZMQ socket of the expected type ({zmq.Event(event).name})")
        elif event == _RETRIED:
            self._cancel_reconnect()
        elif event == _DOWN:
            if self._reconnect_deadline is None:
                self._reconnect_deadline = Deadline(_RECONNECT, self._reconnect)
            self._set_up(False)
        else:
            self._cancel_reconnect()
            self._set_up(True)
            if self.refusals:
                self._io_loop.call_later(_STEADY, self._forgive, self.refusals)

    def _forgive(self, refusals: int) -> None:
        if self.up and self.refusals == refusals:
            self.refusals = 0
            self._on_change()

    def _set_up(self, up: bool) -> None:
        if up is not self.up:
            self.up = up
            self._on_change()

    def _refuse(self, reason: str) -> None:
        self.refusals += 1
        self._throttle.warn(_log, reason, "%s %s", self.endpoint, reason)
        self._on_change()

    def _reconnect(self) -> None:
        """Connect again after a ZMTP violation; libzmq reconnects after any other loss, but not after a violation.

        See libzmq's ``session_base_t::engine_error``. If libzmq reconnects, it reports CONNECT_RETRIED at once.
        """
        self._reconnect_deadline = None
        self._refuse(
            f"violated ZMTP, or sent a message longer than {self._max_message_bytes} bytes (max_message_bytes)"
        )
        with contextlib.suppress(zmq.ZMQError):  # libzmq may have dropped the endpoint already
            self.socket.disconnect(self.endpoint)
        try:
            self.socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            self._refuse(f"cannot be connected to ({error})")
            self._reconnect_deadline = Deadline(_RECONNECT, self._reconnect)

    def _cancel_reconnect(self) -> None:
        if self._reconnect_deadline is not None:
            self._reconnect_deadline.cancel()
            self._reconnect_deadline = None
