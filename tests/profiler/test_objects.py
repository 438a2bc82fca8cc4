"""Inspecting objects."""

from __future__ import annotations

import sys
import traceback
from types import SimpleNamespace

import pytest

from tornado_rbkit.profiler import objects
from tornado_rbkit.profiler.objects import SLICE_SECONDS, SliceSize, without_lines


@pytest.mark.parametrize("terms", range(1, 12))
def test_a_function_without_lines_works_and_fails_at_its_first_line(terms: int) -> None:
    """The sums make code of eleven lengths, because an entry of the table covers eight code units."""
    total = " +\n ".join(["number"] * terms)
    text = f"def function(number):\n try:\n  return 1 / ({total})\n finally:\n  number = 0\n"
    names: dict[str, object] = {}
    exec(text, names)
    function = without_lines(names["function"])  # type: ignore[type-var]
    assert function(2) == 1 / (2 * terms)  # type: ignore[operator]
    with pytest.raises(ZeroDivisionError) as caught:
        function(0)  # type: ignore[operator]
    if sys.version_info >= (3, 11):
        assert {line for _, _, line in function.__code__.co_lines()} == {1}  # type: ignore[attr-defined]
        assert traceback.extract_tb(caught.value.__traceback__)[-1].lineno == 1


@pytest.mark.parametrize(("took", "count"), [(2.0, 1000), (1000.0, 100), (0.75, 2000), (0.25, 2500)])
def test_the_next_slice_has_as_many_objects_as_take_the_intended_time(
    took: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([5.0, 5.0 + took * SLICE_SECONDS])
    monkeypatch.setattr(objects, "real_time", SimpleNamespace(perf_counter=lambda: next(times)))
    size = SliceSize(2000)
    with size as present:
        assert present == 2000
    assert size.count == pytest.approx(count, abs=1)
