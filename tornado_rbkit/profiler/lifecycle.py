"""Starts and stops the single server of a process, and handles forks and the end of the process."""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import threading
from functools import partial
from pathlib import PurePath
from typing import Final

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.profiler.arguments import check_clock, check_interval, check_server, chosen_engine
from tornado_rbkit.profiler.cpu import DEFAULT_INTERVAL, RUN_INTERVAL
from tornado_rbkit.profiler.profile import Profile
from tornado_rbkit.profiler.server import Server, abandon_servers
from tornado_rbkit.profiler.threads import on_internal_thread

_log = logging.getLogger(__name__)

_EXIT_SECONDS: Final = 2.0
"""The longest time, in seconds, that the end of the process waits for the server's thread."""

_EXIT_PARTS: Final = 20
"""The number of waits that add up to it: a pause of the process, which also stops the server's thread, uses up one."""

_lock = threading.RLock()
"""Reentrant: the handler of a signal, or a finalizer, may start or stop the server while this thread does."""

_server: Server | None = None
_hooked = False
_parents: Final[list[Server]] = []
"""The parent's servers, which a forked child keeps forever: destroying one would close sockets it does not own."""


class AlreadyRunningError(RbkitError, RuntimeError):
    """This process already has a server, at other endpoints; `server` is the running server."""

    def __init__(self, server: Server) -> None:
        super().__init__(
            f"the profiler of this process already runs on pub {server.pub}, req {server.req}; stop_server() ends it"
        )
        self.server = server


def start_server(
    pub: str | None = None, req: str | None = None, name: str | None = None, *, cpu_engine: str | None = None
) -> Server:
    """Start the profiler's server in this process, without starting to measure. Any thread.

    Under ``tornado-rbkit run``, and after an earlier call, the process has a server already: it is returned.

    The server is a daemon thread, a real one also under gevent and eventlet.

    A program that closes all descriptors, as daemons do at their start, must call this afterwards: libzmq aborts the
    process if its descriptors are closed. It also does so if no descriptor is left (RLIMIT_NOFILE) for a client that
    connects to a Unix socket; so the sockets' files are hidden while less than an eighth of the descriptors is left,
    which is checked ten times a second.

    Args:
        pub: the endpoint of the PUB socket; if None, the port in RBKIT_PUB_PORT on 127.0.0.1 if that is set, else a
            Unix socket in the runtime folder, which `list_servers` finds, or on Windows a free port on 127.0.0.1.
            ``tcp://127.0.0.1:*`` takes a free port. Only the owner can connect to the file of an ``ipc://`` socket.
        req: the same for the REP socket; its variable is RBKIT_REQ_PORT.
        name: the process name that clients see; if None, the name of the notebook, the script, the package of
            ``python -m``, or the interpreter.
        cpu_engine: what samples the stacks. ``"in-process"``: a thread of this process. ``"external"``: another
            process, not a child of this one, that reads this process's memory (Linux, CPython 3.10 to 3.15).
            ``"auto"``: external where that works, else in-process; the status and the handshake say which, and why.
            If None, RBKIT_CPU_ENGINE, else ``"auto"``.

            The external engine slows this process down less and is more accurate, but it does not know the names of
            tasks, and it counts a thread that waits for a processor as computing. Where the system permits it, as
            for root, it runs with real-time priority (SCHED_RR), so that it also samples a busy machine at random
            moments; it rests for at least three quarters of the time. It does not work with musl, under gevent and
            eventlet, where the system forbids reading the memory, and in a process that adopts orphans, such as PID
            1 of a container.

    Returns:
        The server. `Server.pub` and `Server.req` are its actual endpoints.

    Raises:
        ArgumentError: an argument cannot be used; the error names it and says what is allowed.
        AlreadyRunningError: the running server has other endpoints than the given ones.
        BindError: an endpoint is in use, or cannot be bound; the error names it.
        OSError: there are too few file descriptors.
        RuntimeError: this is a thread of the profiler, which runs a finalizer of the program.
    """
    check_server(pub, req, name)
    engine = chosen_engine(cpu_engine)
    _check_thread()
    _notice_fork()
    with _lock:
        return _running_at(pub, req) or _start(pub, req, name, cpu_engine=engine)


def start_run_server(name: str | None = None, family: str = "") -> Server:
    """Start the server as the commands ``run`` and ``attach --inject`` do, with their sampling interval. Any thread.

    Args:
        name: as in `start_server`.
        family: identifies a program that is followed into its children; see `follow`.

    Raises:
        BindError: the port in RBKIT_PUB_PORT or RBKIT_REQ_PORT is not a port.
        OSError: there are too few file descriptors.
    """
    _notice_fork()
    with _lock:
        return _running_at(None, None) or _start(
            None, None, name, family, cpu_engine=chosen_engine(None), interval=RUN_INTERVAL
        )


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
    cpu_engine: str | None = None,
) -> Server:
    """Start measuring, as clients' commands do; start the server first if there is none. Any thread.

    Instruments that are not enabled here are switched off.

    Args:
        pub, req, name, cpu_engine: as in `start_server`, if there is no server yet.
        enable_object_trace: publish the objects that are created and destroyed, and the collector's pauses.
        enable_gc_stats: publish the collector's figures and the process's (RSS, CPU time, threads) each second while
            anybody subscribes, also without this call.
        enable_cpu_profiling: sample the stacks of all threads.
        clock_type: ``"wall"``, or ``"cpu"`` (Linux).
        cpu_sampling_interval: seconds between two samples.

    Raises:
        ArgumentError: an argument cannot be used; the error names it and says what is allowed.
        AlreadyRunningError: the running server has other endpoints than the given ones.
        SamplingError: sampling the stacks could crash this process, or the engine does not work.
        RuntimeError: the server was stopped meanwhile, or this is a thread of the profiler.
        BindError: an endpoint is in use, or cannot be bound; the error names it.
        OSError: there are too few file descriptors.
    """
    check_server(pub, req, name)
    check_clock(clock_type)
    check_interval(cpu_sampling_interval)
    engine = chosen_engine(cpu_engine)
    _check_thread()
    _notice_fork()
    with _lock:
        server = _running_at(pub, req) or _start(pub, req, name, cpu_engine=engine)

    def configure(profile: Profile) -> None:
        profile.use_cpu_time() if clock_type == "cpu" else profile.use_wall_time()
        profile.start_memory_profile() if enable_object_trace else profile.stop_memory_profile()
        profile.gc_stats = enable_gc_stats
        if enable_cpu_profiling:
            profile.cpu.start(cpu_sampling_interval)
        else:
            profile.cpu.stop()

    server.call(configure)  # without the lock: it may take long, and the process must be able to end
    return server


def _check_thread() -> None:
    if on_internal_thread():
        raise RuntimeError("a thread of the profiler, which runs a finalizer, cannot start the profiler")


def stop_server() -> None:
    """Stop the server and all measuring; does nothing if there is no server. Any thread.

    Waits for the current step of the server's thread: a slice of a snapshot, or a collection. On a thread of the
    profiler, where a finalizer of the program may run, it does not wait.
    """
    _notice_fork()
    if on_internal_thread():  # which another thread may wait for while it holds the lock
        server = _server
        if server is not None:
            server.stop()
        return
    with _lock:
        if _server is not None:
            _stop(_server)


def current_server() -> Server | None:
    """Return the running server of this process, None if there is none. Any thread."""
    _notice_fork()
    server = _server
    return server if server is not None and server.running else None


def _stop_at_exit() -> None:
    """Stop the server, delaying the end of the process for at most `_EXIT_SECONDS`."""
    _notice_fork()
    if not _lock.acquire(timeout=_EXIT_SECONDS):
        _log.warning("the profiler is still being started or stopped after %g s; the process ends", _EXIT_SECONDS)
        return
    try:
        server, seconds = _server, _EXIT_SECONDS / _EXIT_PARTS
        if server is not None and not any(_stop(server, seconds) for _ in range(_EXIT_PARTS)):
            _log.warning("the profiler's thread is still busy after %g s; the process ends", _EXIT_SECONDS)
    finally:
        _lock.release()


def _stop(server: Server, timeout: float | None = None) -> bool:
    """Stop a server, and then forget it: where an interrupt ends this, the next call goes on waiting."""
    global _server
    has_ended = server.stop(timeout)
    if _server is server:  # the handler of a signal may have started another one
        _server = None
    return has_ended


def _running() -> Server | None:
    """Return the running server; clean up first after a server whose thread ended with an error."""
    if _server is not None and not _server.running:
        _stop(_server)
    return _server


def _running_at(pub: str | None, req: str | None) -> Server | None:
    """Return the running server; raise AlreadyRunningError if it is at other endpoints."""
    server = _running()
    if server is not None and not server.is_at(pub, req):
        raise AlreadyRunningError(server)
    return server


def _notice_fork() -> None:
    """Clean up if this process was forked without Python's hooks, in C, as uWSGI forks its workers."""
    server = _server
    if server is not None and not server.belongs_here():
        _after_fork_in_child()


def _start(
    pub: str | None,
    req: str | None,
    name: str | None,
    family: str = "",
    *,
    cpu_engine: str,
    interval: float = DEFAULT_INTERVAL,
) -> Server:
    global _server
    _hook()
    made = Server(
        pub, req, name or _default_name(), family, partial(Profile, cpu_engine=cpu_engine, interval=interval)
    )
    try:
        started = _running_at(pub, req)  # by the handler of a signal, meanwhile
        if started is None:
            _server = started = made
            _stop_with_multiprocessing()
        return started
    finally:
        if _server is not made:
            made.stop()


def _default_name() -> str:
    """Return the default name of this process: its notebook and kernel, its script or package, or its interpreter."""
    argv = getattr(sys, "argv", None) or [""]  # an embedding program may have none
    if {"ipykernel_launcher.py", "ipykernel"} & set(PurePath(argv[0]).parts[-2:]):
        return _kernel_name(argv[1:])
    if PurePath(argv[0]).name == "__main__.py":  # of ``python -m PACKAGE``, also in its worker processes
        return PurePath(argv[0]).parent.name or argv[0]
    return (argv[0] if argv[0] not in ("", "-c", "-m") else sys.executable) or "python"


def _kernel_name(arguments: list[str]) -> str:
    """Return ``<notebook>-<id prefix>`` of a kernel; Jupyter Server sets the notebook in the environment."""
    notebook = PurePath(os.environ.get("JPY_SESSION_NAME", "")).stem or "kernel"
    identifier = re.search(r"kernel-(\w+)\S*\.json", " ".join(arguments))  # the connection file's name
    return f"{notebook}-{identifier[1]}" if identifier else notebook


def _stop_with_multiprocessing() -> None:
    """Stop the server at the end of a forked multiprocessing child, which calls os._exit and no atexit function."""
    process = sys.modules.get("multiprocessing.process")
    util = sys.modules.get("multiprocessing.util")
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, _stop_at_exit, exitpriority=-90)  # after the finalizers of the host


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
    _lock = threading.RLock()
    _server = None
    _parents.extend(abandon_servers())
