"""Every option of the server that changes the wire, with every client of this package."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fake_rbkit import FakeRbkit
from tests.faults.serving import serving
from tornado_rbkit import CommandError, RbkitClient
from tornado_rbkit.protocol import GCEndSweep
from tornado_rbkit.recording.recording import DATA, read

COMMAND = [sys.executable, "-W", "error", "-m", "tornado_rbkit"]  # in -X dev asyncio reports what is slow
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


async def run(*arguments: str) -> tuple[int, str, str]:
    """Run a command line; return its exit status, its output and its errors."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def publish(rbkit: FakeRbkit) -> None:
    while True:
        rbkit.publish_collection()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("server_options", OPTIONS.values(), ids=OPTIONS)
async def test_own_clients_get_on_with_every_server(
    rbkit: FakeRbkit, tmp_path: Path, server_options: Sequence[str]
) -> None:
    token = "s3cret" if "--token" in server_options else None
    prefix = "tools/profiler" if "--prefix" in server_options else "rbkit"
    command = [*COMMAND, "serve", "--pub", rbkit.pub, "--req", rbkit.req, "--port", "0", *server_options]
    output = tmp_path / "session.rbkit"
    with serving(tmp_path / "log", command) as server:
        url = f"ws://127.0.0.1:{server.port}/{prefix}/ws"
        client_options = ["--url", url, *(["--token", token] if token else [])]

        status, text, errors = await run("send", "handshake", *client_options)
        assert (status, errors) == (0, "")
        assert "process_name: fake\n" in text

        status, text, errors = await run("send", "nonsense", *client_options)
        assert (status, text) == (1, "")
        assert errors.startswith("tornado-rbkit: unknown-command: ")

        publishing = asyncio.create_task(publish(rbkit))
        try:
            recorded = await run("record", "-o", str(output), "--seconds", "1", *client_options)
            async with RbkitClient(url, token=token) as client:
                assert (await client.command("handshake")).process_name == "fake"
                with pytest.raises(CommandError, match="unknown-command"):
                    await client.command("nonsense")
                events = client.events()
                assert await asyncio.wait_for(anext(events), 10) == GCEndSweep(1.0)
        finally:
            publishing.cancel()
        assert (recorded[0], recorded[2]) == (0, "")
    with output.open("rb") as file:
        records = list(read(file))
    assert [record.command for record in records if record.command] == ["handshake"]
    assert {record.payload[:3] for record in records if record.channel == DATA} == {b"\x84\x00\x07"}
    status, text, errors = await run("export", "--format", "json", str(output))
    assert (status, errors) == (0, "")
    assert text.startswith('{"event": "GCEndSweep", ')

    with serving(tmp_path / "log2", [*COMMAND, "replay", str(output), "--port", "0", *server_options]) as server:
        url = f"ws://127.0.0.1:{server.port}/{prefix}/ws"
        async with RbkitClient(url, token=token) as client:
            assert (await client.command("handshake")).process_name == "fake"
            events = client.events()
            assert await asyncio.wait_for(anext(events), 10) == GCEndSweep(1.0)
