"""An Upstream as the web loop sees it: the one place where calls cross from thread to thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tornado.ioloop import IOLoop

from tornado_rbkit.descriptors import require_descriptors
from tornado_rbkit.frames import Form
from tornado_rbkit.iothread import IOLoopThread
from tornado_rbkit.upstream import Upstream, UpstreamListener


class Connection:
    """An open Upstream and the loop it lives on: a thread's, or the web server's own. Web loop only.

    Calls go over as callbacks, in order; what comes back does the same, and never after `close` has returned.
    """

    def __init__(
        self,
        threaded: bool | IOLoopThread,
        web_loop: IOLoop,
        listener: UpstreamListener,
        pub: str,
        req: str,
        **options: Any,
    ) -> None:
        """Begin to connect; `threaded`, `pub`, `req` and the options are those of `Bridge`.

        Raises:
            RuntimeError: the thread given is not running.
            OSError: there are too few file descriptors.
        """
        require_descriptors()
        self._listener = listener
        self._web_loop = web_loop
        self._own_thread = threaded is True
        self._thread = threaded if isinstance(threaded, IOLoopThread) else IOLoopThread() if threaded else None
        if self._thread is not None and self._own_thread:
            self._thread.start()
        self._io_loop = self._thread.io_loop if self._thread is not None else web_loop
        self._closing = False
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        options["on_thread"] = self._thread is not None
        self._upstream = Upstream(self._io_loop, pub, req, listener, self._post, **options)
        self._io_loop.add_callback(self._upstream.open)

    def set_audience(self, forms: frozenset[Form], clients: int, generation: int) -> None:
        """See `Upstream.set_audience`."""
        self._io_loop.add_callback(self._upstream.set_audience, forms, clients, generation)

    def request(self, command: str, timeout: float) -> None:
        """See `Upstream.request`."""
        self._io_loop.add_callback(self._upstream.request, command, timeout)

    def begin_closing(self) -> None:
        """Begin with what `close` does; nothing but the end of the command in flight is delivered from now on.

        Raises:
            RuntimeError: the thread that was given has ended, and the sockets with it.
        """
        if self._closing:
            return
        self._closing = True
        if self._thread is not None and not self._thread.is_alive():
            self._closed.set_result(None)
            raise RuntimeError("the IOLoopThread was stopped before its bridges were closed; stop it after them")
        self._io_loop.add_callback(self._stop_upstream)

    async def close(self) -> None:
        """Close the sockets on their loop, and end the thread if it is this connection's own. May be called twice.

        Raises:
            RuntimeError: the thread that was given has ended, and the sockets with it.
        """
        self.begin_closing()
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Return when `close` has done its work; being cancelled does not keep it from doing so."""
        await asyncio.shield(self._closed)

    def _stop_upstream(self) -> None:
        """On the upstream's loop. What ZMQStream has put off until the next turn still finds its sockets open then."""
        self._upstream.stop()
        self._io_loop.add_callback(self._close_upstream)

    def _close_upstream(self) -> None:
        """On the upstream's loop."""
        try:
            self._upstream.close()
        finally:
            self._web_loop.add_callback(self._finish)

    def _finish(self) -> None:
        if self._thread is not None and self._own_thread:
            self._thread.stop()
        self._closed.set_result(None)

    def _post(self, method: Callable[[Any], None], argument: Any) -> None:
        self._web_loop.add_callback(self._deliver, method, argument)

    def _deliver(self, method: Callable[[Any], None], argument: Any) -> None:
        """On the web loop. Of a connection that closes, only the end of the command in flight is of interest."""
        if not self._closing or (method == self._listener.on_outcome and not self._closed.done()):
            method(argument)
