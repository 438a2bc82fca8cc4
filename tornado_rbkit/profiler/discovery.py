"""Finds a user's profiled processes by the small files that running servers write to the user's runtime folder.

The folder (see `folder`) may be shared with other PID namespaces (containers) or hosts, where the same pid is another
process. So a file records where it was written, its name is unique, and only files that were written in this PID
namespace are removed.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.endpoints import accepts, remove_files
from tornado_rbkit.profiler.folder import prepare_folder, remove_file, runtime_folder, verify_folder
from tornado_rbkit.profiler.threads import internal_logger

_MAX_BYTES: Final = 65_536
_MAX_NAME: Final = 200  # characters; names appear in lists, logs and paths
_LATEST: Final = 1 << 36  # seconds since the epoch, in the year 4147, which `datetime` can represent
_PF_EXITING: Final = 0x4  # in the flags of /proc/PID/stat (proc(5), linux/sched.h)
_TOUCH_SECONDS: Final = 3600.0  # systemd-tmpfiles removes files after 10 days, macOS after 3
_log = internal_logger(__name__)


class RunningServer(NamedTuple):
    """A server of this user, in any process.

    `started` is in seconds since the Unix epoch; `family` is the same for all processes of a followed program (see
    `follow`), else empty. `here` is whether the pid is certainly valid in the PID namespace of the process that listed
    the server.
    """

    name: str
    pid: int
    pub: str
    req: str
    started: float
    family: str = ""
    here: bool = False


def list_servers() -> list[RunningServer]:
    """Return the running servers in the order they started, and remove the files of processes that have ended.

    A server is running if its REP socket accepts a connection or, at an address that is neither a Unix socket nor
    loopback, if its process is running. A process is identified by its pid and PID namespace, and on Linux also by its
    start time, since pids are reused; on Windows, where processes are not looked up, the file of a killed process
    stays. Malformed files and other users' files are ignored. Any thread.

    Raises:
        RuntimeFolderError: the folder belongs to another user, or others may write to it.
        OSError: the folder cannot be read, or there are too few file descriptors.
    """
    folder = runtime_folder()
    try:
        verify_folder(folder)
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = []
    for path, server, has_ended in _announced(folder / name for name in names if name.endswith(".json")):
        if has_ended:
            _remove(path, server)
        elif accepts(server.req):
            found.append(server)
    found.sort(key=lambda server: server.started)
    newest = {server.req: server for server in found}  # the file of an earlier process may still name the endpoint
    return [server for server in found if newest[server.req] is server]


class Announcement:
    """The file by which other processes find this process's server. The server's thread only."""

    def __init__(self, key: str, server: RunningServer) -> None:
        """Write the file; log a warning if that fails.

        Args:
            key: the name of the file, from `unique_key`.
            server: the server; its pid is the pid of the profiled process, usually this process.
        """
        self.path: Path | None = None
        self._key = key
        self._server = server
        self._reported = False
        self._write()

    def keep(self) -> None:
        """Write the file again if it was removed, and touch it every hour: cleaners remove old files."""
        try:
            if self.path is not None:
                if abs(real_time.time() - self.path.stat().st_mtime) > _TOUCH_SECONDS:
                    os.utime(self.path)
                return
        except OSError:  # the file or its folder was removed
            self.path = None
        self._write()

    def withdraw(self) -> None:
        """Remove the file; does nothing if it was removed already or never written."""
        if self.path is not None:
            _remove(self.path)

    def _write(self) -> None:
        server = self._server
        facts = {**server._asdict(), "process_started": process_started(server.pid), **_namespace()}
        del facts["here"]  # for whoever lists it to find out
        try:
            folder = runtime_folder()
            prepare_folder(folder)
            self._remove_ended(folder)
            partial = folder / f".{self._key}.partial"
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps(facts))  # json.dump leaves reference cycles for the collector
            path = folder / f"{self._key}.json"
            os.replace(partial, path)
        except OSError as error:
            if not self._reported:
                _log.warning("the profiler cannot be found by its name: %s", error)
            self._reported = True
        else:
            self.path = path
            self._reported = False

    def _remove_ended(self, folder: Path) -> None:
        """Remove the files of ended processes, and of earlier servers in a process with this pid, which called exec.

        Otherwise a service whose workers end by signals would leave files behind for as long as nobody lists them.
        """
        pid = self._key.partition("-")[0]
        others = (path for path in folder.glob("*.json") if path.stem != self._key)
        for path, server, has_ended in _announced(others):
            if has_ended or (server.here and path.stem.partition("-")[0] == pid):
                _remove(path, server)


def unique_key(family: str = "") -> str:
    """Return a unique name for the files of one server; another PID namespace may have a process with the same pid.

    In a followed program it is the same for all programs that one process executes, so that its clients find it again.

    Args:
        family: see `RunningServer`.
    """
    return f"{os.getpid()}-{family[:8] or secrets.token_hex(4)}"


def _announced(paths: Iterable[Path]) -> Iterator[tuple[Path, RunningServer, bool]]:
    """Yield each readable file, its server, and whether the server's process has certainly ended."""
    here = _namespace()
    for path in paths:
        facts = _read(path)
        server = None if facts is None else _parse(facts)
        if facts is not None and server is not None:
            server = server._replace(here=_is_here(facts, here))
            yield path, server, server.here and is_dead(server.pid, facts.get("process_started"))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # the file may be valid
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
    fields: list[Any] = [facts.get(field) for field in RunningServer._fields[:5]]
    name, pid, pub, req, started = fields
    family = facts.get("family", "")
    if not all(isinstance(text, str) for text in (name, pub, req, family)) or not (pub + req).isprintable():
        return None
    if type(pid) is not int or not 0 < pid < 1 << 31 or not isinstance(started, int | float):
        return None
    if not 0 <= started < _LATEST:
        return None
    shown = "".join(character if character.isprintable() else "?" for character in name[:_MAX_NAME])
    return RunningServer(shown, pid, pub, req, float(started), family)


def _namespace() -> dict[str, Any]:
    """Return facts that identify where a pid is valid; ``pid_namespace`` is None if it cannot be determined."""
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


def is_dead(pid: int, process_started: object) -> bool:
    """Return whether a process of this PID namespace has certainly ended, or is ending and has closed its files.

    Args:
        pid: its pid.
        process_started: its start time from `process_started`; None if that is not known.
    """
    if os.name == "nt":  # os.kill(pid, 0) would end it
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # the process is another user's, or a security module forbids the call
    fields = stat_fields(pid)
    if fields is None:
        return False
    is_ending = fields[0] in (b"Z", b"X") or int(fields[6]) & _PF_EXITING != 0
    return is_ending or process_started not in (None, int(fields[19]))


def process_started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot; None if that cannot be determined."""
    fields = stat_fields(pid)
    return None if fields is None else int(fields[19])


def stat_fields(pid: int | str) -> list[bytes] | None:
    """Return the fields of /proc/PID/stat from the third, the state, on (proc(5)); None if there is no such file."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return line.rpartition(b")")[2].split()  # the name in () may contain any character


def _remove(path: Path, server: RunningServer | None = None) -> None:
    """Remove a server's file and the socket files with the same name."""
    remove_file(path)
    for endpoint in () if server is None else (server.pub, server.req):
        if endpoint.startswith("ipc://") and Path(endpoint).stem == path.stem:
            remove_files(endpoint)
