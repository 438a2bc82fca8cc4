"""One profiler and its clients: fan-out in one direction, commands in the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import methodcaller
from typing import Any, Final, Literal

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream
from tornado.web import RequestHandler

from tornado_rbkit.bridge.clients import Client, Clients, ClientT
from tornado_rbkit.bridge.commands import CommandQueue
from tornado_rbkit.bridge.fanout import ClientCount, FanOut
from tornado_rbkit.bridge.own_commands import OwnCommands
from tornado_rbkit.bridge.profiler_state import ProfilerState, State
from tornado_rbkit.bridge.session import CommandRules, Session, Submit
from tornado_rbkit.bridge.settings import BridgeSettings
from tornado_rbkit.errors import BridgeFullError, RbkitError
from tornado_rbkit.frames import Encoding
from tornado_rbkit.protocol import CLOSE_GOING_AWAY, CLOSE_POLICY, CLOSE_TOO_BIG, CLOSE_TRY_AGAIN, Handshake, Notice
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.upstream.options import MIB
from tornado_rbkit.upstream.sockets import ZmqEndpoint
from tornado_rbkit.upstream.types import Batch, CommandResult, ConnectionState, Endpoint
from tornado_rbkit.upstream.upstream import Upstream

_CLOSE_GRACE: Final = 1.0  # seconds in which clients must answer a close frame, and the profiler must answer commands


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
        endpoint: Endpoint | None = None,
        threaded: bool | IOLoopThread = True,
        default_encoding: Literal["binary", "escaped"] = "binary",
        connect_timeout: float = 2.0,
        command_timeouts: Mapping[str, float] | None = None,
        max_clients: int = 1024,
        max_backlog_bytes: int = 64 * MIB,
        stall_timeout: float = 60.0,
        ping_interval: float = 15.0,
        ping_timeout: float | None = None,
        idle_grace: float = 30.0,
        stop_when_idle: bool = True,
        flush_interval: float = 0.005,
        max_pending_bytes: int = 32 * MIB,
        rcvhwm: int = 1000,
        max_message_bytes: int = 512 * MIB,
        compression_level: int = 0,
    ) -> None:
        """Create a bridge. Nothing is opened until the first client joins.

        Args:
            pub: the endpoint where rbkit publishes, by default port 5555 or ``RBKIT_PUB_PORT`` on 127.0.0.1.
            req: the endpoint where it takes commands, by default port 5556 or ``RBKIT_REQ_PORT`` on 127.0.0.1.
            endpoint: the address of a profiler that is not reached over ZMQ, instead of `pub` and `req`.
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
            flush_interval: seconds to wait after all published messages were delivered. While fewer than 8 messages
                arrive in that time, the wait is longer: until about 8 have arrived, at most 10 × `flush_interval` and
                at most 0.05 s. The first message after a silence, replies and notices never wait.
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
        settings = BridgeSettings(
            pub=pub,
            req=req,
            endpoint=endpoint,
            command_timeouts={} if command_timeouts is None else command_timeouts,
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
        self.default_encoding = settings.default_encoding
        self.compression_level = settings.compression_level
        self.ping_interval = settings.ping_interval
        self.ping_timeout = min(settings.ping_timeout or settings.ping_interval, settings.ping_interval)
        self.stall_timeout = settings.stall_timeout
        assert settings.endpoint is not None
        self._profiler = ProfilerState(settings.endpoint)
        self._upstream = Upstream(settings, self, self.close)
        self._commands = CommandQueue(
            self._upstream.request, settings.command_timeouts, self._record, self._profiler.unknown_command
        )
        self._own_commands = OwnCommands(self._commands, self._profiler)
        self._new_session = partial(
            Session,
            max_backlog_bytes=settings.max_backlog_bytes,
            stall_timeout=settings.stall_timeout,
        )
        self._clients = Clients()
        self._fan_out = FanOut()
        self._client_count = ClientCount(self._clients, self._fan_out)
        self._idle_timer: object | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def pub(self) -> str:
        """The endpoint where the profiler publishes; the label of another `endpoint`."""
        return self._profiler.endpoint.parts[0]

    @property
    def req(self) -> str:
        """The endpoint where the profiler takes commands; the label of another `endpoint`."""
        return self._profiler.endpoint.label

    @property
    def state(self) -> State:
        """The state of the connection to the profiler."""
        return self._profiler.state

    @property
    def handshake(self) -> Handshake | None:
        """The profiler's last reply to ``handshake``, None before the first."""
        return self._profiler.handshake

    @property
    def watched(self) -> bool:
        """Whether there are clients."""
        return bool(self._clients)

    def retarget(self, pub: str, req: str) -> None:
        """Connect to a profiler at other endpoints, for example of a restarted process. The clients stay connected.

        They are sent ``server:disconnected`` if the profiler was connected, then ``server:connected`` and
        ``server:restarted``.

        Raises:
            EndpointError: `pub` or `req` cannot be connected to; nothing has changed.
        """
        endpoint = ZmqEndpoint(pub, req)
        if self.state is State.IDLE or self._closing is not None:
            self._profiler.endpoint = endpoint
            return
        self.on_connection(ConnectionState(self._profiler.endpoint.parts))
        self._profiler.retarget(endpoint)
        self._upstream.disconnect()
        try:
            self._upstream.connect(endpoint)
        except RbkitError as error:
            self.on_failure(str(error))
        self._update_encodings()

    def join(
        self,
        handler: RequestHandler,
        close: Callable[[int, str], None],
        stream: IOStream,
        encoding: Encoding,
        access: CommandRules,
    ) -> Session:
        """Add a client on a WebSocket; see `Session` for the arguments. Call `leave` when its WebSocket is closed.

        Raises:
            BridgeFullError: `max_clients` is reached, the bridge is closed, or it cannot open a connection.
        """

        def close_and_log(code: int, reason: str) -> None:
            if code in (CLOSE_POLICY, CLOSE_TOO_BIG):
                self._clients.log_closing(handler.request.remote_ip, reason)
            close(code, reason)

        return self.add(lambda submit: self._new_session(handler, close_and_log, stream, encoding, access, submit))

    def add(self, make_client: Callable[[Submit], ClientT]) -> ClientT:
        """Add a client of any kind. Call `leave` when it has disconnected.

        Args:
            make_client: called once the client may join, with a function that submits its commands.

        Raises:
            BridgeFullError: `max_clients` is reached, the bridge is closed, or it cannot open a connection.
        """
        if self._closing is not None:
            raise BridgeFullError("the server is shutting down")
        if len(self._clients) >= self._settings.max_clients:
            raise BridgeFullError(f"client limit reached (max_clients={self._settings.max_clients})")
        client = make_client(self._commands.submit)
        try:
            self._open()
        except BridgeFullError:
            client.leave()
            raise
        self._clients.add(client)
        self._client_count.update()
        if self.state is not State.CONNECTED:
            client.await_profiler(self._settings.connect_timeout, partial(self._give_up, client))
        self._update_encodings()
        return client

    def leave(self, client: Client) -> None:
        """Remove a client that has disconnected. May be called twice."""
        if client not in self._clients:
            return
        client.leave()
        self._clients.remove(client)
        self._commands.forget(client)
        self._update_encodings()
        if not self._clients and self._closing is None:
            self._idle_timer = self._loop.call_later(self._settings.idle_grace, self._go_idle)

    async def close(self) -> None:
        """Close all clients with 1001, stop profiling that was started here, and close the connection.

        May be called twice. It takes at most two seconds, one of which is for clients that do not answer; while this
        process is paused, they do not pass.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    def stats(self) -> dict[str, Any]:
        """Return figures for an operator, ready for JSON; sizes are in bytes, times in seconds."""
        return {
            **self._profiler.stats(),
            "commands_waiting": len(self._commands),
            **self._clients.totals(),
            "clients": [client.stats() for client in self._clients],
        }

    def summary(self) -> dict[str, Any]:
        """Return the few figures of `stats` that a list of many bridges shows, and what is recorded."""
        totals = self._clients.totals()
        return {**self._profiler.summary(), "viewers": len(self._clients), "bytes_sent": totals["bytes_sent"]}

    # Called by the upstream, on the web loop.

    def on_batch(self, batch: Batch) -> None:
        """Deliver a batch to all clients, and acknowledge it when it has been written."""
        try:
            self._notify(self._profiler.on_batch(batch))
            if batch.restarted and self.state is State.CONNECTED:
                self._own_commands.send_handshake()
        finally:
            clients = self._clients.joined_by(batch.generation)
            deliver = methodcaller("deliver", batch)  # Client.deliver
            self._fan_out.begin(clients, deliver, size=batch.encoded, done=batch.acknowledge)

    def on_connection(self, connection: ConnectionState) -> None:
        """Record the connection; if it was made or lost, notify the clients, and start or stop sending commands."""
        self._client_count.set_elsewhere(connection.elsewhere)
        before = self.state
        notices = self._profiler.on_connection(connection)
        if self.state is before:
            return
        self._own_commands.schedule_probe()
        if self.state is State.CONNECTED:
            self._clients.on_profiler_connected()
            self._notify(notices)
            self._own_commands.send_handshake()
            self._commands.resume()
        else:
            self._notify(notices)
            self._commands.fail_all(f"the rbkit server at {self.req} is not connected")

    def on_failure(self, reason: str) -> None:
        """Close the clients and the connection: its sockets failed or its thread ended. The next client reopens it."""
        self._profiler.on_failure(reason)
        for client in list(self._clients):
            client.close(CLOSE_TRY_AGAIN, _cannot_connect(reason))
        self._disconnect()

    def _record(self, command: str, result: CommandResult) -> None:
        """Record the result of a command."""
        self._notify(self._profiler.on_result(command, result))
        self._own_commands.schedule_probe()

    # Clients

    def _notify(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            self._fan_out.notify(self._clients, notice)

    def _give_up(self, client: Client) -> None:
        """Close a client because the profiler was not reached within `connect_timeout`."""
        client.close(CLOSE_TRY_AGAIN, f"rbkit server is not running at {self._profiler.first_missing}")

    def _update_encodings(self) -> None:
        self._upstream.set_encodings(self._clients.encodings, len(self._clients), self._clients.generation)

    # Life

    def _open(self) -> None:
        self._cancel(self._idle_timer)
        self._idle_timer = None
        if self.state is not State.IDLE:
            return
        self._loop = IOLoop.current()
        try:
            self._upstream.connect(self._profiler.endpoint)
        except RbkitError as error:
            self._profiler.on_failure(str(error))
            raise BridgeFullError(_cannot_connect(str(error))) from error
        self._profiler.on_connecting()
        self._commands.pause()

    async def _stop_profiling(self, timeout: float | None = None) -> None:
        if self._settings.stop_when_idle:
            await self._own_commands.stop_profiling(timeout)

    async def _go_idle(self) -> None:
        self._idle_timer = None
        await self._stop_profiling()
        if not self._clients and self._idle_timer is None and self._closing is None:
            self._disconnect()
            await self._upstream.close()

    def _disconnect(self) -> None:
        """Begin to close the connection, and enter the idle state immediately."""
        self._profiler.on_idle()
        self._own_commands.schedule_probe()
        self._commands.fail_all("the bridge has closed the connection")
        self._upstream.disconnect()

    async def _close(self) -> None:
        self._cancel(self._idle_timer)
        for client in list(self._clients):
            client.close(CLOSE_GOING_AWAY, "server shutting down")
        await asyncio.gather(self._stop_profiling(_CLOSE_GRACE), self._clients.wait_until_empty(_CLOSE_GRACE))
        for client in list(self._clients):
            client.abort()
            self.leave(client)
        self._disconnect()
        await self._upstream.close()

    def _cancel(self, timer: object | None) -> None:
        if timer is not None:
            self._loop.remove_timeout(timer)


def _cannot_connect(reason: str) -> str:
    return f"cannot connect to the rbkit server: {reason}"
