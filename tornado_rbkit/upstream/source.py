"""Takes published messages off a SUB socket."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

import zmq
from tornado.ioloop import IOLoop

from tornado_rbkit.frames import Buffer
from tornado_rbkit.log_throttle import LogThrottle

_log = logging.getLogger(__name__)

_COPY_LIMIT: Final = 8 * 1024  # bytes


class Source(Protocol):
    """A source of published messages for a `Subscriber`."""

    def take(self, max_bytes: int, max_messages: int) -> tuple[list[Buffer], bool]:
        """Return the messages that are ready, in order, and whether the source is then empty.

        Stop at `max_messages`, or with the message that reaches `max_bytes`.
        """

    def watch(self, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` whenever messages may be ready, until `unwatch`. Earlier messages may not trigger it."""

    def unwatch(self) -> None:
        """Stop calling `on_ready`."""


class SocketSource:
    """The messages of a SUB socket. On its loop's thread only."""

    def __init__(self, socket: zmq.Socket[bytes], io_loop: IOLoop, *, max_message_bytes: int) -> None:
        """Wrap a connected socket, which its owner must close.

        Args:
            socket: a SUB socket.
            io_loop: the socket's loop.
            max_message_bytes: the most bytes in all parts of a message together (ZMQ_MAXMSGSIZE bounds each part); a
                longer message is discarded, and counted as missed.
        """
        self._max_message_bytes = max_message_bytes
        self._throttle = LogThrottle()
        self._socket = socket
        self._io_loop = io_loop

    def take(self, max_bytes: int, max_messages: int) -> tuple[list[Buffer], bool]:
        """Receive the messages that are ready, within the two bounds."""
        receive = self._socket.recv
        payloads: list[Buffer] = []
        while max_bytes > 0 and len(payloads) < max_messages:
            try:
                frame = receive(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return payloads, True
            payload: Buffer
            if frame.more:
                joined = self._join(frame)
                if joined is None:
                    return payloads, False
                payload = joined
            elif len(frame) < _COPY_LIMIT:
                payload = frame.bytes  # a copy: keeping the frame costs more
            else:
                payload = frame.buffer  # no copy: copying would hold the GIL
            max_bytes -= len(payload)
            payloads.append(payload)
        return payloads, False

    def _join(self, frame: zmq.Frame) -> bytes | None:
        """Join the parts of a multipart message (rbkit sends none); return None if it is too long."""
        parts = [frame]
        size = len(frame)
        while frame.more:
            frame = self._socket.recv(copy=False)  # does not wait: libzmq delivers all parts together
            size += len(frame)
            if size <= self._max_message_bytes:
                parts.append(frame)
            else:
                parts.clear()
        if size <= self._max_message_bytes:
            return b"".join(part.buffer for part in parts)
        text = "discarded a published message with parts of %d bytes; allowed: at most %d (max_message_bytes)"
        self._throttle.warn(_log, "too long", text, size, self._max_message_bytes)
        return None

    def watch(self, on_ready: Callable[[], None]) -> None:
        """Watch the socket's file descriptor.

        Not through a ZMQStream: it stays registered with the loop while it does not receive, and wakes it for nothing.
        """
        self._io_loop.add_handler(self._socket, lambda socket, events: on_ready(), IOLoop.READ)

    def unwatch(self) -> None:
        """Stop watching the file descriptor."""
        self._io_loop.remove_handler(self._socket)
