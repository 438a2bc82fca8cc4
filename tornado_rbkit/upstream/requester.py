"""Commands through the REQ socket, one in flight."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import zmq
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream

from tornado_rbkit.deadline import Deadline
from tornado_rbkit.protocol import CommandError, check_reply


class Outcome(NamedTuple):
    """What became of a command: the bytes that answer it, and the error they stand for, if one."""

    reply: bytes
    error: CommandError | None
    seconds: float

    @property
    def answered(self) -> bool:
        """Whether the profiler replied, with something that could be passed on or not."""
        return self.error is None or self.error.reason == "invalid-reply"


class Requester:
    """One command at a time, each answered exactly once. On its loop's thread only.

    The socket is relaxed and correlated (ZMQ_REQ_RELAXED, ZMQ_REQ_CORRELATE): a command that timed out does not keep
    the next from being sent, and its late reply is let go. With ZMQ_IMMEDIATE nothing is queued for a peer that is
    not there, so that a command cannot be carried out minutes after its sender was told that it was not.
    """

    OPTIONS: ClassVar[Mapping[int, Any]] = {zmq.REQ_RELAXED: 1, zmq.REQ_CORRELATE: 1, zmq.IMMEDIATE: 1}

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        io_loop: IOLoop,
        on_outcome: Callable[[Outcome], None],
        *,
        max_reply_bytes: int,
    ) -> None:
        """Attach to a socket that has `OPTIONS`.

        Args:
            socket: a REQ, already connecting.
            io_loop: its loop.
            on_outcome: called once for each request.
            max_reply_bytes: bound on the parts of a reply together (ZMQ_MAXMSGSIZE bounds each part).
        """
        self._stream = ZMQStream(socket, io_loop)
        self._on_outcome = on_outcome
        self._max_reply_bytes = max_reply_bytes
        self._command: str | None = None
        self._sent_at = 0.0
        self._deadline: Deadline | None = None
        self._stream.on_recv(self._on_reply)

    def request(self, command: str, timeout: float) -> None:
        """Send `command`, which `parse_command` has passed; seconds until it is given up."""
        self._command = command
        self._sent_at = time.monotonic()
        try:
            # Not through the stream: its queue would keep the command for a peer that comes back.
            self._stream.socket.send(command.encode(), zmq.NOBLOCK)
        except zmq.Again:
            self.fail("the connection to the rbkit server is lost; it was not sent")
            return
        except zmq.ZMQError as error:
            self.fail(f"it was not sent ({error})")
            return
        self._deadline = Deadline(timeout, partial(self._on_timeout, timeout))
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
        command = self._command
        if command is None:
            return  # it is late, and nobody's
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
        self._on_outcome(Outcome(error.to_reply() if error else reply, error, time.monotonic() - self._sent_at))
