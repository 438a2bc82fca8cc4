"""The public side of the package: the exported names, and a README that is true."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import tornado_rbkit
from tests.cli.here import run_here
from tornado_rbkit import Access, Bridge, RbkitClient, profiler, rbkit_routes
from tornado_rbkit.jupyter.application import RbkitExtension
from tornado_rbkit.protocol import COMMANDS
from tornado_rbkit.web.access import AccessSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    "tests/faults/README.md",
    "tornado_rbkit/fleet/README.md",
)


def test_the_exported_names_are_these() -> None:
    assert set(tornado_rbkit.__all__) == {
        "Access",
        "AssetHandler",
        "Bridge",
        "BridgeFullError",
        "CommandError",
        "ConnectionLost",
        "DecodeError",
        "EndpointError",
        "Gap",
        "IOLoopThread",
        "IndexHandler",
        "RbkitClient",
        "RbkitError",
        "RbkitWebSocketHandler",
        "StatusHandler",
        "SubprotocolMatches",
        "TargetsHandler",
        "rbkit_routes",
    }
    for name in tornado_rbkit.__all__:
        assert getattr(tornado_rbkit, name).__doc__, f"{name} has a docstring"


def described(target: type | Callable[..., object], section: str) -> set[str]:
    """Return the names that a docstring's section describes."""
    text = inspect.getdoc(target) or ""
    entries = text.partition(f"{section}:\n")[2].partition("\n\n")[0]
    return {name for names in re.findall(r"^    (\w[\w, ]*):", entries, re.M) for name in names.split(", ")}


@pytest.mark.parametrize(
    "target",
    [Bridge.__init__, RbkitClient.__init__, rbkit_routes, profiler.start_server, profiler.start_profiling],
)
def test_every_option_is_described_in_a_docstring(target: Callable[..., object]) -> None:
    assert described(target, "Args") == inspect.signature(target).parameters.keys() - {"self"}


def test_every_setting_of_access_is_described_in_its_docstring() -> None:
    settings = {field.name for field in dataclasses.fields(Access) if field.init}
    assert described(Access, "Attributes") == settings == AccessSettings.__annotations__.keys()


def test_every_setting_of_the_jupyter_extension_has_a_help_text() -> None:
    traits = RbkitExtension.class_own_traits(config=True)
    assert traits
    assert [name for name, trait in traits.items() if not trait.help] == []


def options_of_the_command_line() -> set[str]:
    found: set[str] = set()
    for command in ([], ["serve"], ["run"], ["attach"], ["record"], ["replay"], ["export"]):
        found |= set(re.findall(r"--[a-z-]+", run_here(*command, "--help").stdout))
    return found


def test_every_option_that_the_readme_names_exists() -> None:
    settings = {field.name for field in dataclasses.fields(Access)} | {"anywhere"}
    settings |= inspect.signature(Bridge).parameters.keys()
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", README)) - COMMANDS
    assert "max_clients" in named
    assert named - settings == {"client_count", "messages_missed", "write_message"}
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))
    assert "--token-file" in flags
    assert flags - options_of_the_command_line() == {"--help-all", "--its-own-options"}


def test_every_command_and_every_error_is_in_the_readme() -> None:
    for command in COMMANDS:
        assert f"`{command}`" in README
    reasons = ("unknown-command", "invalid-command", "forbidden", "busy", "timeout", "unavailable", "invalid-reply")
    for reason in reasons:
        assert f"| `{reason}` |" in README


def test_importing_it_starts_nothing_and_needs_no_extra() -> None:
    program = """
import sys, threading
sys.modules["prometheus_client"] = None
import tornado_rbkit
assert threading.active_count() == 1
assert tornado_rbkit.rbkit_routes()
"""
    subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", program], check=True)


def test_a_profiled_process_loads_no_web_server(tmp_path: Path) -> None:
    program = """
import re, sys
from tornado_rbkit import profiler
imported = set(sys.modules)
profiler.start_profiling(enable_cpu_profiling=True)
profiler.stop_server()
allowed = {"", ".errors", ".protocol", ".endpoints", ".profiler"}
ours = {name for name in sys.modules if name.partition(".")[0] == "tornado_rbkit"}
print(sorted(name for name in ours if "." + ".".join(name.split(".")[1:2]) not in allowed | {"."}))
others = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(sorted(name for name in others if not re.match("tornado_rbkit|_|cython_", name)))
sampled = {"_ctypes", "ctypes", "ctypes._endian"}  # imported by the sampler's first tick, if it gets that far
print("asyncio" in sys.modules, sorted(set(sys.modules) - imported - sampled))
"""
    environment = {**os.environ, "RBKIT_RUNTIME_DIR": str(tmp_path / "rbkit")}
    command = [sys.executable, "-I", "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert finished.stdout.splitlines() == ["[]", "['msgpack', 'zmq']", "False []"]


def test_public_names_are_found_without_being_loaded() -> None:
    assert set(tornado_rbkit.__all__) <= set(dir(tornado_rbkit))
    with pytest.raises(AttributeError, match="has no attribute 'Bridges'"):
        tornado_rbkit.Bridges  # noqa: B018


def test_what_jupyter_is_given_has_the_package_s_version() -> None:
    [path] = (ROOT / "tornado_rbkit" / "jupyter" / "data").glob("share/jupyter/labextensions/*/package.json")
    package = json.loads(path.read_text())
    assert package["version"] == tornado_rbkit.__version__ == version("tornado_rbkit")
    assert (path.parent / package["jupyterlab"]["_build"]["load"]).is_file()


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 200, "details belong to docstrings, --help, bench/README.md or CONTRIBUTING.md"


def test_every_picture_of_the_readme_is_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert [picture for picture in pictures if not (ROOT / picture).is_file()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(name: str) -> None:
    document = ROOT / name
    text = document.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for link in re.findall(r"\]\((?!https?:)(.*?)\)", text):
        path, _, heading = link.partition("#")
        assert (document.parent / path).exists(), f"{name} links to {link}"
        assert path or heading in headings, f"{name} links to {link}"


def test_the_readme_has_the_test_command_that_ci_runs() -> None:
    [command] = re.findall(r"^    (python3 -m venv .*) && .venv/bin/pytest$", README, re.M)
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert command in ci.replace(" -q ", " ")
