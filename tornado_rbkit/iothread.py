"""A thread with an IOLoop of its own, for sockets that must not wait for the web server's loop."""

from __future__ import annotations

import asyncio
import threading

from tornado.ioloop import IOLoop


class IOLoopThread:
    """A daemon thread that runs an IOLoop from `start` to `stop`.

    The loop is asyncio's selector loop on every system: ZMQStream needs a loop that watches file descriptors,
    which Windows' default loop does not. All methods may be called on any thread but `stop`, which must not be
    called on the thread itself.
    """

    def __init__(self, name: str = "rbkit-io") -> None:
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ready = threading.Event()
        self._io_loop: IOLoop | None = None
        self._error: OSError | None = None

    @property
    def io_loop(self) -> IOLoop:
        """The thread's loop; what is registered on it must be registered on the thread.

        Raises:
            RuntimeError: the thread has not been started, or has ended.
        """
        if self._io_loop is None:
            raise RuntimeError(f"the thread {self._thread.name} is not running")
        return self._io_loop

    def is_alive(self) -> bool:
        """Return True between `start` and `stop`."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread and return once its loop runs.

        Raises:
            RuntimeError: the thread was started before.
            OSError: its loop cannot be made, for want of file descriptors.
        """
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the loop after the callbacks already handed to it, and join the thread. May be called twice."""
        io_loop = self._io_loop
        if io_loop is not None:
            io_loop.add_callback(io_loop.stop)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio_loop = asyncio.SelectorEventLoop()
        except OSError as error:
            self._error = error
            self._ready.set()
            return
        asyncio.set_event_loop(asyncio_loop)
        self._io_loop = IOLoop(asyncio_loop=asyncio_loop, make_current=False)
        asyncio_loop.call_soon(self._ready.set)
        try:
            self._io_loop.start()
        finally:
            io_loop, self._io_loop = self._io_loop, None
            io_loop.close()
