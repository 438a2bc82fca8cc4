"""Who may open a mount, from where, and which commands it takes."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import quote, urlsplit

from tornado.web import HTTPError, RequestHandler

from tornado_rbkit.protocol import COMMANDS, CommandError, parse_command
from tornado_rbkit.repeats import Repeats, times

_log = logging.getLogger(__name__)
_repeats = Repeats()  # of what the applications' `authorize` raise: a client may ask as often as it likes

Authorize: TypeAlias = Callable[[RequestHandler, str], bool | Awaitable[bool]]

WATCH: Final = "handshake"
"""The command that stands for watching: `authorize` is asked for it at open, and `read_only` leaves only it."""

AUTHORIZE_TIMEOUT: Final = 10.0
"""Seconds; an `authorize` that takes longer has refused."""


class Refusal(HTTPError):
    """A request that is turned away, with a text for the people at the other end."""

    def __init__(self, status_code: int, text: str) -> None:
        super().__init__(status_code, text)
        self.text = text


@dataclass(frozen=True, kw_only=True)
class Access:
    """The rules of a mount; one object serves many handlers. Web loop only.

    Attributes:
        authorize: asked with the handler and a command before each command, and with ``handshake`` before the
            WebSocket opens and before a page or a status is shown. Returns whether it may be, or an awaitable that
            does. Refused is also what it raises for, answers neither true nor false to, or takes longer for than
            `AUTHORIZE_TIMEOUT`.
        read_only: refuse all commands but ``handshake``.
        commands: the commands that may be sent, or ``"any"``.
        allowed_origins: origins, such as ``https://example.com``, from which browsers may connect, beside the
            server's own; ``"*"`` among them allows all.
        allowed_hosts: names that the Host header may have, beside ``localhost`` and loopback addresses: the guard
            against DNS rebinding. None allows all.
        token: what the request must bring as ``?token=`` or ``Authorization: Bearer``. None asks for none.

    Raises:
        ValueError: a setting is not what it has to be.
    """

    authorize: Authorize | None = None
    read_only: bool = False
    commands: Collection[str] | Literal["any"] = COMMANDS
    allowed_origins: Collection[str] = ()
    allowed_hosts: Collection[str] | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        for name in ("allowed_origins", "allowed_hosts"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r} is one string; allowed: a list of them")
        for origin in self.allowed_origins:
            if origin != "*" and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s]*|null", origin):
                raise ValueError(f"allowed_origins has {origin!r}; allowed: as https://tools.example, or '*'")
        for host in self.allowed_hosts or ():
            if "/" in host or _host_name(host) is None:
                raise ValueError(f"allowed_hosts has {host!r}; allowed: a name or an address (--allow-host)")
        if isinstance(self.commands, str) and self.commands != "any":
            raise ValueError(f'commands={self.commands!r} is one string; allowed: a list of them, or "any"')
        if self.token is not None:
            check_token(self.token, "token")

    async def check_request(self, handler: RequestHandler) -> None:
        """Check Host, token and `authorize` for an HTTP request.

        Raises:
            Refusal: 403, or 401 where the token is wrong.
        """
        self._check_host(handler.request.headers.get("Host", ""))
        self._check_token(handler)
        refusal = await self.refusal(handler, WATCH)
        if refusal is not None:
            raise Refusal(403, refusal.text)

    def allows_origin(self, origin: str) -> bool:
        """Return whether `allowed_origins` has it."""
        return "*" in self.allowed_origins or origin.lower() in {item.lower() for item in self.allowed_origins}

    @property
    def page_commands(self) -> Collection[str]:
        """Those of protocol 2.1 that `parse` lets through, for a page that offers them."""
        if self.read_only:
            return {WATCH}
        return COMMANDS if self.commands == "any" else COMMANDS & set(self.commands)

    def parse(self, message: str | bytes) -> str:
        """Return the command in a client's message.

        Raises:
            CommandError: it is malformed, unknown, or refused by `read_only`.
        """
        command = parse_command(message, self.commands)
        if self.read_only and command != WATCH:
            raise CommandError("forbidden", f"{command}: only {WATCH} is allowed here (the setting `read_only`)")
        return command

    async def refusal(self, handler: RequestHandler, command: str) -> CommandError | None:
        """Ask `authorize`; return why the command is refused, None if it is allowed.

        Whatever `authorize` raises refuses. Only the caller's own cancellation is raised, and what is meant to end
        the process: KeyboardInterrupt and SystemExit.
        """
        if self.authorize is None:
            return None
        try:
            answer = _call(self.authorize, handler, command)
            if inspect.isawaitable(answer):
                asked = _call(asyncio.ensure_future, answer)
                if not await _done_within(AUTHORIZE_TIMEOUT, asked):
                    text = f"{command}: `authorize` took longer than {AUTHORIZE_TIMEOUT:g} s"
                    return CommandError("forbidden", text)
                answer = _call(asked.result)
            allowed = _call(bool, answer)
        except Exception as error:  # noqa: BLE001 - the application's code; that it fails must let nobody in
            count = _repeats.add((self.authorize, type(error)))
            if count:
                _log.exception("authorize raised; %s is refused%s", command, times(count))
            return CommandError("forbidden", f"{command}: `authorize` failed; the server's log has the reason")
        return None if allowed else CommandError("forbidden", f"{command}: not allowed by the setting `authorize`")

    def _check_host(self, header: str) -> None:
        if self.allowed_hosts is None:
            return
        host = _host_name(header)
        if host is None or not (is_loopback(host) or host in {_host_name(item) for item in self.allowed_hosts}):
            allowed = ", ".join(["localhost", *self.allowed_hosts])
            setting = "(the setting `allowed_hosts`, --allow-host)"
            raise Refusal(403, f"the host {header[:100]!r} is not allowed; allowed: {allowed} {setting}")

    def _check_token(self, handler: RequestHandler) -> None:
        if self.token is None:
            return
        scheme, _, given = handler.request.headers.get("Authorization", "").partition(" ")
        given = given.encode("latin-1", "replace").decode(errors="replace")  # Tornado takes headers for Latin-1
        if scheme.lower() != "bearer":
            given = handler.get_query_argument("token", "")
        if not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            handler.set_header("WWW-Authenticate", "Bearer")
            raise Refusal(401, "the token is missing or wrong; send ?token= or Authorization: Bearer (--token)")


class AccessHandler(RequestHandler):
    """The base of every handler here: it has the rules of its mount, and its refusals are plain text."""

    access: Access

    async def check_request(self) -> None:
        """Raise `Refusal` unless the request may watch; for subclasses with rules of their own."""
        await self.access.check_request(self)

    def _request_summary(self) -> str:
        """Return what stands in a log line: without the query, in which there may be a token."""
        return f"{self.request.method} {quote(self.request.path, safe='/%~:@')} ({self.request.remote_ip})"

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say in plain text what was wrong, and which setting changes it."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, Refusal):
            self.set_header("Content-Type", "text/plain; charset=UTF-8")
            self.finish(error.text + "\n")
        else:
            super().write_error(status_code, **kwargs)


def check_token(token: str, setting: str) -> str:
    """Return a token that a client can send.

    Raises:
        ValueError: it is empty, has characters that cannot be printed, or begins or ends with a space.
    """
    if not token:
        raise ValueError(f"the token is empty, and would let everybody in; allowed: one that is not empty ({setting})")
    if not token.isprintable() or "\ufffd" in token or token != token.strip():
        allowed = "those that can be printed, without a space at either end"
        raise ValueError(f"the token has characters that cannot be sent; allowed: {allowed} ({setting})")
    return token


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call code of the application's; raise what is neither an Exception nor meant to end the process as one.

    A CancelledError that the application raises is not the cancellation of the task that asked.
    """
    try:
        return function(*arguments)
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise RuntimeError(f"`authorize` raised {error!r}") from error


async def _done_within(timeout: float, asked: asyncio.Future[Any]) -> bool:
    """Wait for an answer, at most `timeout` seconds; cancel it when it is too late or this is cancelled."""
    try:
        await asyncio.wait([asked], timeout=timeout)
        return asked.done()
    finally:
        asked.cancel()


def _host_name(header: str) -> str | None:
    """Return the name or address in a Host header, in one spelling; None if there is none."""
    try:
        return str(ipaddress.ip_address(header))  # a bare IPv6 address, as a setting may have it
    except ValueError:
        pass
    try:
        host = (urlsplit("//" + header).hostname or "").removesuffix(".")
    except ValueError:
        return None
    if header.startswith("[") and not re.fullmatch(r"\[[^\]]*\](:[0-9]*)?", header):
        return None  # urlsplit lets go of what follows the bracket
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host or None


def is_loopback(host: str) -> bool:
    """Return whether a name or an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
