"""A connection to one profiler over ZMQ: its SUB and REQ sockets, and the state of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop

from tornado_rbkit.endpoints import check_endpoint, default_endpoint, require_descriptors
from tornado_rbkit.frames import Encoding
from tornado_rbkit.protocol import DEFAULT_PUB_PORT, DEFAULT_REQ_PORT
from tornado_rbkit.upstream.monitored_socket import MonitoredSocket
from tornado_rbkit.upstream.options import UpstreamOptions
from tornado_rbkit.upstream.requester import Requester
from tornado_rbkit.upstream.source import SocketSource
from tornado_rbkit.upstream.subscriber import Subscriber
from tornado_rbkit.upstream.types import Batch, ConnectionState, TransportListener

MAX_REPLY_BYTES: Final = 16 * 1024 * 1024
"""Bytes. Replies are never dropped, and 32 may wait for one client. rbkit's longest reply is a handshake."""


def failure_reason(error: Exception) -> str:
    """Return the text that explains why a connection cannot be opened, with the type of an unexpected exception."""
    return str(error) if isinstance(error, OSError | zmq.ZMQError | RuntimeError) else repr(error)


@dataclass(frozen=True)
class ZmqEndpoint:
    """The ZMQ endpoints of a profiler. Implements `tornado_rbkit.upstream.types.Endpoint`.

    Attributes:
        pub: the endpoint where it publishes.
        req: the endpoint where it takes commands.

    Raises:
        EndpointError: `pub` or `req` cannot be connected to.
    """

    pub: str
    req: str

    def __post_init__(self) -> None:
        check_endpoint(self.pub, "pub")
        check_endpoint(self.req, "req")

    @classmethod
    def or_default(cls, pub: str | None, req: str | None) -> ZmqEndpoint:
        """Return the endpoint with None replaced by rbkit's default ports, or by the ports in the environment."""
        return cls(
            default_endpoint("RBKIT_PUB_PORT", DEFAULT_PUB_PORT) if pub is None else pub,
            default_endpoint("RBKIT_REQ_PORT", DEFAULT_REQ_PORT) if req is None else req,
        )

    @property
    def parts(self) -> tuple[str, str]:
        """Both endpoints."""
        return self.pub, self.req

    @property
    def label(self) -> str:
        """The endpoint for commands."""
        return self.req

    def transport(
        self,
        io_loop: IOLoop,
        listener: TransportListener,
        options: UpstreamOptions,
        *,
        on_thread: bool,
        context: Callable[[], zmq.Context[zmq.Socket[bytes]]],
    ) -> ProfilerSockets:
        """Return new sockets, which are not open yet."""
        return ProfilerSockets(self, io_loop, listener, options, on_thread=on_thread, context=context)


class ProfilerSockets:
    """The sockets of one profiler, from `open` to `close`. Implements `tornado_rbkit.upstream.types.Transport`.

    They work on any IOLoop. The constructor may be called on any thread; everything else, including the callbacks,
    runs on the loop's thread.

    Attributes:
        subscriber: receives published messages.
        requester: sends commands.
    """

    def __init__(
        self,
        endpoint: ZmqEndpoint,
        io_loop: IOLoop,
        listener: TransportListener,
        options: UpstreamOptions,
        *,
        on_thread: bool,
        context: Callable[[], zmq.Context[zmq.Socket[bytes]]],
    ) -> None:
        """Describe a connection; see `Endpoint.transport` for the arguments."""
        self._endpoint = endpoint
        self._io_loop = io_loop
        self._context = context
        self._options = options
        self._on_batch = listener.on_batch
        self._on_connection = listener.on_connection
        self._on_failure = listener.on_failure
        self._sockets: list[MonitoredSocket] = []
        self._max_reply_bytes = min(options.max_message_bytes, MAX_REPLY_BYTES)
        self.subscriber = Subscriber(
            io_loop,
            self._deliver,
            on_thread=on_thread,
            flush_interval=options.flush_interval,
            rcvhwm=options.rcvhwm,
            max_pending_bytes=options.max_pending_bytes,
            compression_level=options.compression_level,
        )
        self.requester = Requester(io_loop, listener.on_result, max_reply_bytes=self._max_reply_bytes)

    def open(self) -> None:
        """Create the sockets and begin to connect."""
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - whatever it is, the clients must get the reason
            self._on_failure(failure_reason(error))

    def set_encodings(self, encodings: frozenset[Encoding], clients: int, generation: int) -> None:
        """Set the encodings of the batches."""
        self.subscriber.set_encodings(encodings, clients, generation)

    def request(self, command: str, timeout: float) -> None:
        """Send a command."""
        self.requester.request(command, timeout)

    def stop(self) -> None:
        """Stop receiving, and fail the command in flight."""
        self.subscriber.close()
        self.requester.stop()
        for socket in self._sockets:
            socket.stop()

    def close(self) -> None:
        """Close the sockets. Call it a turn of the loop after `stop`."""
        self.requester.close()
        for socket in self._sockets:
            socket.close()

    def _open(self) -> None:
        require_descriptors()
        max_bytes = self._options.max_message_bytes
        sub = self._connect(
            zmq.SUB,
            self._endpoint.pub,
            {zmq.RCVHWM: self._options.rcvhwm, zmq.MAXMSGSIZE: max_bytes, zmq.SUBSCRIBE: b""},
        )
        self.subscriber.open(SocketSource(sub, self._io_loop, max_message_bytes=max_bytes))
        req = self._connect(zmq.REQ, self._endpoint.req, {zmq.MAXMSGSIZE: self._max_reply_bytes, **Requester.OPTIONS})
        self.requester.open(req)

    def _connect(self, kind: int, endpoint: str, options: Mapping[int, Any]) -> zmq.Socket[bytes]:
        monitored = MonitoredSocket(self._context(), kind, endpoint, self._io_loop, options, self._on_change)
        self._sockets.append(monitored)
        return monitored.socket

    def _deliver(self, batch: Batch) -> None:
        """Deliver a batch, but report before it that the connection to the process before was lost.

        A slow loop takes messages of both processes before it comes to the monitors' events. They are handled in turn,
        as the loop does, so that both sockets are reported as connected once.
        """
        while batch.restarted and sum([socket.handle_event() for socket in self._sockets]):
            pass
        self._on_batch(batch)

    def _on_change(self) -> None:
        sub, *others = self._sockets
        if not sub.up:
            self.subscriber.reset_counter()
        if not all(req.up for req in others):
            self.requester.fail(
                "the rbkit server disconnected before it replied; the command may have been carried out"
            )
        up = {socket.endpoint for socket in self._sockets if socket.up}
        missing = tuple(endpoint for endpoint in self._endpoint.parts if endpoint not in up)
        refusals = {socket.endpoint: socket.refusals for socket in self._sockets if socket.refusals}
        self._on_connection(ConnectionState(missing, refusals))
