"""Our own frames, read by parsers that are strict about RFC 6455: websockets, wsproto and aiohttp, on a real line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from tests.conftest import Serve
from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge
from tornado_rbkit.frames import FRAGMENT_SIZE, JOIN_LIMIT

SIZES = [
    *(0, 1, 123, 124, 125, 126, 127),
    *range(JOIN_LIMIT - 8, JOIN_LIMIT + 2),
    *range(65533, 65538),
    *range(FRAGMENT_SIZE - 3, FRAGMENT_SIZE + 3),
    *range(3 * FRAGMENT_SIZE - 2, 3 * FRAGMENT_SIZE + 2),
    2_500_000,
]
PAYLOADS = [(bytes(range(256)) * (size // 256 + 1))[:size] for size in SIZES]
Message: TypeAlias = "str | bytes"
Read: TypeAlias = Callable[[str, int, bool], AsyncIterator[Message]]


async def by_websockets(query: str, port: int, deflate: bool) -> AsyncIterator[Message]:
    compression = "deflate" if deflate else None
    url = f"ws://127.0.0.1:{port}/rbkit/ws{query}"
    async with connect(url, subprotocols=[Subprotocol("rbkit")], max_size=None, compression=compression) as connection:
        assert bool(connection.protocol.extensions) is deflate
        async for message in connection:
            yield message


async def by_aiohttp(query: str, port: int, deflate: bool) -> AsyncIterator[Message]:
    url = f"http://127.0.0.1:{port}/rbkit/ws{query}"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            url, protocols=["rbkit"], max_msg_size=0, compress=15 if deflate else 0, heartbeat=0.1
        ) as connection,
    ):
        assert bool(connection.compress) is deflate
        async for message in connection:
            assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), message
            yield message.data


async def by_wsproto(query: str, port: int, deflate: bool) -> AsyncIterator[Message]:
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
                writer.write(parser.send(Ping(b"between")))
    finally:
        writer.write(parser.send(CloseConnection(code=1000)))
        writer.close()


@pytest.mark.parametrize("read", [by_websockets, by_aiohttp, by_wsproto], ids=lambda read: read.__name__[3:])
@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflated"])
@pytest.mark.parametrize("query", ["", "?encoding=escaped"], ids=["binary", "escaped"])
async def test_every_size_is_read_as_it_was_published(
    serve: Serve, rbkit: FakeRbkit, read: Read, deflate: bool, query: str
) -> None:
    bridge = Bridge(**rbkit.endpoints, compression_level=int(deflate), ping_interval=1.0)
    server = await serve(bridge)
    await server.connected()  # so that nothing is published before the bridge is there
    messages = read(query, server.port, deflate)
    reading = asyncio.ensure_future(first(messages))
    while not reading.done():
        rbkit.publish(b"are you there?")
        await asyncio.sleep(0.05)
    for payload in PAYLOADS:
        rbkit.publish(payload)
    received: list[bytes] = []
    async for message in messages:
        payload = message[1:] if isinstance(message, bytes) else unquote_to_bytes(message[1:])
        if message[:1] in (b"1", "1") and payload != b"are you there?":
            received.append(payload)
        if len(received) == len(PAYLOADS):
            break
    await messages.aclose()  # type: ignore[attr-defined]
    assert [len(payload) for payload in received] == SIZES
    assert received == PAYLOADS


def first(messages: AsyncIterator[Message]) -> Awaitable[Message]:
    return anext(messages)
