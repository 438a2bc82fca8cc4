"""What is said about a process that may not be sampled."""

from __future__ import annotations

import os
import sys

import pytest

from tornado_rbkit.profiler.external import process
from tornado_rbkit.profiler.external.process import ProcessError, RunningProcess

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
