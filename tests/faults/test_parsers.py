"""Our frames over a real connection, read by parsers that are strict about RFC 6455, with pings between fragments."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

import aiohttp
import pytest
from selenium.webdriver.chromium.webdriver import ChromiumDriver
from tornado.httpserver import HTTPServer
from tornado.ioloop import PeriodicCallback
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketClosedError
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

import tornado_rbkit.dashboard
from tests.conftest import until
from tests.fake_rbkit import FakeRbkit
from tests.patient import patient
from tornado_rbkit import Bridge, RbkitWebSocketHandler, StatusHandler
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.frames import FRAGMENT_SIZE, JOIN_LIMIT

SIZES = [
    *(0, 1, 123, 124, 125, 126, 127),
    *range(JOIN_LIMIT - 8, JOIN_LIMIT + 2),
    *range(65533, 65538),
    *range(FRAGMENT_SIZE - 3, FRAGMENT_SIZE + 3),
    *range(3 * FRAGMENT_SIZE - 2, 3 * FRAGMENT_SIZE + 2),
    2_500_000,
]
BINARY = [random.Random(size).randbytes(size) for size in SIZES]  # which compression does not make smaller
TEXT = [base64.urlsafe_b64encode(payload)[: len(payload)] for payload in BINARY]  # which escaping does not make longer
Message: TypeAlias = "str | bytes"
Read: TypeAlias = Callable[[str, int, bool], AsyncGenerator[Message, None]]
NODE = Path(tornado_rbkit.dashboard.__file__).parent / "node_modules"
"""Where what only the dashboard's sources and the tests need is; the bundle does not have it."""


async def by_websockets(query: str, port: int, deflate: bool) -> AsyncGenerator[Message, None]:
    compression = "deflate" if deflate else None
    url = f"ws://127.0.0.1:{port}/rbkit/ws{query}"
    async with connect(url, subprotocols=[Subprotocol("rbkit")], max_size=None, compression=compression) as connection:
        assert bool(connection.protocol.extensions) is deflate
        async for message in connection:
            yield message


async def by_aiohttp(query: str, port: int, deflate: bool) -> AsyncGenerator[Message, None]:
    url = f"http://127.0.0.1:{port}/rbkit/ws{query}"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=["rbkit"], max_msg_size=0, compress=15 if deflate else 0) as connection,
    ):
        assert bool(connection.compress) is deflate
        async for message in connection:
            assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), message
            yield message.data
            await connection.ping()


async def by_wsproto(query: str, port: int, deflate: bool) -> AsyncGenerator[Message, None]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    parser = WSConnection(ConnectionType.CLIENT)
    extensions = [PerMessageDeflate()] if deflate else []
    request = Request(host="127.0.0.1", target="/rbkit/ws" + query, subprotocols=["rbkit"], extensions=extensions)
    writer.write(parser.send(request))
    begun: Message | None = None
    try:
        while data := await reader.read(65536):
            parser.receive_data(data)
            for event in parser.events():
                assert isinstance(event, (AcceptConnection, BytesMessage, TextMessage, Ping, Pong)), event
                if isinstance(event, Ping):
                    writer.write(parser.send(event.response()))
                elif isinstance(event, AcceptConnection):
                    assert bool(event.extensions) is deflate
                elif isinstance(event, (BytesMessage, TextMessage)):
                    piece = event.data if isinstance(event.data, str) else bytes(event.data)
                    begun = piece if begun is None else begun + piece  # type: ignore[operator]
                    if event.message_finished:
                        yield begun
                        begun = None
                if (
                    not deflate
                ):  # https://github.com/python-hyper/wsproto/pull/205: it then forgets that more is to come
                    writer.write(parser.send(Ping(b"between")))
    finally:
        writer.write(parser.send(CloseConnection(code=1000)))
        writer.close()


async def by_node(query: str, port: int, deflate: bool) -> AsyncGenerator[Message, None]:
    url = f"ws://127.0.0.1:{port}/rbkit/ws{query}"
    command = ["node", str(Path(__file__).with_name("reader.cjs")), url, str(deflate).lower()]
    environment = os.environ | {"NODE_PATH": str(NODE)}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
    assert process.stdout is not None
    try:
        while True:
            head = await process.stdout.readexactly(5)
            data = await process.stdout.readexactly(int.from_bytes(head[:4], "big"))
            yield data if head[4:] == b"B" else data.decode()
    finally:
        process.kill()
        await process.communicate()


@pytest.fixture
def by_chromium(chromium: ChromiumDriver) -> Read:
    """Return the reader that is a browser; it offers permessage-deflate, whether it is wanted or not."""

    async def read(query: str, port: int, deflate: bool) -> AsyncGenerator[Message, None]:
        def script(code: str, *arguments: object) -> Any:
            return chromium.execute_script(code, *arguments)

        await asyncio.to_thread(chromium.get, f"http://127.0.0.1:{port}/rbkit/status")
        await asyncio.to_thread(script, BROWSER, query)
        try:
            while True:
                taken, extensions, closed = await asyncio.to_thread(script, "return take()")
                assert not closed, closed
                assert not taken or bool(extensions) is deflate
                for is_text, content in taken:
                    yield content if is_text else base64.b64decode(content)
        finally:
            await asyncio.to_thread(chromium.get, "about:blank")

    return read


BROWSER = """
const socket = new WebSocket(`ws://${location.host}/rbkit/ws${arguments[0]}`, "rbkit");
let taken = [], closed = "", last = Promise.resolve();
const toBase64 = (blob) => new Promise((resolve) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.split(",")[1] || "");
  reader.readAsDataURL(blob);
});
socket.onmessage = ({data}) => {
  const message = typeof data === "string" ? [true, data] : toBase64(data).then((text) => [false, text]);
  last = Promise.all([last, message]).then(([, done]) => taken.push(done));
};
socket.onclose = ({code, reason}) => { closed = `${code} ${reason}`; };
window.take = () => [taken.splice(0), socket.extensions, closed];
"""


class Pinging(RbkitWebSocketHandler):
    """One that pings a client at all times, so that some come between the fragments."""

    def open(self, *args: str, **kwargs: str) -> None:
        super().open(*args, **kwargs)
        self.pinging = PeriodicCallback(self.ping_now, 1)
        self.pinging.start()

    def ping_now(self) -> None:
        try:
            self.ping(b"between")
        except WebSocketClosedError:  # and on_close is about to be called
            self.pinging.stop()

    def on_close(self) -> None:
        self.pinging.stop()
        super().on_close()


class Tap:
    """Passes a connection on, and counts the control frames that come between the fragments of a message."""

    def __init__(self, port: int) -> None:
        self.between = 0
        self._server_port = port

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        async with await asyncio.start_server(self._relay, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await asyncio.gather(_copy(reader, to_server), self._count(from_server, writer))
        writer.close()
        to_server.close()

    async def _count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        response = await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        if b" 101 " not in response:
            await _copy(reader, writer)
        begun = False
        while True:
            head = await reader.readexactly(2)
            extended = await reader.readexactly({126: 2, 127: 8}.get(head[1], 0))
            length = int.from_bytes(extended, "big") if extended else head[1]
            writer.write(head + extended + await reader.readexactly(length))
            await writer.drain()
            if head[0] & 0x08:
                self.between += begun
            else:
                begun = not head[0] & 0x80


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


READERS = ["websockets", "aiohttp", "wsproto", "node", "chromium"]


@pytest.fixture
def read(request: pytest.FixtureRequest) -> Read:
    """Return a parser by its name."""
    name = f"by_{request.param}"
    if name == "by_node" and not shutil.which("node"):
        pytest.skip("Node.js is not on PATH")
    found: Read = request.getfixturevalue(name) if name == "by_chromium" else globals()[name]
    return found


@pytest.mark.parametrize("read", READERS, indirect=True)
@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflated"])
@pytest.mark.parametrize("query", ["", "?encoding=escaped"], ids=["binary", "escaped"])
async def test_every_size_is_read_as_it_was_published(rbkit: FakeRbkit, read: Read, deflate: bool, query: str) -> None:
    payloads = [*TEXT, *BINARY[-1:]] if query else BINARY
    pinging = not (deflate and read is by_wsproto)
    bridge = patient(Bridge(**rbkit.endpoints, compression_level=int(deflate), ping_interval=15.0 if pinging else 0.0))
    mount = {"bridge": bridge}
    handler = Pinging if pinging else RbkitWebSocketHandler
    http = HTTPServer(Application([("/rbkit/ws", handler, mount), ("/rbkit/status", StatusHandler, mount)]))
    sockets = bind_sockets(0, "127.0.0.1")
    http.add_sockets(sockets)
    tap = Tap(sockets[0].getsockname()[1])
    try:
        async with tap.listening() as port:
            messages = read(query, port, deflate)
            received = await asyncio.wait_for(read_all(messages, payloads, rbkit, bridge), 90)
    finally:
        http.stop()
        await bridge.close()
        await http.close_all_connections()
    assert [len(payload) for payload in received] == [len(payload) for payload in payloads]
    assert received == payloads
    assert bool(tap.between) is pinging


async def read_all(
    messages: AsyncGenerator[Message, None], payloads: list[bytes], rbkit: FakeRbkit, bridge: Bridge
) -> list[bytes]:
    """Publish every size once somebody reads, and return what arrived."""
    reading = asyncio.ensure_future(anext(messages))
    await until(lambda: bridge.state is State.CONNECTED, "the bridge is connected", 60)
    while not reading.done():
        rbkit.publish(b"are you there?")
        await asyncio.sleep(0.05)
    for payload in payloads:
        rbkit.publish(payload)
    received: list[bytes] = []
    async with contextlib.aclosing(messages):
        async for message in messages:
            payload = message[1:] if isinstance(message, bytes) else unquote_to_bytes(message[1:])
            if message[:1] in (b"1", "1") and payload != b"are you there?":
                received.append(payload)
            if len(received) == len(payloads):
                break
    return received
