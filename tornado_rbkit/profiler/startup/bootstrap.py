"""The script that a running process executes for `profiler.injection`: a thread that imports the profiler.

The main thread executes it between two of its own steps, wherever that is: possibly in the middle of an import, or
holding a lock. So it imports only modules of the interpreter itself, and starts a thread. The process may have none of
the profiler's packages, so nothing of them is imported before the thread can find them.
"""

import _frozen_importlib
import _frozen_importlib_external
import _signal  # type: ignore[import-not-found]
import _thread
import _warnings
import posix
import sys

TYPE_CHECKING = False  # `typing` is not imported
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any


class ShadowedError(ImportError):
    """A module of the process hides the one of the same name that the profiler needs."""


class Finder:
    """Finds all modules that one thread imports; first in sys.meta_path, where it ignores the other threads.

    Nothing of the process is executed that it would not import itself: none of its own finders is asked, and a module
    of its own that has the name of a module of the standard library, or of a package of the profiler, is refused. If
    the other one were imported instead, the process would later get that one too.

    The packages that the process does not have are found where the command has them. In contrast to a folder in
    sys.path that finds no other packages.

    It imports nothing, because Python holds the lock of all imports meanwhile: the main thread could wait for that
    with the lock of a module that is imported here.

    Attributes:
        folders: the folder of each package that the profiler needs.
        found: the packages that the process does not have.
    """

    def __init__(self, folders: "dict[str, str]") -> None:
        self.folders = folders
        self._get_ident = _original("get_ident")
        self._thread = self._get_ident()
        library = [getattr(sys, "_stdlib_dir", None)]  # None if Python could not determine it
        library += [each for each in sys.path if each.rpartition("/")[2] == "lib-dynload"]
        self._library = [each for each in library if each]
        self.found: set[str] = set()

    def find_spec(self, name: str, path: "Any" = None, target: object = None) -> "ModuleSpec | None":
        """Return where a module is; None on another thread.

        Raises:
            ImportError: there is no such module, or another one hides it.
        """
        if self._get_ident() != self._thread:
            return None
        for finder in (_frozen_importlib.BuiltinImporter, _frozen_importlib.FrozenImporter):
            found = finder.find_spec(name)
            if found is not None:
                return found
        own = _frozen_importlib_external.PathFinder.find_spec(name, path)
        if path is None and name in self.folders:
            return self._package(name, own)
        if path is None and name in sys.stdlib_module_names:
            self._check_library(name, own)
        if own is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return own

    def _package(self, name: str, own: "ModuleSpec | None") -> "ModuleSpec | None":
        """Return a package of the profiler: the process's own one, or else the command's."""
        if own is not None and own.loader is not None:  # otherwise it is a folder without Python files
            if own.submodule_search_locations is None:
                raise ShadowedError(f"{own.origin} has the name of a package that the profiler needs")
            return own
        self.found.add(name)
        return _frozen_importlib_external.PathFinder.find_spec(name, [self.folders[name]])

    def _check_library(self, name: str, own: "ModuleSpec | None") -> None:
        library = _frozen_importlib_external.PathFinder.find_spec(name, self._library)
        if own is None or library is None or own.origin is None or library.origin is None:
            return
        if posix.stat(own.origin)[1:3] != posix.stat(library.origin)[1:3]:
            raise ShadowedError(f"{own.origin} has the name of a module of the standard library")


def start(channel: str, folders: "dict[str, str]") -> None:
    """Start the thread; a real one also under gevent and eventlet.

    Args:
        channel: the path of the Unix socket on which the command listens.
        folders: the folder of each package that the profiler needs.
    """
    hide_fork_warning()
    _original("start_new_thread")(run, (channel, folders))


def run(channel: str, folders: "dict[str, str]") -> None:
    """Run the profiler for the command, or report why that is impossible. Does nothing if the command has ended."""
    try:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())  # they are for the process's own threads
        finder = Finder(folders)
        sys.meta_path.insert(0, finder)
        try:
            _connect(channel, finder)
        finally:
            sys.meta_path.remove(finder)
    except BaseException:  # noqa: BLE001 - an audit hook, or no descriptors; the command reports that nothing happens
        return


def _connect(channel: str, finder: Finder) -> None:
    import _socket

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(channel)
        is_meant = connection.recv(1) != b""  # otherwise this is a fork of the process, or the command has ended
    except OSError:
        is_meant = False
    if is_meant:
        _import_and_serve(connection, finder)
    else:
        connection.close()


def _import_and_serve(connection: "Any", finder: Finder) -> None:
    try:
        from tornado_rbkit.profiler import injected
    except BaseException as error:  # noqa: BLE001 - the process must not notice
        for name in [name for name in sys.modules if name.partition(".")[0] in finder.found]:
            del sys.modules[name]
        version = ".".join(map(str, sys.version_info[:2]))
        text = f"its Python {version} cannot import the profiler ({type(error).__name__}: {error}"[:300] + ")"
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in finder.folders:
            text += f"; install tornado_rbkit into {sys.prefix} (pip install -U tornado_rbkit)"
        _refuse(connection, text)
    else:
        injected.serve(connection)


def _refuse(connection: "Any", reason: str) -> None:
    """Send the reason in JSON, for which no module is needed."""
    text = "".join(each if each >= " " and each not in '"\\' else "'" for each in reason)
    connection.sendall(f'{{"refused": "{text}"}}\n'.encode("utf-8", "replace"))
    connection.close()


def _original(name: str) -> "Any":
    """Return an attribute of `_thread` as it was before gevent or eventlet replaced it."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None:
        return gevent.get_original("_thread", name)
    return getattr(_thread if eventlet is None else eventlet.original("_thread"), name)


def hide_fork_warning() -> None:
    """Hide Python's warning about a fork beside other threads, which the profiler's threads would cause.

    A filter needs no compiled pattern for an exact text.
    """
    filters: list[Any] = getattr(sys.modules.get("warnings", _warnings), "filters")  # noqa: B009
    for name in ("fork", "forkpty"):
        text = (
            f"This process (pid={posix.getpid()}) is multi-threaded, use of {name}() may lead to deadlocks in the "
            "child."
        )
        entry = ("ignore", text, DeprecationWarning, None, 0)
        if entry not in filters:
            filters.insert(0, entry)
