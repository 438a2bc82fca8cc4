"""The extension in a server of its own process: found by its file, configured like others, gone with the server."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from tornado.websocket import websocket_connect

from tests.conftest import ask, closing
from tests.fake_rbkit import FakeRbkit
from tests.jupyter.lab import TOKEN, environment, lab
from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.jupyter.application import RbkitExtension


def ws(url: str, name: str) -> str:
    return f"{url.replace('http', 'ws')}rbkit/{name}/ws?token={TOKEN}"


async def test_it_is_enabled_by_its_file_and_stops_with_the_server(tmp_path: Path, rbkit: FakeRbkit) -> None:
    options = [f"--RbkitExtension.{name}={value}" for name, value in rbkit.endpoints.items()]
    with lab(tmp_path / "one", *options, base_url="/user/ann/", program="jupyter_server") as server:
        connection = await websocket_connect(ws(server.url, "default"), subprotocols=["rbkit"])
        assert await ask(connection, "start_memory_profile") == b"0ok"
        server.process.terminate()
        assert await closing(connection) == (1001, "server shutting down")
        assert server.process.wait(60) == 0
        assert b"stop_memory_profile" in rbkit.received
        for sign in ("Traceback", "Warning", "ERROR", "[E "):
            assert sign not in server.log, server.log


async def test_two_servers_show_the_same_profiler(tmp_path: Path, rbkit: FakeRbkit) -> None:
    options = [f"--RbkitExtension.{name}={value}" for name, value in rbkit.endpoints.items()]
    with (
        lab(tmp_path / "one", *options, program="jupyter_server") as one,
        lab(tmp_path / "two", *options, program="jupyter_server") as two,
    ):
        connections = [await websocket_connect(ws(s.url, "default"), subprotocols=["rbkit"]) for s in (one, two)]
        for connection in connections:
            assert await ask(connection, "handshake") == b"0" + rbkit.handshake()
        one.process.terminate()
        assert (await closing(connections[0]))[0] == 1001
        assert await ask(connections[1], "handshake") == b"0" + rbkit.handshake()
        connections[1].close()


def test_settings_are_read_from_a_file_and_a_wrong_one_is_reported_in_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "jupyter_server_config.py").write_text("c.RbkitExtension.stall_timeout = -1\n")
    with lab(folder, program="jupyter_server") as server:
        [line] = [line for line in server.log.splitlines() if "RbkitExtension" in line and "[E " in line]
        assert "stall_timeout=-1.0 is out of range; allowed: more than 0" in line


def test_the_help_tells_of_every_setting(tmp_path: Path) -> None:
    program = "from tornado_rbkit.jupyter import main; main()"
    command = [sys.executable, "-c", program, "--help-all"]  # what `jupyter rbkit` runs
    text = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True).stdout
    traits = RbkitExtension.class_own_traits(config=True)
    assert traits.keys() <= set(re.findall(r"--RbkitExtension\.(\w+)=", text))
    for name, trait in traits.items():
        assert " ".join(trait.help.split()[:5]) in " ".join(text.split()), name


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    RbkitExtension().print_version()
    assert capsys.readouterr().out == metadata.version("tornado_rbkit") + "\n"


def test_the_limits_are_the_bridge_s() -> None:
    parameters = inspect.signature(Bridge).parameters
    for name, trait in RbkitExtension.class_own_traits(config=True).items():
        if name in parameters and name not in ("pub", "req"):
            assert trait.default_value == parameters[name].default, name


@pytest.mark.parametrize("module", ["tornado_rbkit", "tornado_rbkit.jupyter"])
def test_the_core_imports_no_jupyter(module: str) -> None:
    program = f"""
import sys
for name in ("IPython", "jupyter_core", "jupyter_server", "traitlets"):
    sys.modules[name] = None
import {module}
"""
    subprocess.run([sys.executable, "-c", program], check=True)
