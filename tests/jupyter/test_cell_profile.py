"""The profile of a cell: the time of lines and functions, the size of the saved output, and the exported file."""

from __future__ import annotations

import json
import linecache
import re
import threading
from pathlib import Path

import pytest

from tornado_rbkit.jupyter.cell_profile import CellProfile
from tornado_rbkit.jupyter.magics import _of_the_cell
from tornado_rbkit.protocol import CPUSample, StackFrame

FILE = "/tmp/ipykernel_1/2.py"
SOURCE = ["get_ipython().run_line_magic('rbkit', 'this-cell')\n", "def f():\n", "    return '<b>'\n", "f()\n"]


def sample(*places: tuple[str, str, int]) -> CPUSample:
    """Return a sample; the places (function, file, line) begin with the innermost."""
    return CPUSample(0.0, [StackFrame(name, f"__main__.{name}", file, line, False, 1) for name, file, line in places])


CLOSURE = "ipykernel.ipkernel.IPythonKernel._initialize_thread_hooks.<locals>.run_closure"
RUN_CODE = "IPython.core.interactiveshell.InteractiveShell.run_code"


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        (["__main__.f", "__main__.<module>", RUN_CODE, "runpy.run"], ["__main__.f", "__main__.<module>"]),
        (
            [
                "IPython.core.history.new",
                "IPython.core.displayhook.run",
                "__main__.<module>",
                RUN_CODE,
            ],
            ["__main__.<module>"],
        ),
        (
            ["shop.Order.__repr__", "IPython.lib.pretty.pretty", "__main__.<module>", RUN_CODE],
            ["shop.Order.__repr__", "__main__.<module>"],
        ),
        ([RUN_CODE, "runpy.run"], None),
        (["IPython.core.history.HistorySavingThread.run", "threading.Thread._bootstrap"], None),
        (
            ["zmq.poll", "__main__.worker", "threading.Thread.run"],
            ["zmq.poll", "__main__.worker", "threading.Thread.run"],
        ),
        *(
            (["__main__.worker", "threading.Thread.run", closure], ["__main__.worker", "threading.Thread.run"])
            for closure in (CLOSURE, "ipykernel.ipkernel.run_closure")
        ),
        (["ipykernel.iostream.IOPubThread._thread_main", "threading.Thread.run", CLOSURE], None),
    ],
)
def test_the_frames_of_the_kernel_are_left_out(labels: list[str], kept: list[str] | None) -> None:
    thread = threading.main_thread().ident or 0
    frames = [StackFrame(label.rpartition(".")[2], label, "a.py", 1, False, thread) for label in labels]
    found = _of_the_cell(CPUSample(0.0, frames))
    assert (found and [frame.label for frame in found.frames]) == kept


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch) -> CellProfile:
    monkeypatch.setitem(linecache.cache, FILE, (1, None, SOURCE, FILE))
    inner = sample(("f", FILE, 3), ("<module>", FILE, 4))
    library = sample(("dumps", "/lib/json.py", 9), ("f", FILE, 3), ("<module>", FILE, 4))
    return CellProfile([(inner, 3), (library, 1)], 0.5, FILE)


def rows(page: str) -> list[list[str]]:
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", page)]
    return [cells for cells in found if cells]


def test_each_line_of_the_cell_has_its_own_time_and_that_of_its_calls(profile: CellProfile) -> None:
    assert rows(profile._repr_html_())[:3] == [
        ["", "", "2", "def f():"],
        ["100.0 %", "75.0 %", "3", "\xa0\xa0\xa0\xa0return &#x27;&lt;b&gt;&#x27;"],
        ["100.0 %", "", "4", "f()"],
    ]


def test_functions_have_self_and_total(profile: CellProfile) -> None:
    assert rows(profile._repr_html_())[3:] == [
        ["100.0 %", "75.0 %", "__main__.f"],
        ["25.0 %", "25.0 %", "__main__.dumps"],
    ]


def test_a_recursive_function_is_counted_once_in_a_sample() -> None:
    deep = sample(*[("f", FILE, 3)] * 50)
    assert rows(CellProfile([(deep, 2)], 0.1, None)._repr_html_()) == [["100.0 %", "100.0 %", "__main__.f"]]


def test_what_is_saved_in_a_notebook_is_bounded() -> None:
    """Each of 12,000 frames with a long name is wide enough to be drawn."""
    stacks = [(sample(*[(f"{i}_{level}_" * 100, f"/{i}.py", level) for level in range(60)]), 1) for i in range(200)]
    profile = CellProfile(stacks, 10.0, FILE)
    assert 200_000 < len(profile._repr_html_()) + len(profile._repr_svg_()) < 350_000


def test_the_samples_are_exported_to_speedscope(profile: CellProfile, tmp_path: Path) -> None:
    profile.speedscope(tmp_path / "cell.json")
    document = json.loads((tmp_path / "cell.json").read_text())
    [thread] = document["profiles"]
    assert len(thread["samples"]) == 4
    assert {frame["name"] for frame in document["shared"]["frames"]} == {
        "__main__.f",
        "__main__.dumps",
        "__main__.<module>",
    }
