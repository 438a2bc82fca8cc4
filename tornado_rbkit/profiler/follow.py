"""Follows a program into its child processes: reloaders, worker processes of web servers, process pools.

`follow` puts a folder with a ``sitecustomize`` module first in PYTHONPATH, which Python processes import when they
start, and registers a function that runs after a fork. Either starts a server in the child, named like
``web · worker 2 (4711)``. A child that ignores PYTHONPATH (``python -E``, ``-I``, ``-S``) is not followed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, Final, NamedTuple

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.cpu import RUN_INTERVAL
from tornado_rbkit.profiler.discovery import list_servers
from tornado_rbkit.profiler.folder import prepare_folder, runtime_folder
from tornado_rbkit.profiler.lifecycle import current_server, start_profiling, start_run_server
from tornado_rbkit.profiler.server import Server
from tornado_rbkit.profiler.threads import Flag, InternalThread, internal_logger

_log = internal_logger(__name__)

VARIABLE: Final = "RBKIT_FOLLOW"
_STARTUP: Final = str(Path(__file__).with_name("startup"))

_SETTLE_SECONDS: Final = 0.2
"""Seconds after a fork until the child gets a server: many children only call exec, or end immediately."""

_LOCK_SECONDS: Final = 2.0
"""The longest time, in seconds, that a child waits for other children to choose their names."""

_SERVANTS: Final = (
    "multiprocessing.resource_tracker",
    "multiprocessing.semaphore_tracker",
    "multiprocessing.forkserver",
)
"""Processes of the standard library in which nothing of the program runs."""


class Followed(NamedTuple):
    """The settings that the child processes of a program inherit.

    Attributes:
        family: identifies the program's processes among all others.
        name: the program.
        pid: its first process, which keeps its name and its endpoints when it calls exec, as reloaders do.
        cpu: whether to sample stacks from the start.
        memory: whether to profile memory from the start.
    """

    family: str
    name: str
    pid: int
    cpu: bool = False
    memory: bool = False


def follow(name: str, *, cpu: bool = False, memory: bool = False) -> Server:
    """Start the server of this process, the first of a program, and one in each Python process that it starts.

    Args:
        name: the program.
        cpu: whether to sample stacks from the start.
        memory: whether to profile memory from the start.

    Raises:
        SamplingError: sampling the stacks could crash this process.
        BindError: the port in RBKIT_PUB_PORT or RBKIT_REQ_PORT is not a port.
        OSError: there are too few file descriptors.
    """
    followed = Followed(secrets.token_hex(8), name, os.getpid(), cpu, memory)
    server = _start(followed, name)
    paths = [_STARTUP, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ[VARIABLE] = json.dumps(followed)
    _follow_forks(followed)
    return server


def unfollowed(environment: dict[str, str]) -> dict[str, str]:
    """Return an environment for a process that is not one of the program's, such as the web server."""
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    rest = {name: value for name, value in environment.items() if name not in (VARIABLE, "PYTHONPATH")}
    kept = os.pathsep.join(path for path in paths if path != _STARTUP)
    return {**rest, "PYTHONPATH": kept} if kept else rest


def start_in_child() -> None:
    """Start the server of a process that imported `startup.sitecustomize`. Never raises."""
    followed = _followed()
    if followed is None:
        return
    _follow_forks(followed)
    if not any(servant in argument for servant in _SERVANTS for argument in sys.orig_argv):
        _start_worker(followed)


def _followed() -> Followed | None:
    try:
        facts: Any = json.loads(os.environ.get(VARIABLE, ""))
        family, name, pid, cpu, memory = facts
        return Followed(str(family), str(name), int(pid), cpu is True, memory is True)
    except (ValueError, TypeError):
        return None


def _follow_forks(followed: Followed) -> None:
    def wait_and_start() -> None:
        if not Flag().wait(_SETTLE_SECONDS):
            _start_worker(followed)

    if not hasattr(os, "register_at_fork"):
        return
    from tornado_rbkit.profiler.startup.bootstrap import hide_fork_warning  # it cannot be imported on Windows

    def after_fork() -> None:
        hide_fork_warning()  # its text has the pid
        InternalThread(wait_and_start, "rbkit-follow", controls=True)

    hide_fork_warning()
    os.register_at_fork(after_in_child=after_fork)


def _start_worker(followed: Followed) -> None:
    try:
        with _one_at_a_time():
            if current_server() is None:
                _start(followed, followed.name if os.getpid() == followed.pid else _worker_name(followed))
    except Exception as error:  # noqa: BLE001 - the program must run as without the profiler
        # Python 3.12 starts no thread any more while the main thread waits for others at the end of the process. It
        # raises a plain RuntimeError, and neither `sys.is_finalizing()` nor the main thread's `is_alive()` tells yet.
        if "interpreter shutdown" in str(error):
            return
        _log.warning("process %d of %s has no profiler: %s", os.getpid(), followed.name, error)


def _start(followed: Followed, name: str) -> Server:
    server = start_run_server(name, followed.family)
    if followed.cpu or followed.memory:
        start_profiling(
            enable_object_trace=followed.memory,
            enable_cpu_profiling=followed.cpu,
            cpu_sampling_interval=RUN_INTERVAL,
        )
    return server


def _worker_name(followed: Followed) -> str:
    """Return a name with the lowest number that no other process of the program has."""
    prefix = f"{PurePath(followed.name).name} · worker "
    taken = {server.name.removeprefix(prefix).partition(" ")[0] for server in _family(followed.family)}
    number = next(number for number in range(1, len(taken) + 2) if str(number) not in taken)
    return f"{prefix}{number} ({os.getpid()})"


def _family(family: str) -> list[Any]:
    try:
        return [server for server in list_servers() if server.family == family]
    except OSError:
        return []


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let one process at a time choose its name and announce it; without effect on Windows."""
    try:
        import fcntl

        folder = runtime_folder()
        prepare_folder(folder)
        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        _wait_for_lock(fcntl, descriptor)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a child that was forked meanwhile and shares the lock
        os.close(descriptor)


def _wait_for_lock(fcntl: Any, descriptor: int) -> None:
    """Wait for at most `_LOCK_SECONDS`; see `Server._wait_until_bound` for why this is a function."""
    deadline = real_time.monotonic() + _LOCK_SECONDS
    while not _lock(fcntl, descriptor) and real_time.monotonic() < deadline:
        Flag().wait(0.005)


def _lock(fcntl: Any, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
