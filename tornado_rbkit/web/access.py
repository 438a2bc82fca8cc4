"""Access rules: who may connect to a mount, from where, and which commands they may send."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias, TypedDict
from urllib.parse import quote, urlsplit

from tornado.httputil import HTTPServerRequest
from tornado.log import app_log, gen_log
from tornado.web import HTTPError, RequestHandler

from tornado_rbkit.deadline import done_within
from tornado_rbkit.log_throttle import LogThrottle, times
from tornado_rbkit.protocol import COMMANDS, VIEW_COMMAND, CommandError, parse_command
from tornado_rbkit.web.guesses import Guesses

_log = logging.getLogger(__name__)

Authorize: TypeAlias = Callable[[RequestHandler, str], bool | Awaitable[bool]]

AUTHORIZE_TIMEOUT: Final = 10.0
"""Seconds after which an `authorize` without an answer counts as a refusal."""


SNAPSHOT: Final = "objectspace_snapshot"
"""Clients that may send this command also see the other clients' addresses, which reveal less than a snapshot."""


class AccessDeniedError(HTTPError):
    """The refusal of a request, with a text for the user.

    Attributes:
        text: the complete text.
        delay: seconds to wait before answering, unless the client disconnects first.
    """

    def __init__(self, status_code: int, text: str, *quoted: str, delay: float = 0.0) -> None:
        """Create a refusal.

        Args:
            status_code: the HTTP status.
            text: the reason. Refusals with the same text are counted together in the log.
            quoted: the parts of the request that ``%a`` in the text stands for.
            delay: see the attribute.
        """
        super().__init__(status_code, text, *quoted)
        self.text = text % quoted if quoted else text
        self.delay = delay


class AccessSettings(TypedDict, total=False):
    """The settings of `Access`, for functions that take them as keyword arguments."""

    authorize: Authorize | None
    read_only: bool
    commands: Collection[str] | Literal["any"]
    allowed_origins: Collection[str]
    allowed_hosts: Collection[str] | None
    token: str | None
    frame_ancestors: str | None


@dataclass(frozen=True, kw_only=True)
class Access:
    """The rules of a mount; one object serves many handlers. Web loop only.

    Attributes:
        authorize: called with the handler and a command before each command, and with ``handshake`` before the
            WebSocket opens and before a page or a status is shown. Returns true to allow it, or an awaitable of that.
            An exception, a value that is neither true nor false, or no answer within `AUTHORIZE_TIMEOUT` refuses.
        read_only: refuse all commands except ``handshake``.
        commands: the commands that may be sent, or ``"any"``.
        allowed_origins: origins, such as ``https://example.com``, from which browsers may connect in addition to the
            server's own; ``"*"`` allows all.
        allowed_hosts: names and addresses that the Host header may contain in addition to ``localhost`` and loopback
            addresses, as protection against DNS rebinding. None or ``"*"`` allows all. Not checked if `token` is set,
            because another site's page cannot know the token.
        token: the token that a request must contain as ``?token=`` or ``Authorization: Bearer``. None requires none.
        frame_ancestors: the sites that may show the dashboard in a frame, as sources of the Content-Security-Policy
            directive ``frame-ancestors``, such as ``"'self' https://portal.example"``. None leaves the directive to
            the application or a proxy.

    Raises:
        ValueError: a setting is invalid.
    """

    authorize: Authorize | None = None
    read_only: bool = False
    commands: Collection[str] | Literal["any"] = COMMANDS
    allowed_origins: Collection[str] = ()
    allowed_hosts: Collection[str] | None = None
    token: str | None = None
    frame_ancestors: str | None = "'self'"
    _guesses: Guesses = field(default_factory=Guesses, init=False, repr=False, compare=False)
    _warned: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _throttle: LogThrottle = field(default_factory=LogThrottle, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.authorize is not None and not callable(self.authorize):
            raise ValueError(
                f"authorize={self.authorize!r} cannot be called; allowed: None, or authorize(handler, command)"
            )
        if not isinstance(self.read_only, bool):
            raise ValueError(f"read_only={self.read_only!r} is neither true nor false; allowed: True, False")
        for name in ("token", "frame_ancestors"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name}={getattr(self, name)!r} is not a string; allowed: a string, or None")
        for name in ("allowed_origins", "allowed_hosts", "commands"):
            self._check_strings(name, getattr(self, name))
        for origin in self.allowed_origins:
            if origin != "*" and not _is_origin(origin):
                allowed = "as https://tools.example or http://10.0.0.5:8080, as browsers send it, or '*'"
                raise ValueError(f"allowed_origins has {origin!r}; allowed: {allowed} (--allow-origin)")
        for host in self.allowed_hosts or ():
            if host != "*" and not _is_host(host):
                allowed = "an ASCII name or an address, as browsers send it, or '*' alone for all"
                raise ValueError(f"allowed_hosts has {host!r}; allowed: {allowed} (--allow-host)")
        if self.token is not None:
            check_token(self.token, "token")
        if re.search(r"[;,\x00-\x1f\x7f-\U0010ffff]", self.frame_ancestors or "") or self.frame_ancestors == "":
            allowed = "None, or sources as \"'self' https://portal.example\" (--frame-ancestors)"
            raise ValueError(f"frame_ancestors={self.frame_ancestors!r} cannot be a header; allowed: {allowed}")

    @staticmethod
    def _check_strings(name: str, value: object) -> None:
        allowed = 'a list of strings, or "any"' if name == "commands" else "a list of strings"
        if (value is None and name == "allowed_hosts") or (value == "any" and name == "commands"):
            return
        if isinstance(value, str | bytes):
            raise ValueError(f"{name}={value!r} is one string; allowed: {allowed}")
        if not isinstance(value, Collection) or not all(isinstance(each, str) for each in value):
            raise ValueError(f"{name}={value!r} is not a list of strings; allowed: {allowed}")

    async def check_request(self, handler: RequestHandler) -> None:
        """Check an HTTP request against `token` (or, without one, `allowed_hosts`) and `authorize`.

        Raises:
            AccessDeniedError: 401 if the token is missing or wrong, else 403.
        """
        if self.token is None:
            self._check_host(handler.request.headers.get("Host", ""))
            self._warn_if_open(handler.request)
        else:
            self._check_token(handler, self.token)
        refusal = await self.refusal(handler, VIEW_COMMAND)
        if refusal is not None:
            raise AccessDeniedError(403, refusal.text)

    def allows_origin(self, origin: str) -> bool:
        """Return whether `allowed_origins` contains an origin."""
        return "*" in self.allowed_origins or origin.lower() in {item.lower() for item in self.allowed_origins}

    @property
    def page_commands(self) -> Collection[str]:
        """The commands of `COMMANDS` that `parse` accepts, for a page to offer."""
        if self.read_only:
            return {VIEW_COMMAND}
        return COMMANDS if self.commands == "any" else COMMANDS & set(self.commands)

    def parse(self, message: str | bytes) -> str:
        """Return the command in a client's message.

        Raises:
            CommandError: the message is malformed, or the command is unknown or refused by `read_only`.
        """
        command = parse_command(message, self.commands)
        if self.read_only and command != VIEW_COMMAND:
            text = f"{command}: only {VIEW_COMMAND} is allowed here (the setting `read_only`)"
            raise CommandError("forbidden", text)
        return command

    async def refusal(self, handler: RequestHandler, command: str) -> CommandError | None:
        """Call `authorize`; return the error that refuses the command, None if it is allowed.

        An exception in `authorize` refuses the command. Only KeyboardInterrupt, SystemExit and the cancellation of
        the caller are raised.
        """
        if self.authorize is None:
            return None
        try:
            answer = _call(self.authorize, handler, command)
            if inspect.isawaitable(answer):
                asked = _call(asyncio.ensure_future, answer)
                try:
                    if not await done_within(AUTHORIZE_TIMEOUT, asked):
                        text = f"{command}: `authorize` took longer than {AUTHORIZE_TIMEOUT:g} s"
                        return CommandError("forbidden", text)
                finally:
                    if asked is not answer:  # a future of the application may have other waiters
                        asked.cancel()
                answer = _call(asked.result)
            allowed = _call(bool, answer)
        except Exception as error:  # noqa: BLE001 - application code; its failure must allow nothing
            count = self._throttle.add(repr(type(error)))  # a client can cause it as often as it likes
            if count:
                _log.exception("authorize raised; %s is refused%s", command, times(count))
            return CommandError("forbidden", f"{command}: `authorize` failed; the server's log has the reason")
        return None if allowed else CommandError("forbidden", f"{command}: not allowed by the setting `authorize`")

    async def shows_clients(self, handler: RequestHandler) -> bool:
        """Return whether a page may show the clients' addresses: only if the request may send `SNAPSHOT`."""
        try:
            self.parse(SNAPSHOT)
        except CommandError:
            return False
        return await self.refusal(handler, SNAPSHOT) is None

    def _warn_if_open(self, request: HTTPServerRequest) -> None:
        """Log once, at the first request from another machine, that every client may command the profiler."""
        if self._warned or self.authorize is not None or self.read_only:
            return
        forwarded = request.headers.get("X-Forwarded-For", "").split(",")
        addresses = (part.strip().partition("%")[0] for part in (request.remote_ip or "", *forwarded))
        remote = next(filter(_is_remote, addresses), None)  # without the zone, which may be any text
        if remote is not None:
            self._warned.add(remote)
            _log.warning(
                "everybody who can reach this server, such as %s, can view and command the profiler; "
                "set one of `token`, `authorize` and `read_only`",
                remote,
            )

    def _check_host(self, header: str) -> None:
        if self.allowed_hosts is None or "*" in self.allowed_hosts:
            return
        host = _host_name(header)
        if host is None or not (is_loopback(host) or host in {_host_name(item) for item in self.allowed_hosts}):
            allowed = ", ".join(["localhost", *self.allowed_hosts])
            setting = "(the setting `allowed_hosts`, --allow-host)"
            raise AccessDeniedError(403, f"the host %a is not allowed; allowed: {allowed} {setting}", header[:100])

    def _check_token(self, handler: RequestHandler, token: str) -> None:
        scheme, _, given = handler.request.headers.get("Authorization", "").partition(" ")
        given = given.encode("latin-1", "replace").decode(errors="replace")  # Tornado decodes headers as Latin-1
        if scheme.lower() != "bearer":
            given = handler.get_query_argument("token", "")
        given = given.strip()
        if not hmac.compare_digest(given.encode(), token.encode()):
            handler.set_header("WWW-Authenticate", "Bearer")
            delay = self._guesses.add(handler.request.remote_ip) if given else 0.0
            text = "the token is missing or wrong; send ?token= or Authorization: Bearer (--token)"
            raise AccessDeniedError(401, text, delay=delay)


class AccessHandler(RequestHandler):
    """Base class of all handlers: holds the access rules of the mount and answers refusals in plain text."""

    access: Access
    _on_connection_close: asyncio.Event | None = None

    def set_default_headers(self) -> None:
        """Forbid content sniffing, and sending URLs, which may contain a token, to other sites.

        Headers set by the application take precedence.
        """
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-Content-Type-Options", "nosniff")
        super().set_default_headers()

    async def check_request(self) -> None:
        """Raise `AccessDeniedError` unless the request may view the profiler; subclasses may add rules."""
        try:
            await self.access.check_request(self)
        except AccessDeniedError as refusal:
            if refusal.delay:
                await self._delay(refusal.delay)
            raise

    async def _delay(self, seconds: float) -> None:
        self._on_connection_close = asyncio.Event()
        waiting = asyncio.ensure_future(self._on_connection_close.wait())
        await asyncio.wait([waiting], timeout=seconds)
        waiting.cancel()

    def on_connection_close(self) -> None:
        """End the delay of an answer whose client has disconnected."""
        super().on_connection_close()
        if self._on_connection_close is not None:
            self._on_connection_close.set()

    def _request_summary(self) -> str:
        """Return the request for a log line, without its query, which may contain a token."""
        return f"{self.request.method} {quote(self.request.path, safe='/%~:@')} ({self.request.remote_ip})"

    def log_exception(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Log an uncaught exception; unlike Tornado, without the request's query, which may contain a token.

        The reason of a refusal is in the template, so that a log throttle counts each reason by itself.
        """
        if isinstance(error, HTTPError):
            if error.log_message:
                gen_log.warning(f"%d %s: {error.log_message}", error.status_code, self._request_summary(), *error.args)
        else:
            app_log.error("Uncaught exception %s", self._request_summary(), exc_info=error or True)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer an `AccessDeniedError` in plain text: what was wrong, and which setting changes it."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, AccessDeniedError):
            self.set_header("Content-Type", "text/plain; charset=UTF-8")
            self.finish(error.text + "\n")
        else:
            super().write_error(status_code, **kwargs)


def check_token(token: str, setting: str) -> str:
    """Return the token if a client can send it.

    Raises:
        ValueError: the token is empty, contains unprintable characters, or begins or ends with a space.
    """
    if not token:
        raise ValueError(f"the token is empty and would admit everybody; allowed: one that is not empty ({setting})")
    if not token.isprintable() or "\ufffd" in token or token != token.strip():
        allowed = "printable characters, without a space at either end"
        raise ValueError(f"the token has characters that cannot be sent; allowed: {allowed} ({setting})")
    return token


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call application code; re-raise a BaseException as RuntimeError unless it is meant to end the process.

    A CancelledError raised by the application must not be mistaken for the cancellation of the calling task.
    """
    try:
        return function(*arguments)
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise RuntimeError(f"`authorize` raised {error!r}") from error


def _host_name(header: str) -> str | None:
    """Return the normalised name or address in a Host header; None if there is none."""
    try:
        return str(ipaddress.ip_address(header))  # a bare IPv6 address, which a setting may contain
    except ValueError:
        pass
    try:
        host = (urlsplit("//" + header).hostname or "").removesuffix(".")
    except ValueError:
        return None
    if header.startswith("[") and not re.fullmatch(r"\[[^\]]*\](:[0-9]*)?", header):
        return None  # urlsplit drops the text after the bracket
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host or None


def _is_host(setting: str) -> bool:
    """Return whether a browser's Host header can contain this name or address, in brackets or not."""
    try:
        return "%" not in str(ipaddress.ip_address(setting))  # the host of a URL has no zone
    except ValueError:
        return _is_authority(setting)


def _is_authority(setting: str) -> bool:
    """Return whether a text is a name or an address (IPv6 in brackets), with or without a port."""
    if not re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?", setting):
        return False
    host = _host_name(setting) or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:  # browsers parse a name that ends in a number as an IPv4 address
        return all(host.split(".")) and not host.rpartition(".")[2].isdecimal()
    return True


def _is_origin(setting: str) -> bool:
    """Return whether a browser can send this Origin header: it has no path and no default port."""
    scheme, separator, authority = setting.lower().partition("://")
    if scheme in ("http", "https"):
        own_port = "80" if scheme == "http" else "443"
        port = re.search(r":([0-9]*)$", authority)
        return bool(separator) and _is_authority(authority) and (port is None or port[1] not in ("", own_port))
    return setting == "null" or re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s*]*", setting) is not None


def is_loopback(host: str) -> bool:
    """Return whether a host is ``localhost`` or a loopback address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _is_remote(address: str) -> bool:
    """Return whether an address is another machine's; Tornado reports ``0.0.0.0`` for a Unix socket."""
    try:
        return not is_loopback(address) and not ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False
