"""An asyncio client, for scripts and tests: commands with their replies, and decoded events."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.iostream import UnsatisfiableReadError
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketError, websocket_connect

from tornado_rbkit.protocol import (
    SUBPROTOCOL,
    Channel,
    CommandError,
    Event,
    Handshake,
    Notice,
    RbkitError,
    decode,
    decode_handshake,
    message_counter,
    parse_notice,
)

_FIRST_BACKOFF: Final = 0.1  # seconds, doubled with each failure
_LAST_BACKOFF: Final = 10.0
_PING_INTERVAL: Final = 30.0  # seconds; a server that vanished is noticed within two of them


class ConnectionLost(RbkitError, ConnectionError):
    """The WebSocket could not be opened, or was closed by the other end.

    Attributes:
        code: the WebSocket close code, or the HTTP status of the refusal; None where there was neither.
        reason: as the other end gave it.
    """

    def __init__(self, url: str, code: int | None, reason: str) -> None:
        super().__init__(f"{url}: {reason or 'connection lost'}" + (f" ({code})" if code else ""))
        self.code = code
        self.reason = reason


class Gap(NamedTuple):
    """Messages that did not arrive, `missing` of them; None where nobody can know, as after a reconnection."""

    missing: int | None


class RbkitClient:
    """A viewer, on the event loop it is used on.

    ::

        async with RbkitClient("ws://127.0.0.1:8765/rbkit/ws") as rbkit:
            await rbkit.command("start_memory_profile")
            async for event in rbkit.events():
                print(event)
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        reconnect: bool = False,
        max_message_size: int = 512 * 1024 * 1024,
        max_pending_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """Describe a connection; entering the context opens it.

        Args:
            url: of the WebSocket, ``ws://`` or ``wss://``.
            token: sent as ``Authorization: Bearer``, for a server that asks for one.
            reconnect: connect again, with backoff, whenever the connection is lost, and say so by a `Gap`.
            max_message_size: bytes; a heap snapshot is one message, of 50 MB per million objects.
            max_pending_bytes: published data that waits for `events`, behind the next message; past that the oldest is
                let go, and told as a `Gap`.

        Raises:
            ValueError: `url` is not a WebSocket's.
        """
        if not _is_websocket(url):
            raise ValueError(f"url={url!r} is not a WebSocket's; allowed: ws://HOST:PORT/... or wss://HOST:PORT/...")
        self._url = url
        self._headers = {"Authorization": _as_latin_1(f"Bearer {token}")} if token else {}
        self._reconnect = reconnect
        self._max_message_size = max_message_size
        self._max_pending_bytes = max_pending_bytes
        self._asked: deque[asyncio.Future[bytes]] = deque()
        self._pending: deque[bytes | Notice | Gap] = deque()
        self._pending_bytes = 0
        self._arrived = asyncio.Event()
        self._counter: int | None = None
        self._connection: WebSocketClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lost: ConnectionLost | None = None
        self._closed = False

    async def __aenter__(self) -> RbkitClient:
        """Connect.

        Raises:
            ConnectionLost: the server cannot be reached, or refuses.
        """
        self._connection = await self._connect()
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; commands without a reply fail. May be called twice."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()
        if self._reader is not None:
            if self._connection is None:
                self._reader.cancel()  # it waits to connect again
            await asyncio.wait([self._reader])
        self._fail_asked("the client was closed")
        self._arrived.set()

    async def command(self, name: str) -> Handshake | str:
        """Send a command and return its reply: a `Handshake`, or the text, which is ``ok`` for all others.

        Raises:
            CommandError: it was not carried out; `reason` and `text` say why.
            DecodeError: the reply is neither a text nor a handshake.
            ConnectionLost: there is no connection.
        """
        reply = await self.request(name)
        error = CommandError.from_reply(reply)
        if error is not None:
            raise error
        return reply.decode(errors="replace") if reply[:1].isalpha() else decode_handshake(reply)

    async def request(self, message: str | bytes) -> bytes:
        """Send a message as it is and return the reply's bytes, an error's among them.

        Raises:
            ConnectionLost: there is no connection, or it was lost before the reply came.
            ValueError: a text that has no UTF-8.
        """
        payload = message.encode() if isinstance(message, str) else message
        if self._connection is None:
            raise self._lost or ConnectionLost(self._url, None, "not connected")
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked.append(reply)
        with contextlib.suppress(WebSocketClosedError):  # the reader finds out why, and fails the reply with it
            await self._connection.write_message(payload, binary=isinstance(message, bytes))
        return await reply

    async def events(self) -> AsyncIterator[Event | Gap | Notice]:
        """Yield what the profiler publishes, decoded, from the opening of the connection on.

        A `Gap` stands where messages are missing, by the profiler's own count; a `Notice` where the bridge said
        something. It ends when the client is closed.

        Raises:
            ConnectionLost: the connection was lost, and `reconnect` is not set.
            DecodeError: a message is not rbkit's.
        """
        async for item in self.messages():
            if not isinstance(item, bytes):
                yield item
                continue
            collection = decode(item)
            if isinstance(collection, Handshake):
                continue
            for event in collection.events:
                yield event

    async def messages(self) -> AsyncIterator[bytes | Gap | Notice]:
        """Yield the same as `events`, with each published message as its bytes."""
        while True:
            while not self._pending:
                if self._closed:
                    return
                if self._lost is not None and not self._reconnect:
                    raise self._lost
                self._arrived.clear()
                await self._arrived.wait()
            item = self._pending.popleft()
            if isinstance(item, bytes):
                self._pending_bytes -= len(item)
                missing = self._missing(item)
                if missing:
                    yield Gap(missing)
            elif item == Gap(None) or item == Notice("server", "restarted"):
                self._counter = None
            yield item

    def _missing(self, message: bytes) -> int:
        """Return how many messages were lost before this one."""
        counter = message_counter(message)
        expected, self._counter = self._counter, None if counter is None else counter + 1
        if counter is None or expected is None:
            return 0
        return max(0, counter - expected)  # a lower one is another process's

    async def _connect(self) -> WebSocketClientConnection:
        try:
            return await websocket_connect(
                HTTPRequest(self._url, headers=self._headers),
                subprotocols=[SUBPROTOCOL],
                max_message_size=self._max_message_size,
                ping_interval=_PING_INTERVAL,
            )
        except HTTPClientError as error:
            body = error.response.body.decode(errors="replace").strip() if error.response else ""
            raise ConnectionLost(self._url, error.code, body or str(error)) from error
        except (OSError, WebSocketError, UnsatisfiableReadError) as error:
            raise ConnectionLost(self._url, None, str(error)) from error

    async def _read(self) -> None:
        while self._connection is not None:
            connection = self._connection
            while (message := await connection.read_message()) is not None:
                self._take(message.encode() if isinstance(message, str) else message)
            connection.close()  # it is, and Tornado warns of one that was not told so
            self._connection = None
            self._lost = ConnectionLost(self._url, connection.close_code, connection.close_reason or "")
            self._fail_asked(self._lost.reason or "connection lost")
            if self._reconnect and not self._closed:
                await self._connect_again()
            self._arrived.set()

    async def _connect_again(self) -> None:
        backoff = _FIRST_BACKOFF
        while self._connection is None:
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients, hides nothing
            backoff = min(_LAST_BACKOFF, backoff * 2)
            try:
                self._connection = await self._connect()
            except ConnectionLost as error:
                self._lost = error
        self._lost = None
        self._put(Gap(None))

    def _take(self, message: bytes) -> None:
        channel, payload = message[:1], message[1:]
        if channel == Channel.DATA.value:
            self._put(payload)
        elif notice := parse_notice(payload):
            self._put(notice)
        elif self._asked:
            reply = self._asked.popleft()
            if not reply.done():
                reply.set_result(payload)

    def _put(self, item: bytes | Gap | Notice) -> None:
        self._pending.append(item)
        self._pending_bytes += len(item) if isinstance(item, bytes) else 0
        if self._pending_bytes > self._max_pending_bytes:
            self._let_go_of_the_oldest()
        self._arrived.set()

    def _let_go_of_the_oldest(self) -> None:
        """Drop messages, never a notice, until few enough bytes wait behind the next one, however large that is.

        The counter of the next one tells what is missing.
        """
        kept: deque[bytes | Gap | Notice] = deque()
        while self._pending:
            item = self._pending.popleft()
            if isinstance(item, bytes):
                if self._pending_bytes - len(item) <= self._max_pending_bytes:
                    kept.append(item)
                    break
                self._pending_bytes -= len(item)
                if self._counter is None:
                    self._counter = message_counter(item)
            else:
                kept.append(item)
        self._pending.extendleft(reversed(kept))

    def _fail_asked(self, reason: str) -> None:
        asked, self._asked = self._asked, deque()
        for reply in asked:
            if not reply.done():
                code = self._lost.code if self._lost else None
                reply.set_exception(ConnectionLost(self._url, code, reason))


def _as_latin_1(text: str) -> str:
    """Return what Tornado, which sends headers in Latin-1, makes UTF-8 of."""
    return text.encode().decode("latin-1")


def _is_websocket(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an address that is none
        return False
