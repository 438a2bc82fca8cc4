"""The exports of one recording, byte for byte; `dashboard/js/golden.test.mjs` compares the dashboard with the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tornado_rbkit.protocol import Event
from tornado_rbkit.recording.export import collapsed, speedscope
from tornado_rbkit.recording.recording import events, read

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(("export", "golden"), [(speedscope, "speedscope.json"), (collapsed, "collapsed.txt")])
def test_an_export_has_the_golden_file_s_bytes(
    export: Callable[[Iterable[Event], str], Iterator[str]], golden: str
) -> None:
    with (DATA / "export.msgpack").open("rb") as file:
        lines = list(export(events(read(file), []), "golden"))
    assert "".join(f"{line}\n" for line in lines).encode() == (DATA / f"export.{golden}").read_bytes()
