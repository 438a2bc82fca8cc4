"""Programs that know nothing of a profiler, on every Python that is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.profiler.conftest import PATIENCE, Client, runtime
from tornado_rbkit.profiler.external import child
from tornado_rbkit.profiler.external.profile import Attachment, attach

__all__ = ["runtime"]

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")

Start = Callable[..., "subprocess.Popen[str]"]


def interpreters() -> dict[str, str]:
    """Return the supported interpreters that are found, by version; this one for its own version."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = {own: sys.executable} if own in VERSIONS else {}
    for version in VERSIONS:
        fetched = Path(__file__).parents[3].glob(f".venv/newer/{version}/usr/bin/python{version}")
        managed = sorted([*Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), *fetched])
        path = managed[-1] if managed else shutil.which(f"python{version}")
        if path is not None:
            found.setdefault(version, str(path))
    return found


@pytest.fixture(params=list(interpreters().values()), ids=list(interpreters()))
def interpreter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that runs a program, which prints a line once it works."""
    started: list[subprocess.Popen[str]] = []

    def run(source: str, python: str = next(iter(interpreters().values()), sys.executable)) -> subprocess.Popen[str]:
        path = tmp_path / "target.py"
        path.write_text(textwrap.dedent(source))
        process = subprocess.Popen(
            [python, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], tuple[Attachment, Client]]]:
    """Return a function that attaches to a process, with a client; no program may be left afterwards."""
    monkeypatch.setattr(child, "_PATIENCE", PATIENCE)  # a busy machine may take long to start a program
    attachments: list[tuple[Attachment, Client]] = []

    def connect(pid: int) -> tuple[Attachment, Client]:
        attachment = attach(pid)
        attachments.append((attachment, Client(attachment.server.pub, attachment.server.req)))
        return attachments[-1]

    yield connect
    for attachment, client in attachments:
        with attachment:
            client.__exit__(None, None, None)
    assert children() == [], "a sampling program was left behind"


def children(pid: int | None = None) -> list[int]:
    """Return the sampling programs that a process has started, by default this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends meanwhile
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[1]) == (pid or os.getpid()) and is_sampling(entry):
                found.append(int(entry.name))
    return found


def is_sampling(process: Path) -> bool:
    """Return whether a process, by its folder in /proc, is a program that samples another one."""
    words = (process / "cmdline").read_bytes().split(b"\0")
    return any(word.endswith(b"stack_reader") for word in words[:4])
