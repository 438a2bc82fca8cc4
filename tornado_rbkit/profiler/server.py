"""The server's thread and sockets, and the single server that a process can have."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Final, TypeVar

import zmq

from tornado_rbkit.endpoints import require_descriptors
from tornado_rbkit.errors import RbkitError
from tornado_rbkit.profiler.arguments import check_clock, check_interval, check_server
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.cpu import DEFAULT_INTERVAL
from tornado_rbkit.profiler.discovery import Announcement, RunningServer, unique_key
from tornado_rbkit.profiler.endpoints import (
    BindError,
    bind_chosen,
    release_inherited,
    restore,
    same_endpoint,
)
from tornado_rbkit.profiler.folder import remove_file
from tornado_rbkit.profiler.memory import release_callback
from tornado_rbkit.profiler.profile import MAX_PARTS, Profile, default_name
from tornado_rbkit.profiler.signals import leave_signals_to_the_host

__all__ = [
    "AlreadyRunningError",
    "BindError",
    "Server",
    "current_server",
    "start_profiling",
    "start_server",
    "stop_server",
]

_PATIENCE_SECONDS: Final = 1.0
_HOSTS_TURN_SECONDS: Final = 0.0005
_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 2.0
"""Interval between two checks of the files by which the server is reached; bridges keep their clients for longer."""

_EXIT_SECONDS: Final = 2.0
"""How long the end of the process waits at most for the server's thread."""

_LINGER_MS: Final = 200
"""How long `stop_server` waits at most for the last messages and the last reply to reach their clients."""


class AlreadyRunningError(RbkitError, RuntimeError):
    """This process already has a server; `server` is the running server."""

    def __init__(self, server: Server) -> None:
        super().__init__(
            f"the profiler of this process already runs on pub {server.pub}, req {server.req}; stop_server() ends it"
        )
        self.server = server


class Server:
    """A PUB and a REP socket on a daemon thread of their own. Created by `start_server`.

    Its attributes and `status` may be used on any thread.

    Attributes:
        pub: the endpoint of the PUB socket, with its actual port.
        req: the endpoint of the REP socket.
        name: the process_name of the handshake.
        started: seconds since the Unix epoch.
    """

    _announcement: Announcement | None = None
    _is_cut_off = False
    _has_refused = False

    def __init__(self, pub: str | None, req: str | None, name: str) -> None:
        require_descriptors()
        self._key = unique_key()
        self._pid = os.getpid()
        self._given = (pub, req)
        self.name = name
        self.started = time.time()
        self._batcher = EventBatcher()
        self._profile = Profile(name, self._batcher, self)
        self._profile.internal.append(self)
        self._calls: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._stopped = threading.Event()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        # The profiler finds its own objects through these attributes, to leave them out; so none is a local variable.
        self._context: zmq.Context[Any] = zmq.Context()
        self._poller = zmq.Poller()
        self._sockets: list[tuple[zmq.Socket[bytes], str]] = []
        self._request: list[bytes] = []
        self._bound: Future[tuple[str, str]] = Future()
        self._thread = threading.Thread(target=self._run, args=(pub, req), name="rbkit-server", daemon=True)
        self._thread.start()
        try:
            self.pub, self.req = self._bound.result()
        except BaseException:  # also KeyboardInterrupt
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
        profile = self._profile
        return {
            "name": self.name,
            "pid": os.getpid(),
            "pub": self.pub,
            "req": self.req,
            "started": self.started,
            "running": self.running,
            "messages": self._batcher.counter,
            "backlog": self._batcher.backlog,
            "snapshot_objects": profile.snapshot_objects,
            "memory": profile.memory.status(),
            "cpu": profile.cpu.status(),
        }

    def call(self, function: Callable[[Profile], _T]) -> _T:
        """Run `function` on the server's thread, between two commands, and return its result.

        Waits for the command that is running, which may take a minute for a snapshot of a large heap.

        Raises:
            RuntimeError: the server has stopped.
            Exception: any exception that `function` raised.
        """
        future: Future[_T] = Future()

        def run() -> None:
            try:
                future.set_result(function(self._profile))
            except BaseException as error:  # noqa: BLE001 - raised on the caller's thread
                future.set_exception(error)

        self._calls.append(run)
        self._wake()
        while not wait([future], timeout=0.1).done:
            if not self._lives() and not future.done():
                raise RuntimeError("the profiler's server has stopped")
        return future.result()

    def send_all(self, message: bytes) -> None:
        """Publish a message of a snapshot, waiting for subscribers with a full queue. The server's thread.

        ZMQ_XPUB_NODROP makes the PUB socket refuse a message that a subscriber's high-water mark would make it drop.
        If a subscriber takes nothing for `_PATIENCE_SECONDS`, the PUB socket drops messages for it as usual, and the
        other subscribers no longer wait for it.
        """
        self._publish()
        self._pub.setsockopt(zmq.XPUB_NODROP, 1)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                self._pub.send(message, zmq.NOBLOCK)
                break
            except zmq.Again:
                if time.monotonic() > deadline or self._stopped.wait(0.005):
                    self._pub.setsockopt(zmq.XPUB_NODROP, 0)
                    self._pub.send(message, zmq.NOBLOCK)
                    break
        self._pub.setsockopt(zmq.XPUB_NODROP, 0)

    def flush(self) -> None:
        """Publish all waiting events. The server's thread."""
        self._publish(flush=True)

    def yield_to_host(self) -> bool:
        """Publish what is due and let the host run, in the middle of a snapshot. The server's thread."""
        self._publish()
        return not self._stopped.wait(_HOSTS_TURN_SECONDS)

    def stop(self, timeout: float | None = None) -> bool:
        """Publish the waiting events, close the sockets and join the thread. May be called twice, on any other thread.

        Args:
            timeout: seconds to wait for the thread; None to wait until it has ended.

        Returns:
            False if the thread had not ended after `timeout`.
        """
        self._stopping = True
        self._stopped.set()
        self._wake()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        self._wake_in.close()
        self._wake_out.close()
        return True

    def abandon(self) -> None:
        """Release, in a forked child, the resources of the parent's server."""
        self._stopping = True
        self._wake_in.close()
        self._wake_out.close()
        release_callback(self._profile.memory)
        self._profile.cpu.abandon()
        release_inherited([self.pub, self.req])

    def belongs_here(self) -> bool:
        """Return False in a process forked from the server's, which has a copy of its memory but not its thread."""
        return self._pid == os.getpid()

    def _lives(self) -> bool:
        return self.belongs_here() and self._thread.is_alive()

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"\0")
        except OSError:  # the thread is awake already, or has stopped
            return

    def _run(self, pub: str | None, req: str | None) -> None:
        leave_signals_to_the_host()
        try:
            for kind, endpoint in ((zmq.PUB, pub), (zmq.REP, req)):
                self._sockets.append(bind_chosen(self._context, kind, endpoint, self._key))
            (self._pub, bound_pub), (self._rep, bound_req) = self._sockets
            server = RunningServer(self.name, os.getpid(), bound_pub, bound_req, self.started)
            self._announcement = Announcement(self._key, server)
        except BaseException as error:  # noqa: BLE001 - raised on the thread that starts the server
            self._close()
            self._bound.set_exception(error)
            return
        self._poller.register(self._rep, zmq.POLLIN)
        self._poller.register(self._wake_out.fileno(), zmq.POLLIN)
        self._bound.set_result((bound_pub, bound_req))
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
            if endpoint.startswith("ipc://"):  # libzmq leaves the file behind
                remove_file(Path(endpoint.removeprefix("ipc://")))
        self._context.term()

    def _serve(self) -> None:
        next_look = time.monotonic() + _LOOK_SECONDS
        while not self._stopping:
            while self._calls:
                self._calls.popleft()()
            seconds = self._work()
            self._publish()
            until_look = next_look - time.monotonic()
            if until_look <= 0:
                self._stay_reachable()
                next_look, until_look = time.monotonic() + _LOOK_SECONDS, _LOOK_SECONDS
            self._poller.poll(int(1000 * (until_look if seconds is None else min(seconds, until_look))))
            with contextlib.suppress(BlockingIOError):
                self._wake_out.recv(4096)
            if int(self._rep.get(zmq.EVENTS)) & zmq.POLLIN:
                self._answer()

    def _stay_reachable(self) -> None:
        """Restore the socket files and the announcement if a cleaner, or the end of a session, removed them."""
        try:
            for sock, endpoint in self._sockets:
                if Path(endpoint).stem == self._key:
                    restore(sock, endpoint)
        except OSError as error:
            if not self._is_cut_off:
                _log.warning("nobody can connect to the profiler any more: %s", error)
            self._is_cut_off = True
        else:
            self._is_cut_off = False
        assert self._announcement is not None
        self._announcement.keep()

    def _answer(self) -> None:
        try:
            self._receive()
        except zmq.Again:  # libzmq discarded a request without an envelope (rep_t::xrecv); do not wait for another
            return
        try:
            reply = self._profile.answer(self._request)
        except Exception:  # noqa: BLE001 - a REP socket that does not answer is dead for every client
            _log.exception("the profiler failed at %.100r", self._request)
            reply = b"ok"
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

    def _work(self) -> float | None:
        try:
            return self._profile.work()
        except Exception:  # noqa: BLE001 - must not affect the host or the other instruments
            _log.exception("the profiler failed; memory profiling is off")
            self._profile.memory.stop()
            return None

    def _publish(self, *, flush: bool = False) -> None:
        for message in self._batcher.take(time.time(), flush=flush):
            self._pub.send(message, zmq.NOBLOCK)


# The one server of a process

_lock = threading.Lock()
_server: Server | None = None
_hooked = False
_parents: Final[list[Server]] = []
"""The parent's servers, which a forked child keeps forever: destroying one would close sockets it does not own."""


def start_server(pub: str | None = None, req: str | None = None, name: str | None = None) -> Server:
    """Start the profiler's server in this process, without starting to measure. Any thread.

    Args:
        pub: the endpoint of the PUB socket; if None, the port in RBKIT_PUB_PORT on 127.0.0.1 if that is set, else a
            Unix socket in the runtime folder, which `list_servers` finds, or on Windows a free port on 127.0.0.1.
            ``tcp://127.0.0.1:*`` takes a free port. Only the owner can connect to the file of an ``ipc://`` socket.
        req: the endpoint of the REP socket, likewise; its variable is RBKIT_REQ_PORT.
        name: the process name that clients see; if None, the name of the notebook, the script or the interpreter.

    Returns:
        The server. `Server.pub` and `Server.req` are its actual endpoints.

    Raises:
        ArgumentError: an argument cannot be used; the error names it and says what is allowed.
        AlreadyRunningError: this process already has a server.
        BindError: an endpoint is in use, or cannot be bound; the error names it.
        OSError: there are too few file descriptors.
    """
    check_server(pub, req, name)
    _notice_fork()
    with _lock:
        server = _running()
        if server is not None:
            raise AlreadyRunningError(server)
        return _start(pub, req, name)


def start_profiling(
    pub: str | None = None,
    req: str | None = None,
    name: str | None = None,
    *,
    enable_object_trace: bool = True,
    enable_gc_stats: bool = True,
    enable_cpu_profiling: bool = False,
    clock_type: str = "wall",
    cpu_sampling_interval: float = DEFAULT_INTERVAL,
) -> Server:
    """Start measuring, as clients' commands do; start the server first if there is none. Any thread.

    Instruments that are not enabled here are switched off.

    Args:
        pub, req, name: as in `start_server`, if there is no server yet.
        enable_object_trace: publish the objects that are created and destroyed.
        enable_gc_stats: publish the collector's figures every five seconds. Either option also publishes its pauses.
        enable_cpu_profiling: sample the stacks of all threads.
        clock_type: ``"wall"``, or ``"cpu"`` (Linux).
        cpu_sampling_interval: seconds between two samples.

    Raises:
        ArgumentError: an argument cannot be used; the error names it and says what is allowed.
        AlreadyRunningError: the running server has other endpoints than the given ones.
        RuntimeError: the server was stopped meanwhile.
        BindError: an endpoint is in use, or cannot be bound; the error names it.
        OSError: there are too few file descriptors.
    """
    check_server(pub, req, name)
    check_clock(clock_type)
    check_interval(cpu_sampling_interval)
    _notice_fork()
    with _lock:
        server = _running() or _start(pub, req, name)
        if not server.is_at(pub, req):
            raise AlreadyRunningError(server)

    def configure(profile: Profile) -> None:
        profile.use_cpu_time() if clock_type == "cpu" else profile.use_wall_time()
        if enable_object_trace or enable_gc_stats:
            profile.memory.start(trace_objects=enable_object_trace, gc_stats=enable_gc_stats)
        else:
            profile.stop_memory_profile()
        if enable_cpu_profiling:
            profile.cpu.start(cpu_sampling_interval)
        else:
            profile.cpu.stop()

    server.call(configure)  # without the lock: it may take long, and the process must be able to end
    return server


def stop_server() -> None:
    """Stop the server and all measuring; does nothing if there is no server. Any thread except the server's.

    Waits for the current step of the server's thread: a slice of a snapshot, or a collection.
    """
    _notice_fork()
    with _lock:
        server = _take()
        if server is not None:
            server.stop()


def current_server() -> Server | None:
    """Return the running server of this process, None if there is none. Any thread."""
    _notice_fork()
    server = _server
    return server if server is not None and server.running else None


def _stop_at_exit() -> None:
    """Stop the server, delaying the end of the process for at most `_EXIT_SECONDS`."""
    _notice_fork()
    deadline = time.monotonic() + _EXIT_SECONDS
    if not _lock.acquire(timeout=_EXIT_SECONDS):
        _log.warning("the profiler is still being started or stopped after %g s; the process ends", _EXIT_SECONDS)
        return
    try:
        server = _take()
        if server is not None and not server.stop(max(0.0, deadline - time.monotonic())):
            _log.warning("the profiler's thread is still busy after %g s; the process ends", _EXIT_SECONDS)
    finally:
        _lock.release()


def _take() -> Server | None:
    global _server
    server, _server = _server, None
    return server


def _running() -> Server | None:
    """Return the running server; clean up first after a server whose thread ended with an error."""
    if _server is not None and not _server.running:
        dead = _take()
        assert dead is not None
        dead.stop()
    return _server


def _notice_fork() -> None:
    """Clean up if this process was forked without Python's hooks, in C, as uWSGI forks its workers."""
    server = _server
    if server is not None and not server.belongs_here():
        _after_fork_in_child()


def _start(pub: str | None, req: str | None, name: str | None) -> Server:
    global _server
    _hook()
    _server = Server(pub, req, name or default_name())
    return _server


def _hook() -> None:
    global _hooked
    if _hooked:
        return
    _hooked = True
    atexit.register(_stop_at_exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork_in_child)


def _after_fork_in_child() -> None:
    global _lock, _server
    _lock = threading.Lock()
    server, _server = _server, None
    if server is None:
        return
    _parents.append(server)
    server.abandon()
