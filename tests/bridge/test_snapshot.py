"""A heap snapshot of 50 MB to ten clients: memory and the loop's pauses stay bounded."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.httpclient import AsyncHTTPClient

from tests.fake_rbkit import FakeRbkit, collection
from tests.patient import PATIENT
from tornado_rbkit import RbkitClient

SIZE = 53_000_000

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")


@pytest.fixture
def server(rbkit: FakeRbkit) -> Iterator[tuple[int, int]]:
    """A stand-alone server as a process: its pid and port."""
    command = [sys.executable, *PATIENT, "serve", "--pub", rbkit.pub, "--req", rbkit.req, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = re.fullmatch(r"ready http://127\.0\.0\.1:(\d+)/rbkit/\n", process.stdout.readline())
    assert ready
    yield process.pid, int(ready[1])
    process.terminate()
    assert process.wait(60) == 0
    process.stdout.close()


def peak(pid: int) -> int:
    """Return the most bytes the process has held since `reset_peak`."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) * 1024


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def digest(url: str, opened: asyncio.Semaphore) -> str:
    async with RbkitClient(url) as client:
        await client.command("handshake")
        opened.release()
        async for message in client.messages():
            if isinstance(message, bytes):
                return hashlib.blake2b(message).hexdigest()
    raise AssertionError("the stream ended without a message")


async def test_reaches_ten_clients_whole_within_three_times_its_size_of_memory(
    rbkit: FakeRbkit, server: tuple[int, int]
) -> None:
    pid, port = server
    rbkit.snapshot = collection(0, padding=SIZE)
    opened = asyncio.Semaphore(0)
    clients = [asyncio.create_task(digest(f"ws://127.0.0.1:{port}/rbkit/ws", opened)) for _ in range(10)]
    for _ in clients:
        await opened.acquire()
    reset_peak(pid)
    before = peak(pid)
    async with RbkitClient(f"ws://127.0.0.1:{port}/rbkit/ws") as asker:
        assert await asker.command("objectspace_snapshot") == "ok"
        expected = hashlib.blake2b(rbkit.snapshot).hexdigest()
        assert await asyncio.gather(*clients) == [expected] * 10
    extra = peak(pid) - before
    assert extra < 3 * SIZE, f"{extra / SIZE:.1f} times the snapshot's size"


async def test_an_http_request_is_answered_while_it_is_sent(rbkit: FakeRbkit, server: tuple[int, int]) -> None:
    _, port = server
    rbkit.snapshot = collection(0, padding=SIZE)
    opened = asyncio.Semaphore(0)
    clients = [asyncio.create_task(digest(f"ws://127.0.0.1:{port}/rbkit/ws", opened)) for _ in range(3)]
    for _ in clients:
        await opened.acquire()
    http = AsyncHTTPClient()
    async with RbkitClient(f"ws://127.0.0.1:{port}/rbkit/ws") as asker:
        asked = asyncio.create_task(asker.command("objectspace_snapshot"))
        served = 0
        while not all(client.done() for client in clients):
            await http.fetch(f"http://127.0.0.1:{port}/rbkit/status")
            served += 1
        assert await asked == "ok"
    assert served >= 3, "requests were answered between the slices"
