"""Bad requests to the stand-alone server: wrong paths, wrong origins, malformed lines, and slow requests."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.faults.serving import Serving, serving
from tests.faults.steady import SteadyProcess
from tests.faults.witness import Witness
from tests.raw import HANDSHAKE, Raw, upgrade_request

PROGRAM = """
import signal, sys
from tests.patient import raise_defaults_of_a_server
from tornado_rbkit.cli import listener, main
raise_defaults_of_a_server()
signal.signal(signal.SIGUSR1, lambda *_: setattr(listener, "REQUEST_TIMEOUT", 1.0))
sys.exit(main.main())
"""
UNTHROTTLED = f"from tornado_rbkit.cli import main; main.LogThrottleFilter.filter = lambda *_: True\n{PROGRAM}"


@contextlib.contextmanager
def serve(profiler: SteadyProcess, folder: Path, *rules: str, program: str = PROGRAM) -> Iterator[Serving]:
    """Run `tornado-rbkit -v serve`, whose patience with later requests is a second after SIGUSR1."""
    options = ["-v", "serve", "--pub", profiler.pub, "--req", profiler.req, "--port", "0", *rules]
    with serving(folder / "log", [sys.executable, "-X", "dev", "-W", "error", "-c", program, *options]) as running:
        yield running


@pytest.fixture(scope="module")
def server(steady: SteadyProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with a token, for all tests: what is written to one must harm no later one, either."""
    with serve(steady, tmp_path_factory.mktemp("server"), "--token", "s3cret") as running:
        yield running


@pytest.fixture
def open_server(steady: SteadyProcess, tmp_path: Path) -> Iterator[Serving]:
    """A server without a token."""
    with serve(steady, tmp_path) as running:
        yield running


async def answer(server: Serving, request: str) -> bytes:
    async with Raw(server.port) as client:
        client.writer.write(request.encode("latin-1"))
        return await client.end()


def get(path: str, *headers: str) -> str:
    lines = [f"GET {path} HTTP/1.1", "Connection: close", "Authorization: Bearer s3cret", *headers]
    return "\r\n".join([*lines, *([] if any(line.startswith("Host") for line in headers) else ["Host: a"]), "", ""])


@pytest.mark.parametrize(
    "path",
    [
        *("../__init__.py", "%2e%2e/page.html", "..%2fpage.html", "%2e%2e%2f%2e%2e%2faccess.py", "....//page.html"),
        *("/etc/passwd", "%2fetc%2fpasswd", "..\\page.html", "%5c..%5cpage.html", "%00", "app.js%00", "%ff", ".", ""),
        *("a/" * 1000, "app.js/", "%c0%ae%c0%ae/page.html", "app.js/../../page.html"),
    ],
)
async def test_what_is_not_a_file_of_the_page_is_not_found(server: Serving, path: str) -> None:
    got = await answer(server, get(f"/rbkit/static/{path}", "Host: 127.0.0.1"))
    assert got.split(b" ")[1] in (b"404", b"403", b"400"), got[:200]


async def test_hosts_in_every_disguise(open_server: Serving) -> None:
    for host in ("127.0.0.1", "LOCALHOST", "localhost.", "localhost:1", "[::1]", "[::1]:8765", "127.1.2.3"):
        assert b" 200 " in (await answer(open_server, get("/rbkit/status", f"Host: {host}")))[:20], host
    for host in (
        *("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil.example", "0.0.0.0"),
        *("evil.example:127", "[::1].evil.example", "xn--localhost", "2130706433", "0x7f.1", "::ffff:8.8.8.8"),
        *("localhost..", "evil.example#localhost", "evil.example/localhost", "[::]", " "),
    ):
        got = await answer(open_server, get("/rbkit/status", f"Host: {host}"))
        assert got.split(b" ")[1:2] != [b"200"], host


@pytest.mark.parametrize(
    "origin", ["http://[", "http://[::1", "http://a:b", "%", "http://127.0.0.1.evil.example", "\xff"]
)
async def test_an_origin_that_is_not_an_origin_is_refused_and_no_error(server: Serving, origin: str) -> None:
    request = upgrade_request(Origin=origin, Authorization="Bearer s3cret")
    async with Raw(server.port) as client:  # which stays open for another request
        client.writer.write(request)
        assert b" 403 " in await asyncio.wait_for(client.reader.readuntil(b"\r\n"), 60)


async def test_nothing_that_a_stranger_writes_stands_in_the_log_as_it_is(
    steady: SteadyProcess, tmp_path: Path
) -> None:
    texts = ["\x1b[31mFORGED", "a\x85FORGED forged", "a\rFORGED", "a\x0bFORGED", "%0aFORGED%20forged"]
    texts += ["\xff", "\xe9\xa0"]
    offer = "Sec-WebSocket-Protocol: rbkit"
    with serve(steady, tmp_path, "--token", "s3cret", program=UNTHROTTLED) as server:
        for text in texts:
            for request in (
                get(f"/rbkit/{text}", "Host: 127.0.0.1"),
                get("/rbkit/status", f"Host: {text}"),
                get("/rbkit/status", "Host: 127.0.0.1", f"Origin: {text}", f"X: {text}"),
                get("/rbkit/status", "Host: 127.0.0.1", text),
                get(f"/rbkit/ws?encoding={text}", "Host: 127.0.0.1"),
                get(f"/rbkit/ws?encoding={text}", "Host: 127.0.0.1", offer),
                get(f"/rbkit/ws?encoding={quote(text)}", "Host: 127.0.0.1", offer),
                get("/rbkit/status", "Host: 127.0.0.1").replace("GET", text),
            ):
                await answer(server, request)
            async with Raw(server.port) as client:
                client.writer.write(upgrade_request(Origin=text, Authorization="Bearer s3cret"))
                await asyncio.wait_for(client.reader.readuntil(b"\r\n"), 60)
        async with Witness(f"{server.ws}?token=s3cret") as viewer:
            for text in ("\x1b[31mFORGED", "a\nFORGED forged", "a\u2028FORGED", "\xff"):
                assert (await viewer.ask(text)).startswith(b"error:invalid-command")
        lines = server.log.splitlines()
        assert all(line.startswith(("INFO ", "WARNING ")) and line.isprintable() for line in lines), server.log
        assert all(line.isascii() for line in lines if "Malformed HTTP message" not in line), server.log  # Tornado's
        for told in ("encoding='FORGED forged'", "encoding='\\xff'", "the origin '\\xc3\\xbf'", "/rbkit/%C3%BF"):
            assert told in server.log, server.log


async def test_nothing_of_a_request_becomes_a_header(server: Serving) -> None:
    for path in (
        "/rbkit?a=%0d%0aX-Forged:%201",
        "/rbkit?a=\x85X-Forged: 1",
        "/rbkit/%0d%0aX-Forged:%201",
        "//e/rbkit",
    ):
        got = await answer(server, get(path, "Host: 127.0.0.1"))
        head = got.partition(b"\r\n\r\n")[0].lower()
        assert b"\nx-forged" not in head
        assert b"location: //" not in head
        assert b"location: http" not in head


async def test_the_token_does_not_stand_in_the_log(steady: SteadyProcess, tmp_path: Path) -> None:
    paths = ("/rbkit/status", "/rbkit/nothing", "/rbkit/ws")
    with serve(steady, tmp_path, "--token", "s3cret", program=UNTHROTTLED) as server:
        for path in paths:
            await answer(server, get(f"{path}?token=s3cret", "Host: 127.0.0.1"))
    assert [path for path in paths if path not in server.log] == []
    assert "s3cret" not in server.log


async def test_who_takes_forever_to_ask_is_let_go_and_who_watches_is_not(open_server: Serving) -> None:
    server = open_server
    before = len(server.log.splitlines())
    async with Witness(server.ws) as viewer, contextlib.AsyncExitStack() as stack:
        server.process.send_signal(signal.SIGUSR1)
        slow = [await stack.enter_async_context(Raw(server.port)) for _ in range(60)]

        async def trickle(client: Raw, text: bytes) -> None:
            with contextlib.suppress(ConnectionError):
                for byte in text * 100:
                    client.writer.write(bytes([byte]))
                    await client.writer.drain()
                    await asyncio.sleep(0.05)

        texts = [b"", HANDSHAKE[:-2], b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"]
        talking = [asyncio.create_task(trickle(client, texts[at % 3])) for at, client in enumerate(slow)]
        await asyncio.wait_for(asyncio.gather(*(client.end() for client in slow)), 60)
        for task in talking:
            task.cancel()
        assert await viewer.ask("trigger_gc") == b"ok"
    assert len(server.log.splitlines()) - before < 40, "a repeated line is counted, not repeated"


async def test_each_reason_of_a_refusal_is_logged_although_others_with_its_status_came_before(
    open_server: Serving,
) -> None:
    local, offer = "Host: 127.0.0.1", "Sec-WebSocket-Protocol: rbkit"
    refused = {
        "the host": [get("/rbkit/status", f"Host: {name}.example") for name in "abc"],
        "the origin": [upgrade_request(Origin=f"http://{name}.example").decode() for name in "abc"],
        "the subprotocol": [get("/rbkit/ws", local)] * 3,
        "proxy_set_header Upgrade": [get("/rbkit/ws", local, offer)] * 3,
        "encoding=": [upgrade_request(f"/rbkit/ws?encoding={name}").decode() for name in "abc"],
        "no page at this path": [get(f"/{name}", local) for name in "abc"],
    }
    for requests in refused.values():
        for request in requests:
            async with Raw(open_server.port) as client:
                client.writer.write(request.encode())
                assert b" 40" in await asyncio.wait_for(client.reader.readuntil(b"\r\n"), 60)
    log = open_server.log
    assert {reason: log.count(reason) for reason in refused} == dict.fromkeys(refused, 1), log


async def test_a_flood_of_refusals_is_counted_in_the_log(open_server: Serving) -> None:
    for _ in range(120):
        await answer(open_server, get("/rbkit/status", "Host: evil.example"))
    assert "(100 times in short succession)" in open_server.log
    assert open_server.log.count("evil.example") <= 3
