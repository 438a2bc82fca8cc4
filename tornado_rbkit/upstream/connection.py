"""Access to an Upstream from the web loop: the only module in which calls cross threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import zmq
from tornado.ioloop import IOLoop

from tornado_rbkit.frames import Form
from tornado_rbkit.protocol import CommandError
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.upstream.options import UpstreamOptions
from tornado_rbkit.upstream.requester import Outcome
from tornado_rbkit.upstream.sockets import Upstream, UpstreamListener

_STOPPED_EARLY: Final = "the IOLoopThread was stopped before its bridges were closed; stop it after them"


class Connection:
    """An Upstream and the loop it runs on: a thread's loop or the web server's own. Web loop only.

    Calls are passed to that loop as callbacks, in order. Calls to the listener are passed back the same way, and none
    is made after `close` has returned. By then each request has its outcome, even if the thread ended early, which is
    reported to the listener as a failure.
    """

    def __init__(
        self, web_loop: IOLoop, listener: UpstreamListener, pub: str, req: str, options: UpstreamOptions
    ) -> None:
        """Begin to connect; the result is reported to the listener.

        Args:
            web_loop: the caller's loop.
            listener: receives data, outcomes and state changes.
            pub: the endpoint where the profiler publishes.
            req: the endpoint where the profiler takes commands.
            options: the bridge's options; its `pub` and `req` are not used.

        Raises:
            RuntimeError: the thread in `options.threaded` is not running.
            OSError: too few file descriptors are left.
        """
        self._listener = listener
        self._web_loop = web_loop
        threaded = options.threaded
        self._own_thread = threaded is True
        self._thread = threaded if isinstance(threaded, IOLoopThread) else IOLoopThread() if threaded else None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None  # owned by this connection; only without a thread
        if self._thread is not None and self._own_thread:
            self._thread.start()
        self._io_loop = self._thread.io_loop if self._thread is not None else web_loop
        self._closing = False
        self._thread_ended = False
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._in_flight: str | None = None
        self._upstream = Upstream(
            self._io_loop,
            pub,
            req,
            listener,
            self._post,
            self._thread.context if self._thread is not None else self._own_context,
            options,
            on_thread=self._thread is not None,
        )
        self._io_loop.add_callback(self._upstream.open)
        if self._thread is not None:
            self._thread.call_at_end(self._tell_end_of_thread)

    def set_encodings(self, forms: frozenset[Form], clients: int, generation: int) -> None:
        """See `Upstream.set_encodings`."""
        self._io_loop.add_callback(self._upstream.set_encodings, forms, clients, generation)

    def request(self, command: str, timeout: float) -> None:
        """See `Upstream.request`; no other command may be in flight."""
        self._in_flight = command
        self._io_loop.add_callback(self._upstream.request, command, timeout)

    def begin_closing(self) -> None:
        """Begin to close; from now on only the outcome of the command in flight is delivered."""
        if self._closing:
            return
        self._closing = True
        if self._thread_ended:
            self._finish_without_thread()
        else:
            self._io_loop.add_callback(self._stop_upstream)

    async def close(self) -> None:
        """Close the sockets on their loop, and end the thread if this connection owns it. May be called twice.

        Raises:
            RuntimeError: the thread in `options.threaded` had already ended and closed the sockets.
        """
        self.begin_closing()
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Wait until everything is closed. Cancelling the wait does not stop the closing.

        Raises:
            RuntimeError: the thread in `options.threaded` had already ended and closed the sockets.
        """
        await asyncio.shield(self._closed)

    def _own_context(self) -> zmq.Context[zmq.Socket[bytes]]:
        if self._context is None:
            self._context = zmq.Context()
        return self._context

    def _stop_upstream(self) -> None:
        """Stop the upstream, on its loop; close it a turn later, because ZMQStream may have deferred work."""
        try:
            self._upstream.stop()
        finally:
            self._io_loop.add_callback(self._close_upstream)

    def _close_upstream(self) -> None:
        """Close the upstream and its context, on its loop."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._web_loop.add_callback, self._finish)
            if self._context is not None:
                stack.callback(self._context.destroy, linger=0)
            stack.callback(self._upstream.close)

    def _finish(self, error: RuntimeError | None = None) -> None:
        if self._closed.done():
            return
        if self._thread is not None:
            self._thread.forget_at_end(self._tell_end_of_thread)
            if self._own_thread:
                self._thread.stop()
        if self._in_flight is not None:
            lost = CommandError("unavailable", f"{self._in_flight}: its connection has ended before it was answered")
            self._deliver(self._listener.on_outcome, Outcome(lost.to_reply(), lost, 0.0))
        if error is None:
            self._closed.set_result(None)
        else:
            self._closed.set_exception(error)

    def _tell_end_of_thread(self) -> None:
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

    def _post(self, method: Callable[[Any], None], argument: Any) -> None:
        self._web_loop.add_callback(self._deliver, method, argument)

    def _deliver(self, method: Callable[[Any], None], argument: Any) -> None:
        """Call the listener, on the web loop; while closing, only with the outcome of the command in flight."""
        if method == self._listener.on_outcome:
            if self._in_flight is not None:
                self._in_flight = None
                method(argument)
        elif not self._closing:
            method(argument)
