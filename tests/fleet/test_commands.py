"""The commands of the fleet, as a user gives them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import until
from tests.fake_rbkit import FakeRbkit
from tests.patient import PATIENT
from tornado_rbkit import CommandError, RbkitClient
from tornado_rbkit.cli.main import main
from tornado_rbkit.fleet.hub import Hub
from tornado_rbkit.fleet.server import local_servers

COMMAND = [sys.executable, *PATIENT]


class Commands:
    """Commands that run until the test ends."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([*COMMAND, *arguments], cwd=self.folder, stdout=subprocess.PIPE, text=True)
        self._stack.callback(self.stop, process)
        return process

    def ready(self, *arguments: str) -> str:
        """Start a command, and return the text that follows ``ready`` in its output."""
        return self.read_ready(self.start(*arguments))

    @staticmethod
    def read_ready(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        word, _, rest = process.stdout.readline().strip().partition(" ")
        assert word == "ready", f"it has ended with {process.wait()}"
        return rest

    @staticmethod
    def stop(process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.terminate()
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait() == 0

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *arguments], cwd=self.folder, capture_output=True, text=True)


@pytest.fixture
def commands(tmp_path: Path, runtime_folder: Path) -> Iterator[Commands]:
    with ExitStack() as stack:
        yield Commands(tmp_path, stack)


def target(rbkit: FakeRbkit) -> str:
    return f"--target=puma={rbkit.pub},{rbkit.req}"


async def names_at(url: str) -> list[str]:
    return [each["name"] for each in await read(f"{url}targets")]


async def read(url: str) -> Any:
    def get() -> Any:
        with urllib.request.urlopen(url) as response:
            return json.load(response)

    return await asyncio.to_thread(get)


async def shown(url: str, name: str) -> str:
    """Wait until a target is listed; return the URL of its WebSocket."""
    for _ in range(1200):
        if name in await names_at(url):
            return f"ws{url.removeprefix('http')}{name}/ws"
        await asyncio.sleep(0.05)
    pytest.fail(f"not listed: {name}")


async def answered(client: RbkitClient) -> None:
    """Send a command until it is answered; until then it must be refused as unavailable."""
    for _ in range(1200):
        try:
            assert await client.command("trigger_gc") == "ok"
        except CommandError as error:
            if error.reason != "unavailable":
                raise
            await asyncio.sleep(0.05)
        else:
            return
    pytest.fail("it is never answered")


async def test_two_commands_without_configuration_serve_a_machine(
    commands: Commands, rbkit: FakeRbkit, runtime_folder: Path
) -> None:
    agent = commands.start("agent", "--host-name", "web-1", target(rbkit))
    assert commands.read_ready(agent) == "web-1 1 targets"
    for path in runtime_folder.iterdir():
        if path.suffix != ".ports":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600 or os.name == "nt", path
    url = commands.ready("serve", "--nats", "auto", "--port", "0")
    async with RbkitClient(await shown(url, "web-1~puma")) as client:
        assert await client.command("trigger_gc") == "ok"
        commands.stop(agent)
        assert local_servers() is None, "the server has ended with the agent"
        assert commands.ready("agent", "--host-name", "web-1", target(rbkit))
        await answered(client)  # the client has stayed


async def test_a_bridge_that_is_started_first_waits_for_an_agent(commands: Commands, rbkit: FakeRbkit) -> None:
    url = commands.ready("serve", "--nats", "auto", "--port", "0")
    assert await names_at(url) == []
    assert commands.ready("agent", "--host-name", "web-1", target(rbkit))
    await shown(url, "web-1~puma")


async def test_a_hub_with_a_key_for_each_host_and_bridge(commands: Commands, rbkit: FakeRbkit) -> None:
    for arguments in (("add-host", "web-1"), ("add-bridge", "office"), ("add-bridge", "hall", "--read-only")):
        assert commands.run("hub", *arguments, "--dir", "hub").returncode == 0
    nats = commands.ready("hub", "--dir", "hub", "--listen", "127.0.0.1:-1")
    assert nats.startswith("tls://127.0.0.1:")
    host = ("agent", "--nats", nats, "--creds", "web-1.creds", target(rbkit))
    assert commands.ready(*host) == "web-1 1 targets"
    office = commands.ready("serve", "--nats", nats, "--creds", "office.creds", "--port", "0")
    hall = commands.ready("serve", "--nats", nats, "--creds", "hall.creds", "--port", "0")
    async with RbkitClient(await shown(office, "web-1~puma")) as client:
        assert await client.command("trigger_gc") == "ok"
    async with RbkitClient(await shown(hall, "web-1~puma")) as client:
        with pytest.raises(Exception, match="read_only"):
            await client.command("trigger_gc")
        await until(lambda: rbkit.received.count(b"handshake") >= 2, "the bridge's own handshakes are answered")
    assert rbkit.received.count(b"trigger_gc") == 1
    removed = commands.run("hub", "remove", "web-1", "--dir", "hub")
    assert removed.returncode == 0, removed.stderr
    for _ in range(1200):
        (shown_host,) = (await read(f"{office}targets?fleet"))["hosts"]
        if shown_host["state"] == "gone":
            break
        await asyncio.sleep(0.05)
    assert (shown_host["name"], shown_host["state"]) == ("web-1", "gone"), "the host's connection was cut"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["agent", "--nats", "nats://192.0.2.1:4222"], "on another machine, without TLS; allowed: tls://HOST:PORT"),
        (["agent", "--nats", "tls://hub.example"], "on another machine and there are no credentials; allowed: a file"),
        (["agent", "--nats", "http://127.0.0.1"], "is not the URL of a NATS server; allowed: nats://HOST:PORT"),
        (["agent", "--nats", "tls://hub.example", "--creds", "nobody"], "nobody: No such file"),
        (["agent", "--nats", "tls://hub.example", "--creds", "loose"], "loose has the mode 644; allowed: 600"),
        (["agent", "--nats", "tls://hub.example", "--creds", "odd"], "odd has no credentials; allowed: a file of"),
        (["agent", "--nats", "tls://hub.example", "--creds", "b.creds"], "the credentials of a bridge; allowed: cred"),
        (["serve", "--nats", "tls://hub.example", "--creds", "h.creds"], "the credentials of a host; allowed: cred"),
        (["agent", "--nats", "tls://h", "--creds", "h.creds", "--host-name", "x"], "are those of h, not of x"),
        (["serve", "--nats", "auto", "--pub", "tcp://127.0.0.1:1"], "--nats cannot be combined with"),
        (
            ["serve", "--nats", "auto", "--creds", "b.creds"],
            "b.creds is not used without the URL of a server; allowed",
        ),
        (
            ["serve", "--creds", "b.creds"],
            "--creds, --ca and --insecure are not used without the URL of a server; allowed: --nats",
        ),
        (["serve", "--insecure"], "--creds, --ca and --insecure are not used without the URL of a server; allowed"),
        (["agent", "--nats", "nats://127.0.0.1", "--host-name", ""], "host '' is not valid; allowed: 1 to 64 bytes"),
        (["agent", "--creds", "h.creds"], "h.creds is not used without the URL of a server; allowed: --nats URL"),
        (["agent", "--ca", "ca.pem"], "ca.pem is not used without the URL of a server; allowed: --nats URL (--ca)"),
        (["hub", "--dir", ".", "--listen", "4222"], "'4222' is not HOST:PORT (--listen)"),
        (["hub", "--dir", ".", "add-host", "h"], "the name 'h' is taken"),
        (["hub", "--dir", ".", "add-host"], "add-host needs the name"),
        (["hub", "--dir", ".", "add-host", "i", "--read-only"], "--read-only is for a bridge"),
        (["hub", "--dir", ".", "add-host", "i", "--output", "odd"], "odd: File exists"),
        (["hub", "--dir", ".", "remove", "nobody"], "there is no host or bridge 'nobody'; known: b, h"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.skipif(os.name == "nt", reason="modes of files")
def test_wrong_options_are_refused_in_clear_words(
    tmp_path: Path,
    runtime_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir(mode=0o700)
    monkeypatch.chdir(folder)
    for kind, name in (("host", "h"), ("bridge", "b")):
        Hub(folder).add(kind, name, folder / f"{name}.creds")
        assert stat.S_IMODE((folder / f"{name}.creds").stat().st_mode) == 0o600
    (folder / "loose").write_text("{}")
    (folder / "loose").chmod(0o644)
    (folder / "odd").write_text("{}")
    (folder / "odd").chmod(0o600)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["agent"], ["serve", "--nats", "auto"]], ids=" ".join)
def test_without_the_extra_a_line_says_what_to_install(
    runtime_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "nats" else find(name, *rest))
    assert main(arguments) == 2
    assert capsys.readouterr().err == "tornado-rbkit: nats is not installed; pip install 'tornado_rbkit[fleet]'\n"
