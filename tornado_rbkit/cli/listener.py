"""The HTTP server of the commands: bounded connections, and a listener that survives a lack of descriptors."""

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
from tornado_rbkit.log_throttle import LogThrottle

_log = logging.getLogger(__name__)

REQUEST_TIMEOUT: Final = 30.0
"""Seconds for one request, from the connection or the previous response until the client has read the response."""

MAX_HEADER_SIZE: Final = 16 * 1024
"""Bytes of a request's headers. Browsers send a host's cookies to all of its ports, so this cannot be less."""

MAX_BODY_SIZE: Final = 4 * 1024
"""Bytes of a request's body. No path takes one: a small body is answered with 405, a larger one with a bare 400."""

_PAUSE: Final = 1.0  # seconds
_AT_ONCE: Final = 128  # connections accepted per iteration of the loop, so that open connections are served too


class BoundedServer(HTTPServer):
    """An HTTP server whose connections are bounded in memory, time and number until they become WebSockets.

    Tornado's own bounds are for applications with uploads: 100 MB of body, 64 KiB of headers, and no time-out for a
    client that does not read its response. Here a request is a few kilobytes, and one deadline covers all of it.
    Beyond `max_requests` connections without a WebSocket, the oldest is closed: new ones are always accepted.
    Web loop only.
    """

    def initialize(self, application: Application, *, max_requests: int) -> None:  # type: ignore[override]
        """Serve an application whose handlers take no bodies, with at most `max_requests` connections at a time."""
        super().initialize(application, max_header_size=MAX_HEADER_SIZE, max_body_size=MAX_BODY_SIZE)
        self._max_requests = max_requests
        self._requests: dict[Any, tuple[float, Deadline]] = {}  # oldest first: its start and its deadline
        self._repeats = LogThrottle()

    def start_request(self, server_conn: Any, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Start the deadline of a request; Tornado calls this for each request, before its first byte arrives."""
        self._forget(server_conn)
        deadline = Deadline(REQUEST_TIMEOUT, server_conn.stream.close)
        self._requests[server_conn] = (time.monotonic(), deadline)
        if len(self._requests) > self._max_requests:
            oldest = next(iter(self._requests))
            self._forget(oldest)
            oldest.stream.close()
            text = "more than %d connections without a WebSocket: the oldest was closed"
            self._repeats.warn(_log, "requests", text, self._max_requests)
        return super().start_request(server_conn, request_conn)

    def on_close(self, server_conn: Any) -> None:
        """Forget a connection that was closed or became a WebSocket."""
        self._forget(server_conn)
        super().on_close(server_conn)

    def close_requests(self, age: float) -> None:
        """Close the connections whose unfinished request began more than `age` seconds ago."""
        for connection, (began, _) in list(self._requests.items()):
            if time.monotonic() - began > age:
                connection.stream.close()

    def _forget(self, server_conn: Any) -> None:
        if server_conn in self._requests:
            self._requests.pop(server_conn)[1].cancel()


class Listener:
    """Accepts connections; when descriptors run out, it logs a warning and tries again after a pause.

    Tornado's own accept handler would raise at each iteration of the loop. Web loop only.
    """

    def __init__(self, sockets: Iterable[socket.socket], server: BoundedServer) -> None:
        """Start to accept connections.

        Args:
            sockets: listening, non-blocking sockets.
            server: gets the connections. When descriptors run out, its connections without a complete request are
                closed to make room.
        """
        self._server = server
        self._repeats = LogThrottle()
        self._loop = IOLoop.current()
        self._sockets = list(sockets)
        self._pauses: dict[socket.socket, object] = {}
        for each in self._sockets:
            self._listen(each)

    def close(self) -> None:
        """Stop accepting, and close the sockets."""
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
        text = "new connections are not accepted for now: %s (ulimit -n)"
        self._repeats.warn(_log, error.errno, text, error.strerror)
