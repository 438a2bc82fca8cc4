"""Puts the profiler into a running process that was not prepared, by ``sys.remote_exec`` (PEP 768).

Linux, and CPython 3.14 or newer in the process. Below 3.14 only a debugger could do it, which can end the process.
The process executes `startup.bootstrap`, which connects to a Unix socket in a private folder, imports the profiler and
starts its server. That takes a process 0.1 to 0.2 s, in which its threads wait for each other more than usually. If it
has not imported `logging` before, and forks just while the profiler imports it, CPython reports in the child that it
ignores an error of `logging`'s own fork handler (os.register_at_fork beside a fork in another thread).

``sys.remote_exec`` writes the path of a script into the memory of the process, whose main thread executes it before
its next step. There is no other way to withdraw it than to write another path: ``/dev/null`` is an empty script. A
script that no longer exists would print a traceback in the process. CPython also prints one, and runs on, if an audit
hook (`sys.addaudithook`), a trace function (`sys.settrace`) or a callback of `sys.monitoring` raises an exception for
the script; whether it will cannot be determined beforehand, and `Injection.poll` reports it. Callbacks of
`sys.monitoring` see the code of the profiler, as that of all threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

import msgpack
import zmq

from tornado_rbkit.endpoints import check_endpoint
from tornado_rbkit.profiler.discovery import stat_fields
from tornado_rbkit.profiler.endpoints import accepts
from tornado_rbkit.profiler.external.interpreter import Interpreter
from tornado_rbkit.profiler.external.process import ProcessError, RunningProcess, read_status
from tornado_rbkit.profiler.running_time import RunningTime
from tornado_rbkit.profiler.script_request import ScriptRequest

_BOOTSTRAP: Final = Path(__file__).with_name("startup") / "bootstrap.py"
_FOLDERS: Final = {
    "tornado_rbkit": str(Path(__file__).resolve().parents[2]),
    **{package.__name__: str(Path(str(package.__file__)).resolve().parents[1]) for package in (zmq, msgpack)},
}
"""The folder of each package that the profiler needs."""

_STOP_SECONDS: Final = 5.0
"""The longest time, in seconds, that the end of an injection waits until the process has stopped its profiler."""

_READ_SECONDS: Final = 0.2
"""Seconds in which a process that has taken the path of a script just before it was withdrawn has read the script."""

_EXECUTION_SECONDS: Final = 5.0
"""Seconds in which a process that has taken a script has started the thread that connects."""

_DESCRIPTORS: Final = 8
"""The file descriptors that a process needs to report what else is missing."""

_MAX_LINE: Final = 65_536
"""Bytes of a line that the process sends."""

_AT_ONCE: Final = 16
"""Pieces of at most `_MAX_LINE` bytes that are received at a time, so that a process cannot keep the command busy."""

_MAX_MESSAGES: Final = 100
"""Log messages that are kept until the caller clears them; further ones are discarded."""

_SPACE: Final = 512
"""MiB of address space for the libraries of the profiler, and for the stacks and the heaps of its threads. A library
that gets no memory may end the process."""


class Injected(NamedTuple):
    """The server in the process; `folder` is where it is announced, `is_new` is False if it ran already."""

    name: str
    pub: str
    req: str
    family: str
    folder: str
    is_new: bool


class Injection:
    """A request to a process to run the profiler, and its server until `close`. Created by `inject`. Any one thread.

    Attributes:
        process: the process.
        messages: the log messages of the profiler there that `poll` and `is_connected` have received; the caller may
            clear the list.
    """

    def __init__(self, process: RunningProcess, interpreter: Interpreter) -> None:
        self.process = process
        self._interpreter = interpreter
        self._connection: socket.socket | None = None
        self.messages: list[str] = []
        self._received = b""
        self._facts: dict[str, Any] | None = None
        self._is_closed = False
        self._request: ScriptRequest | None = None
        self._threads = _threads(process.pid)
        self._without_effect = RunningTime()
        _check_limits(process)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._owner = _owner(process.pid)
        with _as(*self._owner):
            self._folder = Path(tempfile.mkdtemp(prefix="rbkit-inject-"))
        self._script, self._channel = self._folder / "script.py", self._folder / "channel"
        try:
            self._prepare()
            self._interpreter.remote_exec(str(self._script))
            self._request = ScriptRequest(process.pid, str(self._script))
        except BaseException:
            self._clean_up()
            raise

    def __enter__(self) -> Injection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clean_up()

    def poll(self) -> Injected | None:
        """Return the server once it runs, None until then. Never waits.

        Raises:
            ProcessError: the process cannot run the profiler, or has ended.
        """
        self._accept()
        if self._connection is None:
            if not self.process.is_alive():
                raise ProcessError(f"{self.process} has ended before it ran the profiler")
            self._check_effect()
            return None
        self._receive(self._connection)
        if self._facts is None:
            if self._is_closed:
                raise ProcessError(
                    f"{self.process} has ended, executed another program, or refused its modules (an audit hook or a "
                    "limit), before it ran the profiler"
                )
            return None
        if "refused" in self._facts:
            raise ProcessError(f"{self.process} has refused: {self._facts['refused']}")
        server = Injected(**self._facts)
        if not accepts(server.req):
            raise ProcessError(f"the profiler of {self.process} cannot be reached at {server.req} from here")
        self._remove_files()  # now, because this process may be killed
        return server

    def _receive(self, connection: socket.socket) -> None:
        """Receive some of what has arrived: the facts of the server, or why there is none, and its log messages.

        Raises:
            ProcessError: the process has sent something else.
        """
        try:
            for _ in range(_AT_ONCE):
                received = connection.recv(_MAX_LINE)
                if not received:
                    self._is_closed = True
                    return
                *lines, self._received = (self._received + received).split(b"\n")
                for line in lines:
                    self._take(line)
                if len(self._received) > _MAX_LINE:
                    raise ProcessError(f"{self.process} has sent a line of more than {_MAX_LINE} bytes")
        except BlockingIOError:
            pass
        except OSError:
            self._is_closed = True

    def _take(self, line: bytes) -> None:
        facts = _facts(line)
        if facts is None:
            raise ProcessError(f"{self.process} has sent what no profiler sends: {line[:200]!r}")
        if "log" not in facts:
            self._facts = facts
        elif len(self.messages) < _MAX_MESSAGES:
            self.messages.append(facts["log"])

    @property
    def has_begun(self) -> bool:
        """Whether the process has begun to execute the script."""
        return self._connection is not None or (self._request is not None and self._request.was_taken())

    def is_connected(self) -> bool:
        """Return whether the process still has the profiler: False if it has ended or called `exec`."""
        assert self._connection is not None
        self._receive(self._connection)
        return not self._is_closed and self.process.is_alive()

    def obstacle(self) -> str:
        """Return why the process has not executed the script yet, as far as that can be determined."""
        state = (stat_fields(self.process.pid) or [b""])[0]
        if state in (b"T", b"t"):
            return f"it is stopped (kill -CONT {self.process.pid} continues it)"
        where = self._interpreter.main_frame()
        activity = "computes in C code" if state == b"R" else "waits in a system call or for a lock"
        return f"its main thread {activity}{where and f', in {where}'}"

    def _check_effect(self) -> None:
        """Raise ProcessError if the process has executed the script without starting the thread that connects."""
        self._without_effect.look()
        if self._request is None or not self._request.was_taken() or not _threads(self.process.pid) <= self._threads:
            self._without_effect.seconds = 0.0
            return
        if self._without_effect.seconds > _EXECUTION_SECONDS:
            raise ProcessError(
                f"{self.process} has executed the script without effect: an audit hook, a trace function or a limit "
                "has refused it; its standard error may say which one"
            )

    def close(self) -> bool:
        """Withdraw the script, or stop the profiler if it was started here; return False if that is not done yet."""
        self._listener.close()  # the process does nothing if it connects from now on, or was not accepted yet
        if self._connection is not None:
            return self._disconnect(self._connection)
        if not self.has_begun:
            try:
                self._interpreter.remote_exec(os.devnull)
            except ProcessError:
                return not self.process.is_alive()
        time.sleep(_READ_SECONDS)
        return True

    def _disconnect(self, connection: socket.socket) -> bool:
        deadline = time.monotonic() + _STOP_SECONDS
        connection.settimeout(_STOP_SECONDS)
        try:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                if time.monotonic() > deadline:
                    raise TimeoutError
        except OSError as error:  # any other error: the process has ended
            return not isinstance(error, TimeoutError) or not self.process.is_alive()
        return True

    def _prepare(self) -> None:
        pid, is_same = self.process.pid, False
        with contextlib.suppress(OSError):  # the process does not have the folder
            is_same = os.path.samefile(self._folder, f"/proc/{pid}/root{self._folder}")
        if not is_same:
            raise ProcessError(
                f"{self.process} has files of its own (a container, or PrivateTmp of systemd); run this command "
                f"beside it (docker exec; nsenter -t {pid} -m -p), or set TMPDIR to a folder that both have"
            )
        source = f"{_BOOTSTRAP.read_text(encoding='utf-8')}\nstart({str(self._channel)!r}, {_FOLDERS!r})\n"
        text = f"try: exec({source!r}, {{}})\nexcept Exception: pass\n"  # it may not print, as when a process ends
        with _as(*self._owner):
            self._script.write_text(text, encoding="utf-8")
            try:
                self._listener.bind(str(self._channel))
            except OSError as error:
                raise ProcessError(f"{self._channel} cannot be a socket ({error}); set TMPDIR") from error
        self._listener.listen()

    def _accept(self) -> None:
        """Accept the connection of the process. A fork of it that has inherited the request is refused."""
        while self._connection is None:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            peer, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if peer != self.process.pid:
                connection.close()
                continue
            with contextlib.suppress(BrokenPipeError):  # it has ended: `poll` reports it
                connection.sendall(b"\1")
            connection.setblocking(False)
            self._connection = connection

    def _clean_up(self) -> None:
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        if self._request is not None:
            self._request.close()
        self._remove_files()

    def _remove_files(self) -> None:
        with _as(*self._owner), contextlib.suppress(FileNotFoundError):
            for path in (self._script, self._channel):
                path.unlink(missing_ok=True)
            self._folder.rmdir()


def inject(pid: int) -> Injection:
    """Ask a running process to run the profiler. It does so before the next step of its main thread.

    The caller calls `Injection.close`, and leaves the returned context, at the end.

    Raises:
        ProcessError: there is no such process, it may not be read, is no CPython 3.14 or newer, takes no scripts, or
            has other files; the message says what to change.
        OSError: there is no folder for temporary files.
    """
    process = RunningProcess(pid)
    return Injection(process, Interpreter(process))


def _facts(line: bytes) -> dict[str, Any] | None:
    """Return what a line says: a server, why there is none, or a log message; None for what no profiler sends."""
    try:
        facts: dict[str, Any] = json.loads(line)
        if facts.keys() in ({"log"}, {"refused"}):
            return facts if isinstance(next(iter(facts.values())), str) else None
        *texts, is_new = server = Injected(**facts)
        check_endpoint(server.pub, "pub")
        check_endpoint(server.req, "req")
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return facts if all(isinstance(text, str) for text in texts) and isinstance(is_new, bool) else None


def _owner(pid: int) -> tuple[int, int]:
    """Return the effective user and group of a process."""
    facts = read_status(pid)
    if "Uid" not in facts:
        raise ProcessError(f"process {pid} has just ended")
    return int(facts["Uid"].split()[1]), int(facts["Gid"].split()[1])


def _threads(pid: int) -> set[str]:
    """Return the native identifiers of the threads of a process; empty if it has ended."""
    try:
        return set(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return set()


def _check_limits(process: RunningProcess) -> None:
    """Raise ProcessError if the limits of a process leave too little for the profiler."""
    folder = Path(f"/proc/{process.pid}")
    try:
        limits = dict(re.findall(r"^(Max .+?) {2,}(\d+) ", (folder / "limits").read_text(), re.MULTILINE))
        descriptors = len(os.listdir(folder / "fd"))
    except OSError:  # it has just ended
        return
    if descriptors + _DESCRIPTORS > int(limits.get("Max open files", sys.maxsize)):
        raise ProcessError(
            f"{process} has {descriptors} open files, and may have {limits['Max open files']} (ulimit -n)"
        )
    facts = read_status(process.pid)
    for limit, size, option in (("Max address space", "VmSize", "-v"), ("Max data size", "VmData", "-d")):
        used = int(facts.get(size, "0 kB").split()[0]) >> 10
        if limit in limits and used + _SPACE > int(limits[limit]) >> 20:
            raise ProcessError(
                f"{process} uses {used} MiB of at most {int(limits[limit]) >> 20} MiB of memory (ulimit {option}); "
                f"the profiler needs {_SPACE} MiB more"
            )


@contextlib.contextmanager
def _as(user: int, group: int) -> Iterator[None]:
    """Use files as a user may, who can then use them too, and through whom root changes no others."""
    ours = os.geteuid(), os.getegid()
    if user == ours[0]:
        yield
        return
    os.setegid(group)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(ours[0])
        os.setegid(ours[1])
