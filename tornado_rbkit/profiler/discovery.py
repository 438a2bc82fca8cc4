"""Find the profiled processes of a user: each running server leaves a small file in a folder that is the user's own.

The folder is RBKIT_RUNTIME_DIR, else ``rbkit`` in XDG_RUNTIME_DIR, else ``rbkit-UID`` in the folder for temporary
files, and is used only if it belongs to the user and nobody else may write to it: whoever writes there says where
clients connect.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

from tornado_rbkit.protocol import RbkitError

DIRECTORY_VARIABLE: Final = "RBKIT_RUNTIME_DIR"
_MAX_BYTES: Final = 65_536
_MAX_NAME: Final = 200  # characters, of what stands in lists, logs and paths
_LATEST: Final = 1 << 36  # seconds, which every calendar has
_log = logging.getLogger(__name__)


class RunningServer(NamedTuple):
    """A server of this user, in any process; `started` is in seconds since the Unix epoch."""

    name: str
    pid: int
    pub: str
    req: str
    started: float


class RuntimeFolderError(RbkitError, OSError):
    """The runtime folder cannot be used; the message says why."""


def runtime_folder() -> Path:
    """Return where the files are, or would be. Any thread."""
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    if chosen:
        return Path(chosen)
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session:
        return Path(session, "rbkit")
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir(), f"rbkit-{user}")


def check_chosen_folder() -> None:
    """See whether the folder that RBKIT_RUNTIME_DIR names can be used, and make it if it is not there.

    Raises:
        RuntimeFolderError: it cannot be used.
    """
    if os.environ.get(DIRECTORY_VARIABLE):
        _prepare(runtime_folder())


def list_servers() -> list[RunningServer]:
    """Return the servers that run, in the order they started, and remove the files of processes that are gone.

    A process is known by its pid, and on Linux by when it started, since pids come again. On Windows a process
    that ended without removing its file is still listed. Files that are malformed, or another user's, are ignored.
    Any thread.

    Raises:
        RuntimeFolderError: the folder is another user's, or others may write to it.
        OSError: it cannot be read.
    """
    folder = runtime_folder()
    if not os.path.lexists(folder):
        return []
    _verify(folder)
    found = []
    for path in sorted(folder / name for name in os.listdir(folder) if name.endswith(".json")):
        facts = _read(path)
        server = None if facts is None else _parse(facts)
        if facts is None or server is None:
            continue
        if _runs(server.pid, facts.get("process_started")):
            found.append(server)
        else:
            _remove(path)
    return sorted(found, key=lambda server: server.started)


def announce(server: RunningServer) -> Path | None:
    """Write the file of this process's server and return its path; warn and return None if that cannot be done."""
    folder = runtime_folder()
    path = folder / f"{server.pid}.json"
    partial = folder / f".{server.pid}.partial"
    facts = {**server._asdict(), "process_started": _process_started(server.pid)}
    try:
        _prepare(folder)
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(facts))  # json.dump leaves garbage that only the collector finds
        os.replace(partial, path)
    except OSError as error:
        _log.warning("the profiler will not be found by its name: %s", error)
        return None
    return path


def withdraw(path: Path | None) -> None:
    """Remove the file of this process's server. Does nothing if it is gone, or was never written."""
    if path is not None:
        _remove(path)


def _prepare(folder: Path) -> None:
    """Make the folder unless it is there.

    Raises:
        RuntimeFolderError: it cannot be used.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        pass  # and _verify says what it is
    except OSError as error:
        text = f"{folder} cannot be made ({error.strerror}); set {DIRECTORY_VARIABLE}"
        raise RuntimeFolderError(text) from error
    _verify(folder)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise RuntimeFolderError(f"{folder} cannot be written to; chmod it 700")


def _verify(folder: Path) -> None:
    """Raise if the folder is not this user's alone to write to.

    Raises:
        RuntimeFolderError: it is not.
        OSError: it cannot be looked at.
    """
    if not hasattr(os, "getuid"):
        return
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise RuntimeFolderError(f"{folder} is not a folder (a link is not followed); set {DIRECTORY_VARIABLE}")
    if status.st_uid != os.getuid():
        raise RuntimeFolderError(f"{folder} belongs to user {status.st_uid}; set {DIRECTORY_VARIABLE}")
    if status.st_mode & 0o022:
        raise RuntimeFolderError(f"{folder} may be written by others (mode {status.st_mode & 0o777:o}); chmod it 700")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # it says nothing about the file
        return None  # removed meanwhile, or a link
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
            return None
        content = os.read(descriptor, _MAX_BYTES)
    finally:
        os.close(descriptor)
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


def _parse(facts: dict[str, Any]) -> RunningServer | None:
    name, pid, pub, req, started = (facts.get(field) for field in RunningServer._fields)
    if not (isinstance(name, str) and isinstance(pub, str) and isinstance(req, str) and (pub + req).isprintable()):
        return None
    if type(pid) is not int or not 0 < pid < 1 << 31 or not isinstance(started, int | float):
        return None
    if not 0 <= started < _LATEST:
        return None
    shown = "".join(character if character.isprintable() else "?" for character in name[:_MAX_NAME])
    return RunningServer(shown, pid, pub, req, float(started))


def _runs(pid: int, process_started: object) -> bool:
    if os.name == "nt":  # os.kill(pid, 0) would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's, so no longer the one that wrote the file
        return False
    now = _process_started(pid)
    return now is None or process_started is None or now == process_started


def _process_started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot; None where that cannot be told."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(line.rpartition(b")")[2].split()[19])  # field 22 of proc(5); the name in () may hold anything


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s cannot be removed: %s", path, error)
