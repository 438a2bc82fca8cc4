"""The clocks of the profiler, in a program that has stopped its own."""

from __future__ import annotations

import ast
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tornado_rbkit import profiler
from tornado_rbkit.profiler import real_time

PACKAGE = Path(profiler.__file__).parent
NOT_IN_THE_PROGRAM = {"injection.py", "workload.py", "stack_reader"}
CLOCKS = ("time", "monotonic", "monotonic_ns", "perf_counter", "process_time", "process_time_ns", "thread_time")


def freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the functions of `time`, and all references to them in modules, as freezegun does."""
    frozen = {id(getattr(time, name)): getattr(time, name)() for name in CLOCKS}
    for module in (time, *(each for name, each in sys.modules.items() if name.startswith("tornado_rbkit"))):
        for name, value in list(vars(module).items()):
            if id(value) in frozen:
                monkeypatch.setattr(module, name, partial(float, frozen[id(value)]))


@pytest.mark.parametrize("name", CLOCKS)
def test_a_clock_runs_while_the_program_has_stopped_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = getattr(time, name)
    before = true()
    freeze(monkeypatch)
    stopped = getattr(time, name)()
    while true() == before:
        pass
    now = getattr(real_time, name)()
    assert getattr(time, name)() == stopped < now <= true()


def test_the_time_is_true_while_time_machine_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    hatch = SimpleNamespace(time=SimpleNamespace(time=lambda: 12.5))
    monkeypatch.setitem(sys.modules, "time_machine", SimpleNamespace(escape_hatch=hatch))
    assert real_time.time() == 12.5


def test_the_time_is_read_while_time_machine_does_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise ValueError("Not currently time-travelling.")

    hatch = SimpleNamespace(time=SimpleNamespace(time=refuse))
    for module in (SimpleNamespace(escape_hatch=hatch), SimpleNamespace()):  # the latter is being imported
        monkeypatch.setitem(sys.modules, "time_machine", module)
        before = time.time()
        assert before <= real_time.time() <= time.time()


def test_the_profiler_uses_no_other_clocks_in_a_program() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "real_time.py" or NOT_IN_THE_PROGRAM & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert "time" not in names, f"{path.relative_to(PACKAGE)} imports time"
