"""Another program takes over the profiler's ports: the bridge reports a clear state, and recovers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from tests.fake_rbkit import free_port
from tests.faults.conftest import Launch
from tests.faults.steady import SteadyProcess
from tests.faults.witness import Witness

GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL" + bytes(48)  # ZMTP 3.1's, of a peer without encryption


def speak(talk: Callable[[socket.socket], None]) -> Callable[[str], contextlib.AbstractContextManager[None]]:
    """Return an impostor that says something to whoever connects."""

    @contextlib.contextmanager
    def impostor(endpoint: str) -> Iterator[None]:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", int(endpoint.rpartition(":")[2])))
            listener.listen()

            def listen() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    with connection, contextlib.suppress(OSError):
                        talk(connection)

            thread = threading.Thread(target=listen)
            thread.start()
            yield
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

    return impostor


def garbage(connection: socket.socket) -> None:
    connection.sendall(random.Random(1).randbytes(4096))


def garbage_after_the_greeting(connection: socket.socket) -> None:
    connection.sendall(GREETING + random.Random(2).randbytes(4096))


def garbage_after_the_handshake(connection: socket.socket) -> None:
    shake_hands(connection)
    connection.sendall(random.Random(3).randbytes(4096))


def an_endless_frame(connection: socket.socket) -> None:
    shake_hands(connection)
    connection.sendall(b"\2" + (1 << 62).to_bytes(8, "big"))
    for _ in range(100):
        connection.sendall(bytes(65536))


def http(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def closes_at_once(connection: socket.socket) -> None:
    connection.close()


def shake_hands(connection: socket.socket) -> None:
    """Do as a PUB or a REP socket does, whichever is expected."""
    connection.sendall(GREETING)
    received = b""
    while not re.search(rb"Socket-Type\x00\x00\x00\x03(SUB|REQ)", received):
        more = connection.recv(4096)
        if not more:
            raise ConnectionResetError
        received += more
    kind = b"PUB" if b"SUB" in received else b"REP"
    connection.sendall(b"\4\x26\5READY\x0bSocket-Type\0\0\0\3" + kind + b"\x08Identity\0\0\0\0")


@pytest.mark.parametrize(
    "talk",
    [garbage, garbage_after_the_greeting, garbage_after_the_handshake, an_endless_frame, http, closes_at_once],
    ids=lambda talk: talk.__name__,
)
async def test_what_is_not_zmq_is_reported_and_the_profiler_is_found_again_afterwards(
    launch: Launch, profiler: SteadyProcess, talk: Callable[[socket.socket], None]
) -> None:
    server = launch(**profiler.endpoints, max_message_bytes=1 << 20)
    async with Witness(server.ws, foreign=True) as viewer:
        await viewer.goes_on()
        profiler.kill()
        await viewer.until_told("disconnected")
        with speak(talk)(profiler.pub), speak(talk)(profiler.req):

            def told(status: dict[str, Any]) -> bool:
                trouble = status["trouble"] or ""  # none while it is taken for a profiler
                return "not an rbkit server" in trouble and all(
                    f"{endpoint} (" in trouble for endpoint in (profiler.pub, profiler.req)
                )

            await asyncio.to_thread(server.until, told, "the status names what is not rbkit's")
            assert (await viewer.ask("trigger_gc")).startswith(b"error:unavailable")
        await asyncio.to_thread(profiler.start)
        await viewer.until_told("restarted")
        await viewer.goes_on()
        assert await viewer.ask("trigger_gc") == b"ok"
        await asyncio.to_thread(server.until, lambda status: status["trouble"] is None, "all is well")
    assert len(server.log.splitlines()) < 12, server.log


async def test_a_rep_that_answers_nonsense_and_a_pub_of_noise_are_passed_on_and_named(launch: Launch) -> None:
    endpoints = {"pub": f"tcp://127.0.0.1:{free_port()}", "req": f"tcp://127.0.0.1:{free_port()}"}
    server = launch(**endpoints)
    noise = random.Random(4)
    answers = itertools.cycle(
        [b"", b"\x80", b"\xc1", b"ok", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, noise.randbytes(9)]
    )
    with bound(zmq.PUB, endpoints["pub"]) as pub, bound(zmq.REP, endpoints["req"]) as rep:
        async with Witness(server.ws, foreign=True) as viewer:
            for _ in range(50):
                asking = asyncio.create_task(viewer.ask("handshake"))
                while not asking.done():
                    if rep.poll(0):
                        rep.recv()
                        rep.send(next(answers))
                    pub.send(noise.randbytes(noise.randrange(300)))
                    await asyncio.sleep(0.002)
                assert not asking.result().startswith(b"error:")
            while viewer.foreign <= 50:  # the subscription may come after the first replies
                pub.send(noise.randbytes(noise.randrange(300)))
                await asyncio.sleep(0.002)
            status = await asyncio.to_thread(lambda: server.status)
            assert "is not rbkit" in status["trouble"]
            assert status["messages_foreign"] == status["messages_in"] > 50
    assert server.log.count("is not rbkit, or uses another protocol") == 1
    assert server.log.count("publishes messages that are not rbkit's") == 1


async def test_a_message_past_the_bound_costs_its_connection_and_no_memory(launch: Launch) -> None:
    endpoints = {"pub": f"tcp://127.0.0.1:{free_port()}", "req": f"tcp://127.0.0.1:{free_port()}"}
    server = launch(**endpoints, max_message_bytes=32 << 20)
    with bound(zmq.PUB, endpoints["pub"]) as pub, FakeRep(endpoints["req"]):
        async with Witness(server.ws, foreign=True) as viewer:
            await publish_until_received(pub, b"small", viewer)
            before = server.memory
            huge = bytes(500 << 20)
            pub.send(huge, copy=False)
            await viewer.until_told("disconnected")
            await viewer.until_told("connected")
            assert server.memory_peak < before + (64 << 20)
            await publish_until_received(pub, b"small", viewer)
            allowed = bytes(30 << 20)
            pub.send(allowed)
            await asyncio.to_thread(server.until, lambda status: status["bytes_in"] >= len(allowed), "it arrives")
    assert "max_message_bytes" in server.log


async def publish_until_received(pub: zmq.Socket[bytes], message: bytes, viewer: Witness) -> None:
    """Publish a message until it arrives: a PUB socket sends nothing before it knows of the subscription."""
    before = viewer.foreign
    while viewer.foreign == before:
        pub.send(message)
        await asyncio.sleep(0.2)


async def test_a_reply_over_its_bound_is_invalid_and_takes_no_memory(launch: Launch) -> None:
    endpoints = {"pub": f"tcp://127.0.0.1:{free_port()}", "req": f"tcp://127.0.0.1:{free_port()}"}
    server = launch(**endpoints)
    with bound(zmq.PUB, endpoints["pub"]), FakeRep(endpoints["req"], bytes(100 << 20)):
        async with Witness(server.ws) as viewer:
            assert (await viewer.ask("trigger_gc")).startswith(b"error:unavailable trigger_gc")
            assert server.memory_peak < 128 << 20


@contextlib.contextmanager
def bound(kind: int, endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(kind) as made:
        made.linger = 0
        made.bind(endpoint)
        yield made


class FakeRep:
    """A REP socket in a thread that answers all with the same bytes."""

    def __init__(self, endpoint: str, reply: bytes = b"ok") -> None:
        self._endpoint, self._reply = endpoint, reply
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        with bound(zmq.REP, self._endpoint) as rep:
            while not self._stopped.is_set():
                if rep.poll(10):
                    rep.recv()
                    rep.send(self._reply)
