"""The SUB and the REQ socket of one profiler, and the state of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop

from tornado_rbkit.endpoints import require_descriptors
from tornado_rbkit.upstream.monitored_socket import MonitoredSocket
from tornado_rbkit.upstream.options import UpstreamOptions
from tornado_rbkit.upstream.requester import Requester
from tornado_rbkit.upstream.source import SocketSource
from tornado_rbkit.upstream.subscriber import Subscriber
from tornado_rbkit.upstream.types import Batch, CommandResult, ConnectionState

MAX_REPLY_BYTES: Final = 16 * 1024 * 1024
"""Bytes. Replies are never dropped, and 32 may wait for one client. rbkit's longest reply is a handshake."""


def failure_reason(error: Exception) -> str:
    """Return the text that explains why a connection cannot be opened, with the type of an unexpected exception."""
    return str(error) if isinstance(error, OSError | zmq.ZMQError | RuntimeError) else repr(error)


class ProfilerSockets:
    """The sockets of one profiler, from `open` to `close`.

    They work on any IOLoop. The constructor may be called on any thread; everything else, including the callbacks,
    runs on the loop's thread.

    Attributes:
        subscriber: receives published messages.
        requester: sends commands.
    """

    def __init__(
        self,
        io_loop: IOLoop,
        pub: str,
        req: str,
        context: Callable[[], zmq.Context[zmq.Socket[bytes]]],
        options: UpstreamOptions,
        *,
        on_thread: bool,
        on_batch: Callable[[Batch], None],
        on_result: Callable[[CommandResult], None],
        on_connection: Callable[[ConnectionState], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """Describe a connection.

        Args:
            io_loop: the loop of the sockets.
            pub: the endpoint where the profiler publishes.
            req: the endpoint where it takes commands.
            context: returns the ZMQ context for the sockets, which must outlive them.
            options: the bridge's options; its `pub` and `req` are not used.
            on_thread: whether `io_loop` is not the clients' loop.
            on_batch: passes a batch to the clients; must not block, raise or call back.
            on_result: called once for each request.
            on_connection: called with the new state after each change of a socket's connection.
            on_failure: called with the reason if `open` fails; the owner must then call `stop` and `close`.
        """
        self._io_loop = io_loop
        self._pub = pub
        self._req = req
        self._context = context
        self._options = options
        self._on_connection = on_connection
        self._on_failure = on_failure
        self._sockets: list[MonitoredSocket] = []
        self._max_reply_bytes = min(options.max_message_bytes, MAX_REPLY_BYTES)
        self.subscriber = Subscriber(
            io_loop,
            on_batch,
            on_thread=on_thread,
            flush_interval=options.flush_interval,
            rcvhwm=options.rcvhwm,
            max_pending_bytes=options.max_pending_bytes,
            compression_level=options.compression_level,
        )
        self.requester = Requester(io_loop, on_result, max_reply_bytes=self._max_reply_bytes)

    def open(self) -> None:
        """Create the sockets and begin to connect."""
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - whatever it is, the clients must get the reason
            self._on_failure(failure_reason(error))

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
            self._pub,
            {zmq.RCVHWM: self._options.rcvhwm, zmq.MAXMSGSIZE: max_bytes, zmq.SUBSCRIBE: b""},
        )
        self.subscriber.open(SocketSource(sub, self._io_loop, max_message_bytes=max_bytes))
        req = self._connect(zmq.REQ, self._req, {zmq.MAXMSGSIZE: self._max_reply_bytes, **Requester.OPTIONS})
        self.requester.open(req)

    def _connect(self, kind: int, endpoint: str, options: Mapping[int, Any]) -> zmq.Socket[bytes]:
        monitored = MonitoredSocket(self._context(), kind, endpoint, self._io_loop, options, self._on_change)
        self._sockets.append(monitored)
        return monitored.socket

    def _on_change(self) -> None:
        sub, *others = self._sockets
        if not sub.up:
            self.subscriber.reset_counter()
        if not all(req.up for req in others):
            self.requester.fail(
                "the rbkit server disconnected before it replied; the command may have been carried out"
            )
        up = {socket.endpoint for socket in self._sockets if socket.up}
        missing = tuple(endpoint for endpoint in (self._pub, self._req) if endpoint not in up)
        refusals = {socket.endpoint: socket.refusals for socket in self._sockets if socket.refusals}
        self._on_connection(ConnectionState(missing, refusals))
