"""Many, slow, vanished or misbehaving clients: all other clients get every byte, and nothing is logged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import until
from tests.faults.conftest import Launch
from tests.faults.serving import ROOT, Serving, serving
from tests.faults.steady import SteadyProcess
from tests.faults.witness import Witness
from tests.patient import PATIENT
from tests.raw import HANDSHAKE, Raw, frame


@contextlib.asynccontextmanager
async def undisturbed(server: Serving, count: int = 3) -> AsyncIterator[list[Witness]]:
    """Run bystanders, which must lose nothing and must be answered before and after."""
    async with contextlib.AsyncExitStack() as stack:
        viewers = [await stack.enter_async_context(Witness(server.ws)) for _ in range(count)]
        await viewers[0].goes_on()
        yield viewers
        for viewer in viewers:
            await viewer.goes_on()
            assert await viewer.ask("trigger_gc") == b"ok"
            assert viewer.missing == viewer.told == 0
            assert not viewer.notices


WRONG = {
    "a reserved bit": frame(b"trigger_gc", first=0xC1),
    "all reserved bits": frame(b"trigger_gc", first=0xF1),
    "an unknown opcode": frame(b"trigger_gc", first=0x83),
    "an unknown control opcode": frame(b"", first=0x8B),
    "not UTF-8": frame(b"\xff\xfe trigger_gc"),
    "half a character": frame(b"trigger_gc\xe2\x82"),
    "a continuation of nothing": frame(b"trigger_gc", first=0x80),
    "a message inside another": frame(b"trigger", first=0x01) + frame(b"trigger_gc"),
    "a ping in fragments": frame(b"", first=0x09),
    "a long ping": frame(bytes(126), first=0x89),
    "a long close": frame(b"\x03\xe8" + bytes(200), first=0x88),
    "half a close code": frame(b"\x03", first=0x88),
    "a close code that nobody may send": frame(b"\x03\xed", first=0x88),
    "a close whose reason is not UTF-8": frame(b"\x03\xe8\xff\xff", first=0x88),
    "64 KiB and one byte": frame(bytes(65537), first=0x82),
    "2 MiB": frame(bytes(2 << 20), first=0x82),
    "a length of 2^63": frame(b"", length=1 << 63),
    "a length of 2^62 in fragments": frame(b"x", first=0x01) + frame(b"", first=0x80, length=1 << 62),
    "fragments without an end": frame(bytes(60_000), first=0x01) + frame(bytes(60_000), first=0x00) * 40,
    "compressed, which was not agreed": frame(b"\x0a\x00", first=0xC2),
    "HTTP": HANDSHAKE,
}
FINE = {
    "a ping": frame(b"12", first=0x89),
    "a pong that nobody asked for": frame(b"x", first=0x8A),
    "a command in fragments with pings between": frame(b"trig", first=0x01)
    + frame(b"", first=0x89)
    + frame(b"ger_", first=0x00)
    + frame(b"", first=0x8A)
    + frame(b"gc", first=0x80),
    "not masked, which Tornado takes": frame(b"trigger_gc", mask=None),
    "a mask of zeros": frame(b"trigger_gc", mask=b"\0\0\0\0"),
    "empty fragments": frame(b"", first=0x01) + frame(b"", first=0x00) * 100 + frame(b"trigger_gc", first=0x80),
    "64 KiB": frame(bytes(65536), first=0x82),
}


async def test_whatever_a_client_sends_the_others_notice_nothing(launch: Launch, profiler: SteadyProcess) -> None:
    server = launch(**profiler.endpoints)
    async with undisturbed(server):
        await asyncio.gather(*(send(server, message, close=False) for message in WRONG.values()))
        await asyncio.gather(*(send(server, message, close=True) for message in FINE.values()))
        await until_alone(server, 3)
    assert len(server.log.splitlines()) <= 3, server.log


async def send(server: Serving, message: bytes, *, close: bool) -> None:
    """Send something on a WebSocket, and read on to its end."""
    async with Raw(server.port) as client:
        await client.upgrade()
        client.writer.write(message + (frame(b"\x03\xe8", first=0x88) if close else b""))
        await client.end()


@pytest.mark.timeout(300)  # all of it is work, which other tests are in the way of
async def test_a_thousand_at_once_are_all_served(launch: Launch, profiler: SteadyProcess) -> None:
    server = launch(**profiler.endpoints)
    async with undisturbed(server) as viewers, contextlib.AsyncExitStack() as stack:
        crowd = [Raw(server.port) for _ in range(1000)]
        for at in range(0, 1000, 100):
            await asyncio.gather(*(stack.enter_async_context(client) for client in crowd[at : at + 100]))
            await asyncio.gather(*(client.upgrade() for client in crowd[at : at + 100]))
        await until_alone(server, 1003)
        assert await viewers[0].ask("trigger_gc", 60) == b"ok"
        # Half of them do not read; the others do, and get what is published.
        readers = [asyncio.create_task(client.reader.readexactly(200_000)) for client in crowd[:500]]
        await asyncio.wait_for(asyncio.gather(*readers), 60)
    assert server.threads < 8


@pytest.mark.timeout(300)
async def test_thousands_of_connects_in_a_row_leave_nothing(profiler: SteadyProcess, tmp_path: Path) -> None:
    options = ["serve", "--port", "0", "--pub", profiler.pub, "--req", profiler.req]
    with serving(tmp_path / "log", [sys.executable, *PATIENT, *options]) as server:
        async with undisturbed(server):
            await asyncio.to_thread(connect_in_a_row, server.port, 1000)
            await until_alone(server, 3)
            memory, descriptors = server.memory, server.descriptors
            await asyncio.to_thread(connect_in_a_row, server.port, 4000)
            await until_alone(server, 3)
            assert server.memory < memory + (4 << 20), "a kilobyte of each"
            await until(lambda: server.descriptors <= descriptors, "no descriptor is left over")


def connect_in_a_row(port: int, count: int) -> None:
    """Open a WebSocket that many times; a third of them ask and say goodbye, a third are closed, a third reset."""
    for number in range(count):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(HANDSHAKE)
            assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
            if number % 3 == 0:
                client.sendall(frame(b"trigger_gc") + frame(b"\x03\xe8", first=0x88))
            elif number % 3 == 1:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def test_stalled_or_trickling_clients_delay_nobody(launch: Launch, profiler: SteadyProcess) -> None:
    server = launch(**profiler.endpoints, stall_timeout=20)  # the others may be late, but not that late
    async with undisturbed(server, 5), contextlib.AsyncExitStack() as stack:
        stalled = [await stack.enter_async_context(Raw(server.port)) for _ in range(3)]
        for client in stalled:
            await client.upgrade()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        slow = await stack.enter_async_context(Raw(server.port))
        for at in range(len(HANDSHAKE)):
            slow.writer.write(HANDSHAKE[at : at + 1])
            await asyncio.sleep(0.001)
        for byte in frame(b"trigger_gc"):
            slow.writer.write(bytes([byte]))
            await asyncio.sleep(0.01)
        await slow.until(b"0ok")
        await asyncio.to_thread(
            server.until, lambda status: len(status["clients"]) <= 6, "who takes nothing is closed", 90
        )
        assert server.log.count("closed the client at 127.0.0.1: too slow for 20 s (stall_timeout)") == 1


async def test_closing_in_the_middle_of_a_snapshot_affects_no_other_client(
    launch: Launch, profiler: SteadyProcess
) -> None:
    server = launch(**profiler.endpoints)
    async with undisturbed(server):
        for _ in range(20):
            async with Raw(server.port) as client:
                await client.upgrade()
                client.writer.write(frame(b"objectspace_snapshot"))
                await client.reader.readexactly(1000)
                client.reset()
        await until_alone(server, 3)


async def test_a_flood_of_pings_whose_pongs_nobody_reads_costs_no_memory(
    launch: Launch, profiler: SteadyProcess
) -> None:
    server = launch(**profiler.endpoints, max_backlog_bytes=8 << 20)
    async with undisturbed(server), Raw(server.port) as client:
        await client.upgrade()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        before = server.memory
        pings = frame(bytes(125), first=0x89) * 500
        for _ in range(50):  # 3 MB, and an entry in a queue for each
            client.writer.write(pings)
            await client.writer.drain()
        assert server.memory_peak < before + (16 << 20)


async def test_who_sends_no_more_and_reads_on_is_let_go(launch: Launch, profiler: SteadyProcess) -> None:
    server = launch(**profiler.endpoints)
    async with undisturbed(server), Raw(server.port) as client:
        await client.upgrade()
        client.writer.write_eof()
        await client.end()
        await until_alone(server, 3)


async def test_ended_in_the_middle_of_a_snapshot_it_says_goodbye(launch: Launch, profiler: SteadyProcess) -> None:
    server = launch(**profiler.endpoints)
    async with Witness(server.ws) as viewer, Raw(server.port) as stuck:
        await viewer.goes_on()
        await stuck.upgrade()
        stuck.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await viewer.connection.send("objectspace_snapshot")
        await viewer.goes_on()
        await asyncio.to_thread(server.end)
        await viewer.connection.wait_closed()
        assert viewer.connection.close_code == 1001


VISITOR = """
import asyncio, sys
from tests.faults.witness import Witness
async def main():
    async with Witness(sys.argv[1]) as viewer:
        await viewer.goes_on()
        print("watching", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


class Line:
    """A network of two, of which the other end can vanish; without the right to make one, a process that stops."""

    def __init__(self) -> None:
        self._name = f"rbkit{os.getpid()}"
        self._here, self._there = f"rb{os.getpid()}a", f"rb{os.getpid()}b"
        self._real = os.geteuid() == 0 and shutil.which("ip") is not None
        self.host = "10.213.7.1" if self._real else "127.0.0.1"

    def __enter__(self) -> Line:
        if self._real:
            self._ip("netns", "add", self._name)
            self._ip("link", "add", self._here, "type", "veth", "peer", "name", self._there, "netns", self._name)
            self._ip("addr", "add", f"{self.host}/30", "dev", self._here)
            self._ip("link", "set", self._here, "up")
            self._ip("-n", self._name, "addr", "add", "10.213.7.2/30", "dev", self._there)
            self._ip("-n", self._name, "link", "set", self._there, "up")
        return self

    def __exit__(self, *_: object) -> None:
        if self._real:
            self._ip("netns", "delete", self._name)

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs something at the other end."""
        return ["ip", "netns", "exec", self._name, *arguments] if self._real else [*arguments]

    def cut(self, process: subprocess.Popen[bytes]) -> None:
        if self._real:
            self._ip("-n", self._name, "link", "set", self._there, "down")
        else:
            process.send_signal(signal.SIGSTOP)

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)


async def test_vanished_without_a_goodbye_is_noticed_by_a_ping(launch: Launch, profiler: SteadyProcess) -> None:
    with Line() as line:
        server = launch(**profiler.endpoints, host="0.0.0.0", ping_interval=5.0, stall_timeout=5.0)
        visit = line.command(sys.executable, "-c", VISITOR, f"ws://{line.host}:{server.port}/rbkit/ws")
        with subprocess.Popen(visit, stdout=subprocess.PIPE, cwd=ROOT) as visitor:
            try:
                assert visitor.stdout is not None
                assert await asyncio.to_thread(visitor.stdout.readline) == b"watching\n"
                line.cut(visitor)
                await until_alone(server, 0)
            finally:
                visitor.kill()


async def until_alone(server: Serving, count: int) -> None:
    await asyncio.to_thread(server.until, lambda status: len(status["clients"]) == count, f"{count} are there", 60)
