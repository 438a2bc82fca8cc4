"""One profiler and its clients: fan-out in one direction, commands in the other."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.process import task_id
from tornado.web import RequestHandler

from tornado_rbkit.bridge.clients import Clients
from tornado_rbkit.bridge.commands import CommandQueue
from tornado_rbkit.bridge.fanout import ClientCount, FanOut
from tornado_rbkit.bridge.probe import Probe
from tornado_rbkit.bridge.session import CommandRules, Session
from tornado_rbkit.bridge.settings import BridgeSettings
from tornado_rbkit.bridge.target import Target, Trouble
from tornado_rbkit.deadline import Deadline
from tornado_rbkit.endpoints import check_endpoint
from tornado_rbkit.errors import BridgeFullError, RbkitError
from tornado_rbkit.frames import Form
from tornado_rbkit.log_throttle import LogThrottle, times
from tornado_rbkit.protocol import (
    CLOSE_GOING_AWAY,
    CLOSE_POLICY,
    CLOSE_TOO_BIG,
    CLOSE_TRY_AGAIN,
    RESTARTED,
    Notice,
)
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.upstream.lifeline import Lifeline
from tornado_rbkit.upstream.requester import Outcome
from tornado_rbkit.upstream.sockets import Reach, State
from tornado_rbkit.upstream.subscriber import Batch

_log = logging.getLogger(__name__)

_MIB: Final = 1024 * 1024
_CLOSE_GRACE: Final = 1.0  # seconds for clients to answer a close frame, and for the profiler to answer commands


class Bridge:
    """Sends one profiler's data to many WebSockets, and their commands to the profiler.

    Use it on the web server's loop only, except the constructor. With `threaded`, the ZMQ sockets run on an
    `IOLoopThread`: they are emptied while the web loop is busy, and compression does not block the web loop. No socket
    is opened and no thread started before the first client joins, so a bridge may be created before the server forks.
    """

    def __init__(
        self,
        pub: str | None = None,
        req: str | None = None,
        *,
        threaded: bool | IOLoopThread = True,
        default_encoding: Literal["binary", "escaped"] = "binary",
        connect_timeout: float = 2.0,
        command_timeouts: Mapping[str, float] | None = None,
        max_clients: int = 1024,
        max_backlog_bytes: int = 64 * _MIB,
        stall_timeout: float = 60.0,
        ping_interval: float = 15.0,
        ping_timeout: float | None = None,
        idle_grace: float = 30.0,
        stop_when_idle: bool = True,
        flush_interval: float = 0.005,
        max_pending_bytes: int = 32 * _MIB,
        rcvhwm: int = 1000,
        max_message_bytes: int = 512 * _MIB,
        compression_level: int = 0,
    ) -> None:
        """Create a bridge. Nothing is opened until the first client joins.

        Args:
            pub: the endpoint where rbkit publishes, by default port 5555 or ``RBKIT_PUB_PORT`` on 127.0.0.1.
            req: the endpoint where it takes commands, by default port 5556 or ``RBKIT_REQ_PORT`` on 127.0.0.1.
            threaded: True: the ZMQ sockets get their own thread. An `IOLoopThread`: they run on that thread, which its
                owner starts before the first client joins (in a pre-forked server: after the fork) and stops after
                `close`. False: they run on the web server's loop, which then also escapes and compresses, for at most
                about 10 ms in a row.
            default_encoding: for clients without ``?encoding=`` in their URL; the Ruby middleware sends ``escaped``.
            connect_timeout: seconds after a client has joined within which the profiler must be reached.
            command_timeouts: seconds by command; the defaults are 300 for ``objectspace_snapshot`` and 5 for others.
            max_clients: number of WebSockets open at a time.
            max_backlog_bytes: bytes of profiling data that may wait for one client.
            stall_timeout: seconds within which a client must take some of the data sent to it; 64 KiB is enough.
            ping_interval: seconds between pings; 0 for none.
            ping_timeout: seconds within which the pong must arrive; the default and the maximum is `ping_interval`.
            idle_grace: seconds the connection is kept after the last client has left.
            stop_when_idle: whether to stop the profiling that was started through this bridge before the connection is
                closed. A process forked from the one that created the bridge, or by `tornado.process.fork_processes`,
                never stops it: it cannot know whether its siblings have clients.
            flush_interval: seconds to wait after all published messages were delivered.
            max_pending_bytes: bytes of profiling data that may wait between the profiler and the web loop.
            rcvhwm: number of messages that may wait in the SUB socket (ZMQ_RCVHWM).
            max_message_bytes: a longer message from the profiler ends its connection (ZMQ_MAXMSGSIZE); a multipart
                message that is longer in total is discarded.
            compression_level: 1 to 9 to offer permessage-deflate, each message compressed once for all clients; 0 for
                no compression.

        Raises:
            EndpointError: `pub` or `req` cannot be connected to.
            ValueError: another argument is out of its range.
        """
        given = {"pub": pub, "req": req, "command_timeouts": command_timeouts}
        settings = BridgeSettings(
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
            threaded=threaded,
            default_encoding=default_encoding,
            connect_timeout=connect_timeout,
            max_clients=max_clients,
            max_backlog_bytes=max_backlog_bytes,
            stall_timeout=stall_timeout,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            idle_grace=idle_grace,
            stop_when_idle=stop_when_idle,
            flush_interval=flush_interval,
            max_pending_bytes=max_pending_bytes,
            rcvhwm=rcvhwm,
            max_message_bytes=max_message_bytes,
            compression_level=compression_level,
        )
        self._settings = settings
        self._pid = os.getpid()
        self.default_encoding = settings.default_encoding
        self.compression_level = settings.compression_level
        self.ping_interval = settings.ping_interval
        self.ping_timeout = min(settings.ping_timeout or settings.ping_interval, settings.ping_interval)
        self.stall_timeout = settings.stall_timeout
        self._lifeline = Lifeline(settings, self, self.close)
        self._state = State.IDLE
        self._target = Target()
        self._commands = CommandQueue(self._lifeline.request, settings.command_timeouts, self._on_settled)
        self._new_session = partial(
            Session,
            submit=self._commands.submit,
            max_backlog_bytes=settings.max_backlog_bytes,
            stall_timeout=settings.stall_timeout,
        )
        self._probe = Probe(self._ask_again)
        self._sessions = Clients()
        self._fan_out = FanOut()
        self._client_count = ClientCount(self._sessions, self._fan_out)
        self._connect_deadlines: dict[Session, Deadline] = {}  # of clients that wait for the profiler
        self._idle_timer: object | None = None
        self._repeats = LogThrottle()
        self._trouble_logged = False
        self._restart_told = False
        self._is_another = False  # the process is not the previous one, by `retarget` or by its counter
        self._pending = 0
        self._closing: asyncio.Task[None] | None = None
        self._totals = Counter(messages_in=0, bytes_in=0, messages_missed=0, messages_foreign=0, disconnects=0)

    @property
    def pub(self) -> str:
        """The endpoint where the profiler publishes."""
        return self._lifeline.pub

    @property
    def req(self) -> str:
        """The endpoint where the profiler takes commands."""
        return self._lifeline.req

    @property
    def state(self) -> State:
        """The state of the connection to the profiler."""
        return self._state

    @property
    def watched(self) -> bool:
        """Whether there are clients."""
        return bool(self._sessions)

    def retarget(self, pub: str, req: str) -> None:
        """Connect to a profiler at other endpoints, for example of a restarted process. The clients stay connected.

        They are sent ``server:disconnected`` if the profiler was connected, then ``server:connected`` and
        ``server:restarted``.

        Raises:
            EndpointError: `pub` or `req` cannot be connected to; nothing has changed.
        """
        pub, req = check_endpoint(pub, "pub"), check_endpoint(req, "req")
        if not self._lifeline.is_open or self._closing is not None:
            self._lifeline.pub, self._lifeline.req = pub, req
            return
        if self._state is State.CONNECTED:
            self.on_state(State.DISCONNECTED)
        self._lifeline.let_go()
        self._pending = 0
        self._is_another = True
        self._probe.stop()
        self._lifeline.pub, self._lifeline.req = pub, req
        try:
            self._lifeline.connect()
        except RbkitError as error:
            self.on_failure(str(error))
        self._update_encodings()

    def join(
        self,
        handler: RequestHandler,
        close: Callable[[int, str], None],
        stream: IOStream,
        form: Form,
        access: CommandRules,
    ) -> Session:
        """Add a client; see `Session` for the arguments. Call `leave` when its WebSocket is closed.

        Raises:
            BridgeFullError: `max_clients` is reached, the bridge is closed, or it cannot open a connection.
        """
        if self._closing is not None:
            raise BridgeFullError("the server is shutting down")
        if len(self._sessions) >= self._settings.max_clients:
            raise BridgeFullError(f"client limit reached (max_clients={self._settings.max_clients})")

        def close_and_log(code: int, reason: str) -> None:
            if code in (CLOSE_POLICY, CLOSE_TOO_BIG):
                self._sessions.log_closing(handler.request.remote_ip, reason)
            close(code, reason)

        session = self._new_session(handler, close_and_log, stream, form, access)
        try:
            self._open()
        except BridgeFullError:
            session.leave()
            raise
        self._sessions.add(session)
        self._client_count.update()
        if self._state is not State.CONNECTED:
            timeout = self._settings.connect_timeout
            self._connect_deadlines[session] = Deadline(timeout, partial(self._give_up, session))
        self._update_encodings()
        return session

    def leave(self, session: Session) -> None:
        """Remove a client whose WebSocket is closed. May be called twice."""
        if session not in self._sessions:
            return
        session.leave()
        self._sessions.remove(session)
        deadline = self._connect_deadlines.pop(session, None)
        if deadline is not None:
            deadline.cancel()
        self._commands.forget(session)
        self._update_encodings()
        if not self._sessions and self._closing is None:
            self._idle_timer = self._loop.call_later(self._settings.idle_grace, self._go_idle)

    async def close(self) -> None:
        """Close all clients with 1001, stop profiling that was started here, and close the connection.

        May be called twice. It takes at most two seconds, one of which is for clients that do not answer.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    def stats(self) -> dict[str, Any]:
        """Return figures for an operator, ready for JSON; sizes are in bytes, times in seconds."""
        return {
            "pub": self.pub,
            "req": self.req,
            "state": self._state.value,
            "trouble": self._trouble(),
            **self._target.stats(),
            "commands_waiting": len(self._commands),
            "bytes_pending": self._pending,
            **self._totals,
            **self._sessions.totals(),
            "clients": [session.stats() for session in self._sessions],
        }

    # Called by the connection, on the web loop.

    def on_batch(self, batch: Batch) -> None:
        """Deliver a batch to all clients, and acknowledge it when it has been written."""
        try:
            self._pending = batch.pending
            self._totals["messages_in"] += batch.messages
            self._totals["bytes_in"] += batch.size
            self._totals["messages_missed"] += batch.missed
            if batch.foreign:
                self._on_foreign(batch.foreign)
            if batch.restarted:
                self._is_another = True
                if self._state is State.CONNECTED:  # otherwise `on_state` reports it once both sockets are connected
                    self._on_restarted()
                    self._learn()
        finally:
            sessions = self._sessions.joined_by(batch.generation)
            self._fan_out.begin(sessions, partial(_deliver, batch), size=batch.encoded, done=batch.acknowledge)

    def on_outcome(self, outcome: Outcome) -> None:
        """Pass on the outcome of a command."""
        self._commands.on_outcome(outcome)

    def on_reached(self, reach: Reach) -> None:
        """Record that an endpoint was connected, disconnected or refused."""
        self._lifeline.reach = reach

    def on_failure(self, reason: str) -> None:
        """Close the clients and the connection: its sockets failed or its thread ended. The next client reopens it."""
        self._lifeline.log_failure(reason)
        for session in list(self._sessions):
            session.close(CLOSE_TRY_AGAIN, _cannot_connect(reason))
        self._let_go()

    def on_state(self, state: State) -> None:
        """Log that the profiler connected or disconnected, notify the clients, and start or stop sending commands."""
        before, self._state = self._state, state
        self._lifeline.log(before, state)
        if state is State.CONNECTED:
            self._restart_told = False
            self._cancel_connect_deadlines()
            if before is State.DISCONNECTED:
                self._notify(Notice("server", "connected"))
            if self._is_another:
                self._is_another = False
                self._on_restarted()
            self._learn()
            self._commands.open()
        else:
            self._totals["disconnects"] += 1
            self._probe.stop()
            self._notify(Notice("server", "disconnected"))
            self._commands.close(f"the rbkit server at {self.req} is not connected")

    # Commands

    def _learn(self) -> None:
        """Submit a handshake of the bridge's own, ahead of all waiting commands."""
        self._commands.submit("handshake", lambda outcome: None, self, first=True)

    def _on_settled(self, command: str, outcome: Outcome) -> None:
        before = self._target.trouble
        if self._target.note(command, outcome):
            self._on_restarted()
        if self._target.trouble is not before:
            self._log_trouble()
        self._probe.on_outcome(outcome)

    def _log_trouble(self) -> None:
        """Log that a trouble of the process has begun or ended. Call it only when the trouble changes."""
        trouble = self._target.trouble
        if trouble is None:
            if self._trouble_logged:
                _log.warning("the rbkit server at %s answers again", self.req)
            self._trouble_logged = False
            return
        # Silence is found once per time-out, but foreign replies arrive as fast as clients send commands.
        count = 1 if trouble is Trouble.SILENT else self._repeats.add(trouble)
        self._trouble_logged |= count > 0
        if count:
            _log.warning("the rbkit server at %s %s%s", self.req, self._target.describe_trouble(), times(count))

    def _ask_again(self) -> None:
        if not self._commands and self._state is State.CONNECTED:
            self._learn()

    def _on_restarted(self) -> None:
        """Report, once per connection, that the process is another one: its pid or its message_counter changed."""
        self._is_another = False
        if not self._restart_told:
            self._restart_told = True
            _log.info("the process at %s is another one than before", self.req)
            self._target.restarted()
            self._notify(RESTARTED)

    def _on_foreign(self, count: int) -> None:
        logged = not self._totals["messages_foreign"]
        self._totals["messages_foreign"] += count
        if logged:
            _log.warning(
                "%s publishes what is not rbkit's; it is passed on, and counted as messages_foreign", self.pub
            )

    def _trouble(self) -> str | None:
        """Return what is wrong with the profiler, as text for an operator; None if nothing is."""
        if self._lifeline.trouble:
            return self._lifeline.trouble
        if self._target.trouble and self._state is State.CONNECTED:
            return f"the rbkit server at {self.req} {self._target.describe_trouble()}"
        return None

    async def _stop_profiling(self, timeout: float | None = None) -> None:
        """Stop profiling that was started through this bridge; wait for the outcomes, at most `timeout` seconds."""
        if not self._settings.stop_when_idle or self._state is not State.CONNECTED:
            return
        if self._target.to_stop() and (os.getpid() != self._pid or task_id() is not None):
            _log.info("profiling of %s is left on: this process was forked, and its siblings may watch", self.req)
            return
        stopped: list[asyncio.Future[Outcome]] = []
        for command in self._target.to_stop():
            stopped.append(asyncio.get_running_loop().create_future())
            self._commands.submit(command, stopped[-1].set_result, self, first=True)
        if stopped:
            await asyncio.wait(stopped, timeout=timeout)

    # Clients

    def _notify(self, notice: Notice) -> None:
        self._fan_out.notify(self._sessions, notice)

    def _give_up(self, session: Session) -> None:
        """Close a client because the profiler was not reached within `connect_timeout`."""
        del self._connect_deadlines[session]
        missing = self.pub if self.req in self._lifeline.reach.up else self.req
        session.close(CLOSE_TRY_AGAIN, f"rbkit server is not running at {missing}")

    def _cancel_connect_deadlines(self) -> None:
        for deadline in self._connect_deadlines.values():
            deadline.cancel()
        self._connect_deadlines.clear()

    def _update_encodings(self) -> None:
        self._lifeline.set_encodings(self._sessions.forms, len(self._sessions), self._sessions.generation)

    # Life

    def _open(self) -> None:
        self._cancel(self._idle_timer)
        self._idle_timer = None
        if self._lifeline.is_open:
            return
        self._loop = IOLoop.current()
        try:
            self._lifeline.connect()
        except RbkitError as error:
            self._lifeline.log_failure(str(error))
            raise BridgeFullError(_cannot_connect(str(error))) from error
        self._state = State.CONNECTING
        self._commands.hold()

    async def _go_idle(self) -> None:
        self._idle_timer = None
        await self._stop_profiling()
        if not self._sessions and self._idle_timer is None and self._closing is None:
            await self._disconnect()

    def _let_go(self) -> None:
        """Begin to close the connection, and enter the idle state immediately."""
        self._state = State.IDLE
        self._pending = 0
        self._probe.stop()
        self._cancel_connect_deadlines()
        self._commands.close("the bridge has closed the connection")
        self._lifeline.let_go()

    async def _disconnect(self) -> None:
        self._let_go()
        await self._lifeline.close()

    async def _close(self) -> None:
        self._cancel(self._idle_timer)
        for session in list(self._sessions):
            session.close(CLOSE_GOING_AWAY, "server shutting down")
        await asyncio.gather(self._stop_profiling(_CLOSE_GRACE), self._sessions.wait_until_empty(_CLOSE_GRACE))
        for session in list(self._sessions):
            session.abort()
            self.leave(session)
        await self._disconnect()

    def _cancel(self, timer: object | None) -> None:
        if timer is not None:
            self._loop.remove_timeout(timer)


def _deliver(batch: Batch, session: Session) -> None:
    """Queue a batch in a client's encoding, and count its missed messages."""
    if batch.missed:
        session.outbox.add_missed(batch.missed)
    session.outbox.send_data(batch.chunks.get(session.form, ()))


def _cannot_connect(reason: str) -> str:
    return f"cannot connect to the rbkit server: {reason}"
