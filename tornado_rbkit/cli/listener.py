"""The HTTP server of the commands: bounds on what a connection may take, and accepting without free descriptors."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Iterable
from typing import Any, Final

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.web import Application

from tornado_rbkit.deadline import Deadline
from tornado_rbkit.log_throttle import Repeats, times

_log = logging.getLogger(__name__)

REQUEST_TIMEOUT: Final = 30.0
"""Seconds for one request, from the connection or the previous response until the client has taken the response."""

MAX_HEADER_SIZE: Final = 16 * 1024
"""Bytes of a request's headers. Browsers send a host's cookies to all of its ports, so it is not less."""

MAX_BODY_SIZE: Final = 4 * 1024
"""Bytes. No path takes a body; a small one still gets a 405 that says so, a larger one a bare 400."""

_PAUSE: Final = 1.0  # seconds
_AT_ONCE: Final = 128  # connections; then it is the turn of those that are there


class BoundedServer(HTTPServer):
    """An HTTP server whose connections are bounded in memory, time and number until they are WebSockets.

    Tornado's own bounds are for applications that take uploads: 100 MB of body, 64 KiB of headers, and no time-out for
    a client that does not take its response. Here a request is a few kilobytes, and one deadline covers all of it.
    Of more than `max_requests` connections without a WebSocket, the oldest is closed: those that come can always ask.
    The web loop only.
    """

    def initialize(self, application: Application, *, max_requests: int) -> None:  # type: ignore[override]
        """Serve an application whose handlers take no bodies, on up to `max_requests` connections at a time."""
        super().initialize(application, max_header_size=MAX_HEADER_SIZE, max_body_size=MAX_BODY_SIZE)
        self._max_requests = max_requests
        self._requests: dict[Any, tuple[float, Deadline]] = {}  # the oldest first: when it began, and its end
        self._repeats = Repeats()

    def start_request(self, server_conn: Any, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Begin to wait for a request; Tornado calls this for each, before its first byte is there."""
        self._forget(server_conn)
        deadline = Deadline(REQUEST_TIMEOUT, server_conn.stream.close)
        self._requests[server_conn] = (time.monotonic(), deadline)
        if len(self._requests) > self._max_requests:
            oldest = next(iter(self._requests))
            self._forget(oldest)
            oldest.stream.close()
            count = self._repeats.add("requests")
            if count:
                _log.warning(
                    "more than %d connections without a WebSocket: the oldest was closed%s",
                    self._max_requests,
                    times(count),
                )
        return super().start_request(server_conn, request_conn)

    def on_close(self, server_conn: Any) -> None:
        """Forget a connection that was closed, or became a WebSocket."""
        self._forget(server_conn)
        super().on_close(server_conn)

    def close_requests(self, age: float) -> None:
        """Close the connections whose request began more than `age` seconds ago and is not over."""
        for connection, (began, _) in list(self._requests.items()):
            if time.monotonic() - began > age:
                connection.stream.close()

    def _forget(self, server_conn: Any) -> None:
        if server_conn in self._requests:
            self._requests.pop(server_conn)[1].cancel()


class Listener:
    """Accepts connections; where there are no descriptors left, it says so and waits until there are.

    Tornado's own accept handler raises then, at each turn of the loop. The web loop only.
    """

    def __init__(self, sockets: Iterable[socket.socket], server: BoundedServer) -> None:
        """Begin to accept.

        Args:
            sockets: they listen, and do not block.
            server: gets the connections. Those that have been waiting for a request make room where there are no
                descriptors left.
        """
        self._server = server
        self._repeats = Repeats()
        self._loop = IOLoop.current()
        self._sockets = list(sockets)
        self._pauses: dict[socket.socket, object] = {}
        for each in self._sockets:
            self._listen(each)

    def close(self) -> None:
        """Accept no more, and close the sockets."""
        for each in self._sockets:
            if each in self._pauses:
                self._loop.remove_timeout(self._pauses.pop(each))
            else:
                self._loop.remove_handler(each)
            each.close()

    def _listen(self, listening: socket.socket) -> None:
        self._pauses.pop(listening, None)
        self._loop.add_handler(listening, self._accept, IOLoop.READ)

    def _accept(self, listening: socket.socket, events: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, address = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause(listening, error)
                    return
                continue  # it was closed before it was accepted
            self._server.handle_stream(IOStream(connection), address)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        self._server.close_requests(_PAUSE)
        self._loop.remove_handler(listening)
        self._pauses[listening] = self._loop.call_later(_PAUSE, self._listen, listening)
        count = self._repeats.add(error.errno)
        if count:
            _log.warning("connections have to wait: %s (ulimit -n)%s", error.strerror, times(count))
