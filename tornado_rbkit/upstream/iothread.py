"""A thread with its own IOLoop, for sockets that must not wait for the web server's loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from typing import Final

import zmq
from tornado.ioloop import IOLoop

_MAX_SOCKETS: Final = 16384
"""ZMQ_MAX_SOCKETS, instead of libzmq's default of 1,023: each profiler takes six sockets (two, their monitors, and
libzmq's ends of the monitors). A slot in libzmq's table takes 12 bytes."""


class IOLoopThread:
    """A daemon thread that runs an IOLoop from `start` to `stop`, with one ZMQ context for all sockets on it.

    The loop is asyncio's selector loop on every system: ZMQStream needs a loop that watches file descriptors,
    which Windows' default loop does not do. Methods may be called on any thread, except `stop` (not on this thread)
    and `context` (only on this thread). A thread does not survive a fork: start it in the process that uses it.
    """

    def __init__(self, name: str = "rbkit-io") -> None:
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ready = threading.Event()
        self._io_loop: IOLoop | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._pid: int | None = None
        self._error: OSError | None = None
        self._lock = threading.Lock()  # of the next two attributes
        self._ended = False
        self._at_end: list[Callable[[], None]] = []

    @property
    def io_loop(self) -> IOLoop:
        """The thread's loop. Handlers and timers must be registered on the thread itself.

        Raises:
            RuntimeError: the thread has not been started, has ended, or was started before this process was forked.
        """
        if self._belongs_to_parent():
            raise RuntimeError(
                f"the thread {self._thread.name} was started before this process was forked; start it after the fork"
            )
        if self._io_loop is None:
            raise RuntimeError(f"the thread {self._thread.name} is not running; start it before its first client")
        return self._io_loop

    def is_alive(self) -> bool:
        """Return whether the thread runs in this process, that is, between `start` and `stop`."""
        return self._thread.is_alive() and not self._belongs_to_parent()

    def start(self) -> None:
        """Start the thread and wait until its loop runs.

        Raises:
            RuntimeError: the thread was already started.
            OSError: its loop cannot be created because too few file descriptors are left.
        """
        self._thread.start()
        self._pid = os.getpid()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Stop the loop after the callbacks already added to it, and join the thread. May be called twice.

        Does nothing in a process that was forked after `start`.
        """
        if self._belongs_to_parent():
            return
        io_loop = self._io_loop
        if io_loop is not None:
            io_loop.add_callback(io_loop.stop)
        if self._thread.ident is not None:
            self._thread.join()

    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        """Return the context of all sockets on this thread. On the thread only, which destroys it at its end."""
        if self._context is None:
            self._context = zmq.Context()
            self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        return self._context

    def call_at_end(self, callback: Callable[[], None]) -> None:
        """Call a function on the thread once the loop has ended for any reason, or now if it already has.

        The function must not raise.
        """
        with self._lock:
            if not self._ended:
                self._at_end.append(callback)
                return
        callback()

    def forget_at_end(self, callback: Callable[[], None]) -> None:
        """Undo `call_at_end`. Does nothing if the function was already called."""
        with self._lock, contextlib.suppress(ValueError):
            self._at_end.remove(callback)

    def _belongs_to_parent(self) -> bool:
        return self._pid is not None and self._pid != os.getpid()

    def _run(self) -> None:
        try:
            asyncio_loop = asyncio.SelectorEventLoop()
        except OSError as error:
            self._error = error
            self._ready.set()
            return
        asyncio.set_event_loop(asyncio_loop)
        io_loop = self._io_loop = IOLoop(asyncio_loop=asyncio_loop, make_current=False)
        asyncio_loop.call_soon(self._ready.set)
        with contextlib.ExitStack() as stack:
            stack.callback(self._report_end)
            stack.callback(io_loop.close)
            stack.callback(self._end_context)
            io_loop.start()

    def _end_context(self) -> None:
        self._io_loop = None
        if self._context is not None:
            self._context.destroy(linger=0)

    def _report_end(self) -> None:
        with self._lock:
            self._ended = True
            callbacks, self._at_end = self._at_end, []
        for callback in callbacks:
            callback()
