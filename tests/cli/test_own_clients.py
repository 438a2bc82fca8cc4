"""Every option of the server that changes the wire, with every client of this package."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cli.here import record_until, run_here
from tests.fake_rbkit import FakeRbkit
from tests.faults.serving import serving
from tests.patient import PATIENT
from tornado_rbkit import CommandError, RbkitClient
from tornado_rbkit.protocol import GCEndSweep
from tornado_rbkit.recording.recording import DATA, read

COMMAND = [sys.executable, "-W", "error", *PATIENT]  # not -X dev, with which asyncio logs slow callbacks
OPTIONS = {
    "default": [],
    "escaped": ["--encoding", "escaped"],
    "compressed": ["--compression-level", "6"],
    "token": ["--token", "s3cret"],
    "prefix": ["--prefix", "/tools/profiler"],
    "read-only": ["--read-only"],
    "host": ["--host", "0.0.0.0", "--token", "s3cret"],
}
OPTIONS["all"] = [option for options in OPTIONS.values() for option in options]


@contextlib.contextmanager
def publishing(rbkit: FakeRbkit) -> Iterator[None]:
    """Publish messages from a thread."""
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(0.01):
            rbkit.publish_collection()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def check_client(url: str, token: str | None) -> None:
    """Let the client of this package get its handshake and an event."""
    async with RbkitClient(url, token=token) as client:
        assert (await client.command("handshake")).process_name == "fake"
        with pytest.raises(CommandError, match="unknown-command"):
            await client.command("nonsense")
        events = client.events()
        assert await asyncio.wait_for(anext(events), 60) == GCEndSweep(1.0)


@pytest.mark.parametrize("server_options", OPTIONS.values(), ids=OPTIONS)
def test_own_clients_get_on_with_every_server(rbkit: FakeRbkit, tmp_path: Path, server_options: Sequence[str]) -> None:
    token = "s3cret" if "--token" in server_options else None
    prefix = "tools/profiler" if "--prefix" in server_options else "rbkit"
    command = [*COMMAND, "serve", "--pub", rbkit.pub, "--req", rbkit.req, "--port", "0", *server_options]
    output = tmp_path / "session.rbkit"
    with serving(tmp_path / "log", command) as server:
        url = f"ws://127.0.0.1:{server.port}/{prefix}/ws"
        client_options = ["--url", url, *(["--token", token] if token else [])]

        sent = run_here("send", "handshake", *client_options)
        assert (sent.returncode, sent.stderr) == (0, "")
        assert "process_name: fake\n" in sent.stdout

        refused = run_here("send", "nonsense", *client_options)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("tornado-rbkit: unknown-command: ")

        with publishing(rbkit):
            recorded = record_until(bool, "-o", str(output), *client_options)
            asyncio.run(check_client(url, token))
        assert (recorded.returncode, recorded.stderr) == (0, "")
    with output.open("rb") as file:
        records = list(read(file))
    assert [record.command for record in records if record.command] == ["handshake"]
    assert {record.payload[:3] for record in records if record.channel == DATA} == {b"\x84\x00\x07"}
    exported = run_here("export", "--format", "json", str(output))
    assert (exported.returncode, exported.stderr) == (0, "")
    assert exported.stdout.startswith('{"event": "GCEndSweep", ')

    with serving(tmp_path / "log2", [*COMMAND, "replay", str(output), "--port", "0", *server_options]) as server:
        asyncio.run(check_client(f"ws://127.0.0.1:{server.port}/{prefix}/ws", token))
