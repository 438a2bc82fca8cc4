"""The contents of wheel and sdist, built from a copy of the checkout as `pip install .` and `python -m build` do."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the sources with the bundle, and with the build folder of an earlier `pip install .`."""
    ignored = shutil.ignore_patterns(".*", "node_modules", "*.egg-info", "build", "dist", "__pycache__")
    copy = shutil.copytree(ROOT, tmp_path / "checkout", ignore=ignored)
    stale = copy / "build" / "lib" / "tornado_rbkit" / "removed_last_year.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    return copy


def build(hook: str, checkout: Path, folder: Path) -> Path:
    """Call a PEP 517 hook of setuptools and return the archive that it made."""
    program = f"import sys; from setuptools import build_meta; print(build_meta.{hook}({str(folder)!r}))"
    folder.mkdir()
    finished = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    [archive] = folder.iterdir()
    return archive


def test_a_wheel_holds_what_is_in_the_tree_and_nothing_of_an_earlier_build(checkout: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build("build_wheel", checkout, tmp_path / "wheel")) as wheel:
        names = set(wheel.namelist())
        [metadata] = (wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    sources = {path.relative_to(checkout).as_posix() for path in (checkout / "tornado_rbkit").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    bundle = {path.relative_to(checkout).as_posix() for path in checkout.glob("tornado_rbkit/dashboard/static/*")}
    assert bundle <= names
    assert "tornado_rbkit/dashboard/page.html" in names
    assert "tornado_rbkit/py.typed" in names
    assert "# tornado_rbkit" in metadata
    assert "](tests/" not in metadata, "a picture that an index cannot show"
    assert "](tornado_rbkit/" not in metadata, "a link that leads nowhere on an index"


def test_an_sdist_holds_all_the_tests_and_what_they_need(checkout: Path, tmp_path: Path) -> None:
    with tarfile.open(build("build_sdist", checkout, tmp_path / "sdist")) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    expected = {
        path.relative_to(checkout).as_posix()
        for folder in ("tests", "bench", "tornado_rbkit/dashboard/src", "tornado_rbkit/dashboard/static")
        for path in (checkout / folder).rglob("*")
        if path.is_file()
    }
    assert {*expected, "CHANGELOG.md", "CONTRIBUTING.md"} - names == set()
