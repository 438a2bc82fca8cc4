"""The connection to one profiler: a SUB and a REQ socket, and the state of both."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import zmq
from tornado.ioloop import IOLoop

from tornado_rbkit.endpoints import require_descriptors
from tornado_rbkit.frames import Form
from tornado_rbkit.upstream.monitored_socket import MonitoredSocket
from tornado_rbkit.upstream.options import UpstreamOptions
from tornado_rbkit.upstream.requester import Outcome, Requester
from tornado_rbkit.upstream.subscriber import Batch, SocketSource, Subscriber

MAX_REPLY_BYTES: Final = 16 * 1024 * 1024
"""Bytes. Replies are never dropped, and 32 may wait for one client. rbkit's longest reply is a handshake."""


def failure_reason(error: Exception) -> str:
    """Return the text that explains why a connection cannot be opened, with the type of an unexpected exception."""
    return str(error) if isinstance(error, OSError | zmq.ZMQError | RuntimeError) else repr(error)


class State(enum.Enum):
    """The state of a bridge's connection to its profiler."""

    IDLE = "idle"  # there are no clients, so there are no sockets
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"  # it was connected before


class Reach(NamedTuple):
    """The endpoints that are connected, and the number of consecutive refusals (see `MonitoredSocket`) by endpoint."""

    up: frozenset[str]
    refusals: Mapping[str, int]


class UpstreamListener(Protocol):
    """Receives data, outcomes and state changes from a connection, on the web server's loop."""

    def on_batch(self, batch: Batch) -> None: ...

    def on_outcome(self, outcome: Outcome) -> None: ...

    def on_reached(self, reach: Reach) -> None: ...

    def on_state(self, state: State) -> None: ...

    def on_failure(self, reason: str) -> None: ...


class Upstream:
    """The sockets of one profiler, from `open` to `close`.

    It works on any IOLoop. It may be constructed on any thread; everything else runs on the loop's thread, and only
    `post` passes anything to another thread.
    """

    def __init__(
        self,
        io_loop: IOLoop,
        pub: str,
        req: str,
        listener: UpstreamListener,
        post: Callable[[Callable[[Any], None], Any], None],
        context: Callable[[], zmq.Context[zmq.Socket[bytes]]],
        options: UpstreamOptions,
        *,
        on_thread: bool,
    ) -> None:
        """Describe a connection.

        Args:
            io_loop: the loop of the sockets.
            pub: the endpoint where the profiler publishes.
            req: the endpoint where it takes commands.
            listener: receives data, outcomes and state changes, through `post`.
            post: calls a method of the listener, with its argument, on the listener's own loop.
            context: returns the ZMQ context for the sockets, which must outlive them.
            options: the bridge's options; its `pub` and `req` are not used.
            on_thread: see `Subscriber`.
        """
        self._io_loop = io_loop
        self._pub = pub
        self._req = req
        self._listener = listener
        self._post = post
        self._context = context
        self._options = options
        self._on_thread = on_thread
        self._state = State.CONNECTING
        self._sockets: list[MonitoredSocket] = []
        self._subscriber: Subscriber | None = None
        self._requester: Requester | None = None

    def open(self) -> None:
        """Create the sockets and begin to connect. A failure is reported to the listener, which must close."""
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - whatever it is, the clients must get the reason
            self._post(self._listener.on_failure, failure_reason(error))

    def set_encodings(self, forms: frozenset[Form], clients: int, generation: int) -> None:
        """See `Subscriber.set_encodings`."""
        if self._subscriber is not None:
            self._subscriber.set_encodings(forms, clients, generation)

    def request(self, command: str, timeout: float) -> None:
        """See `Requester.request`."""
        if self._requester is not None:
            self._requester.request(command, timeout)

    def stop(self) -> None:
        """Stop receiving, and fail the command in flight."""
        if self._subscriber is not None:
            self._subscriber.close()
        if self._requester is not None:
            self._requester.stop()
        for socket in self._sockets:
            socket.stop()

    def close(self) -> None:
        """Close the sockets, after `stop`."""
        if self._requester is not None:
            self._requester.close()
        for socket in self._sockets:
            socket.close()

    def _open(self) -> None:
        require_descriptors()
        options = self._options
        max_bytes = options.max_message_bytes
        self._sub = self._connect(
            zmq.SUB, self._pub, {zmq.RCVHWM: options.rcvhwm, zmq.MAXMSGSIZE: max_bytes, zmq.SUBSCRIBE: b""}
        )
        self._subscriber = Subscriber(
            SocketSource(self._sub.socket, self._io_loop, max_message_bytes=max_bytes),
            self._io_loop,
            partial(self._post, self._listener.on_batch),
            on_thread=self._on_thread,
            flush_interval=options.flush_interval,
            max_pending_bytes=options.max_pending_bytes,
            compression_level=options.compression_level,
        )
        max_reply_bytes = min(max_bytes, MAX_REPLY_BYTES)
        self._requests = self._connect(zmq.REQ, self._req, {zmq.MAXMSGSIZE: max_reply_bytes, **Requester.OPTIONS})
        self._requester = Requester(
            self._requests.socket,
            self._io_loop,
            partial(self._post, self._listener.on_outcome),
            max_reply_bytes=max_reply_bytes,
        )

    def _connect(self, kind: int, endpoint: str, options: Mapping[int, Any]) -> MonitoredSocket:
        socket = MonitoredSocket(self._context(), kind, endpoint, self._io_loop, options, self._on_change)
        self._sockets.append(socket)
        return socket

    def _on_change(self) -> None:
        assert self._subscriber is not None
        if not self._sub.up:
            self._subscriber.reset_counter()
        if self._requester is not None and not self._requests.up:
            self._requester.fail("the rbkit server went away before it replied; it may have been carried out")
        up = frozenset(socket.endpoint for socket in self._sockets if socket.up)
        refusals = {socket.endpoint: socket.refusals for socket in self._sockets if socket.refusals}
        self._post(self._listener.on_reached, Reach(up, refusals))
        if len(self._sockets) == 2 and all(socket.up for socket in self._sockets):
            state = State.CONNECTED
        elif self._state is State.CONNECTED:
            state = State.DISCONNECTED
        else:
            return
        if state is not self._state:
            self._state = state
            self._post(self._listener.on_state, state)
