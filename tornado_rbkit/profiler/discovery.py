"""Find the profiled processes of a user: each running server leaves a small file in a folder that is the user's own.

The folder (see the module `folder`) may be shared with other PID namespaces (containers) or hosts, where a pid means
another process. So a file says where it was written, its name is unique, and only files that were written in this PID
namespace are ever removed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import socket
import stat
import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from tornado_rbkit.profiler.endpoints import accepts
from tornado_rbkit.profiler.folder import prepare_folder, runtime_folder, verify_folder

_MAX_BYTES: Final = 65_536
_MAX_NAME: Final = 200  # characters, of what stands in lists, logs and paths
_LATEST: Final = 1 << 36  # seconds, which every calendar has
_TOUCH_SECONDS: Final = 3600.0  # systemd-tmpfiles removes files after 10 days, macOS after 3
_log = logging.getLogger(__name__)


class RunningServer(NamedTuple):
    """A server of this user, in any process; `started` is in seconds since the Unix epoch."""

    name: str
    pid: int
    pub: str
    req: str
    started: float


def list_servers() -> list[RunningServer]:
    """Return the servers that run, in the order they started, and remove the files of processes that are gone.

    A server runs if its REP socket accepts a connection; at an address that is neither a Unix socket nor loopback,
    if its process does. A process is known by its pid and PID namespace, and on Linux by when it started, since pids
    are reused; on Windows, where that is not looked up, the file of a killed process stays. Files that are malformed,
    or another user's, are ignored. Any thread.

    Raises:
        RuntimeFolderError: the folder is another user's, or others may write to it.
        OSError: it cannot be read, or there are too few file descriptors.
    """
    folder = runtime_folder()
    try:
        verify_folder(folder)
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    here = _namespace()
    found = []
    for path in (folder / name for name in names if name.endswith(".json")):
        facts = _read(path)
        server = None if facts is None else _parse(facts)
        if facts is None or server is None:
            continue
        if _is_here(facts, here) and _is_dead(server.pid, facts.get("process_started")):
            _remove(path, server)
        elif accepts(server.req):
            found.append(server)
    found.sort(key=lambda server: server.started)
    newest = {server.req: server for server in found}  # an endpoint is one process's; the file of the one before stays
    return [server for server in found if newest[server.req] is server]


class Announcement:
    """The file that tells other processes of this process's server. The server's thread only."""

    def __init__(self, key: str, server: RunningServer) -> None:
        """Write the file; log a warning if that cannot be done.

        Args:
            key: the file's name, from `unique_key`.
            server: this process's.
        """
        self.path: Path | None = None
        self._key = key
        self._server = server
        self._reported = False
        self._write()

    def keep(self) -> None:
        """Write the file again if somebody removed it, and touch it each hour: cleaners remove what is old."""
        try:
            if self.path is not None:
                if abs(time.time() - self.path.stat().st_mtime) > _TOUCH_SECONDS:
                    os.utime(self.path)
                return
        except OSError:  # it is gone, or its folder is
            self.path = None
        self._write()

    def withdraw(self) -> None:
        """Remove the file; does nothing if it is gone, or was never written."""
        if self.path is not None:
            _remove(self.path)

    def _write(self) -> None:
        server = self._server
        facts = {**server._asdict(), "process_started": _process_started(server.pid), **_namespace()}
        try:
            folder = runtime_folder()
            prepare_folder(folder)
            self._remove_older(folder)
            partial = folder / f".{self._key}.partial"
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps(facts))  # json.dump leaves garbage that only the collector finds
            path = folder / f"{self._key}.json"
            os.replace(partial, path)
        except OSError as error:
            if not self._reported:
                _log.warning("the profiler will not be found by its name: %s", error)
            self._reported = True
        else:
            self.path = path
            self._reported = False

    def _remove_older(self, folder: Path) -> None:
        """Remove the files of an earlier server with this pid: of a program that called exec, or was killed."""
        here = _namespace()
        for path in folder.glob(f"{self._server.pid}-*.json"):
            facts = _read(path)
            if facts is not None and _is_here(facts, here) and path.stem != self._key:
                _remove(path, _parse(facts))


def unique_key() -> str:
    """Return a name for the files of one server; the pid alone is another process's in other PID namespaces."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


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


def _namespace() -> dict[str, Any]:
    """Return the facts that say where a pid is valid; None in ``pid_namespace`` if that cannot be told."""
    facts: dict[str, Any] = {"host": socket.gethostname(), "pid_namespace": None}
    if not sys.platform.startswith("linux"):
        return {**facts, "pid_namespace": 0}
    try:
        if os.readlink("/proc/self") == str(os.getpid()):  # else /proc shows the pids of another namespace
            facts["pid_namespace"] = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        pass
    return facts


def _is_here(facts: dict[str, Any], here: dict[str, Any]) -> bool:
    """Return whether a file was written where its pid can be looked up."""
    return here["pid_namespace"] is not None and all(facts.get(name) == value for name, value in here.items())


def _is_dead(pid: int, process_started: object) -> bool:
    """Return whether the process that wrote a file here has certainly ended."""
    if os.name == "nt":  # os.kill(pid, 0) would end it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, or behind a security module
    fields = _stat_fields(pid)
    return fields is not None and (fields[0] in (b"Z", b"X") or process_started not in (None, int(fields[19])))


def _process_started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot; None where that cannot be told."""
    fields = _stat_fields(pid)
    return None if fields is None else int(fields[19])


def _stat_fields(pid: int) -> list[bytes] | None:
    """Return the fields of /proc/PID/stat from the third on, the state (proc(5)); None where there is no such file."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return line.rpartition(b")")[2].split()  # the name in () may hold anything


def _remove(path: Path, server: RunningServer | None = None) -> None:
    """Remove a server's file, and the socket files that are named like it."""
    endpoints = () if server is None else (server.pub, server.req)
    sockets = [Path(endpoint[6:]) for endpoint in endpoints if endpoint.startswith("ipc://")]
    for each in (path, *(each for each in sockets if each.stem == path.stem)):
        try:
            each.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s cannot be removed: %s", each, error)
