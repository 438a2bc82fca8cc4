"""Identifies a running process, and explains why its memory cannot be read. Linux.

A pid is not a process: it is reused, it continues after `exec` with another program, and it is another process in
another PID namespace. A process is identified by its start time as well, and a program by the addresses that the
kernel chose when it was executed (AT_RANDOM and others in /proc/PID/auxv, proc(5)).
"""

from __future__ import annotations

import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Final

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.profiler.discovery import stat_fields
from tornado_rbkit.profiler.external.stack_reader.layouts import python_version

_MAX_BYTES: Final = 65_536  # of a file in /proc
_WITH_VALUE: Final = ("-W", "-X", "--check-hash-based-pycs")  # options of Python that take the next argument
_AS_ROOT: Final = "run attach as root (sudo); in a container, start it with --cap-add=SYS_PTRACE"
_MODULE_OR_CODE: Final = re.compile(r"-[bBdEhiIOPqRsStuvVx?]*([cm])(.*)", re.DOTALL)  # other options may precede it
_MAX_CHILDREN: Final = 8  # that a message names
_KERNEL_THREAD: Final = 0x00200000  # PF_KTHREAD of include/linux/sched.h
_SYS_PTRACE: Final = 1 << 19  # CAP_SYS_PTRACE of include/uapi/linux/capability.h


class ProcessError(RbkitError):
    """A process does not exist, cannot be read, or refuses; the message says why and what to change."""


class RunningProcess:
    """A process of this machine. Any thread.

    Attributes:
        pid: its pid in this PID namespace.
        name: its script, its module or its program.
    """

    def __init__(self, pid: int) -> None:
        """Find a process and check that this process may read its memory.

        Raises:
            ProcessError: there is no such process, or it may not be read.
        """
        check_system()
        self.pid = pid
        fields = _check_kind(pid)
        self._started = fields[19]
        self.name = program_name(_read(pid, "cmdline")) or _read(pid, "comm").decode("utf-8", "replace").strip()
        _check_access(pid)
        self._image = _read(pid, "auxv")

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name})"

    def is_alive(self) -> bool:
        """Return whether it runs, possibly another program than at first."""
        fields = stat_fields(self.pid)
        return fields is not None and fields[0] not in (b"Z", b"X") and fields[19] == self._started

    def has_new_program(self) -> bool:
        """Return whether it has called `exec` since the last call, or since it was found."""
        image, before = _read(self.pid, "auxv"), self._image
        if not image or image == before:
            return False
        self._image = image
        return True

    def thread(self, kernel_id: int) -> tuple[int, str | None] | None:
        """Return the identifier and the name of a thread for its samples; None if it is not to be sampled.

        The name is that of the main thread, or the one that the program has given to the system.
        """
        if kernel_id == self.pid:
            return kernel_id, "MainThread"
        name = _read(self.pid, f"task/{kernel_id}/comm")
        if not name or name == _read(self.pid, "comm"):
            return kernel_id, None
        return kernel_id, name.decode("utf-8", "replace").strip()

    def module_name(self, file: str) -> str:
        """Return the name of the module in a file, an empty string if there is none."""
        return module_name(file)

    def describe_children(self) -> str:
        """Return which processes that it has started, directly or not, run Python; an empty string if none does."""
        found = [str(pid) for pid in _descendants(self.pid) if _runs_python(pid)]
        if not found:
            return ""
        named = ", ".join(found[:_MAX_CHILDREN]) + (" and more" if found[_MAX_CHILDREN:] else "")
        return f"its child process {named} runs Python" if not found[1:] else f"its child processes {named} run Python"

    def working_folder(self) -> str:
        """Return its current folder, an empty string if that cannot be read."""
        try:
            return os.readlink(f"/proc/{self.pid}/cwd")
        except OSError:
            return ""


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        fields = stat_fields(name) if name.isdigit() else None
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [pid]
    for each in found:
        found += sorted(children.get(each, []))
    return found[1:]


def _runs_python(pid: int) -> bool:
    try:
        return python_version(pid) is not None
    except OSError:  # it has ended, or may not be read
        return False


@lru_cache(maxsize=4096)
def module_name(file: str) -> str:
    """Return the likely name of the module in a file: its stem, after the packages that its folders are.

    The name that the program uses is not known outside; a script is named by its file, not ``__main__``. The cells of
    a notebook, which ipykernel compiles as files of a folder of its own, run in ``__main__``.
    """
    if file.startswith("<frozen "):
        return file[len("<frozen ") :].rstrip(">")
    path = Path(file)
    if file.startswith("<") or not path.stem:
        return ""
    if re.fullmatch(r"ipykernel_\d+", path.parent.name):
        return "__main__"
    parts = [] if path.stem == "__init__" else [path.stem]
    for folder in path.parents:
        if not (folder.is_absolute() and (folder / "__init__.py").is_file()):
            break
        parts.insert(0, folder.name)
    return ".".join(parts)


def program_name(cmdline: bytes) -> str:
    """Return a program's script, its module, its code or its first word, from the content of /proc/PID/cmdline."""
    words = cmdline.decode("utf-8", "replace").rstrip("\0").split("\0")
    interpreter = os.path.basename(words[0])
    if not interpreter.startswith("python"):
        return words[0]
    rest = iter(words[1:])
    for word in rest:
        last = _MODULE_OR_CODE.fullmatch(word)
        if last:
            text = (last[2] or next(rest, "")).strip().partition("\n")[0]
            return text if last[1] == "m" and text else f"{interpreter} -{last[1]} {text:.60}"
        if word in _WITH_VALUE:
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return words[0]


def check_system() -> None:
    """Raise ProcessError if the processes of this system cannot be read at all."""
    if not sys.platform.startswith("linux"):
        raise ProcessError(
            f"attach works on Linux only, not on {sys.platform}; start the program with `tornado-rbkit run` instead"
        )
    try:
        is_own = os.readlink("/proc/self") == str(os.getpid())
    except OSError as error:
        raise ProcessError(f"/proc cannot be read ({error.strerror}); mount it") from error
    if not is_own:
        raise ProcessError("/proc shows the processes of another PID namespace; mount a /proc of this namespace")


def _check_kind(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat if it is a process."""
    fields = stat_fields(pid)
    if fields is None:
        raise ProcessError(f"there is no process {pid} (in the PID namespace of this command)")
    group = read_status(pid).get("Tgid")
    if group not in (None, str(pid)):
        raise ProcessError(f"{pid} is a thread of process {group}; give the pid of the process")
    if fields[0] in (b"Z", b"X"):
        raise ProcessError(f"process {pid} has ended, but its parent has not collected it (a zombie)")
    if int(fields[6]) & _KERNEL_THREAD:
        raise ProcessError(f"{pid} is a thread of the kernel; allowed: a process that runs Python")
    if pid == os.getpid():
        raise ProcessError(f"{pid} is the process of this command")
    return fields


def _check_access(pid: int) -> None:
    """Raise ProcessError if the memory may not be read: opening this file needs the same permission (ptrace(2))."""
    try:
        with open(f"/proc/{pid}/mem", "rb"):
            return
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessError(f"process {pid} has just ended") from error
    except OSError as error:
        raise ProcessError(f"process {pid} cannot be read: {_refusal(pid)}") from error


def _refusal(pid: int) -> str:
    """Return why the memory of a process may not be read, and what to change."""
    rule = yama_rule()
    if int(read_status(os.getpid()).get("CapEff", "0"), 16) & _SYS_PTRACE:
        return rule or "the system forbids it to root, too"
    instead = "start this container with --cap-add=SYS_PTRACE" if os.geteuid() == 0 else _AS_ROOT
    owner = read_status(pid).get("Uid", "").split()[:1]
    if owner and owner != [str(os.geteuid())]:
        return f"it belongs to user {_user_name(int(owner[0]))}; run attach as that user, or {instead}"
    return f"{rule or 'it has changed its user, or a security module or a container forbids it'}; {instead}"


def yama_scope() -> str:
    """Return kernel.yama.ptrace_scope, an empty string without the Yama module."""
    try:
        return Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip()
    except OSError:
        return ""


def yama_rule() -> str:
    """Return the rule of the Yama module that restricts whose memory may be read; an empty string if there is none."""
    return {
        "1": "kernel.yama.ptrace_scope is 1: only ancestors may read it (sysctl kernel.yama.ptrace_scope=0)",
        "2": "kernel.yama.ptrace_scope is 2: only root may read it",
        "3": "kernel.yama.ptrace_scope is 3: nobody may read it, until the machine is restarted with another value",
    }.get(yama_scope(), "")


def _user_name(uid: int) -> str:
    import pwd  # only here, because a profiled process does not need it

    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


def read_status(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status, proc(5); none if it cannot be read."""
    lines = _read(pid, "status").decode("utf-8", "replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _read(pid: int, name: str) -> bytes:
    """Return the beginning of a file in /proc/PID; nothing if it cannot be read."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read(_MAX_BYTES)
    except OSError:
        return b""
