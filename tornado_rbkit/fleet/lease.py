"""A bridge as the client of another bridge: the agent's end of one lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from tornado_rbkit.bridge.session import MAX_WAITING, Submit
from tornado_rbkit.errors import CommandError
from tornado_rbkit.fleet.framing import StreamSender
from tornado_rbkit.fleet.link import MAX_PAYLOAD, Link, LinkDownError
from tornado_rbkit.frames import Encoding
from tornado_rbkit.protocol import Notice
from tornado_rbkit.tasks import Tasks
from tornado_rbkit.upstream.types import Batch, CommandResult

LEASE_SECONDS: Final = 6.0
"""Seconds without a renewal after which a lease ends; bridges renew it each second."""

MAX_LEASES: Final = 4096
"""Leases of all bridges together at one agent."""


class Lease:
    """Sends one target's messages to one bridge, as fast as it grants credit. Web loop only.

    Implements `tornado_rbkit.bridge.clients.Client`.

    Attributes:
        encoding: of the messages.
        sender: the stream.
        age: seconds without a renewal while the agent was connected to NATS; maintained by `Leases`.
        waiting: number of the bridge's commands without a reply.
        viewers: number of the bridge's own clients.
    """

    def __init__(
        self,
        submit: Submit,
        link: Link,
        subject: str,
        *,
        name: str,
        max_backlog_bytes: int,
        on_closed: Callable[[Lease], None],
    ) -> None:
        """Begin a stream.

        Args:
            submit: submits a command to the target.
            link: the connection for data.
            subject: the subject of the frames.
            name: the bridge, for statistics.
            max_backlog_bytes: bytes that may wait for the bridge.
            on_closed: called when the target disconnects the bridge.
        """
        self.encoding = Encoding(framed=True)
        self.sender = StreamSender(max_backlog_bytes)
        self.age = 0.0
        self.waiting = self.viewers = 0
        self._submit = submit
        self._link = link
        self._subject = subject
        self._name = name
        self._on_closed = on_closed
        self._wake = asyncio.Event()
        self._left = False
        self._task = Tasks().start(self._send(), f"sending to {name}", lambda reason: on_closed(self))

    @property
    def outbox(self) -> Lease:
        """The figures that a bridge sums up, which this object has itself."""
        return self

    @property
    def messages_sent(self) -> int:
        """Number of messages sent completely."""
        return self.sender.messages_sent

    @property
    def messages_dropped(self) -> int:
        """Number of messages that the bridge did not get, because it was too slow or left."""
        return self.sender.backlog.dropped

    @property
    def bytes_sent(self) -> int:
        """Bytes sent."""
        return self.sender.bytes_sent

    def wake(self) -> None:
        """Send as much as the credit allows."""
        self._wake.set()

    def ask(self, command: str, expires: float, answer: Callable[[bytes], None]) -> None:
        """Submit a command of the bridge, which must not be sent after `expires` (monotonic seconds).

        Raises:
            CommandError: too many commands of the bridge are waiting.
        """
        if self.waiting >= MAX_WAITING:
            raise CommandError(
                "busy", f"{command}: {MAX_WAITING} commands are waiting; allowed: {MAX_WAITING} of one bridge"
            )
        self.waiting += 1

        def on_result(result: CommandResult) -> None:
            self.waiting -= 1
            reply = result.reply
            if len(reply) > MAX_PAYLOAD:
                text = f"{command}: the reply has {len(reply)} bytes; allowed: at most {MAX_PAYLOAD} in a fleet"
                reply = CommandError("invalid-reply", text).to_reply()
            answer(reply)

        self._submit(command, on_result, self, expires=expires)

    # Called by the bridge

    def deliver(self, batch: Batch) -> None:
        """Queue a batch; its losses show in the counters of the messages."""
        if not self._left:
            self.sender.add(batch.chunks.get(self.encoding, ()))
            self.sender.trim()
            self._wake.set()

    def notify(self, notice: Notice) -> None:
        """Send the state of the profiler's connection; the bridge finds out everything else itself."""
        if notice.name == "server" and notice.value in ("connected", "disconnected"):
            self._set_connected(notice.value == "connected")

    def await_profiler(self, timeout: float, give_up: Callable[[], None]) -> None:
        """Do nothing: the bridge has clients of its own that wait."""

    def on_profiler_connected(self) -> None:
        """Send the state of the profiler's connection."""
        self._set_connected(True)

    def close(self, code: int, reason: str) -> None:
        """End the lease; the bridge asks for another one within a second."""
        self._on_closed(self)

    def abort(self) -> None:
        """End the lease."""
        self._on_closed(self)

    def leave(self) -> None:
        """Discard everything that waits. May be called twice."""
        self._left = True
        self.sender.close()
        self._task.cancel()

    def stats(self) -> dict[str, Any]:
        """Return figures about the bridge, ready for JSON."""
        backlog = self.sender.backlog
        return {
            "remote": self._name,
            "encoding": "framed",
            "compressed": False,
            "messages_sent": self.messages_sent,
            "messages_waiting": backlog.messages,
            "messages_dropped": self.messages_dropped,
            "bytes_sent": self.bytes_sent,
            "bytes_waiting": backlog.size,
            "blocked": bool(backlog),
            "commands_waiting": self.waiting,
        }

    def _set_connected(self, connected: bool) -> None:
        if not self._left:
            self.sender.set_connected(connected)
            self._wake.set()

    async def _send(self) -> None:
        while not self._left:  # nats-py may swallow the cancellation while its buffer is full
            await self._wake.wait()
            self._wake.clear()
            while (frame := self.sender.next_frame()) is not None:
                await self._publish(frame)

    async def _publish(self, frame: bytes) -> None:
        """Publish a frame once there is a connection. If it arrives twice, the receiver ignores it."""
        while not self._left:
            await self._link.wait_until_up()
            try:
                await self._link.publish(self._subject, frame)
            except LinkDownError:
                await asyncio.sleep(0)  # the link notices it in its next turn
            else:
                return
