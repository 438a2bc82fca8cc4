"""The memory, time and descriptors that a client without a token can make the stand-alone server use."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.netutil import bind_sockets
from tornado.web import Application

from tests.conftest import Server, ask
from tests.fake_rbkit import FakeRbkit
from tests.faults.serving import Serving, serving
from tests.faults.steady import SteadyProcess
from tests.faults.witness import Witness
from tests.patient import PATIENT
from tests.raw import HANDSHAKE, Raw
from tests.test_deadline import Clock, clock
from tornado_rbkit import Bridge, rbkit_routes
from tornado_rbkit.cli.listener import MAX_BODY_SIZE, MAX_HEADER_SIZE, REQUEST_TIMEOUT, BoundedServer

__all__ = ["clock"]  # a fixture

COMMAND = [sys.executable, *PATIENT]
MANY = 100  # connections
CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
MULTIPART = b"Content-Type: multipart/form-data; boundary=b\r\n"
HUGE = b"Content-Length: 104857600\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ASSET = b"GET /rbkit/static/app.js HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer s3cret\r\n\r\n"


@pytest.fixture(scope="module")
def server_of_all(steady: SteadyProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`tornado-rbkit serve` with a token."""
    options = ["-q", "serve", "--pub", steady.pub, "--req", steady.req, "--port", "0", "--token", "s3cret"]
    with serving(tmp_path_factory.mktemp("server") / "log", [*COMMAND, *options]) as running:
        yield running


@pytest.fixture
def server(server_of_all: Serving) -> Serving:
    server_of_all.forget_peak()
    return server_of_all


async def send_all(server: Serving, head: bytes, piece: bytes, pieces: int) -> bytes:
    """Send as much as the server takes; return what it answered. The connection stays until then."""
    async with Raw(server.port) as client:
        with contextlib.suppress(ConnectionError):
            client.writer.write(head)
            for _ in range(pieces):
                client.writer.write(piece)
                await client.writer.drain()
        return await client.end()


@pytest.mark.parametrize("path", [b"/rbkit/", b"/rbkit/ws", b"/rbkit/static/app.js", b"/nowhere"])
@pytest.mark.parametrize(
    ("headers", "piece"),
    [
        (HUGE, b"x" * 0x10000),
        (HUGE + b"Expect: 100-continue\r\n", b"x" * 0x10000),
        (HUGE + MULTIPART, b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n" + b"x" * 0x10000 + b"\r\n"),
        (CHUNKED, CHUNK),
        (CHUNKED + b"Content-Encoding: gzip\r\n", CHUNK),
    ],
    ids=["length", "continue", "multipart", "chunked", "gzip"],
)
async def test_bodies_are_refused_before_they_are_read(
    server: Serving, path: bytes, headers: bytes, piece: bytes
) -> None:
    before = server.memory
    head = b"POST " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers + b"\r\n"
    await asyncio.gather(*(send_all(server, head, piece, 32) for _ in range(MANY)))
    assert server.memory_peak - before < 24 << 20, "200 MB were sent"


@pytest.mark.parametrize("size", [0, 1, MAX_BODY_SIZE])
async def test_a_small_body_is_answered_with_405(server: Serving, size: int) -> None:
    head = b"POST /rbkit/status HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
    assert b" 405 " in (await send_all(server, head, b"x" * size, 1))[:20]


async def test_headers_are_held_up_to_their_bound(server: Serving) -> None:
    before = server.memory
    head = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Raw(server.port)) for _ in range(5 * MANY)]
        for client in clients:
            client.writer.write(head + b"a: b\r\n" * ((MAX_HEADER_SIZE - len(head)) // 6 - 1))
        assert await answers(server), "they are all read"
        assert server.memory_peak - before < 5 * MANY * 4 * MAX_HEADER_SIZE
        for client in clients:
            client.writer.write(b"a: b\r\n" * 20)
        for client in clients:
            assert await client.end() == b"", "one too many, and the connection is closed"


async def test_who_does_not_take_the_response_is_let_go(rbkit: FakeRbkit, clock: Clock) -> None:
    bridge = Bridge(**rbkit.endpoints, threaded=False)
    http = BoundedServer(Application(rbkit_routes(bridge)), max_requests=20)
    sockets = bind_sockets(0, "127.0.0.1")
    http.add_sockets(sockets)
    server = Server(bridge, http, sockets[0].getsockname()[1])
    viewer = await server.connected()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            client = await stack.enter_async_context(Raw(server.port))
            client.writer.write(ASSET * 200)
            await client.until(b" 200 ")  # and no further
        await clock.run(REQUEST_TIMEOUT / 2)
        assert len(http._requests) == 10
        while http._requests:
            await clock.run(1)
        assert await ask(viewer, "trigger_gc") == b"0ok", "a WebSocket has no such deadline"
        await server.close()


async def test_many_requests_at_once_on_one_connection_keep_nobody_waiting(server: Serving) -> None:
    async with Raw(server.port) as greedy:
        greedy.writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" * 20_000)
        await greedy.until(b"404")
        assert await answers(server)


async def test_idle_connections_do_not_keep_a_new_one_out(steady: SteadyProcess, tmp_path: Path) -> None:
    options = ["serve", "--pub", steady.pub, "--req", steady.req, "--port", "0", "--max-clients", "2"]
    with serving(tmp_path / "log", [*COMMAND, *options]) as server:
        async with Witness(server.ws) as viewer, contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Raw(server.port)) for _ in range(200)]
            async with Witness(server.ws) as another:
                assert await another.ask("trigger_gc") == b"ok"
            assert await clients[0].end() == b"", "the oldest was closed"
            assert await viewer.ask("trigger_gc") == b"ok"
            clients[-1].writer.write(HANDSHAKE)
            await clients[-1].until(b" 101 ")
        assert "more than 130 connections without a WebSocket" in server.log


async def test_idle_connections_give_their_descriptors_to_a_new_one(steady: SteadyProcess, tmp_path: Path) -> None:
    options = ["serve", "--pub", steady.pub, "--req", steady.req, "--port", "0"]
    with serving(tmp_path / "log", [*COMMAND, *options]) as server:
        async with Witness(server.ws) as viewer, contextlib.AsyncExitStack() as stack:
            assert await viewer.ask("trigger_gc") == b"ok"
            limit = server.descriptors + 10
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
            for _ in range(60):
                await stack.enter_async_context(Raw(server.port))
            async with Witness(server.ws) as another:
                assert await another.ask("trigger_gc") == b"ok"
            assert await viewer.ask("trigger_gc") == b"ok"


async def answers(server: Serving) -> bool:
    """Return whether another client gets a response."""
    request = ASSET.replace(b"app.js", b"nothing").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    return b" 404 " in (await send_all(server, request, b"", 0))[:20]
