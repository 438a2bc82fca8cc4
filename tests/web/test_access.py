"""Access rules, tested at a real server by requests written byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from tornado.web import Application, RequestHandler

from tests.conftest import Server
from tornado_rbkit import Bridge
from tornado_rbkit.protocol import COMMANDS, CommandError
from tornado_rbkit.web import access as access_module
from tornado_rbkit.web.access import Access, AccessHandler


class Door(AccessHandler):
    def initialize(self, access: Access) -> None:
        self.access = access

    async def get(self) -> None:
        await self.check_request()
        self.write("in")


Knock = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
async def knock() -> AsyncIterator[Knock]:
    """Return what asks a server with some rules: `status, text = await knock(access, host=..., headers=...)`."""
    servers: list[Server] = []

    async def ask(
        access: Access, *, host: str = "localhost", query: str = "", headers: bytes = b""
    ) -> tuple[int, str]:
        servers.append(Server.of(Bridge(), Application([("/", Door, {"access": access})])))
        reader, writer = await asyncio.open_connection("127.0.0.1", servers[-1].port)
        head = f"GET /{query} HTTP/1.1\r\nHost: {host}\r\n".encode() + headers + b"Connection: close\r\n\r\n"
        writer.write(head)
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    yield ask
    for server in servers:
        await server.close()


# Hosts


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8765",
        "localhost.",
        "localhost.:80",
        "127.0.0.1",
        "127.0.0.1:8765",
        "127.8.8.8",
        "[::1]",
        "[::1]:8765",
        "[0:0:0:0:0:0:0:1]",
        "[0000:0000:0000:0000:0000:0000:0000:0001]:1",
    ],
)
async def test_loopback_in_every_spelling_is_a_host_to_answer_to(knock: Knock, host: str) -> None:
    assert await knock(Access(allowed_hosts=[]), host=host) == (200, "in")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "127.0.0.1.evil.example:8765",
        "evil.example:80",
        "192.168.1.7",
        "10.0.0.1:8765",
        "0.0.0.0",
        "[::]",
        "[fe80::1]",
        "2130706433",
        "0x7f.0.0.1",
        "notlocalhost",
    ],
)
async def test_another_host_is_refused_with_what_is_allowed_and_the_setting(knock: Knock, host: str) -> None:
    status, text = await knock(Access(allowed_hosts=["profiler.example"]), host=host)
    assert status == 403
    for part in (host, "localhost", "profiler.example", "`allowed_hosts`", "--allow-host"):
        assert part in text


@pytest.mark.parametrize("host", ["", "[::1", "::1]", "[]", ".", ":80", "evil.example@localhost"])
async def test_a_malformed_host_is_refused(knock: Knock, host: str) -> None:
    status, _ = await knock(Access(allowed_hosts=["profiler.example"]), host=host)
    assert status in (400, 403)


@pytest.mark.parametrize(
    ("allowed", "host"),
    [
        ("profiler.example", "profiler.example"),
        ("profiler.example", "PROFILER.Example.:8765"),
        ("Profiler.Example", "profiler.example"),
        ("profiler.example.", "profiler.example"),
        ("10.0.0.5", "10.0.0.5:8765"),
        ("[2001:db8::1]", "[2001:DB8:0:0::1]:8765"),
        ("2001:db8::1", "[2001:db8::1]:8765"),
    ],
)
async def test_an_allowed_host_is_known_in_every_spelling(knock: Knock, allowed: str, host: str) -> None:
    assert await knock(Access(allowed_hosts=[allowed]), host=host) == (200, "in")


@pytest.mark.parametrize("allowed", [None, ["*"], ["tools.example", "*"]])
async def test_without_allowed_hosts_or_with_a_star_every_host_is_answered(
    knock: Knock, allowed: list[str] | None
) -> None:
    assert await knock(Access(allowed_hosts=allowed), host="evil.example") == (200, "in")


@pytest.mark.parametrize(
    "host",
    [
        *("*.svc", "tools.*", "**", "", " ", "a b", "http://tools.example", "tools.example/", "user@tools.example"),
        *(
            "[::1",
            "::1]",
            "[tools]",
            "10.0.0.256",
            "10.0.0",
            "tools.1",
            "a..b",
            ".",
            ":80",
            "tools:x",
            "bücher.example",
        ),
        *("fe80::1%eth0", "tools.example?", "tools.example#a", "tools%2eexample", "a,b", "[::1]x"),
    ],
)
def test_a_host_that_no_browser_can_send_is_refused_at_once(host: str) -> None:
    with pytest.raises(ValueError, match=r"allowed_hosts has .*; allowed: ") as refused:
        Access(allowed_hosts=["tools.example", host])
    assert "--allow-host" in str(refused.value)


@pytest.mark.parametrize(
    "origin",
    [
        *("tools.example", "https://*.example", "https://", "https:/tools.example", "https://tools.example/"),
        *("https://tools.example:443", "http://tools.example:80", "http://[::1]:80", "https://tools.example:"),
        *(
            "https://a b",
            "https://user@tools.example",
            "http://::1",
            "http://10.0.0.256",
            "https://bücher.example",
            "",
        ),
    ],
)
def test_an_origin_that_no_browser_can_send_is_refused_at_once(origin: str) -> None:
    with pytest.raises(ValueError, match=r"allowed_origins has .*; allowed: ") as refused:
        Access(allowed_origins=["https://tools.example", origin])
    assert "--allow-origin" in str(refused.value)


@pytest.mark.parametrize(
    "origin",
    [
        *("https://tools.example", "HTTPS://Tools.example", "https://tools.example:80", "http://tools.example:443"),
        *(
            "http://localhost:3000",
            "http://10.0.0.5:8080",
            "http://[::1]:8080",
            "https://xn--bcher-kva.example",
            "null",
        ),
        *("*", "chrome-extension://abcdefgh", "vscode-webview://1a2b", "file://", "app://."),
    ],
)
def test_an_origin_that_browsers_send_is_taken(origin: str) -> None:
    assert Access(allowed_origins=[origin]).allows_origin(origin)


# Tokens


@pytest.mark.parametrize(
    "request_",
    [
        {"query": "?token=s3cret"},
        {"headers": b"Authorization: Bearer s3cret\r\n"},
        {"headers": b"authorization: bearer s3cret\r\n"},
        {"headers": b"Authorization: BEARER  s3cret\r\n"},
        {"headers": b"Authorization: Bearer s3cret\r\n", "query": "?token=wrong"},
        {"headers": b"Authorization: Basic dTpw\r\n", "query": "?token=s3cret"},
    ],
    ids=lambda request_: " ".join(map(str, request_.values())),
)
async def test_the_token_opens_by_query_or_by_bearer(knock: Knock, request_: dict[str, Any]) -> None:
    assert await knock(Access(token="s3cret"), **request_) == (200, "in")


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"query": "?token="},
        {"query": "?token=S3CRET"},
        {"query": "?token=s3cre"},
        {"query": "?token=s3crett"},
        {"query": "?token=schl%C3%BCssel"},
        {"headers": b"Authorization: Bearer\r\n"},
        {"headers": b"Authorization: Bearer wrong\r\n"},
        {"headers": b"Authorization: Bearer wrong\r\n", "query": "?token=s3cret"},
        {"headers": b"Authorization: Basic s3cret\r\n"},
        {"headers": b"Authorization: s3cret\r\n"},
        {"headers": b"Authorization: Bearer \xff\xfe\r\n"},
        {"headers": "Authorization: Bearer schlüssel\r\n".encode()},
    ],
    ids=lambda request_: repr(request_),
)
async def test_a_wrong_or_missing_token_is_401_and_the_text_says_how_to_send_it(
    knock: Knock, request_: dict[str, Any]
) -> None:
    status, text = await knock(Access(token="s3cret"), **request_)
    assert status == 401
    for part in ("?token=", "Authorization: Bearer", "--token"):
        assert part in text
    assert "s3cret" not in text


async def test_a_token_that_is_not_utf8_is_refused(knock: Knock) -> None:
    status, _ = await knock(Access(token="s3cret"), query="?token=%FF%FE")
    assert status in (400, 401)


async def test_a_token_may_have_letters_that_are_not_ascii(knock: Knock) -> None:
    access = Access(token="schlüssel")
    assert await knock(access, query="?token=schl%C3%BCssel") == (200, "in")
    assert await knock(access, headers="Authorization: Bearer schlüssel\r\n".encode()) == (200, "in")
    assert (await knock(access, query="?token=schluessel"))[0] == 401


async def test_tokens_are_compared_in_constant_time(knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare_digest(given: bytes, expected: bytes) -> bool:
        compared.append((given, expected))
        return real(given, expected)

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    await knock(Access(token="s3cret"), query="?token=other")
    assert compared == [(b"other", b"s3cret")]


@pytest.mark.parametrize("allowed", [None, [], ["tools.example"]])
async def test_the_right_token_opens_by_whatever_host(knock: Knock, allowed: list[str] | None) -> None:
    """Probes reach a container by addresses that nobody knows before; a rebound page does not know the token."""
    access = Access(token="s3cret", allowed_hosts=allowed)
    for host in ("10.244.0.5:8765", "evil.example", "localhost"):
        assert await knock(access, host=host, query="?token=s3cret") == (200, "in")
        assert (await knock(access, host=host, query="?token=wrong"))[0] == 401
        assert (await knock(access, host=host))[0] == 401


# Origins


@pytest.mark.parametrize(
    ("allowed", "origin", "expected"),
    [
        ((), "https://example.com", False),
        (("https://example.com",), "https://example.com", True),
        (("https://example.com",), "HTTPS://Example.COM", True),
        (("https://EXAMPLE.com",), "https://example.com", True),
        (("https://example.com",), "http://example.com", False),
        (("https://example.com",), "https://example.com:8443", False),
        (("https://example.com",), "https://example.com.evil.example", False),
        (("https://example.com",), "https://evil.example/https://example.com", False),
        (("https://example.com",), "null", False),
        (("https://example.com",), "", False),
        (("https://one.example", "https://two.example"), "https://two.example", True),
        (("*",), "https://evil.example", True),
        (("*",), "null", True),
    ],
)
def test_origins_are_allowed_as_they_are_listed(allowed: tuple[str, ...], origin: str, expected: bool) -> None:
    assert Access(allowed_origins=allowed).allows_origin(origin) is expected


# Commands


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_read_only_leaves_handshake_and_refuses_the_others(command: str) -> None:
    access = Access(read_only=True)
    if command == "handshake":
        assert access.parse(command) == command
        return
    with pytest.raises(CommandError, match="`read_only`") as caught:
        access.parse(command)
    assert caught.value.reason == "forbidden"
    assert command in caught.value.text
    assert "handshake" in caught.value.text, "what is allowed"


def test_read_only_holds_with_any_command() -> None:
    with pytest.raises(CommandError) as caught:
        Access(read_only=True, commands="any").parse("anything")
    assert caught.value.reason == "forbidden"


@pytest.mark.parametrize(("message", "reason"), [("", "invalid-command"), ("bogus", "unknown-command")])
def test_read_only_does_not_hide_what_is_wrong_with_a_command(message: str, reason: str) -> None:
    with pytest.raises(CommandError) as caught:
        Access(read_only=True).parse(message)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("access", "offered"),
    [
        (Access(), COMMANDS),
        (Access(commands="any"), COMMANDS),
        (Access(commands=["trigger_gc", "dump_all"]), {"trigger_gc"}),
        (Access(commands=["trigger_gc"], read_only=True), {"handshake"}),
    ],
    ids=["default", "any", "some", "read-only"],
)
def test_a_page_offers_the_known_commands_that_are_accepted(access: Access, offered: set[str]) -> None:
    assert access.page_commands == offered


def test_commands_replace_the_nine() -> None:
    access = Access(commands=["mine"])
    assert access.parse("mine") == "mine"
    with pytest.raises(CommandError, match="`commands`"):
        access.parse("handshake")


# authorize


async def allow_later(handler: RequestHandler, command: str) -> bool:
    await asyncio.sleep(0)
    return True


async def refuse_later(handler: RequestHandler, command: str) -> bool:
    await asyncio.sleep(0)
    return False


async def fail_later(handler: RequestHandler, command: str) -> bool:
    raise LookupError("a secret of the server")


async def never(handler: RequestHandler, command: str) -> bool:
    await asyncio.Event().wait()
    return True


def fail(handler: RequestHandler, command: str) -> bool:
    raise LookupError("a secret of the server")


@pytest.mark.parametrize("authorize", [lambda handler, command: True, allow_later], ids=["sync", "async"])
async def test_authorize_admits(knock: Knock, authorize: access_module.Authorize) -> None:
    assert await knock(Access(authorize=authorize)) == (200, "in")


@pytest.mark.parametrize(
    "authorize",
    [lambda handler, command: False, lambda handler, command: None, refuse_later],
    ids=["sync", "nothing", "async"],
)
async def test_authorize_refuses_with_403_and_its_name(knock: Knock, authorize: access_module.Authorize) -> None:
    status, text = await knock(Access(authorize=authorize))
    assert status == 403
    assert "`authorize`" in text


async def test_authorize_is_asked_with_the_handler_and_handshake_before_a_page(knock: Knock) -> None:
    asked: list[tuple[type, str, str]] = []

    def authorize(handler: RequestHandler, command: str) -> bool:
        asked.append((type(handler), command, handler.get_query_argument("user")))
        return True

    await knock(Access(authorize=authorize), query="?user=ada")
    assert asked == [(Door, "handshake", "ada")]


async def test_authorize_is_not_asked_without_the_token(knock: Knock) -> None:
    asked: list[str] = []

    def authorize(handler: RequestHandler, command: str) -> bool:
        asked.append(command)
        return True

    assert (await knock(Access(token="s3cret", authorize=authorize)))[0] == 401
    assert asked == []


@pytest.mark.logs_errors
@pytest.mark.parametrize("authorize", [fail, fail_later], ids=["sync", "async"])
async def test_an_authorize_that_raises_refuses_and_only_the_log_says_why(
    knock: Knock, authorize: access_module.Authorize, caplog: pytest.LogCaptureFixture
) -> None:
    status, text = await knock(Access(authorize=authorize))
    assert status == 403
    assert "log" in text
    assert "a secret" not in text
    assert "a secret of the server" in caplog.text
    caplog.clear()
    await knock(Access(authorize=authorize))
    assert "a secret of the server" in caplog.text, "another mount counts its own"


async def test_an_authorize_that_takes_too_long_refuses(knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "AUTHORIZE_TIMEOUT", 0.05)
    status, text = await knock(Access(authorize=never))
    assert status == 403
    assert "0.05 s" in text
    assert "`authorize`" in text


# Settings


@pytest.mark.parametrize(
    ("settings", "name", "allowed"),
    [
        ({"allowed_origins": "https://example.com"}, "allowed_origins", "a list"),
        ({"allowed_hosts": "example.com"}, "allowed_hosts", "a list"),
        ({"commands": "handshake"}, "commands", '"any"'),
        ({"token": ""}, "token", "not empty"),
        ({"token": b"s3cret"}, "token", "a string"),
        ({"frame_ancestors": ["'self'"]}, "frame_ancestors", "a string"),
        ({"authorize": 1}, "authorize", "authorize(handler, command)"),
        ({"read_only": "no"}, "read_only", "True, False"),
        ({"allowed_hosts": [b"tools"]}, "allowed_hosts", "a list of strings"),
        ({"allowed_hosts": 5}, "allowed_hosts", "a list of strings"),
        ({"allowed_origins": None}, "allowed_origins", "a list of strings"),
        ({"allowed_origins": iter(["*"])}, "allowed_origins", "a list of strings"),
        ({"commands": [b"handshake"]}, "commands", '"any"'),
        ({"commands": None}, "commands", '"any"'),
    ],
)
def test_a_wrong_setting_is_a_value_error_that_says_what_is_allowed(
    settings: dict[str, Any], name: str, allowed: str
) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        Access(**settings)
    assert "allowed: " in str(caught.value)
    assert allowed in str(caught.value)
