"""The server of one process: its thread, its sockets, and the requests that clients send."""

from __future__ import annotations

import _socket
import contextlib
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import zmq

from tornado_rbkit.endpoints import require_descriptors
from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.discovery import Announcement, RunningServer, unique_key
from tornado_rbkit.profiler.endpoints import (
    bind_chosen,
    release_inherited,
    remove_files,
    same_endpoint,
)
from tornado_rbkit.profiler.listeners import Listeners
from tornado_rbkit.profiler.profile import MAX_PARTS, Outlet, Profile
from tornado_rbkit.profiler.threads import Flag, InternalThread, forget_threads, internal_logger, on_internal_thread

_PATIENCE_SECONDS: Final = 1.0
_FULL_WAITS: Final = 200  # for a subscriber with a full queue
_FULL_SECONDS: Final = 0.005  # of one wait
_HOSTS_TURN_SECONDS: Final = 0.0005
_T = TypeVar("_T")
_socket_pair: Final[Any] = getattr(_socket, "socketpair", socket.socketpair)  # gevent does not replace the former
_log = internal_logger(__name__)

_LOOK_SECONDS: Final = 2.0
"""Interval between two checks of the files by which the server is reached; bridges keep their clients for longer."""

_SUBSCRIPTIONS: Final = 1000
"""Subscriptions that are read at a time; the server polls again, and so returns, while there are more."""

_LINGER_MS: Final = 200
"""The longest time that `stop_server` waits for the last messages and the last reply to be sent."""


_unstopped: Final[dict[int, Server]] = {}
"""The servers of this process, from before their threads start until these have ended, by id."""


def abandon_servers() -> list[Server]:
    """Release, in a forked child, the resources of the parent's servers; return the servers.

    Another thread of the parent may have been starting or stopping one.
    """
    forget_threads()
    servers = list(_unstopped.values())
    _unstopped.clear()
    for server in servers:
        server.abandon()
    return servers


class Server:
    """An XPUB and a REP socket on a daemon thread of their own. Created by `start_server`.

    An XPUB socket is a PUB socket that also reports subscriptions.

    Its attributes and `status` may be used on any thread.

    Attributes:
        pub: the endpoint of the XPUB socket, with its actual port.
        req: the endpoint of the REP socket.
        name: the process_name of the handshake.
        started: seconds since the Unix epoch.
        family: the same for all processes of a followed program (see `follow`), else empty.
    """

    _announcement: Announcement | None = None
    _has_refused = False

    def __init__(
        self,
        pub: str | None,
        req: str | None,
        name: str,
        family: str = "",
        make_profile: Callable[[str, EventBatcher, Outlet], Profile] = Profile,
    ) -> None:
        require_descriptors()
        self._key = unique_key(family)
        self._pid = os.getpid()
        self._given = (pub, req)
        self.name = name
        self.family = family
        self.started = real_time.time()
        self._batcher = EventBatcher()
        self._profile = make_profile(name, self._batcher, self)
        self._profile.internal.append(self)
        self._calls: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._stopped = Flag()
        # These are attributes, not local variables, because the profiler finds its own objects through them, to leave
        # them out.
        self._poller = zmq.Poller()
        self._sockets: list[tuple[zmq.Socket[bytes], str]] = []
        self._request: list[bytes] = []
        self._topics: set[bytes] = set()
        self.pub = self.req = ""
        self._bound = Flag()
        self._bind_error: BaseException | None = None
        self._thread: InternalThread | None = None
        self._wake_in, self._wake_out = _socket_pair()
        self._context: zmq.Context[Any] = zmq.Context()
        try:
            _unstopped[id(self)] = self
            self._wake_in.setblocking(False)
            self._wake_out.setblocking(False)
            self._thread = InternalThread(self._run, "rbkit-server")
            self._wait_until_bound(self._thread)
            if not self._bound.is_set():
                raise RuntimeError("the profiler's thread has ended before it began")
            if self._bind_error is not None:
                raise self._bind_error
        except BaseException:  # KeyboardInterrupt, or no thread can be started
            self.stop()
            raise

    def __repr__(self) -> str:
        return f"<Server {self.name!r} pub={self.pub} req={self.req}{'' if self.running else ' stopped'}>"

    @property
    def file(self) -> Path | None:
        """The file by which other processes find this server; None while it cannot be written. Any thread."""
        announcement = self._announcement
        return None if announcement is None else announcement.path

    @property
    def running(self) -> bool:
        """True from `start_server` to `stop_server`, in the process that started it, while its thread is alive."""
        return not self._stopping and self._lives()

    def is_at(self, pub: str | None, req: str | None) -> bool:
        """Return True if `start_server` with these endpoints would listen where this server does."""
        return all(
            asked is None or asked == given or same_endpoint(asked, bound)
            for asked, given, bound in zip((pub, req), self._given, (self.pub, self.req), strict=True)
        )

    def status(self) -> dict[str, Any]:
        """Return the server's state in types that JSON supports. Never waits for the server's thread."""
        return {
            "name": self.name,
            "pid": self._profile.pid,
            "pub": self.pub,
            "req": self.req,
            "started": self.started,
            "running": self.running,
            "messages": self._batcher.counter,
            "backlog": self._batcher.backlog,
            **self._profile.status(),
        }

    def call(self, function: Callable[[Profile], _T]) -> _T:
        """Run `function` on the server's thread, between two commands, and return its result.

        Waits for the command that is running, which may take a minute for a snapshot of a large heap.

        Raises:
            RuntimeError: the server has stopped, or this is a thread of the profiler.
            Exception: any exception that `function` raised.
        """
        if on_internal_thread():
            raise RuntimeError("a thread of the profiler cannot wait for the profiler's server")
        results: list[_T] = []
        errors: list[BaseException] = []
        done = Flag()

        def run() -> None:
            try:
                results.append(function(self._profile))
            except BaseException as error:  # noqa: BLE001 - raised on the caller's thread
                errors.append(error)
            done.set()

        self._calls.append(run)
        self._wake()
        while not done.wait(0.1):
            if not self._lives() and not done.is_set():
                raise RuntimeError("the profiler's server has stopped")
        if errors:
            raise errors.pop()
        return results.pop()

    def send_all(self, events: Sequence[bytes]) -> None:
        """Publish packed events in one message, waiting for subscribers with a full queue. The server's thread.

        ZMQ_XPUB_NODROP makes the socket refuse a message that a subscriber's high-water mark would make it drop.
        If a subscriber takes nothing during `_FULL_WAITS` waits, the socket drops messages for it as usual, and the
        other subscribers no longer wait for it. The time is not measured: a paused machine pauses subscribers too.
        """
        self._publish()
        message = self._batcher.collection(events, real_time.time())  # messages are sent in the order of their numbers
        self._pub.setsockopt(zmq.XPUB_NODROP, 1)
        waits = 0
        while True:
            try:
                self._pub.send(message, zmq.NOBLOCK)
                break
            except zmq.Again:
                waits += 1
                if waits > _FULL_WAITS or self._stopped.wait(_FULL_SECONDS):
                    self._pub.setsockopt(zmq.XPUB_NODROP, 0)
                    self._pub.send(message, zmq.NOBLOCK)
                    break
        self._pub.setsockopt(zmq.XPUB_NODROP, 0)

    def flush(self) -> None:
        """Publish all waiting events. The server's thread."""
        self._publish(flush=True)

    def yield_to_host(self) -> bool:
        """Publish what is due and let the host run, in the middle of a snapshot. The server's thread."""
        self._read_subscriptions()
        self._listeners.watch_descriptors()
        self._profile.publish_vitals()
        self._publish()
        return not self._stopped.wait(_HOSTS_TURN_SECONDS)

    def stop(self, timeout: float | None = None) -> bool:
        """Publish the waiting events, close the sockets and join the thread. May be called twice, on any thread.

        Args:
            timeout: seconds to wait for the thread; None to wait until it has ended.

        Returns:
            False if the thread had not ended after `timeout`, or on a thread of the profiler, which does not wait.
        """
        self._stopping = True
        self._stopped.set()
        self._wake()
        if on_internal_thread() or (self._thread is not None and not self._thread.join(timeout)):
            return False
        if not self._sockets:  # the thread has not begun
            self._context.term()
        self._wake_in.close()
        self._wake_out.close()
        _unstopped.pop(id(self), None)
        return True

    def abandon(self) -> None:
        """Release, in a forked child, the resources of the parent's server."""
        self._stopping = True
        self._wake_in.close()
        self._wake_out.close()
        self._profile.memory.abandon()
        self._profile.cpu.abandon()
        release_inherited([endpoint for _, endpoint in self._sockets])

    def belongs_here(self) -> bool:
        """Return False in a process forked from the server's, which has a copy of its memory but not its thread."""
        return self._pid == os.getpid()

    def _wait_until_bound(self, thread: InternalThread) -> None:
        """Wait for the sockets, or for the end of the thread.

        This is a function because an interrupt in the jump of a loop leaves a ``try`` around that loop on Python 3.12
        and 3.13, past its handlers: their compiler takes a jump for an instruction that cannot raise.
        """
        while not self._bound.wait(_PATIENCE_SECONDS) and thread.is_alive():
            pass

    def _lives(self) -> bool:
        return self.belongs_here() and self._thread is not None and self._thread.is_alive()

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"\0")
        except OSError:  # the thread is awake already, or has stopped
            return

    def _run(self) -> None:
        try:
            for kind, endpoint in zip((zmq.XPUB, zmq.REP), self._given, strict=True):
                self._sockets.append(bind_chosen(self._context, kind, endpoint, self._key))
            (self._pub, self.pub), (self._rep, self.req) = self._sockets
            self._listeners = Listeners(self._sockets, self._key)
            server = RunningServer(self.name, self._profile.pid, self.pub, self.req, self.started, self.family)
            self._announcement = Announcement(self._key, server)
        except BaseException as error:  # noqa: BLE001 - raised on the thread that starts the server
            self._close()
            self._bind_error = error
            self._bound.set()
            return
        self._poller.register(self._pub, zmq.POLLIN)
        self._poller.register(self._rep, zmq.POLLIN)
        self._poller.register(self._wake_out.fileno(), zmq.POLLIN)
        self._bound.set()
        try:
            self._serve_to_the_end()
        except BaseException:  # noqa: BLE001 - the thread ends here
            _log.exception("the profiler's server has ended; start_server() starts another")

    def _serve_to_the_end(self) -> None:
        try:
            self._serve()
        finally:
            try:
                if self._announcement is not None:
                    self._announcement.withdraw()
                self._profile.close()
            finally:
                try:
                    self._publish(flush=True)
                finally:
                    self._close()

    def _close(self) -> None:
        for sock, endpoint in self._sockets:
            sock.close(_LINGER_MS)
            if endpoint.startswith("ipc://"):
                remove_files(endpoint)
        self._context.term()

    def _serve(self) -> None:
        next_look = real_time.monotonic() + _LOOK_SECONDS
        while not self._stopping:
            while self._calls:
                self._calls.popleft()()
            self._read_subscriptions()
            seconds = self._profile.work()
            self._publish()
            until_look = next_look - real_time.monotonic()
            if until_look <= 0:
                self._stay_reachable()
                next_look, until_look = real_time.monotonic() + _LOOK_SECONDS, _LOOK_SECONDS
            waits = (seconds, self._batcher.wait(real_time.time()), until_look, self._listeners.watch_descriptors())
            seconds = min(each for each in waits if each is not None)
            self._poller.poll(math.ceil(1000 * seconds))
            with contextlib.suppress(BlockingIOError):
                self._wake_out.recv(4096)
            if int(self._rep.get(zmq.EVENTS)) & zmq.POLLIN:
                self._answer()

    def announce(self) -> None:
        """Restore the socket files and the announcement now, if they were removed; see `call`."""
        self.call(lambda _: self._stay_reachable())

    def _stay_reachable(self) -> None:
        """Restore the socket files and the announcement if a cleaner, or the end of a session, removed them."""
        self._listeners.keep()
        assert self._announcement is not None
        self._announcement.keep()

    @property
    def has_subscribers(self) -> bool:
        """Whether anybody receives what is published. The server's thread."""
        return bool(self._topics)

    def _read_subscriptions(self) -> None:
        """Note the topics that somebody subscribes to. XPUB reports the first and the end of the last subscription.

        The end of a connection ends its subscriptions. What else an XSUB socket sends is ignored.
        """
        for _ in range(_SUBSCRIPTIONS):
            try:
                message = self._pub.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if message.startswith(b"\1"):
                self._topics.add(message[1:])
            elif message.startswith(b"\0"):
                self._topics.discard(message[1:])

    def _answer(self) -> None:
        try:
            self._receive()
        except zmq.Again:  # libzmq discarded a request without an envelope (rep_t::xrecv); do not wait for another
            return
        try:
            reply = self._profile.answer(self._request)
        except Exception as error:  # noqa: BLE001 - a REP socket that does not answer is dead for every client
            _log.exception("the profiler failed at %.100r", self._request)
            reply = f"the command failed: {type(error).__name__}: {error}".encode(errors="replace")
        self._rep.send(reply)

    def _receive(self) -> None:
        """Read a request; if it has too many parts, read it to its end and run none of them.

        Raises:
            zmq.Again: there is no request.
        """
        # always the same list: a running comparison would keep the previous list alive, and a snapshot would show it
        self._request[:] = [self._rep.recv(zmq.NOBLOCK)]
        parts = 1
        while self._rep.get(zmq.RCVMORE):
            part = self._rep.recv(zmq.NOBLOCK)
            parts += 1
            if parts <= MAX_PARTS:
                self._request.append(part)
        if parts > MAX_PARTS:
            self._request.clear()
            if not self._has_refused:
                self._has_refused = True
                _log.warning("a request of %d parts was not run; allowed: %d. This is logged once", parts, MAX_PARTS)

    def _publish(self, *, flush: bool = False) -> None:
        for message in self._batcher.take(real_time.time(), flush=flush):
            self._pub.send(message, zmq.NOBLOCK)
