"""Commands through the REQ socket, one in flight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import zmq
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream

from tornado_rbkit.protocol import CommandError


class Outcome(NamedTuple):
    """What became of a command: the bytes that answer it, and the error they stand for, if one."""

    reply: bytes
    error: CommandError | None
    seconds: float


class Requester:
    """One command at a time, each answered exactly once. On its loop's thread only.

    The socket is relaxed and correlated (ZMQ_REQ_RELAXED, ZMQ_REQ_CORRELATE): a command that timed out does not keep
    the next from being sent, and its late reply is let go. With ZMQ_IMMEDIATE nothing is queued for a peer that is
    not there, so that a command cannot be carried out minutes after its sender was told that it was not.
    """

    OPTIONS: ClassVar[Mapping[int, Any]] = {zmq.REQ_RELAXED: 1, zmq.REQ_CORRELATE: 1, zmq.IMMEDIATE: 1}

    def __init__(self, socket: zmq.Socket[bytes], io_loop: IOLoop, on_outcome: Callable[[Outcome], None]) -> None:
        """Attach to a socket that has `OPTIONS`; `on_outcome` is called once for each request."""
        self._stream = ZMQStream(socket, io_loop)
        self._io_loop = io_loop
        self._on_outcome = on_outcome
        self._command: str | None = None
        self._sent_at = 0.0
        self._timer: object | None = None
        self._stream.on_recv(self._on_reply)

    def request(self, command: str, timeout: float) -> None:
        """Send `command`, which `parse_command` has passed; seconds until it is given up."""
        self._command = command
        self._sent_at = self._io_loop.time()
        try:
            # Not through the stream: its queue would keep the command for a peer that comes back.
            self._stream.socket.send(command.encode(), zmq.NOBLOCK)
        except zmq.Again:
            self.fail("the connection to the rbkit server is lost; it was not sent")
            return
        self._timer = self._io_loop.call_later(timeout, self._on_timeout, timeout)
        # Sending may have used up the edge that would announce the reply; this looks again.
        self._stream.on_recv(self._on_reply)

    def fail(self, text: str) -> None:
        """End the command in flight, if there is one, as unavailable."""
        if self._command is not None:
            self._end(CommandError("unavailable", f"{self._command}: {text}"))

    def stop(self) -> None:
        """Fail what is in flight, and receive nothing more."""
        self.fail("the bridge has closed the connection")
        self._stream.stop_on_recv()

    def close(self) -> None:
        """Close the socket, a turn of the loop after `stop`: the stream may have put something off until then."""
        self._stream.close(linger=0)

    def _on_reply(self, parts: list[bytes]) -> None:
        if self._command is not None:  # else it is late, and nobody's
            self._end(None, b"".join(parts))

    def _on_timeout(self, timeout: float) -> None:
        text = f"no reply to {self._command} within {timeout:g} s; it may still be carried out (`command_timeouts`)"
        self._end(CommandError("timeout", text))

    def _end(self, error: CommandError | None, reply: bytes = b"") -> None:
        if self._timer is not None:
            self._io_loop.remove_timeout(self._timer)
        self._command = self._timer = None
        self._on_outcome(Outcome(error.to_reply() if error else reply, error, self._io_loop.time() - self._sent_at))
