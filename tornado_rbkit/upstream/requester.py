"""Sends commands through the REQ socket, one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import zmq
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream

from tornado_rbkit.deadline import Deadline
from tornado_rbkit.protocol import CommandError, check_reply
from tornado_rbkit.upstream.types import CommandResult


class Requester:
    """Sends one command at a time and reports exactly one result for each.

    On its loop's thread only, except the constructor.

    The socket is relaxed and correlated (ZMQ_REQ_RELAXED, ZMQ_REQ_CORRELATE): the next command can be sent after a
    time-out, and a late reply is discarded. With ZMQ_IMMEDIATE nothing is queued for an absent peer, so a command
    cannot be carried out minutes after it was reported as failed.
    """

    OPTIONS: ClassVar[Mapping[int, Any]] = {zmq.REQ_RELAXED: 1, zmq.REQ_CORRELATE: 1, zmq.IMMEDIATE: 1}

    def __init__(self, io_loop: IOLoop, on_result: Callable[[CommandResult], None], *, max_reply_bytes: int) -> None:
        """Create a requester without a socket.

        Args:
            io_loop: the socket's loop.
            on_result: called once for each request.
            max_reply_bytes: the most bytes in all parts of a reply together (ZMQ_MAXMSGSIZE bounds each part).
        """
        self._io_loop = io_loop
        self._stream: ZMQStream | None = None
        self._on_result = on_result
        self._max_reply_bytes = max_reply_bytes
        self._command: str | None = None
        self._sent_at = 0.0
        self._deadline: Deadline | None = None

    def open(self, socket: zmq.Socket[bytes]) -> None:
        """Attach to a REQ socket that has `OPTIONS` and is connecting."""
        self._stream = ZMQStream(socket, self._io_loop)
        self._stream.on_recv(self._on_reply)

    def request(self, command: str, timeout: float) -> None:
        """Send `command`, which `parse_command` has accepted; it fails after `timeout` seconds without a reply."""
        self._command = command
        self._sent_at = time.monotonic()
        if self._stream is None:
            self.fail("not sent, because the connection is not open")
            return
        try:
            # Not through the stream: it would queue the command until the peer is back.
            self._stream.socket.send(command.encode(), zmq.NOBLOCK)
        except zmq.Again:
            self.fail("not sent, because the connection to the rbkit server was lost")
            return
        except zmq.ZMQError as error:
            self.fail(f"not sent ({error})")
            return
        self._deadline = Deadline(timeout, partial(self._on_timeout, timeout))
        # ZMQ_FD is edge-triggered, and sending may have consumed the edge that announces the reply; on_recv checks.
        self._stream.on_recv(self._on_reply)

    def fail(self, text: str) -> None:
        """End the command in flight, if there is one, with the error ``unavailable``."""
        if self._command is not None:
            self._end(CommandError("unavailable", f"{self._command}: {text}"))

    def stop(self) -> None:
        """Fail the command in flight, if there is one, and stop receiving."""
        self.fail("the bridge has closed the connection")
        if self._stream is not None:
            self._stream.stop_on_recv()

    def close(self) -> None:
        """Close the socket. Call it a turn of the loop after `stop`: the stream may have deferred work until then."""
        if self._stream is not None:
            self._stream.close(linger=0)

    def _on_reply(self, parts: list[bytes]) -> None:
        command = self._command
        if command is None:
            return  # a late reply
        try:
            size = sum(map(len, parts))
            if size > self._max_reply_bytes:
                text = f"the reply has {size} bytes; allowed: at most {self._max_reply_bytes}"
                raise CommandError("invalid-reply", f"{command}: {text}")
            reply = b"".join(parts)
            check_reply(command, reply)
        except CommandError as error:
            self._end(error)
        else:
            self._end(None, reply)

    def _on_timeout(self, timeout: float) -> None:
        text = f"no reply to {self._command} within {timeout:g} s; it may still be carried out (`command_timeouts`)"
        self._end(CommandError("timeout", text))

    def _end(self, error: CommandError | None, reply: bytes = b"") -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._command = self._deadline = None
        self._on_result(CommandResult(error.to_reply() if error else reply, error, time.monotonic() - self._sent_at))
