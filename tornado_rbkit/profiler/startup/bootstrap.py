"""The script that a running process executes for `profiler.injection`: a thread that imports the profiler.

The main thread executes it between two of its own steps, wherever that is: possibly in the middle of an import, or
holding a lock. So it only starts a thread there. The process may have none of the profiler's packages, so nothing of
them is imported before the thread can find them.
"""

from __future__ import annotations

import _frozen_importlib_external
import _thread
import _warnings
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any


class Finder:
    """Finds the packages that the process does not have itself where the command has them; last in sys.meta_path.

    In contrast to a folder in sys.path it finds no other packages. It imports nothing, because Python holds the lock
    of all imports meanwhile: the main thread could wait for that with the lock of a module that is imported here.
    """

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders
        self.found: set[str] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return where a package of the command is; None for any other module."""
        if name not in self._folders:
            return None
        self.found.add(name)
        return _frozen_importlib_external.PathFinder.find_spec(name, [self._folders[name]])


def start(channel: str, folders: dict[str, str]) -> None:
    """Start the thread; a real one also under gevent and eventlet.

    Args:
        channel: the path of the Unix socket on which the command listens.
        folders: the folder of each package that the profiler needs.
    """
    _hide_fork_warning()
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    start_thread: Any = _thread.start_new_thread
    if gevent is not None:
        start_thread = gevent.get_original("_thread", "start_new_thread")
    elif eventlet is not None:
        start_thread = eventlet.original("_thread").start_new_thread
    start_thread(run, (channel, folders))


def _hide_fork_warning() -> None:
    """Hide Python's warning about a fork beside other threads, which the profiler's threads would cause.

    A filter needs no compiled pattern for an exact text.
    """
    filters: list[Any] = getattr(sys.modules.get("warnings", _warnings), "filters")  # noqa: B009
    for name in ("fork", "forkpty"):
        text = (
            f"This process (pid={os.getpid()}) is multi-threaded, use of {name}() may lead to deadlocks in the child."
        )
        entry = ("ignore", text, DeprecationWarning, None, 0)
        if entry not in filters:
            filters.insert(0, entry)


def run(channel: str, folders: dict[str, str]) -> None:
    """Run the profiler for the command, or report why that is impossible. Does nothing if the command has ended."""
    try:
        _connect(channel, folders)
    except BaseException:  # noqa: BLE001 - an audit hook, or no descriptors; the command reports that nothing happens
        return


def _connect(channel: str, folders: dict[str, str]) -> None:
    import _socket
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the process's own threads
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(channel)
        is_meant = connection.recv(1) != b""  # otherwise this is a fork of the process, or the command has ended
    except OSError:
        is_meant = False
    if is_meant:
        _import_and_serve(connection, folders)
    else:
        connection.close()


def _import_and_serve(connection: Any, folders: dict[str, str]) -> None:
    import json

    finder = Finder(folders)
    sys.meta_path.append(finder)
    try:
        from tornado_rbkit.profiler import injected
    except BaseException as error:  # noqa: BLE001 - the process must not notice
        for name in [name for name in sys.modules if name.partition(".")[0] in finder.found]:
            del sys.modules[name]
        version = ".".join(map(str, sys.version_info[:2]))
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        text = (
            f"its Python {version} cannot import the profiler ({reason}); "
            f"install tornado_rbkit into {sys.prefix} (pip install -U tornado_rbkit)"
        )
        connection.sendall(json.dumps({"refused": text}).encode() + b"\n")
        connection.close()
    else:
        injected.serve(connection)
    finally:
        sys.meta_path.remove(finder)
