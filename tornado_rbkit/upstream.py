"""The connection to one profiler: a SUB and a REQ socket, and whether both have their peer."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import zmq
from tornado.ioloop import IOLoop

from tornado_rbkit.frames import Form
from tornado_rbkit.link import Link
from tornado_rbkit.requester import Outcome, Requester
from tornado_rbkit.subscriber import Batch, SocketSource, Subscriber

MAX_REPLY_BYTES: Final = 16 * 1024 * 1024
"""A reply is never dropped, and 32 of them may wait for one client. rbkit's longest is a handshake."""


class State(enum.Enum):
    """Of a bridge's connection to its profiler."""

    IDLE = "idle"  # nobody is watching, so there are no sockets
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"  # it was there, and is gone


class Reach(NamedTuple):
    """Which endpoints are connected, and how many connections in a row those that are not rbkit's have cost."""

    up: frozenset[str]
    refusals: Mapping[str, int]


class UpstreamListener(Protocol):
    """Who hears of it, on the web server's loop."""

    def on_batch(self, batch: Batch) -> None: ...

    def on_outcome(self, outcome: Outcome) -> None: ...

    def on_reached(self, reach: Reach) -> None: ...

    def on_state(self, state: State) -> None: ...

    def on_failure(self, reason: str) -> None: ...


class Upstream:
    """The sockets of one profiler, from `open` to `close`.

    It is given an IOLoop and does not care whose it is. It may be constructed anywhere; all else happens on that
    loop's thread, and `post` is the only way by which anything leaves it.
    """

    def __init__(
        self,
        io_loop: IOLoop,
        pub: str,
        req: str,
        listener: UpstreamListener,
        post: Callable[[Callable[[Any], None], Any], None],
        *,
        rcvhwm: int,
        max_message_bytes: int,
        on_thread: bool,
        flush_interval: float,
        max_pending_bytes: int,
        compression_level: int,
    ) -> None:
        """Describe a connection.

        Args:
            io_loop: where it will live.
            pub: where the profiler publishes.
            req: where it takes commands.
            listener: who is told.
            post: calls a method of the listener, with its argument, on the listener's own loop.
            rcvhwm: messages that may wait in the SUB socket (ZMQ_RCVHWM).
            max_message_bytes: a longer message ends the connection (ZMQ_MAXMSGSIZE).
            on_thread: see `Subscriber`.
            flush_interval: see `Subscriber`.
            max_pending_bytes: see `Subscriber`.
            compression_level: see `Subscriber`.
        """
        self._io_loop = io_loop
        self._pub = pub
        self._req = req
        self._listener = listener
        self._post = post
        self._sub_options: dict[int, Any] = {zmq.RCVHWM: rcvhwm, zmq.MAXMSGSIZE: max_message_bytes, zmq.SUBSCRIBE: b""}
        self._max_reply_bytes = min(max_message_bytes, MAX_REPLY_BYTES)
        self._req_options: dict[int, Any] = {zmq.MAXMSGSIZE: self._max_reply_bytes, **Requester.OPTIONS}
        self._on_thread = on_thread
        self._flush_interval = flush_interval
        self._max_pending_bytes = max_pending_bytes
        self._compression_level = compression_level
        self._state = State.CONNECTING
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._links: list[Link] = []
        self._subscriber: Subscriber | None = None
        self._requester: Requester | None = None

    def open(self) -> None:
        """Make the sockets and begin to connect; what prevents it is told to the listener, which closes."""
        try:
            self._open()
        except (zmq.ZMQError, OSError) as error:
            self._post(self._listener.on_failure, str(error))

    def set_audience(self, forms: frozenset[Form], clients: int, generation: int) -> None:
        """See `Subscriber.set_audience`."""
        if self._subscriber is not None:
            self._subscriber.set_audience(forms, clients, generation)

    def request(self, command: str, timeout: float) -> None:
        """See `Requester.request`."""
        if self._requester is not None:
            self._requester.request(command, timeout)

    def stop(self) -> None:
        """Receive nothing more, and end the command in flight."""
        if self._subscriber is not None:
            self._subscriber.close()
        if self._requester is not None:
            self._requester.stop()
        for link in self._links:
            link.stop()

    def close(self) -> None:
        """Close the sockets and end their context, after `stop`."""
        if self._requester is not None:
            self._requester.close()
        for link in self._links:
            link.close()
        if self._context is not None:
            self._context.term()

    def _open(self) -> None:
        self._context = zmq.Context()
        self._sub = self._link(zmq.SUB, self._pub, self._sub_options)
        self._subscriber = Subscriber(
            SocketSource(self._sub.socket, self._io_loop),
            self._io_loop,
            partial(self._post, self._listener.on_batch),
            on_thread=self._on_thread,
            flush_interval=self._flush_interval,
            max_pending_bytes=self._max_pending_bytes,
            compression_level=self._compression_level,
        )
        self._requests = self._link(zmq.REQ, self._req, self._req_options)
        self._requester = Requester(
            self._requests.socket,
            self._io_loop,
            partial(self._post, self._listener.on_outcome),
            max_reply_bytes=self._max_reply_bytes,
        )

    def _link(self, kind: int, endpoint: str, options: Mapping[int, Any]) -> Link:
        assert self._context is not None
        link = Link(self._context, kind, endpoint, self._io_loop, options, self._on_change)
        self._links.append(link)
        return link

    def _on_change(self) -> None:
        assert self._subscriber is not None
        if not self._sub.up:
            self._subscriber.reset_counter()
        if self._requester is not None and not self._requests.up:
            self._requester.fail("the rbkit server went away before it replied; it may have been carried out")
        up = frozenset(link.endpoint for link in self._links if link.up)
        refusals = {link.endpoint: link.refusals for link in self._links if link.refusals}
        self._post(self._listener.on_reached, Reach(up, refusals))
        if len(self._links) == 2 and all(link.up for link in self._links):
            state = State.CONNECTED
        elif self._state is State.CONNECTED:
            state = State.DISCONNECTED
        else:
            return
        if state is not self._state:
            self._state = state
            self._post(self._listener.on_state, state)
