"""The profiler's ports are taken over by something that is not rbkit: a clear state, and a way back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.conftest import Serve
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
async def test_what_is_not_zmq_is_told_and_the_profiler_is_found_again_afterwards(
    serve: Serve, profiler: SteadyProcess, talk: Callable[[socket.socket], None]
) -> None:
    server = serve(**profiler.endpoints, max_message_bytes=1 << 20)
    async with Witness(server.ws, foreign=True) as viewer:
        await viewer.goes_on()
        profiler.kill()
        await viewer.until_told("disconnected")
        with speak(talk)(profiler.pub), speak(talk)(profiler.req):

            def told(status: dict[str, Any]) -> bool:
                return "not an rbkit server" in status["trouble"] and all(
                    f"{endpoint} (" in status["trouble"] for endpoint in (profiler.pub, profiler.req)
                )

            await asyncio.to_thread(server.until, told, "the status names what is not rbkit's")
            assert (await viewer.ask("trigger_gc")).startswith(b"error:unavailable")
        await asyncio.to_thread(profiler.start)
        await viewer.until_told("restarted")
        await viewer.goes_on()
        assert await viewer.ask("trigger_gc") == b"ok"
        await asyncio.to_thread(server.until, lambda status: status["trouble"] is None, "all is well")
    assert len(server.log.splitlines()) < 12, server.log
