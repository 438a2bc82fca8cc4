"""The interpreter that acts on another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tornado_rbkit.profiler.external import interpreter
from tornado_rbkit.profiler.external.interpreter import Interpreter, is_compatible
from tornado_rbkit.profiler.external.process import ProcessError, RunningProcess

if not sys.platform.startswith("linux"):
    pytest.skip("processes are read on Linux only", allow_module_level=True)

FINAL_3_14_2 = 0x030E02F0


@pytest.fixture
def process() -> Iterator[RunningProcess]:
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield RunningProcess(process.pid)
        process.kill()


def test_a_process_without_python_has_no_version() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            with pytest.raises(ProcessError, match=r"runs no CPython that can be recognized; --inject needs [^;]*$"):
                Interpreter(RunningProcess(process.pid))
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("version", "other", "compatible"),
    [
        (FINAL_3_14_2, 0x030E0AF0, True),
        (FINAL_3_14_2, 0x030F02F0, False),
        (0x030F00B1, 0x030F00B1, True),
        (0x030F00B1, 0x030F00C1, False),
        (0x030F00C1, 0x030F00F0, False),
    ],
)
def test_releases_of_one_minor_version_are_compatible_and_others_only_with_themselves(
    version: int, other: int, compatible: bool
) -> None:
    assert is_compatible(version, other) is is_compatible(other, version) is compatible


@pytest.mark.parametrize(("version", "text"), [(0x030B0000, "3.11"), (0x030D0DF0, "3.13")])
def test_a_python_that_takes_no_scripts_is_refused(
    process: RunningProcess, monkeypatch: pytest.MonkeyPatch, version: int, text: str
) -> None:
    monkeypatch.setattr(interpreter, "python_version", lambda pid: version)
    with pytest.raises(ProcessError) as error:
        Interpreter(process)
    assert str(error.value).endswith(
        f"runs Python {text}; --inject needs Python 3.14 or newer; "
        "leave out --inject to sample it from outside, or start it with `tornado-rbkit run`"
    )


def test_the_executable_of_a_process_of_another_version_is_used(
    process: RunningProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "python_version", lambda pid: 0x03FF00F0)
    assert Interpreter(process)._path == str(Path(sys.executable).resolve())
    monkeypatch.setattr(os, "readlink", lambda path: "/usr/sbin/uwsgi")
    with pytest.raises(ProcessError, match=r"runs Python 3\.255, and this command 3\.\d+; run it with Python 3\.255"):
        Interpreter(process)


def test_a_refusal_of_the_standard_library_is_the_reason(
    process: RunningProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "_OLDEST", 0)
    caller = Interpreter(process)
    with pytest.raises(ProcessError, match=r"takes no scripts: (AttributeError|FileNotFoundError): .*; leave out"):
        caller.remote_exec("/nonexistent/script.py")
    refusal = "raise RuntimeError('Remote debugging is not enabled in the remote process')"
    monkeypatch.setattr(interpreter, "_REMOTE_EXEC", refusal)
    with pytest.raises(ProcessError, match=r"takes no scripts: PYTHON_DISABLE_REMOTE_DEBUG or -X disable-remote"):
        caller.remote_exec("script.py")


def test_a_place_that_cannot_be_determined_is_empty(process: RunningProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "_OLDEST", 0)
    monkeypatch.setattr(interpreter, "_MAIN_FRAME", "import _remote_debugging_of_another_version")
    assert Interpreter(process).main_frame() == ""
