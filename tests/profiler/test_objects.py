"""Inspecting objects."""

from __future__ import annotations

import sys
import traceback

import pytest

from tornado_rbkit.profiler.objects import without_lines


@pytest.mark.parametrize("terms", range(1, 12))
def test_a_function_without_lines_works_and_fails_at_its_first_line(terms: int) -> None:
    """Test code of many lengths."""
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
