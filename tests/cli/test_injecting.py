"""The command ``attach --inject``, for a process that does not run the profiler."""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import until
from tornado_rbkit.cli import injecting
from tornado_rbkit.profiler.external.process import RunningProcess
from tornado_rbkit.profiler.injection import Injection

if not sys.platform.startswith("linux"):
    pytest.skip("injection works on Linux only", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("runtime_folder")


class Caller:
    """Passes no script on: the main thread of the process is blocked."""

    def __init__(self) -> None:
        self.scripts: list[str] = []

    def remote_exec(self, script: str) -> None:
        self.scripts.append(script)

    def main_frame(self) -> str:
        return "read (app.py:7)"


def test_a_process_that_takes_no_scripts_is_refused_in_one_line() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        command = [sys.executable, "-m", "tornado_rbkit", "attach", "--inject", str(process.pid)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        process.kill()
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert "runs no CPython that can be recognized; --inject needs Python 3.14 or newer\n" in ended.stderr


async def test_a_blocked_process_is_reported_once_and_the_script_withdrawn_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    caller, stopped, errors = Caller(), asyncio.Event(), [""]

    def report() -> str:
        errors[0] += capsys.readouterr().err
        return errors[0]

    with subprocess.Popen(["sleep", "600"]) as process:
        injection = Injection(RunningProcess(process.pid), caller)  # type: ignore[arg-type]
        monkeypatch.setattr(injecting, "inject", lambda pid: injection)
        monkeypatch.setattr(injecting, "_PATIENCE", 0.0)
        options = argparse.Namespace(pid=process.pid, host="127.0.0.1", port=0, open=False)
        command = asyncio.create_task(injecting.serve_injected(options, stopped))
        await until(lambda: "Ctrl-C withdraws" in report(), "it is said why nothing happens")
        stopped.set()
        assert await command == 1
        process.kill()
    assert report().count("has not run the profiler after") == 1
    assert f"was withdrawn from process {process.pid} (sleep) before it ran\n" in report()
    assert caller.scripts[1:] == [os.devnull]
    assert not Path(caller.scripts[0]).parent.exists()
