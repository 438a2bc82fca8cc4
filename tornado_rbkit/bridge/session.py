"""Per-client state: queued commands, pending replies and the outbox."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from tornado.iostream import IOStream
from tornado.web import RequestHandler

from tornado_rbkit.bridge.outbox import Outbox
from tornado_rbkit.deadline import Deadline
from tornado_rbkit.frames import Encoding, encode_notice, encode_reply
from tornado_rbkit.protocol import (
    CLIENT_COUNT,
    CLOSE_POLICY,
    DROPPED,
    NOT_AUTHORIZED,
    TOO_SLOW,
    VIEW_COMMAND,
    CommandError,
    Notice,
)
from tornado_rbkit.upstream.types import Batch, CommandResult

_log = logging.getLogger(__name__)

MAX_WAITING: Final = 32
"""Waiting commands of one client."""

MAX_PENDING_REPLIES: Final = 16384
"""Pending replies, past which no more is read from the client: it sends faster than it is answered or reads."""

MAX_PENDING_REPLY_BYTES: Final = 1024 * 1024
"""Bytes of ready replies, past which no more is read from the client."""

MAX_ESCAPED_REPLY: Final = 256 * 1024
"""Bytes of a reply before it is escaped, which takes the web loop 40 ms per MiB."""


class CommandRules(Protocol):
    """The rules for commands where a client is mounted; implemented by `tornado_rbkit.Access`."""

    @property
    def authorize(self) -> object:
        """None if every command that `parse` returns is allowed."""

    def parse(self, message: str | bytes) -> str:
        """Return the command in a client's message; raise `CommandError` if it may not be sent."""

    async def refusal(self, handler: RequestHandler, command: str) -> CommandError | None:
        """Return the reason why a command is refused, None if it is allowed. Raise only `asyncio.CancelledError`."""


class Submit(Protocol):
    """Submits a command for a client: `CommandQueue.submit`, which `Bridge.add` passes on."""

    def __call__(
        self, name: str, answer: Callable[[CommandResult], None], owner: object, *, expires: float = math.inf
    ) -> None: ...


@dataclass(slots=True, eq=False)
class _PendingReply:
    """The place of one reply in the order of the client's commands."""

    reply: bytes | None = None


class Session:
    """Per-client state: queued commands, pending replies and the outbox. Web loop only.

    Attributes:
        encoding: the client's encoding.
        outbox: the client's send queue.
        waiting: number of its commands without a reply.
    """

    def __init__(
        self,
        handler: RequestHandler,
        close: Callable[[int, str], None],
        stream: IOStream,
        encoding: Encoding,
        access: CommandRules,
        submit: Submit,
        *,
        max_backlog_bytes: int,
        stall_timeout: float,
    ) -> None:
        """Begin a session on an open WebSocket.

        Args:
            handler: for `CommandRules.refusal`.
            close: closes the WebSocket with a code and a reason; must do nothing if it is closed.
            stream: the WebSocket's stream.
            encoding: the client's encoding.
            access: the rules for the client's commands.
            submit: submits a command; its callback must be called exactly once.
            max_backlog_bytes: bytes of profiling data that may wait.
            stall_timeout: seconds within which the client must accept some of the data that waits.
        """
        self.encoding = encoding
        self.outbox = Outbox(
            stream,
            max_backlog_bytes=max_backlog_bytes,
            stall_timeout=stall_timeout,
            on_stalled=partial(self.close, CLOSE_POLICY, f"{TOO_SLOW} for {stall_timeout:g} s (stall_timeout)"),
            on_caught_up=lambda count: self.notify(Notice(DROPPED, str(count))),
        )
        self.waiting = 0
        self._handler = handler
        self._close = close
        self._stream = stream
        self._access = access
        self._submit = submit
        self._pending: deque[_PendingReply] = deque()
        self._ready_bytes = 0  # of replies that wait for replies to older commands
        self._room: asyncio.Event = asyncio.Event()
        self._unauthorized: deque[tuple[_PendingReply, str]] = deque()
        self._authorizing: asyncio.Task[None] | None = None
        self._connect_deadline: Deadline | None = None
        self._left = False

    @property
    def remote(self) -> str | None:
        """The client's address."""
        return self._handler.request.remote_ip

    def ask(self, message: str | bytes) -> Awaitable[None] | None:
        """Handle a command from the client; its reply, or an error instead, is sent through the outbox.

        Returns:
            None, or an awaitable to await before the next message is read, if too many replies are pending.
        """
        if self._left:
            return None
        pending = _PendingReply()
        self._pending.append(pending)
        try:
            command = self._access.parse(message)
            if self.waiting >= MAX_WAITING:
                raise CommandError(
                    "busy", f"{command}: {MAX_WAITING} commands are waiting; allowed: {MAX_WAITING} of one client"
                )
        except CommandError as error:
            self._answer(pending, error.to_reply())
        else:
            self.waiting += 1
            self._authorize(pending, command)
        outbox = self.outbox
        if (
            self._has_too_many_pending
            or outbox.replies_waiting >= MAX_PENDING_REPLIES
            or outbox.reply_bytes >= MAX_PENDING_REPLY_BYTES
        ):
            return self._until_there_is_room()
        return None

    def await_profiler(self, timeout: float, give_up: Callable[[], None]) -> None:
        """Call `give_up` after `timeout` seconds, unless `on_profiler_connected` is called before."""
        self._connect_deadline = Deadline(timeout, give_up)

    def on_profiler_connected(self) -> None:
        """Stop waiting for the profiler."""
        if self._connect_deadline is not None:
            self._connect_deadline.cancel()
            self._connect_deadline = None

    def deliver(self, batch: Batch) -> None:
        """Send a batch in the client's encoding, and count its missed messages."""
        if batch.missed:
            self.outbox.add_missed(batch.missed)
        self.outbox.send_data(batch.chunks.get(self.encoding, ()))

    def notify(self, notice: Notice) -> None:
        """Send a notice, replacing a waiting one of its kind. Escaped clients are only sent ``client_count``."""
        if not self.encoding.escaped or notice.name == CLIENT_COUNT:
            chunk = encode_notice(notice.to_bytes(), self.encoding)
            self.outbox.send_notice(notice.kind, chunk, keeps_place=notice.name == CLIENT_COUNT)

    def close(self, code: int, reason: str) -> None:
        """Close the WebSocket and write nothing more, not even the rest of a message being written."""
        if not self._left:  # otherwise it is closed already, with an earlier reason
            self.leave()
            self._close(code, reason)

    def abort(self) -> None:
        """Close the connection without waiting for the client."""
        self.leave()
        self._stream.close()

    def leave(self) -> None:
        """Discard everything that waits: the WebSocket is closed, or about to be. May be called twice."""
        self._left = True
        self.on_profiler_connected()
        self._pending.clear()
        self._ready_bytes = 0
        self._unauthorized.clear()
        self._room.set()
        self.outbox.close()
        if self._authorizing is not None:
            self._authorizing.cancel()

    def stats(self) -> dict[str, Any]:
        """Return figures about this client, ready for JSON."""
        outbox = self.outbox
        return {
            "remote": self.remote,
            "encoding": "escaped" if self.encoding.escaped else "binary",
            "compressed": self.encoding.deflate,
            "messages_sent": outbox.messages_sent,
            "messages_waiting": outbox.messages_waiting,
            "messages_dropped": outbox.messages_dropped,
            "bytes_sent": outbox.bytes_sent,
            "bytes_waiting": outbox.bytes_waiting + self._ready_bytes,
            "blocked": outbox.blocked,
            "commands_waiting": self.waiting,
        }

    def _authorize(self, pending: _PendingReply, command: str) -> None:
        """Submit a command once it is allowed, after the client's earlier commands."""
        if self._access.authorize is None:
            self._submit_for(pending, command)
        else:
            self._unauthorized.append((pending, command))
            self._start_authorizing()

    def _start_authorizing(self) -> None:
        """Start a task that authorizes waiting commands, unless one runs; its end always calls `_on_authorized`."""
        if self._unauthorized and self._authorizing is None:
            self._authorizing = asyncio.create_task(self._authorize_in_turn())
            self._authorizing.add_done_callback(self._on_authorized)

    async def _authorize_in_turn(self) -> None:
        while self._unauthorized:
            pending, command = self._unauthorized[0]
            refusal = await self._access.refusal(self._handler, command)
            if self._left:
                return
            if refusal is None:
                self._submit_for(pending, command)
            else:
                self._reply_once(pending, refusal.to_reply())
            if self._left:
                return
            self._unauthorized.popleft()
            if refusal is not None and command == VIEW_COMMAND:
                self.close(CLOSE_POLICY, f"{NOT_AUTHORIZED} any more (authorize)")
                return

    def _on_authorized(self, task: asyncio.Task[None]) -> None:
        """Refuse the waiting commands if the task failed; start another for commands that arrived since it ended."""
        self._authorizing = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("calling `authorize` failed; the commands that wait for it are refused", exc_info=error)
        if task.cancelled() or error is not None:
            unauthorized, self._unauthorized = self._unauthorized, deque()
            for pending, command in unauthorized:
                text = f"{command}: `authorize` failed; the server's log has the reason"
                self._reply_once(pending, CommandError("forbidden", text).to_reply())
        self._start_authorizing()

    def _submit_for(self, pending: _PendingReply, command: str) -> None:
        self._submit(command, lambda result: self._reply_once(pending, self._reply(command, result)), self)

    def _reply(self, command: str, result: CommandResult) -> bytes:
        size = len(result.reply)
        if not self.encoding.escaped or size <= MAX_ESCAPED_REPLY:
            return result.reply
        text = f"{command}: the reply has {size} bytes; allowed: at most {MAX_ESCAPED_REPLY} with encoding=escaped"
        return CommandError("invalid-reply", text).to_reply()

    def _reply_once(self, pending: _PendingReply, reply: bytes) -> None:
        if pending.reply is None:  # otherwise `_on_authorized` has refused it already
            self.waiting -= 1
            self._answer(pending, reply)

    def _answer(self, pending: _PendingReply, reply: bytes) -> None:
        pending.reply = reply
        if self._left:
            return
        self._ready_bytes += len(reply)
        while self._pending and (ready := self._pending[0].reply) is not None:
            self._pending.popleft()
            self._ready_bytes -= len(ready)
            self.outbox.send_reply(encode_reply(ready, self.encoding))
        if not self._has_too_many_pending:
            self._room.set()

    @property
    def _has_too_many_pending(self) -> bool:
        return len(self._pending) >= MAX_PENDING_REPLIES or self._ready_bytes >= MAX_PENDING_REPLY_BYTES

    async def _until_there_is_room(self) -> None:
        if self._has_too_many_pending:
            self._room.clear()
            await self._room.wait()
        await self.outbox.drain()
