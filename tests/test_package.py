"""The package as its users meet it: the exported names, and a README that tells the truth."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import tornado_rbkit
from tornado_rbkit import Access, Bridge, RbkitClient
from tornado_rbkit.jupyter.application import RbkitExtension
from tornado_rbkit.protocol import COMMANDS
from tornado_rbkit.web.access import AccessSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "bench/README.md", "tests/faults/README.md")


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


def documented(option: str) -> list[str]:
    """Return the defaults that the tables of options give for a name."""
    defaults = re.findall(rf"^\| `{option}` \| (.*?) \|", README, re.MULTILINE)
    assert defaults, f"the README has a row for {option}"
    return defaults


def shown(default: object) -> str:
    """Return a default as the README writes it."""
    if isinstance(default, int) and not isinstance(default, bool) and default >= 1024 * 1024:
        return f"{default // 1024 // 1024} MiB"
    if isinstance(default, float):
        return f"{default:g}"
    return repr(default).replace("'", '"')


@pytest.mark.parametrize("target", [Bridge, RbkitClient])
def test_every_option_is_in_the_readme_with_its_default(target: type) -> None:
    for name, parameter in inspect.signature(target).parameters.items():
        if name in ("pub", "req", "command_timeouts", "ping_timeout", "token", "url"):
            assert name in README
        else:
            assert shown(parameter.default) in [cell.strip("`") for cell in documented(name)], name


def test_every_setting_of_access_is_in_the_readme() -> None:
    settings = [field for field in dataclasses.fields(Access) if field.init]
    for field in settings:
        documented(field.name)
    documented("anywhere")
    assert AccessSettings.__annotations__.keys() == {field.name for field in settings}


@pytest.mark.parametrize(
    "command", [["serve"], ["demo"], ["run"], ["list"], ["send"], ["record"], ["replay"], ["export"], []]
)
def test_every_option_of_the_command_line_is_in_the_readme(command: list[str]) -> None:
    text = subprocess.run(
        [sys.executable, "-m", "tornado_rbkit", *command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    options = set(re.findall(r"--[a-z-]+", text)) - {"--help", "--verbose"}
    assert [option for option in sorted(options) if option not in README] == []


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
allowed = {"", ".protocol", ".endpoints", ".profiler"}
ours = {name for name in sys.modules if name.partition(".")[0] == "tornado_rbkit"}
print(sorted(name for name in ours if "." + ".".join(name.split(".")[1:2]) not in allowed | {"."}))
others = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(sorted(name for name in others if not re.match("tornado_rbkit|_|cython_", name)))
print("asyncio" in sys.modules, sorted(set(sys.modules) - imported))
"""
    environment = {**os.environ, "RBKIT_RUNTIME_DIR": str(tmp_path / "rbkit")}
    command = [sys.executable, "-I", "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert finished.stdout.splitlines() == ["[]", "['msgpack', 'zmq']", "False []"]


def test_public_names_are_found_without_being_loaded() -> None:
    assert set(tornado_rbkit.__all__) <= set(dir(tornado_rbkit))
    with pytest.raises(AttributeError, match="has no attribute 'Bridges'"):
        tornado_rbkit.Bridges  # noqa: B018


def test_every_setting_of_the_jupyter_extension_is_in_its_section() -> None:
    section = README.partition("\n## Jupyter\n")[2].partition("\n## ")[0]
    for name in RbkitExtension.class_own_traits(config=True):
        assert f"`{name}`" in section


def test_what_jupyter_is_given_has_the_package_s_version() -> None:
    [path] = (ROOT / "tornado_rbkit" / "jupyter" / "data").glob("share/jupyter/labextensions/*/package.json")
    package = json.loads(path.read_text())
    assert package["version"] == version("tornado_rbkit")
    assert (path.parent / package["jupyterlab"]["_build"]["load"]).is_file()


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
