"""Random requests and frames from a fixed seed: nothing is logged, and other clients lose no byte."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.faults.conftest import Launch
from tests.faults.serving import Serving
from tests.faults.steady import SteadyProcess
from tests.faults.test_clients import undisturbed, until_alone
from tests.raw import HANDSHAKE, Raw, frame, upgrade_request

HEADER_NAMES = st.sampled_from(
    [
        *("Host", "Origin", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Authorization"),
        *("Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Content-Length", "Transfer-Encoding", "Cookie"),
    ]
)
ODD = st.sampled_from(
    [
        *("", "rbkit", "http://[", "http://[::1", "[::1", "[", ":", "a:b:c", "127.0.0.1:99999999", "http://a:b", "%"),
        *("permessage-deflate; client_max_window_bits=99", "permessage-deflate; server_max_window_bits=15; x=", ";;,"),
        *("permessage-deflate; server_max_window_bits", "rbkit, \xff", "Bearer \xff", "Bearer", "-1", "9" * 30, "13"),
        *(
            "\x1b[31m",
            "chunked",
            "x" * 70000,
            "\x85",
            "websocket, h2c",
            "=?;",
            "\x00",
            "\ud7ff".encode().decode("latin-1"),
        ),
    ]
)
HEADERS = st.lists(st.tuples(HEADER_NAMES, ODD | st.text(st.characters(max_codepoint=255), max_size=30)), max_size=5)
PATHS = st.sampled_from(
    [
        *(
            "/rbkit/ws",
            "/",
            "/rbkit/",
            "/rbkit",
            "/rbkit/status",
            "/rbkit/static/app.js",
            "/rbkit/static/%2e%2e/page.html",
        ),
        *(
            "/rbkit/static/",
            "/rbkit/static/%00",
            "/rbkit/static/%ff",
            "//rbkit/ws",
            "http://a/rbkit/ws",
            "http://[/",
            "*",
        ),
        *("/rbkit/ws?encoding=%ff", "/rbkit/ws?encoding=escaped&encoding=binary", "/rbkit/ws?token=%", "/%/ws", "?"),
        *("/rbkit/metrics?%00", "/rbkit/targets", "/rbkit/\xff/ws", "/rbkit/x/ws", "/rbkit/static/" + "a/" * 2000, ""),
    ]
)
METHODS = st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "PUT", "G\x00T", "", "get"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request, of which some is as it should be."""
    fields = (
        {} if draw(st.booleans()) else dict(line.split(": ", 1) for line in HANDSHAKE.decode().split("\r\n")[1:-2])
    )
    pairs = [*fields.items(), *draw(HEADERS)] if draw(st.booleans()) else [*{**fields, **dict(draw(HEADERS))}.items()]
    head = f"{draw(METHODS)} {draw(PATHS)} {draw(st.sampled_from(['HTTP/1.1', 'HTTP/1.1', 'HTTP/1.0', 'HTTP/9', '']))}"
    lines = [head, *(f"{name}: {value}" for name, value in pairs), "", ""]
    return draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"])).join(lines).encode("latin-1")


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """What follows an upgrade: frames, most of them wrong."""
    payload = draw(
        st.sampled_from([b"", b"handshake", b"\x03\xe8", b"\xff", bytes(125), bytes(300)]) | st.binary(max_size=40)
    )
    length = draw(st.none() | st.sampled_from([0, 1, 125, 126, 65535, 65536, 1 << 40, (1 << 64) - 1]))
    return frame(payload, first=draw(st.integers(0, 255)), mask=draw(st.sampled_from([b"abcd", None])), length=length)


CASES = st.tuples(requests(), st.lists(frames() | st.binary(max_size=60), max_size=6))
COMPRESSED = upgrade_request(Sec_WebSocket_Extensions="permessage-deflate")
UPGRADED = st.tuples(st.sampled_from([HANDSHAKE, COMPRESSED]), st.lists(frames(), min_size=1, max_size=6))


async def test_requests_and_frames_made_up_from_a_seed(launch: Launch, profiler: SteadyProcess, soak: float) -> None:
    server = launch(**profiler.endpoints, compression_level=1)
    cases: list[tuple[bytes, list[bytes]]] = []

    @seed(20)
    @settings(max_examples=300, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck])
    @given(CASES, UPGRADED)
    def collect(anything: tuple[bytes, list[bytes]], upgraded: tuple[bytes, list[bytes]]) -> None:
        cases.extend([anything, upgraded])

    collect()
    ends = time.monotonic() + soak
    shuffled = random.Random(20)
    async with undisturbed(server):
        while True:
            for at in range(0, len(cases), 30):
                await asyncio.gather(*(knock(server, *case) for case in cases[at : at + 30]))
            if time.monotonic() > ends:
                break
            cases = [(request, shuffled.choice(cases)[1]) for request, _ in cases]
        await until_alone(server, 3)


async def knock(server: Serving, request: bytes, following: list[bytes]) -> None:
    """Send all bytes, and disconnect when the server has been silent for a moment."""
    async with Raw(server.port) as client:
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            client.writer.write(request)
            for piece in following:
                await asyncio.wait_for(client.reader.read(65536), 0.2)
                client.writer.write(piece)
            await asyncio.wait_for(client.reader.read(65536), 0.2)
