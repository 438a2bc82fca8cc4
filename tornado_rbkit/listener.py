"""Accepting connections, also where there are no file descriptors left for them."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream

from tornado_rbkit.repeats import Repeats, times

_log = logging.getLogger(__name__)

_PAUSE: Final = 1.0  # seconds
_AT_ONCE: Final = 128  # connections; then it is the turn of those that are there


class Listener:
    """Accepts connections; where there are no descriptors left, it says so and waits until there are.

    Tornado's own accept handler raises then, at each turn of the loop. The web loop only.
    """

    def __init__(self, sockets: Iterable[socket.socket], handle: Callable[[IOStream, Any], object]) -> None:
        """Begin to accept.

        Args:
            sockets: they listen, and do not block.
            handle: is given the stream and the address of each connection, as `TCPServer.handle_stream` is.
        """
        self._handle = handle
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
            self._handle(IOStream(connection), address)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        self._loop.remove_handler(listening)
        self._pauses[listening] = self._loop.call_later(_PAUSE, self._listen, listening)
        count = self._repeats.add(error.errno)
        if count:
            _log.warning("connections have to wait: %s (ulimit -n)%s", error.strerror, times(count))
