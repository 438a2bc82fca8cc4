"""Connects a bridge to a profiler, over any transport: the only module in which calls cross threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import zmq
from tornado.ioloop import IOLoop

from tornado_rbkit.frames import Encoding
from tornado_rbkit.protocol import CommandError, RbkitError
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.upstream.options import UpstreamOptions
from tornado_rbkit.upstream.sockets import failure_reason
from tornado_rbkit.upstream.types import CommandResult, Endpoint, TransportListener, UpstreamListener

T = TypeVar("T")

_STOPPED_EARLY: Final = "the IOLoopThread was stopped before its bridges were closed; stop it after them"


class Upstream:
    """At most one open connection to a profiler, and earlier ones that are still closing.

    Web loop only, except the constructor. The transport runs on the loop of a thread or on the web loop. Calls are
    passed to that loop as callbacks, in order, and calls to the listener are passed back the same way. Nothing is
    reported to the listener once `disconnect` has returned.
    """

    def __init__(
        self, options: UpstreamOptions, listener: UpstreamListener, on_cancelled: Callable[[], Awaitable[None]]
    ) -> None:
        """Create an upstream without a connection.

        Args:
            options: the bridge's options.
            listener: receives data and state changes.
            on_cancelled: called if the event loop ends before a connection is closed; must call `close`.
        """
        self._options = options
        self._listener = listener
        self._on_cancelled = on_cancelled
        self._error: RuntimeError | None = None
        self._connection: _Connection | None = None
        self._guards: dict[_Connection, asyncio.Task[None]] = {}  # one for each connection that is not closed

    def connect(self, endpoint: Endpoint) -> None:
        """Begin to connect; there must be no connection. Later failures are reported to the listener.

        Raises:
            RbkitError: no connection can be created; the message is meant for the clients.
        """
        try:
            connection = _Connection(IOLoop.current(), self._listener, endpoint, self._options)
        except Exception as error:  # whatever it is, the clients must get the reason
            raise RbkitError(failure_reason(error)) from error
        self._connection = connection
        self._guards[connection] = asyncio.create_task(self._guard(connection))

    def set_encodings(self, encodings: frozenset[Encoding], clients: int, generation: int) -> None:
        """Set the encodings of the batches. Does nothing without a connection."""
        connection = self._connection
        if connection is not None:
            connection.io_loop.add_callback(connection.transport.set_encodings, encodings, clients, generation)

    def request(self, command: str, timeout: float, on_result: Callable[[CommandResult], None]) -> None:
        """Send a command; there must be a connection, and no command in flight.

        Args:
            command: a command that `parse_command` has accepted.
            timeout: seconds.
            on_result: called exactly once, even if the connection is closed or its thread ends.
        """
        connection = self._connection
        assert connection is not None
        connection.in_flight = command, on_result
        connection.io_loop.add_callback(connection.transport.request, command, timeout)

    def disconnect(self) -> None:
        """Begin to close the connection, if there is one; another may be opened immediately.

        The listener is no longer called. The command in flight still gets its result.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.begin_closing()

    async def close(self) -> None:
        """Close the connection, and wait until it and all earlier connections are closed. May be called twice.

        Raises:
            RuntimeError: the thread in `options.threaded` had already ended and closed the connection.
        """
        self.disconnect()
        await asyncio.gather(*(asyncio.shield(connection.closed) for connection in self._guards))
        if self._error is not None:
            raise self._error

    async def _guard(self, connection: _Connection) -> None:
        """Close the connection if the event loop ends: asyncio.run() then cancels all tasks and waits for them."""
        try:
            await asyncio.shield(connection.closed)
        except asyncio.CancelledError:
            await self._on_cancelled()
            raise
        except RuntimeError as error:
            self._error = error  # raised by `close`, which may be called much later
        finally:
            del self._guards[connection]


class _Connection:
    """One transport, the loop on which it runs, and its end. Web loop only.

    Attributes:
        io_loop: the loop of the transport.
        transport: the transport, for use on `io_loop` only.
        in_flight: the command in flight, and the function to call with its result.
        closed: done when everything is closed; its exception is a RuntimeError if the thread ended too early.
    """

    def __init__(
        self, web_loop: IOLoop, listener: UpstreamListener, endpoint: Endpoint, options: UpstreamOptions
    ) -> None:
        """Begin to connect.

        Raises:
            RuntimeError: the thread in `options.threaded` is not running.
            OSError: too few file descriptors are left.
        """
        self._web_loop = web_loop
        self._listener = listener
        threaded = options.threaded
        self._own_thread = threaded is True
        self._thread = threaded if isinstance(threaded, IOLoopThread) else IOLoopThread() if threaded else None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None  # owned by this connection; only without a thread
        if self._thread is not None and self._own_thread:
            self._thread.start()
        self.io_loop = self._thread.io_loop if self._thread is not None else web_loop
        self.in_flight: tuple[str, Callable[[CommandResult], None]] | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = False
        self._thread_ended = False
        self.transport = endpoint.transport(
            self.io_loop,
            TransportListener(
                on_batch=self._from_io_loop(listener.on_batch),
                on_result=partial(web_loop.add_callback, self._on_result),
                on_connection=self._from_io_loop(listener.on_connection),
                on_failure=self._from_io_loop(listener.on_failure),
            ),
            options,
            on_thread=self._thread is not None,
            context=self._thread.context if self._thread is not None else self._own_context,
        )
        self.io_loop.add_callback(self.transport.open)
        if self._thread is not None:
            self._thread.call_at_end(self._report_end_of_thread)

    def begin_closing(self) -> None:
        """Begin to close; from now on only the result of the command in flight is delivered."""
        if self._closing:
            return
        self._closing = True
        if self._thread_ended:
            self._finish_without_thread()
        else:
            self.io_loop.add_callback(self._stop_transport)

    def _from_io_loop(self, method: Callable[[T], None]) -> Callable[[T], None]:
        """Return a function that calls `method` on the web loop, unless the connection is closing by then."""

        def call(argument: T) -> None:
            if not self._closing:
                method(argument)

        return partial(self._web_loop.add_callback, call)

    def _on_result(self, result: CommandResult) -> None:
        if self.in_flight is not None:
            (_, on_result), self.in_flight = self.in_flight, None
            on_result(result)

    def _own_context(self) -> zmq.Context[zmq.Socket[bytes]]:
        if self._context is None:
            self._context = zmq.Context()
        return self._context

    def _stop_transport(self) -> None:
        """Stop the transport, on its loop; close it a turn later, because ZMQStream may have deferred work."""
        try:
            self.transport.stop()
        finally:
            self.io_loop.add_callback(self._close_transport)

    def _close_transport(self) -> None:
        """Close the transport and its context, on its loop."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._web_loop.add_callback, self._finish)
            if self._context is not None:
                stack.callback(self._context.destroy, linger=0)
            stack.callback(self.transport.close)

    def _finish(self, error: RuntimeError | None = None) -> None:
        if self.closed.done():
            return
        if self._thread is not None:
            self._thread.forget_at_end(self._report_end_of_thread)
            if self._own_thread:
                self._thread.stop()
        if self.in_flight is not None:
            lost = CommandError(
                "unavailable", f"{self.in_flight[0]}: the connection was closed before the reply arrived"
            )
            self._on_result(CommandResult(lost.to_reply(), lost, 0.0))
        if error is None:
            self.closed.set_result(None)
        else:
            self.closed.set_exception(error)

    def _report_end_of_thread(self) -> None:
        """Report the end of the thread, on that thread, or on the web loop if the thread had already ended."""
        self._web_loop.add_callback(self._on_end_of_thread)

    def _on_end_of_thread(self) -> None:
        """Handle the end of the thread, on the web loop. Callbacks added to the thread since then are lost."""
        self._thread_ended = True
        if self._closing:
            self._finish_without_thread()
        else:
            self._listener.on_failure("the I/O thread has ended" if self._own_thread else _STOPPED_EARLY)

    def _finish_without_thread(self) -> None:
        self._finish(None if self._own_thread else RuntimeError(_STOPPED_EARLY))
