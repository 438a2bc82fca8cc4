"""An asyncio client for scripts and tests, with commands, replies and decoded events."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Literal, overload
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.iostream import UnsatisfiableReadError
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, WebSocketError, websocket_connect

from tornado_rbkit.deadline import Deadline
from tornado_rbkit.inbox import Gap, Inbox
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
    is_refused,
    parse_notice,
)
from tornado_rbkit.tasks import Tasks

_FIRST_BACKOFF: Final = 0.1  # seconds, doubled with each failure
_LAST_BACKOFF: Final = 10.0
_PING_INTERVAL: Final = 30.0  # seconds; a server that vanished is noticed within two of them

_MAX_ABANDONED: Final = 256  # requests that were cancelled and whose replies have not arrived

_UNAUTHORIZED: Final = (401, 403)

_closing = Tasks()  # connections whose client may have been discarded


class ConnectionLost(RbkitError, ConnectionError):
    """The WebSocket could not be opened, or was closed by the other end.

    Attributes:
        code: the WebSocket close code, or the HTTP status of a refusal; None if there was neither.
        reason: the reason given by the other end, or the text of the error.
        is_final: whether the server refuses this client, so that reconnecting is useless: HTTP status 401 or 403,
            or close code 1008 with a reason that does not begin with ``too slow`` or ``no pong``.
    """

    def __init__(self, url: str, code: int | None, reason: str) -> None:
        super().__init__(f"{url}: {reason or 'connection lost'}" + (f" ({code})" if code else ""))
        self.code = code
        self.reason = reason

    @property
    def is_final(self) -> bool:
        return self.code in _UNAUTHORIZED or is_refused(self.code, self.reason)


class RbkitClient:
    """A client of a bridge. Use it on one event loop only.

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
        """Create a client. Entering the context opens the connection.

        Args:
            url: the WebSocket's URL, ``ws://`` or ``wss://``; ``encoding=binary`` is added to its query.
            token: sent as ``Authorization: Bearer``, for a server that requires it.
            reconnect: whether to reconnect with backoff after a lost connection, and yield a `Gap`, unless
                `ConnectionLost.is_final`.
            max_message_size: bytes; a heap snapshot is one message, of 50 MB per million objects.
            max_pending_bytes: bytes that may wait for `events` behind the next message, each item with an overhead of
                256 bytes. Past it the oldest messages are dropped and reported as a `Gap`, and only the newest notice
                of each kind before them is kept.

        Raises:
            ValueError: `url` is not the URL of a WebSocket.
        """
        if not _is_websocket(url):
            raise ValueError(f"url={url!r} is not a WebSocket's; allowed: ws://HOST:PORT/... or wss://HOST:PORT/...")
        self._url = url
        self._binary_url = _with_binary_encoding(url)
        self._headers = {"Authorization": _as_latin_1(f"Bearer {token}")} if token else {}
        self._reconnect = reconnect
        self._max_message_size = max_message_size
        self._asked: deque[asyncio.Future[bytes]] = deque()
        self._abandoned = 0  # cancelled requests among them
        self._inbox = Inbox(max_pending_bytes)
        self._arrived = asyncio.Event()
        self._connection: WebSocketClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lost: ConnectionLost | None = None
        self._over = True  # there is no connection, and none will be opened
        self._closed = False

    async def __aenter__(self) -> RbkitClient:
        """Connect.

        Raises:
            ConnectionLost: the server cannot be reached, or refuses the connection.
        """
        connection = self._connection = await self._connect()
        self._over = False
        self._reader = asyncio.create_task(self._read(connection))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; commands without a reply fail. May be called twice.

        Waits up to 5 s for the server to confirm. If the wait is cancelled, the connection is closed immediately.
        """
        self._closed = True
        self._fail_pending("the client was closed")
        self._arrived.set()
        if self._reader is None:
            return
        connection = self._connection
        if connection is None:
            self._reader.cancel()  # it is waiting to reconnect
        else:
            connection.close()
        try:
            await asyncio.wait([self._reader])
        except asyncio.CancelledError:
            if connection is not None:
                _abort(connection)
            raise
        if not self._reader.cancelled():
            self._reader.result()

    @overload
    async def command(self, name: Literal["handshake"]) -> Handshake: ...

    @overload
    async def command(self, name: str) -> Handshake | str: ...

    async def command(self, name: str) -> Handshake | str:
        """Send a command and return its reply: a `Handshake` for ``handshake``, text (``ok``) for all others.

        Raises:
            CommandError: the command was not carried out; see `reason` and `text`.
            ConnectionLost: there is no connection, or it was lost before the reply arrived.
            DecodeError: the reply to ``handshake`` is not a handshake.
        """
        reply = await self.request(name)
        error = CommandError.from_reply(reply)
        if error is not None:
            raise error
        return decode_handshake(reply) if name == "handshake" else reply.decode(errors="replace")

    async def request(self, message: str | bytes) -> bytes:
        """Send a message unchanged and return the bytes of the reply, which may be an error.

        While 256 cancelled requests have no reply, nothing is sent, and the reply is ``error:busy``.

        Raises:
            ConnectionLost: there is no connection, or it was lost before the reply arrived.
            ValueError: the text cannot be encoded in UTF-8.
        """
        payload = message.encode() if isinstance(message, str) else message
        if self._connection is None:
            raise self._lost_error()
        if self._abandoned >= _MAX_ABANDONED:
            text = f"{_MAX_ABANDONED} cancelled requests have no reply; allowed: {_MAX_ABANDONED} of one client"
            return CommandError("busy", text).to_reply()
        asked = self._asked
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        asked.append(reply)
        try:
            with contextlib.suppress(WebSocketClosedError):  # the reader learns the reason, and fails the reply
                await self._connection.write_message(payload, binary=isinstance(message, bytes))
            return await reply
        finally:
            reply.cancel()  # the reply to a cancelled request still arrives, in order, and is ignored
            if reply.cancelled() and asked is self._asked:
                self._abandoned += 1

    async def events(self) -> AsyncIterator[Event | Gap | Notice]:
        """Yield the decoded events since the connection was opened, until the client is closed.

        A `Gap` is yielded where messages are missing, by the profiler's counter, and a `Notice` where the bridge sent
        one.

        Raises:
            ConnectionLost: the connection was lost and is not reopened (`reconnect`).
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
        """Yield the same as `events`, but each published message as undecoded bytes.

        Raises:
            ConnectionLost: the connection was lost and is not reopened (`reconnect`).
        """
        while True:
            while not self._inbox:
                if self._closed:
                    return
                if self._over:
                    raise self._lost_error()
                self._arrived.clear()
                await self._arrived.wait()
            for item in self._inbox.take():
                yield item

    def _lost_error(self) -> ConnectionLost:
        """Return the error that explains why there is no connection."""
        return self._lost or ConnectionLost(self._url, None, "not connected")

    async def _connect(self) -> WebSocketClientConnection:
        opening = asyncio.ensure_future(
            websocket_connect(
                HTTPRequest(self._binary_url, headers=self._headers),
                subprotocols=[SUBPROTOCOL],
                max_message_size=self._max_message_size,
            )
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:  # Tornado continues to open the connection
            _closing.start(_abort_when_open(opening), "closing an abandoned connection")
            raise
        except HTTPClientError as error:
            response = error.response
            is_text = response is not None and response.headers.get("Content-Type", "").startswith("text/plain")
            body = response.body.decode(errors="replace").strip() if response is not None and is_text else ""
            raise ConnectionLost(self._url, error.code, body or str(error)) from error
        except (OSError, WebSocketError, UnsatisfiableReadError) as error:
            raise ConnectionLost(self._url, None, str(error)) from error

    async def _read(self, connection: WebSocketClientConnection) -> None:
        """Receive messages until the connection is lost and not reopened."""
        backoff = _FIRST_BACKOFF
        try:
            while True:
                pings = _Pings(connection)
                try:
                    while (message := await connection.read_message()) is not None:
                        pings.heard()
                        if self._take(_to_binary(message)):
                            backoff = _FIRST_BACKOFF
                finally:
                    pings.stop()
                connection.close()  # already closed, but Tornado warns if close() was not called
                self._connection = None
                self._lose(ConnectionLost(self._url, connection.close_code, connection.close_reason or ""))
                while self._connection is None:
                    if not self._should_reconnect():
                        return
                    await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients, hides nothing
                    backoff = min(_LAST_BACKOFF, backoff * 2)
                    try:
                        connection = self._connection = await self._connect()
                    except ConnectionLost as error:
                        self._lose(error)
                self._lost = None
                self._put(Gap(None))
        finally:
            self._over = True
            self._fail_pending("connection lost")
            self._arrived.set()

    def _lose(self, lost: ConnectionLost) -> None:
        self._lost = lost
        self._fail_pending(lost.reason or "connection lost")

    def _should_reconnect(self) -> bool:
        return self._reconnect and not self._closed and not (self._lost and self._lost.is_final)

    def _take(self, message: bytes) -> bool:
        """Take a message; return whether it is data or a reply.

        The server sends notices also to a client whose connection it closes at once.
        """
        channel, payload = message[:1], message[1:]
        if channel == Channel.DATA.value:
            self._put(payload)
        elif notice := parse_notice(payload):
            self._put(notice)
            return False
        elif self._asked:
            reply = self._asked.popleft()
            if reply.cancelled():
                self._abandoned -= 1
            else:
                reply.set_result(payload)
        return True

    def _put(self, item: bytes | Gap | Notice) -> None:
        self._inbox.put(item)
        self._arrived.set()

    def _fail_pending(self, reason: str) -> None:
        asked, self._asked, self._abandoned = self._asked, deque(), 0
        for reply in asked:
            if not reply.done():
                code = self._lost.code if self._lost else None
                reply.set_exception(ConnectionLost(self._url, code, reason))


class _Pings:
    """Pings a server every `_PING_INTERVAL`, and cuts the connection if nothing has arrived since the last ping.

    Tornado's own pings cut off a server whose pong waits behind data that this process, stopped or busy, has not read.
    """

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection
        self._is_awaiting = False
        connection.on_pong = lambda data: self.heard()  # type: ignore[method-assign]
        self._start()

    def heard(self) -> None:
        """Record that something has arrived."""
        self._is_awaiting = False

    def stop(self) -> None:
        """Send no more pings."""
        self._deadline.cancel()

    def _start(self) -> None:
        self._deadline = Deadline(_PING_INTERVAL, self._on_time)

    def _on_time(self) -> None:
        if self._is_awaiting:
            _abort(self._connection)
            return
        self._is_awaiting = True
        with contextlib.suppress(WebSocketClosedError):  # the reader learns the reason
            self._connection.ping()
        self._start()


def _as_latin_1(text: str) -> str:
    """Return text that Tornado, which encodes headers in Latin-1, sends as the UTF-8 of `text`."""
    return text.encode().decode("latin-1")


async def _abort_when_open(opening: asyncio.Future[WebSocketClientConnection]) -> None:
    """Close an abandoned connection as soon as it is open. Tornado cannot cancel the opening."""
    with contextlib.suppress(HTTPClientError, OSError, WebSocketError, UnsatisfiableReadError):  # it was not opened
        connection = await opening
        _abort(connection)
        while await connection.read_message() is not None:  # otherwise Tornado's reader waits forever
            pass


def _abort(connection: WebSocketClientConnection) -> None:
    """Close a connection without waiting for the other end."""
    connection.close()
    connection.stream.close()


def _to_binary(message: str | bytes) -> bytes:
    """Return a message in the binary encoding. Servers that only support the escaped encoding send text."""
    return unquote_to_bytes(message.replace("+", " ")) if isinstance(message, str) else message


def _with_binary_encoding(url: str) -> str:
    """Replace the encoding in a URL's query by the binary encoding."""
    parts = urlsplit(url)
    query = [item for item in parts.query.split("&") if item and item.partition("=")[0] != "encoding"]
    return urlunsplit(parts._replace(query="&".join([*query, "encoding=binary"]), fragment=""))


def _is_websocket(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port or address
        return False
