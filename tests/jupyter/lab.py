"""A real JupyterLab as a process, in folders of its own, and a real browser before it."""

from __future__ import annotations

import contextlib
import json
import os
import site
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium.webdriver.chromium.webdriver import ChromiumDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import tornado_rbkit
from tests.fake_rbkit import free_port

TOKEN = "s3cret"
PATIENCE = 180.0
"""Seconds until a test fails that waits for something."""

RUN_ALL = """
const [done] = arguments;
const context = jupyterapp.shell.currentWidget.sessionContext;
context.ready
  .then(() => context.session.kernel.info)
  .then(() => jupyterapp.commands.execute("notebook:run-all-cells"))
  .then(() => done());
"""
"""Runs the notebook that is open, once its kernel is there; for a JupyterLab with expose_app_in_browser."""

KERNEL_MANAGER = {"transport": "ipc"} if sys.platform == "linux" else {}
"""How kernels listen: another process may take a port that Jupyter has chosen before the kernel listens there."""

PATIENT_OPTIONS = [
    "--RbkitExtension.connect_timeout=60",
    *(f"--KernelManager.{name}={value}" for name, value in KERNEL_MANAGER.items()),
]
"""Options of a server on a busy machine."""

SEEN = """
from tornado_rbkit.profiler.stacks import StackCounter
samples, add = [], StackCounter.add
def look(self, event):
    samples.append(event)
    add(self, event)
StackCounter.add = look
def seen(label):
    found = sum(label.encode() in event for event in tuple(samples))
    return found > 20 and 100 * found > len(samples)
"""
"""Code for a kernel: a profiled cell that works until a function is `seen` in enough samples has it in its profile."""

_OTHERS = ("jupyterlab", "jupyter_lsp", "notebook_shim", "jupyter_server_terminals")
"""The extensions of this environment that a server alone does without."""

_INSTALLED = Path(tornado_rbkit.__file__).parent / "jupyter" / "data"
"""What a wheel puts into the environment's etc and share."""


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which nothing of this user's is seen, and the extension is as if installed."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY", "RBKIT"))},
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": tempfile.mkdtemp(prefix="jp", dir=os.environ.get("XDG_RUNTIME_DIR")),  # a short path
        "JUPYTER_CONFIG_PATH": str(_INSTALLED / "etc" / "jupyter"),
        "JUPYTER_PATH": str(_INSTALLED / "share" / "jupyter"),
        "RBKIT_RUNTIME_DIR": str(folder / "rbkit"),
    }


class JupyterProcess:
    """A server in a separate process. `url` is its address with the base_url and a slash; `log` is its output."""

    def __init__(self, command: list[str], url: str, log: Path, folder: Path, variables: dict[str, str]) -> None:
        """Start it in a folder, and wait until it answers."""
        self.url = url
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder
            )
        self._wait()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ask(self) -> object:
        """Send a request that it answers once it is ready; raise OSError before."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop it and what it started, and wait for its end."""
        self.process.terminate()
        self.process.wait(PATIENCE)

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.ask()
                return
            except OSError:
                assert self.process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                time.sleep(0.1)


class Lab(JupyterProcess):
    """A JupyterLab, or another program of Jupyter's."""

    def __init__(self, folder: Path, *options: str, base_url: str = "/", program: str = "jupyterlab") -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.root = folder / "notebooks"
        self.root.mkdir()
        (folder / "config").mkdir(exist_ok=True)
        if program == "jupyter_server":
            off = {"ServerApp": {"jpserver_extensions": dict.fromkeys(_OTHERS, False)}}
            (folder / "config" / "jupyter_server_config.json").write_text(json.dumps(off))
        port = free_port()
        command = [
            sys.executable,
            "-m",
            program,
            "--no-browser",
            "--allow-root",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.base_url={base_url}",
            f"--ServerApp.root_dir={self.root}",
            f"--IdentityProvider.token={TOKEN}",
            *PATIENT_OPTIONS,
            *options,
        ]
        url = f"http://127.0.0.1:{port}{base_url}"
        super().__init__(command, url, folder / "log", self.root, environment(folder))

    def ask(self) -> object:
        return self.get("api/status")

    def get(self, path: str) -> Any:
        """Return a document as JSON."""
        return json.loads(self._request("GET", path))

    def end_kernels(self) -> None:
        """End all kernels, and return when the extension shows no profiler any more."""
        for kernel in self.get("api/kernels"):
            self._request("DELETE", f"api/kernels/{kernel['id']}")
        deadline = time.monotonic() + PATIENCE
        while self.get("rbkit/targets"):
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def _request(self, method: str, path: str) -> bytes:
        headers = {"Authorization": f"token {TOKEN}"}
        request = urllib.request.Request(self.url + path, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            content: bytes = response.read()
            return content


@contextlib.contextmanager
def lab(folder: Path, *options: str, base_url: str = "/", program: str = "jupyterlab") -> Iterator[Lab]:
    """A JupyterLab, or another program of Jupyter's; killed at the end if it still runs."""
    server = Lab(folder, *options, base_url=base_url, program=program)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def find(
    browser: ChromiumDriver, css: str, text: str = "", use: Callable[[Any], Any] = lambda element: element
) -> Any:
    """Return the first element of a selector that has a text, once it is there to be seen, or what `use` makes of it.

    It is found again if the page draws it anew before it is used.
    """

    def used(_: Any) -> Any:
        elements = browser.find_elements(By.CSS_SELECTOR, css)
        return use(next(each for each in elements if each.is_displayed() and text in each.text))

    return WebDriverWait(browser, PATIENCE, ignored_exceptions=[Exception]).until(used, f"{css} with {text!r}")


def click(browser: ChromiumDriver, css: str, text: str = "") -> None:
    """Click such an element."""
    find(browser, css, text, lambda element: element.click() or True)


def errors(browser: ChromiumDriver) -> list[str]:
    """Return what the browser complains of that is ours."""
    entries: list[dict[str, str]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries if entry["level"] == "SEVERE" and "rbkit" in entry["message"]]


def write_foreign_kernel(folder: Path) -> None:
    """Create the kernel `foreign`: a virtual environment that has all packages of this one but tornado_rbkit."""
    venv.create(folder / "environment", symlinks=True)
    scripts = folder / "environment" / ("Scripts" if os.name == "nt" else "bin")
    python = str(scripts / f"python{'.exe' if os.name == 'nt' else ''}")
    code = "import site; print(site.getsitepackages()[-1])"
    packages = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    for path in Path(site.getsitepackages()[-1]).iterdir():
        if "tornado_rbkit" not in path.name:
            (packages / path.name).symlink_to(path)
    spec = {"argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Foreign"}
    kernel = folder / "data" / "kernels" / "foreign" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({**spec, "language": "python"}))


def write_notebook(path: Path, cells: list[str], kernel_name: str = "python3") -> None:
    """Write a notebook that has not been run."""
    kernel = {"name": kernel_name, "display_name": kernel_name, "language": "python"}
    code: list[dict[str, object]] = [
        {
            "cell_type": "code",
            "id": f"cell-{i}",
            "source": source,
            "metadata": {},
            "outputs": [],
            "execution_count": None,
        }
        for i, source in enumerate(cells)
    ]
    notebook = {"cells": code, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))
