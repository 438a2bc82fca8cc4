"""What is said about a process that may not be sampled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tornado_rbkit.profiler.external import process
from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.interpreter import Interpreter
from tornado_rbkit.profiler.external.process import ProcessError, RunningProcess
from tornado_rbkit.profiler.external.profile import attach

if not sys.platform.startswith("linux"):
    pytest.skip("attach works on Linux only", allow_module_level=True)


def test_a_thread_of_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flags (field 9 of proc(5), PF_KTHREAD) say so; a container shows none, so these are those of kthreadd."""
    fields = [b"S", *b"0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0".split()]
    monkeypatch.setattr(process, "stat_fields", lambda pid: fields)
    with pytest.raises(ProcessError) as refused:
        RunningProcess(os.getppid())
    assert str(refused.value) == f"{os.getppid()} is a thread of the kernel; allowed: a process that runs Python"


@pytest.mark.parametrize(
    ("capabilities", "user", "text"),
    [
        ("000001ffffffffff", 0, "the system forbids it to root, too"),
        ("00000000a80425fb", 0, "start this container with --cap-add=SYS_PTRACE"),
        ("0000000000000000", 1000, "run attach as root (sudo); in a container, start it with --cap-add=SYS_PTRACE"),
    ],
)
def test_nobody_is_told_to_become_what_he_is(
    monkeypatch: pytest.MonkeyPatch, capabilities: str, user: int, text: str
) -> None:
    status = {"CapEff": capabilities, "Uid": f"{user} {user} {user} {user}"}
    monkeypatch.setattr(process, "read_status", lambda pid: status)
    monkeypatch.setattr(process, "yama_rule", lambda: "")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert process._refusal(1).endswith(text)


@pytest.fixture
def wrapper() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a shell that has started Python, and the text that names its child process."""
    script = f"{sys.executable} -c 'import os, sys; print(os.getpid(), flush=True); sys.stdin.read()'; true"
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, f"its child process {process.stdout.readline().strip()} runs Python"


def test_a_refusal_names_the_child_that_runs_python(wrapper: tuple[subprocess.Popen[str], str]) -> None:
    """The pid of a wrapper, such as sudo, a shell script or the starter of a frozen program, is the one people see."""
    process, text = wrapper
    with pytest.raises(EngineError, match=f"it does not run CPython .*; {text}$"):
        attach(process.pid)
    with pytest.raises(ProcessError, match=f"runs no CPython .*; {text}$"):
        Interpreter(RunningProcess(process.pid))


def test_children_that_run_something_else_are_not_named() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", "cat; true"], stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("a line that cat repeats\n")
        process.stdout.readline()
        assert RunningProcess(process.pid).describe_children() == ""


def test_of_many_children_some_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_descendants", lambda pid: list(range(1, 12)))
    monkeypatch.setattr(process, "_runs_python", lambda pid: pid > 1)
    text = RunningProcess(os.getppid()).describe_children()
    assert text == "its child processes 2, 3, 4, 5, 6, 7, 8, 9 and more run Python"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("python3|-u|tool/app.py|-m|x", "tool/app.py"),
        ("/opt/bin/python3.12|-X|dev|-m|uvicorn|app:app", "uvicorn"),
        ("python|-um|uvicorn", "uvicorn"),
        ("python|-muvicorn", "uvicorn"),
        ("python|-Wdefault::m|app.py", "app.py"),
        ("/v/bin/python|-B|-c|from multiprocessing.spawn import spawn_main; spawn_main(pipe_handle=22, parent_pid=17)",
         "python -c from multiprocessing.spawn import spawn_main; spawn_main(pip"),
        ("python|-Ic|\nimport time\ntime.sleep(9)", "python -c import time"),
        ("python3", "python3"),
        ("gunicorn: worker [app]", "gunicorn: worker [app]"),
    ],
)  # fmt: skip
def test_a_process_is_named_by_what_it_runs(command: str, name: str) -> None:
    assert process.program_name(command.replace("|", "\0").encode() + b"\0") == name
