"""The WebSocket handler, and the matcher that mounts it at every path."""

from __future__ import annotations

import asyncio
import copy
import re
import time
import zlib
from collections.abc import Awaitable
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from tornado.concurrent import Future
from tornado.escape import json_encode, utf8
from tornado.httputil import HTTPServerRequest
from tornado.log import gen_log
from tornado.routing import Matcher
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.bridge.keepalive import Keepalive
from tornado_rbkit.bridge.session import Session
from tornado_rbkit.deadline import Deadline
from tornado_rbkit.errors import BridgeFullError
from tornado_rbkit.frames import Encoding, encode_message
from tornado_rbkit.protocol import CLOSE_POLICY, CLOSE_TOO_BIG, CLOSE_TRY_AGAIN, NO_PONG, SUBPROTOCOL
from tornado_rbkit.web.access import Access, AccessDeniedError, AccessHandler

MAX_MESSAGE_SIZE: Final = 64 * 1024
"""Bytes in a client's message; a longer one closes with 1009, one over `MAX_COMMAND_LENGTH` gets an error reply."""

_READ_LIMIT: Final = 1024 * 1024  # bytes; Tornado drops the connection in the middle of a longer message
_OFFERED: Final = re.compile(  # the parameters that can be agreed to, RFC 7692 section 7.1
    r'((server|client)_no_context_takeover|server_max_window_bits="?15"?|client_max_window_bits(="?([89]|1[0-5])"?)?)$'
)
_MAX_REASON: Final = 123  # bytes, RFC 6455 section 5.5


class SubprotocolMatches(Matcher):
    """Matches WebSocket upgrades that offer a subprotocol, at any path.

    As the first rule of an application, it leaves every other request to the rules after it.
    """

    def __init__(self, subprotocol: str) -> None:
        self.subprotocol = subprotocol

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """Return an empty dict for a match, else None; see `tornado.routing.Matcher`."""
        if request.headers.get("Upgrade", "").lower() == "websocket" and self.subprotocol in offered(request):
            return {}
        return None


def offered(request: HTTPServerRequest) -> list[str]:
    """Return the subprotocols that a request offers."""
    return [item.strip() for item in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]


class RbkitWebSocketHandler(AccessHandler, WebSocketHandler):
    """The WebSocket of one client. The bridge, whose data it sends, outlives it.

    Mount it as ``(r"/profiler", RbkitWebSocketHandler, {"bridge": bridge})``.
    """

    def initialize(self, bridge: Bridge, access: Access | None = None) -> None:
        """Set the bridge to join and the access rules."""
        self.bridge = bridge
        self.access = access or Access()
        self._session: Session | None = None
        self._ping_timer: asyncio.TimerHandle | None = None
        self._pong_deadline: Deadline | None = None
        self._keepalive = Keepalive(
            interval=bridge.ping_interval, timeout=bridge.ping_timeout, stall_timeout=bridge.stall_timeout
        )
        self._extension: str | None = None

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Upgrade an allowed request that offers the subprotocol rbkit."""
        await self.check_request()
        if SUBPROTOCOL not in offered(self.request):
            raise AccessDeniedError(400, f"this WebSocket speaks the subprotocol {SUBPROTOCOL!r}; offer it to connect")
        self._check_origin_is_one()
        encoding = self.get_query_argument("encoding", self.bridge.default_encoding)
        if encoding not in ("binary", "escaped"):
            raise AccessDeniedError(400, "encoding=%a is unknown; allowed: binary, escaped", encoding[:40])
        self._check_upgrade()
        self._negotiate_deflate()
        self._encoding = Encoding(escaped=encoding == "escaped", deflate=self._extension is not None)
        self._wrap_hooks()
        try:
            await super().get(*args, **kwargs)
        except zlib.error:  # Tornado has closed the connection, but takes it for an error of the server
            gen_log.debug("Malformed compressed message received", exc_info=True)

    def _wrap_hooks(self) -> None:
        """Join and handle pongs even if a subclass overrides `open` or `on_pong` without calling super().

        Tornado's own hooks are empty. The client joins when an overridden `open` has returned, unless the override
        closed the connection, for instance after checking who the client is.
        """
        overridden_open, overridden_on_pong = self.open, self.on_pong

        async def open(*args: str, **kwargs: str) -> None:
            opening = overridden_open(*args, **kwargs)
            if opening is not None:
                await opening
            self._join()

        def on_pong(data: bytes) -> None:
            self._note_pong()
            return overridden_on_pong(data)

        self.open, self.on_pong = open, on_pong  # type: ignore[method-assign]

    def _check_upgrade(self) -> None:
        """Check what proxies lose: Tornado would not log the reason, and would disconnect after a 101 to HTTP/1.0."""
        headers = self.request.headers
        upgrades = [item.strip().lower() for item in headers.get("Connection", "").split(",")]
        if (
            self.request.version == "HTTP/1.0"
            or headers.get("Upgrade", "").lower() != "websocket"
            or "upgrade" not in upgrades
        ):
            text = (
                "a WebSocket needs HTTP/1.1 and the headers Upgrade: websocket and Connection: Upgrade (behind nginx: "
                "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
                'proxy_set_header Connection "upgrade")'
            )
            raise AccessDeniedError(400, text)

    def _check_origin_is_one(self) -> None:
        origin = self.request.headers.get("Origin", "")
        try:
            urlsplit(origin)
        except ValueError:  # Tornado's own check would raise it
            raise self._origin_refusal(origin) from None

    def _origin_refusal(self, origin: str) -> AccessDeniedError:
        return AccessDeniedError(
            403, "the origin %a is not allowed; add it to the setting `allowed_origins`", origin[:200]
        )

    def check_origin(self, origin: str) -> bool:
        """Allow the server's own origin and the origins in `Access.allowed_origins`."""
        if self.access.allows_origin(origin) or super().check_origin(origin):
            return True
        raise self._origin_refusal(origin)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Choose ``rbkit``, which `get` has found in the offer."""
        return SUBPROTOCOL

    def get_compression_options(self) -> dict[str, Any] | None:
        """Return Tornado's options for permessage-deflate if `_negotiate_deflate` agreed to it."""
        return {"compression_level": self.bridge.compression_level} if self._encoding.deflate else None

    @property
    def ping_interval(self) -> float:
        """Zero: Tornado's own pings would close a client that is merely slow. `_ping` replaces them."""
        return 0

    @property
    def max_message_size(self) -> int:
        """Bytes; see `tornado.websocket.WebSocketHandler.max_message_size`."""
        return _READ_LIMIT

    def open(self, *args: str, **kwargs: str) -> Awaitable[None] | None:
        """Join the bridge. If an override does not call super(), the client joins when it returns."""
        self._join()
        return None

    def _join(self) -> None:
        """Join the bridge, unless the client has joined or the connection is closed or closing."""
        if self._session is not None or self.ws_connection is None or self.ws_connection.is_closing():
            return
        self.set_nodelay(True)
        stream = self.ws_connection.stream  # undocumented; the only way to bound the data that waits for a client
        assert stream is not None
        # Tornado has detached the stream from the request's connection; with the stream, its server would read on.
        # A copy gets the stream, so that `authorize` has `get_ssl_certificate` and the socket as during the handshake.
        connection: Any = copy.copy(self.request.connection)
        connection.stream = stream
        self.request.connection = connection
        try:
            self._session = self.bridge.join(self, self._close_with, stream, self._encoding, self.access)
        except BridgeFullError as error:
            self._close_with(CLOSE_TRY_AGAIN, str(error))
            return
        stream.set_close_callback(self._leave)  # a subclass may override `on_close`
        self._ping_later(self._keepalive.interval)

    def _leave(self) -> None:
        """Leave the bridge. May be called twice."""
        self._cancel_ping()
        if self._session is not None:
            self.bridge.leave(self._session)

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Submit one command; close the connection if the message is too long."""
        if self._session is None:
            return None
        if len(message) > MAX_MESSAGE_SIZE:
            self._session.close(CLOSE_TOO_BIG, f"message too big; allowed: {MAX_MESSAGE_SIZE} bytes")
            return None
        return self._session.ask(message)

    def on_close(self) -> None:
        """Leave the bridge. An override need not call super(): the stream's close callback leaves too."""
        self._leave()

    def _ping(self) -> None:
        """Send a ping, unless data is blocked: then the outbox applies `stall_timeout`."""
        assert self._session is not None
        outbox = self._session.outbox
        if outbox.blocked:
            self._ping_later(self._keepalive.interval)
            return
        try:
            self.ping()
        except WebSocketClosedError:
            return  # on_close follows
        patience = self._keepalive.on_ping(time.monotonic(), outbox.bytes_sent)
        self._pong_deadline = Deadline(patience, partial(self._on_no_pong, patience))

    def _note_pong(self) -> None:
        """Record that the client is alive and has read the data sent before the ping."""
        seconds = self._keepalive.on_pong(time.monotonic())
        if self._pong_deadline is not None and seconds is not None:
            self._pong_deadline.cancel()
            self._pong_deadline = None
            self._ping_later(seconds)

    def _on_no_pong(self, patience: float) -> None:
        assert self._session is not None
        self._pong_deadline = None
        if self._keepalive.on_timeout(blocked=self._session.outbox.blocked):
            self._session.close(CLOSE_POLICY, f"{NO_PONG} within {patience:g} s (ping_timeout)")
        else:
            self._ping_later(self._keepalive.interval)

    def _ping_later(self, seconds: float) -> None:
        if self._keepalive.interval:
            self._ping_timer = asyncio.get_running_loop().call_later(seconds, self._ping)

    def _cancel_ping(self) -> None:
        for timer in (self._ping_timer, self._pong_deadline):
            if timer is not None:
                timer.cancel()

    def write_message(self, message: str | bytes | dict[str, Any], binary: bool = False) -> Future[None]:
        """Send a message of the application's own, never between the fragments of a profiler's message.

        See `tornado.websocket.WebSocketHandler.write_message`; the future completes when no such message and no reply
        is waiting.
        """
        if self._session is None:
            return super().write_message(message, binary)
        if self.ws_connection is None or self.ws_connection.is_closing():
            raise WebSocketClosedError
        payload = utf8(json_encode(message) if isinstance(message, dict) else message)
        self._session.outbox.send_reply(encode_message(payload, binary=binary))
        return asyncio.ensure_future(self._session.outbox.drain())

    def _close_with(self, code: int, reason: str) -> None:
        self._cancel_ping()
        self.close(code, reason.encode()[:_MAX_REASON].decode(errors="ignore"))

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> Future[None]:
        """Finish the response; add the negotiated Sec-WebSocket-Extensions to a 101 (Tornado has no hook for it)."""
        if self.get_status() == 101 and self._extension:
            self.set_header("Sec-WebSocket-Extensions", self._extension)
        return super().finish(chunk)

    def _negotiate_deflate(self) -> None:
        """Agree to permessage-deflate without context takeover, so that one compressed message serves all clients.

        A server may promise this in answer to any offer (RFC 7692 section 7.1.1.1). Offers of a window smaller than
        zlib's are declined: their messages could not be shared. The client's own window and context need no answer,
        because Tornado inflates any. Tornado sees an offer without parameters, because it would raise for some.
        """
        offers = self.request.headers.get("Sec-WebSocket-Extensions", "")
        for offer in offers.split(",") if self.bridge.compression_level else ():
            name, *parameters = (item.strip() for item in offer.split(";"))
            names = {item.partition("=")[0] for item in parameters}
            if name == "permessage-deflate" and len(names) == len(parameters) and all(map(_OFFERED.match, parameters)):
                self.request.headers["Sec-WebSocket-Extensions"] = name
                agreed = ["server_max_window_bits=15"] if "server_max_window_bits" in names else []
                self._extension = "; ".join([name, *agreed, "server_no_context_takeover"])
                return
