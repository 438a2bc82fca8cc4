"""A connection to a NATS server: the only module that uses nats-py.

nats-py's client does not recover from a server that froze with unsent bytes (nats.py issue 671), and while it
reconnects it queues what is published, so that a command could be carried out after it was reported as failed. Here an
unresponsive client is replaced, and nothing is queued for an absent server.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import logging
import random
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.fleet.nats import NatsServers, without_password
from tornado_rbkit.log_throttle import LogThrottle, times
from tornado_rbkit.tasks import Tasks

_log = logging.getLogger(__name__)

CHECK_INTERVAL: Final = 1.0
"""Seconds between two round trips to the server, which check the client."""

PATIENCE: Final = 1.5
"""Seconds for such a round trip; then the client is replaced."""

DATA_PATIENCE: Final = 4.0
"""Seconds for such a round trip on a connection for data, on which it may wait behind a window's bytes."""

MAX_PAYLOAD: Final = 512 * 1024
"""Bytes of a message; NATS servers take 1 MiB by default (max_payload)."""

_MAX_QUEUED: Final = 8 * 1024 * 1024  # bytes of messages of one subscription that wait for its callback
_CONNECT_TIMEOUT: Final = 4.0  # seconds
LONGEST_DELAY: Final = 2.0
"""Seconds before another attempt to connect, at most; they double, with jitter: a whole fleet reconnects at once."""

_FIRST_DELAY: Final = 0.1  # seconds
_REFUSED_DELAY: Final = 30.0  # seconds after the server refused the credentials
_CLOSE_TIMEOUT: Final = 2.0  # seconds
_NEVER: Final = 1e9  # seconds
_FIRST: Final = asyncio.FIRST_COMPLETED
_NO_RESPONDERS: Final = "503"
_DENIED: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')


class FleetExtraMissingError(RbkitError):
    """The extra ``fleet`` is not installed."""

    exit_status = 2


class LinkError(RbkitError):
    """A request has no reply: the link is down, nobody listens, it is not allowed, or it has timed out."""


class NoRespondersError(LinkError):
    """Nobody is subscribed to the subject of a request."""


class ForbiddenError(LinkError):
    """The server does not allow the subject of a request."""


class LinkDownError(LinkError):
    """There is no connection to the server."""


class TooLongError(LinkError):
    """The server does not take messages of that size."""


class RequestTimeoutError(LinkError):
    """There was no reply in time."""


class Message(NamedTuple):
    """A message that arrived."""

    subject: str
    data: bytes
    reply: str


def require_nats() -> None:
    """Check that nats-py and nkeys are installed.

    Raises:
        FleetExtraMissingError: one is not.
    """
    for module in ("nats", "nkeys"):
        if importlib.util.find_spec(module) is None:
            raise FleetExtraMissingError(f"{module} is not installed; pip install 'tornado_rbkit[fleet]'")


class Link:
    """Keeps a connection to one of the servers, and subscribes again on each new one. On one event loop only.

    Attributes:
        is_up: whether there is a connection.
        up_at: when the last connection came up (monotonic seconds).
        refusal: why the server has refused the credentials, "" if it has not.
    """

    def __init__(
        self,
        servers: Callable[[], NatsServers | None],
        name: str,
        *,
        inbox: str = "",
        pending_bytes: int = 0,
        patience: float = PATIENCE,
        on_change: Callable[[bool], None] = lambda up: None,
    ) -> None:
        """Describe a link; `run` connects it.

        Args:
            servers: returns the servers, before each attempt; None if they are not known yet.
            name: the name of the connection, for the server's operator.
            inbox: the prefix of the subjects for replies; "" if no requests are made.
            pending_bytes: bytes that may wait in the client; when they are reached, `publish` waits.
            patience: seconds for a round trip to the server, after which the client is replaced.
            on_change: called with `is_up` after each change.
        """
        require_nats()
        self.is_up = False
        self.up_at = 0.0
        self.refusal = ""
        self._servers = servers
        self._name = name
        self._inbox = f"{inbox}.{secrets.token_hex(8)}" if inbox else ""
        self._pending_bytes = pending_bytes
        self._patience = patience
        self._reason = ""
        self._pending: asyncio.Task[None] | None = None  # of the client, which `_close` cancels
        self._on_change = on_change
        self._client: Any = None
        self._lost = asyncio.Event()
        self._up = asyncio.Event()
        self._subscriptions: dict[str, Callable[[Message], Awaitable[None] | None]] = {}
        self._requests: dict[str, tuple[str, asyncio.Future[bytes]]] = {}
        self._numbers = itertools.count()
        self._closing = Tasks()
        self._untried: list[str] = []  # of the servers, in random order: a fleet spreads over them
        self._throttle = LogThrottle()
        if self._inbox:
            self._subscriptions[f"{self._inbox}.*"] = self._on_reply

    async def run(self) -> None:
        """Connect, and connect again whenever the connection is lost, until cancelled."""
        delay = _FIRST_DELAY
        try:
            while True:
                if await self._connect():
                    delay = _FIRST_DELAY
                    await self._watch()
                    self._set_down()
                if self.refusal:
                    delay = _REFUSED_DELAY
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                delay = min(2 * delay, LONGEST_DELAY)
        finally:
            self._set_down()
            while self._closing:  # also if it is cancelled again: a connection would outlive the event loop
                with contextlib.suppress(asyncio.CancelledError):
                    await self._closing.wait()

    async def wait_until_up(self) -> None:
        """Wait until there is a connection."""
        await self._up.wait()

    async def subscribe(self, subject: str, callback: Callable[[Message], Awaitable[None] | None]) -> None:
        """Call a function with each message on a subject, on this connection and on later ones.

        When this returns, the server knows of the subscription, or there is no connection.
        """
        self._subscriptions[subject] = callback
        client = self._client
        if client is not None:
            await self._subscribe(client, subject, callback)
            with contextlib.suppress(*_client_errors()):  # the client is replaced
                await _confirm(client)

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        """Publish, perhaps with a subject for the reply; wait if `pending_bytes` are reached.

        Raises:
            LinkDownError: there is no connection.
            TooLongError: the message has more bytes than the server takes.
        """
        client, lost = self._client, self._lost  # of the same connection: another one may replace it meanwhile
        if client is None:
            raise LinkDownError("there is no connection to NATS")
        if len(data) > client.max_payload:
            raise TooLongError(f"a message of {len(data)} bytes; allowed: {client.max_payload} (max_payload)")
        try:
            await client.publish(subject, data, reply=reply)
        except _client_errors() as error:
            lost.set()
            raise LinkDownError("the connection to NATS is lost") from error

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        """Publish, and return the reply.

        Raises:
            LinkError: there is no reply within `timeout` seconds, or there cannot be any.
        """
        reply = f"{self._inbox}.{next(self._numbers)}"
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._requests[reply] = subject, future
        try:
            await self.publish(subject, data, reply)
            await _wait_for_any([future], timeout)
            if not future.done():
                raise RequestTimeoutError(f"no reply within {timeout:g} s")
            return future.result()
        finally:
            del self._requests[reply]
            if future.done() and not future.cancelled():
                future.exception()  # it may have failed while publishing did: asyncio would log it as never retrieved

    async def _connect(self) -> bool:
        """Create a client; return whether it is connected."""
        servers = self._servers()
        if servers is None:
            return False
        url = self._next_url(servers)
        client = _new_client()
        lost = asyncio.Event()
        self._pending = opening = asyncio.create_task(self._open(client, url, servers, lost))
        try:
            await asyncio.wait([opening], timeout=_CONNECT_TIMEOUT)
        except asyncio.CancelledError:
            self._drop(client)
            raise
        error = opening.exception() if opening.done() else TimeoutError("no reply")
        if error is not None:
            self._drop(client)
            reason = self._reason or str(error) or type(error).__name__
            self.refusal = reason if "authorization" in reason.lower() else ""
            self._throttle.warn(_log, "connect", "cannot connect to NATS at %s: %s", without_password(url), reason)
            return False
        self.refusal = ""
        self._client, self._lost = client, lost
        self.is_up, self.up_at = True, time.monotonic()
        self._up.set()
        _log.info("connected to NATS at %s", without_password(url))
        self._on_change(True)
        return True

    def _next_url(self, servers: NatsServers) -> str:
        """Return the next server, so that one that is frozen is tried again only after all the others."""
        self._untried = [url for url in self._untried if url in servers.urls]
        if not self._untried:
            self._untried = random.sample(servers.urls, len(servers.urls))
        return self._untried.pop()

    async def _open(self, client: Any, url: str, servers: NatsServers, lost: asyncio.Event) -> None:
        """Connect a client, and subscribe."""

        async def on_closed() -> None:
            lost.set()

        await client.connect(url, closed_cb=on_closed, **self._options(servers, url))
        _mark_as_tls(client)
        if client.max_payload < MAX_PAYLOAD:
            raise LinkError(f"its max_payload is {client.max_payload} bytes; needed: {MAX_PAYLOAD} or more")
        for subject, callback in list(self._subscriptions.items()):
            await self._subscribe(client, subject, callback)
        await _confirm(client)

    async def _watch(self) -> None:
        """Return once the client does not respond."""
        lost = asyncio.create_task(self._lost.wait())
        try:
            while True:
                await asyncio.wait([lost], timeout=CHECK_INTERVAL)
                if lost.done():
                    return
                self._pending = check = asyncio.create_task(self._client.flush(_NEVER))
                await _wait_for_any([lost, check], self._patience)
                if not check.done() or check.exception() is not None:
                    return
        finally:
            lost.cancel()

    def _set_down(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        self.is_up = False
        self._up.clear()
        self._drop(client)
        for _, future in list(self._requests.values()):
            if not future.done():
                future.set_exception(LinkDownError("the connection to NATS is lost"))
        self._on_change(False)

    def _drop(self, client: Any) -> None:
        """Close a client in the background: it may wait for a server that does not answer."""
        pending, self._pending = self._pending, None
        self._closing.start(_close(client, pending), "closing a client of NATS")

    def _options(self, servers: NatsServers, url: str) -> dict[str, Any]:
        self._reason = ""
        credentials = servers.credentials
        options: dict[str, Any] = {
            "name": self._name,
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": _CONNECT_TIMEOUT / 2,
            "ping_interval": 3600,  # `_watch` checks more often
            "pending_size": self._pending_bytes,
            "error_cb": self._on_error,
        }
        if url.startswith("tls:"):
            options |= {"tls": servers.tls(), "tls_handshake_first": True}
        if credentials.seed:
            options["nkeys_seed_str"] = credentials.seed
        elif credentials.file:
            options["user_credentials"] = credentials.file
        return options

    async def _subscribe(
        self, client: Any, subject: str, callback: Callable[[Message], Awaitable[None] | None]
    ) -> None:
        async def call(message: Any) -> None:
            if client is not self._client and self._client is not None:
                return  # from a client that was replaced
            try:
                result = callback(Message(message.subject, message.data, _reply_of(message)))
                if result is not None:
                    await result
            except Exception:  # noqa: BLE001 - nats-py would report it only to `_on_error`
                count = self._throttle.add(("callback", subject))
                if count:
                    _log.exception("handling a message on %s failed%s", subject, times(count))

        with contextlib.suppress(*_client_errors()):  # the client is closed: another one subscribes
            await client.subscribe(subject, cb=call, pending_bytes_limit=_MAX_QUEUED)

    def _on_reply(self, message: Message) -> None:
        _, future = self._requests.get(message.subject, ("", None))
        if future is None or future.done():
            return  # a late reply
        if message.reply == _NO_RESPONDERS and not message.data:
            future.set_exception(NoRespondersError("nobody answers"))
        else:
            future.set_result(message.data)

    async def _on_error(self, error: Exception) -> None:
        """Note an error of the client; fail the requests that the server does not allow."""
        text = str(error) or type(error).__name__
        self._reason = text
        denied = _DENIED.search(text.lower())
        if denied is None:
            if isinstance(error, _slow_consumer_error()):
                text = "dropped a message, because more than %d bytes wait"
                self._throttle.warn(_log, "slow", text, _MAX_QUEUED)
            return
        for subject, future in list(self._requests.values()):
            if subject.lower() == denied[2] and not future.done():
                future.set_exception(ForbiddenError("the credentials do not allow it (tornado-rbkit hub)"))
        self._throttle.warn(_log, ("denied", denied[2]), "NATS does not allow the %s of %s", denied[1], denied[2])


async def _wait_for_any(futures: Sequence[asyncio.Future[Any]], timeout: float) -> None:
    """Wait until one of the futures is done, or a time-out.

    It waits in two steps. If this process was stopped for longer than the time-out, the first step ends at once, and
    what has arrived meanwhile is read during the second.
    """
    for _ in range(2):
        done, _ = await asyncio.wait(futures, timeout=timeout / 2, return_when=_FIRST)
        if done:
            return


def _new_client() -> Any:
    from nats.aio.client import Client

    return Client()


def _client_errors() -> tuple[type[Exception], ...]:
    from nats.errors import Error

    return Error, OSError, asyncio.TimeoutError


def _slow_consumer_error() -> type[Exception]:
    from nats.errors import SlowConsumerError

    return SlowConsumerError


def _reply_of(message: Any) -> str:
    """Return the subject for the reply; for the server's own "no responders", its status."""
    status = (message.headers or {}).get("Status")
    return _NO_RESPONDERS if status == _NO_RESPONDERS else str(message.reply)


def _mark_as_tls(client: Any) -> None:
    """Tell asyncio of TLS, as its own `StreamWriter.start_tls` does: else it warns at the end of each connection."""
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None and writer.get_extra_info("ssl_object") is not None:
        writer.transport.get_protocol()._over_ssl = True


async def _confirm(client: Any) -> None:
    """Wait until the server knows what was subscribed: the first PING may overtake what the client still holds."""
    await client.flush(_NEVER)
    await client.flush(_NEVER)


async def _close(client: Any, pending: asyncio.Task[None] | None) -> None:
    """Close a client, cancel a task that waits for it, and abort its connection if that has left it open.

    The task is not cancelled earlier, because the client's reader would fail at a late reply. A connection stays open
    if the server does not answer, if the client was still connecting, or if it had begun to close itself.
    """
    with contextlib.suppress(Exception):  # the client is given up in any case
        await asyncio.wait_for(client.close(), _CLOSE_TIMEOUT)
    if pending is not None:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
        await asyncio.sleep(0)  # it closes its socket in the next turn of the loop
