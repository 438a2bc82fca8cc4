"""Keeps a server reachable at its Unix sockets, except while the process runs out of file descriptors.

A cleaner of temporary files, or the end of a session, may remove the files of the sockets. And libzmq aborts the
process if no descriptor is left for a client that connects to a Unix socket (src/ipc_listener.cpp,
ipc_listener_t::accept), so none may connect by then. Connections stay open.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import zmq

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.endpoints import hidden_file, restore
from tornado_rbkit.profiler.threads import internal_logger

if sys.platform != "win32":
    import resource

LOOK_SECONDS: Final = 0.1
"""Interval between two looks at the descriptors."""

RESERVE: Final = 1 / 8
"""The share of the descriptors that a process may open, RLIMIT_NOFILE, that must be left while clients can connect."""

_LISTING_SHARE: Final = 0.001
"""The share of the time in which the descriptors may be listed, where the system does not count them."""

_log = internal_logger(__name__)


class Listeners:
    """The sockets of a server. For use by the server's thread.

    Args:
        sockets: the sockets and their endpoints.
        key: the name of the files of sockets that are restored, from `unique_key`.
    """

    def __init__(self, sockets: Sequence[tuple[zmq.Socket[Any], str]], key: str) -> None:
        self._sockets = [(sock, endpoint) for sock, endpoint in sockets if endpoint.startswith("ipc://")]
        self._restored = [pair for pair in self._sockets if Path(pair[1]).stem == key]
        self._hidden: list[str] = []
        self._descriptors = Descriptors()
        self._due = 0.0
        self._is_cut_off = False

    def watch_descriptors(self) -> float:
        """Hide or show the files if a look at the descriptors is due; return the seconds until the next one."""
        now = real_time.monotonic()
        if now >= self._due:
            self._due = now + LOOK_SECONDS
            self._keep([])
        return self._due - now if self._sockets else float("inf")

    def keep(self) -> None:
        """Listen again where a file was removed; hide the files while there are too few descriptors."""
        if self._keep(self._restored):
            self._is_cut_off = False

    def _keep(self, restored: Sequence[tuple[zmq.Socket[Any], str]]) -> bool:
        """Show the files and restore these sockets; return False if clients cannot connect."""
        try:
            if self._sockets and self._descriptors.are_scarce():
                self._hide()
                return False
            for endpoint in self._hidden:
                os.rename(hidden_file(endpoint), endpoint.removeprefix("ipc://"))
            self._hidden = []
            for sock, endpoint in restored:
                restore(sock, endpoint)
        except OSError as error:
            self._report(str(error))
            return False
        return True

    def _hide(self) -> None:
        """Rename the files; to close the listeners would close the connections."""
        for _, endpoint in () if self._hidden else self._sockets:
            os.rename(endpoint.removeprefix("ipc://"), hidden_file(endpoint))
            self._hidden.append(endpoint)
        self._report("less than an eighth of the file descriptors is left (ulimit -n)")

    def _report(self, reason: str) -> None:
        if not self._is_cut_off:
            _log.warning("clients can no longer connect to the profiler: %s", reason)
        self._is_cut_off = True


class Descriptors:
    """The file descriptors of this process. For use by one thread."""

    def __init__(self) -> None:
        self._used = 0
        self._due = 0.0

    def are_scarce(self) -> bool:
        """Return whether less than `RESERVE` of the descriptors is left; False where that cannot be determined."""
        if sys.platform == "win32":
            return False
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return limit != resource.RLIM_INFINITY and limit - self._count(limit) < limit * RESERVE

    def _count(self, limit: int) -> int:
        """Return the number of open descriptors, `limit` if none is left to list them."""
        if sys.platform.startswith("linux"):
            try:
                counted = os.stat("/proc/self/fd").st_size  # from Linux 6.2 on, before that zero
            except OSError:
                return 0
            if counted:
                return counted
        began = real_time.perf_counter()
        if began >= self._due:
            try:
                self._used = len(os.listdir("/dev/fd"))
            except FileNotFoundError:
                self._used = 0
            except OSError:
                return limit
            ended = real_time.perf_counter()
            self._due = ended + (ended - began) / _LISTING_SHARE
        return self._used
