"""Peers that do not speak ZMTP 3, at the sockets that the package binds: they command nothing and cost no reply."""

from __future__ import annotations

import ast
import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq

import tornado_rbkit
from tornado_rbkit import profiler
from tornado_rbkit.endpoints import MAX_REQUEST_BYTES
from tornado_rbkit.protocol import COMMANDS
from tornado_rbkit.recording.recording import Record
from tornado_rbkit.recording.replay import ReplayServer

HEAD = (
    "POST /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: keep-alive\r\nContent-Length: {length}\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nContent-Type: text/plain\r\nOrigin: http://evil.example\r\n\r\n"
)


@pytest.fixture(params=["profiler", "replay"])
def endpoints(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Return the PUB and the REP endpoint of a server."""
    if request.param == "replay":
        with ReplayServer(lambda: iter([Record(0.0, 1, None, b"\x80")])) as replay:
            yield replay.pub, replay.req
        return
    server = profiler.start_server("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    yield server.pub, server.req
    status = server.status()
    profiler.stop_server()
    assert not status["cpu"]["enabled"]
    assert not status["memory"]["enabled"]
    assert status["snapshot_objects"] == 0


def deliver(endpoint: str, data: bytes) -> None:
    """Send bytes, and return once the server has closed the connection."""
    address = urlsplit(endpoint)
    is_file = address.scheme == "ipc"
    connection = socket.socket(socket.AF_UNIX if is_file else socket.AF_INET)
    with connection, contextlib.suppress(ConnectionError):  # it need not read to the end
        connection.settimeout(60)
        connection.connect(address.path if is_file else (address.hostname, address.port))
        connection.sendall(data)
        with contextlib.suppress(OSError):  # closed already
            connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def assert_answers(endpoint: str) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as req:
        req.linger = 0
        req.connect(endpoint)
        req.send(b"trigger_gc")
        assert req.poll(60_000), "the next command gets no reply"
        assert req.recv() == b"ok"


@pytest.mark.parametrize("odd", [0, 1])
def test_a_web_page_cannot_command_it(endpoints: tuple[str, str], odd: int) -> None:
    for command in sorted(COMMANDS):
        body = b"\x01" * (260 + odd) + bytes([len(command) + 1, 0]) + command.encode()
        for endpoint in endpoints:
            deliver(endpoint, HEAD.format(path="x" * odd, length=len(body)).encode() + body)
    assert_answers(endpoints[1])


@pytest.mark.parametrize("greeting", [b"", b"\xff", b"\xff\0\0\0\0\0\0\0\x01\x7f", b"\x01\0"], ids=repr)
def test_random_bytes_cost_nobody_a_reply(endpoints: tuple[str, str], greeting: bytes) -> None:
    for seed in range(50):
        chance = random.Random(seed)
        deliver(endpoints[seed % 2], greeting + chance.randbytes(chance.choice([1, 9, 70, 5000])))
        if seed % 10 == 9:
            assert_answers(endpoints[1])


def test_clients_of_zmtp_3_are_served(endpoints: tuple[str, str]) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as req:
        req.connect(endpoints[1])
        req.send(b"handshake")
        assert req.poll(60_000)
        assert req.recv()


def test_a_part_longer_than_allowed_ends_its_connection(endpoints: tuple[str, str]) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as req:
        req.linger = 0
        monitor = req.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        req.connect(endpoints[1])
        req.send(bytes(MAX_REQUEST_BYTES + 1))
        assert monitor.poll(60_000), "it was taken"
        req.disable_monitor()
        monitor.close(0)
    assert_answers(endpoints[1])


def test_no_socket_is_bound_that_was_made_another_way() -> None:
    """Modules that bind a ZMQ socket make none by `Context.socket`, which has no ZAP domain."""
    package = Path(tornado_rbkit.__file__).parent
    binding = []
    for path in package.rglob("*.py"):
        called = {
            node.func.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if ast.unparse(node.func) not in ("socket.socket", "self._listener.bind")  # a Unix socket
        }
        if "bind" in called:
            binding.append(path.name)
            assert "socket" not in called or path.name == "endpoints.py", path
    assert sorted(binding) == ["endpoints.py", "replay.py"]
