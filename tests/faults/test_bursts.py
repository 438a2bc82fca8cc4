"""Bursts and silences with clients that ping, pause, send commands, compress and escape: every byte is compared."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from pathlib import Path

import pytest
import trustme

from tests.conftest import until
from tests.fake_rbkit import FakeRbkit, collection
from tests.faults.conftest import Launch
from tests.faults.serving import Serving
from tests.faults.strict import StrictClient

SECONDS = 1.0
SIZES = (0, 60, 1_000, 8_200, 60_000, 65_530, 100_000, 255_000, 262_150, 700_000)
SMALL = 4096
"""Bytes of SO_SNDBUF and SO_RCVBUF, so small that the kernel accepts no batch completely."""


class Client:
    """The actions of one client besides reading, and the data it has read so far."""

    def __init__(self, connection: StrictClient, published: list[bytes], chance: random.Random) -> None:
        self.connection = connection
        self.received = 0
        self.commands = 0
        self._published = published
        self._chance = chance

    async def read(self) -> None:
        while True:
            message = await self.connection.read_data()
            assert message is not None, f"closed with {self.connection.closed!r}"
            assert message == self._published[self.received], f"message {self.received} is not as it was published"
            self.received += 1
            if self._chance.random() < 0.05:
                await asyncio.sleep(self._chance.random() / 50)

    async def write(self, stopped: asyncio.Event) -> None:
        while not stopped.is_set():
            await asyncio.sleep(self._chance.random() / 20)
            self.connection.ping()
            if self._chance.random() < 0.2 and self.commands - self.replies < 20:
                self.commands += 1
                self.connection.send(b"trigger_gc")

    @property
    def replies(self) -> int:
        return self.connection.replies.count(b"ok")


@pytest.fixture(params=["plain", "tls"])
def certificate(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ssl.SSLContext | None, dict[str, str]]:
    """Return the client's context and the server's options, with TLS and without."""
    if request.param == "plain":
        return None, {}
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    file = tmp_path / "server.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(file))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context, {"certificate": str(file)}


@pytest.mark.parametrize("buffer", [SMALL, None], ids=["small-buffers", "default-buffers"])
async def test_every_burst_arrives_whole_and_to_its_end(
    launch: Launch,
    rbkit: FakeRbkit,
    threaded: bool,
    buffer: int | None,
    certificate: tuple[ssl.SSLContext | None, dict[str, str]],
    soak: float,
) -> None:
    tls, options = certificate
    server = launch(**rbkit.endpoints, threaded=threaded, compression_level=1, send_buffer=buffer, **options)
    seed = time.time_ns()
    print("seed", seed)
    await burst_for(server, rbkit, max(SECONDS, soak / 8), random.Random(seed), buffer, tls)


async def burst_for(
    server: Serving,
    rbkit: FakeRbkit,
    seconds: float,
    chance: random.Random,
    buffer: int | None,
    tls: ssl.SSLContext | None,
) -> None:
    published: list[bytes] = []
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for number in range(8):
            connection = StrictClient(
                server.port, escaped=number % 4 == 1, deflate=number % 4 >= 2, receive_buffer=buffer, tls=tls
            )
            await stack.enter_async_context(connection)
            clients.append(Client(connection, published, random.Random(chance.random())))
            connection.send(b"handshake")
        stopped = asyncio.Event()
        acts = [act for client in clients for act in (client.read(), client.write(stopped))]
        tasks = [asyncio.create_task(act) for act in acts]

        def failed() -> bool:
            for task in tasks:
                if task.done():
                    task.result()
            return False

        try:
            await until(lambda: failed() or all(client.connection.replies for client in clients), "all have joined")
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                budget = chance.choice([1, 10_000, 300_000, 3_000_000])
                while budget > 0:
                    size = chance.choice(SIZES)
                    body = chance.choice([b"a" * size, chance.randbytes(size)])
                    message = collection(len(published), [{0: 0, 1: 1.0, 2: {3: 1, 4: body}}])
                    published.append(message)
                    rbkit.publish(message)
                    budget -= len(message)

                def arrived() -> bool:
                    return not failed() and all(client.received == len(published) for client in clients)

                while not arrived():  # 4 KiB at a time this may take long, but something must arrive
                    behind = [client.received for client in clients]

                    def more(behind: list[int] = behind) -> bool:
                        return arrived() or [client.received for client in clients] != behind

                    what = f"in silence another of {len(published)} messages arrives after {behind}"
                    await until(more, what)
                await asyncio.sleep(chance.choice([0, 0.001, 0.02]))
            stopped.set()
            await until(
                lambda: (
                    failed()
                    or all(client.replies == client.commands and client.connection.pongs for client in clients)
                ),
                "each reply and a pong has come",
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
