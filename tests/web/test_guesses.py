"""Wrong tokens are answered late, right ones at once; nothing of it grows without bound."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.web import Application

from tests.conftest import Clock, Server, until
from tests.raw import Raw, upgrade_request
from tornado_rbkit import Bridge, rbkit_routes
from tornado_rbkit.web import guesses
from tornado_rbkit.web.guesses import FIRST_DELAY, FREE, MAX_DELAY, Guesses


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(guesses, "time", clock)
    return clock


class TestDelays:
    def test_grow_from_a_few_that_are_free_to_a_bound(self, clock: Clock) -> None:
        table = Guesses()
        delays = []
        for _ in range(FREE + 2000):
            clock.now += 5
            delays.append(table.add("192.0.2.1"))
        assert delays[: FREE + 3] == [0.0] * FREE + [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY]
        assert delays == sorted(delays)
        assert delays[-1] == MAX_DELAY

    def test_start_over_after_a_minute(self, clock: Clock) -> None:
        table = Guesses()
        for _ in range(FREE + 5):
            table.add("192.0.2.1")
        clock.now += 61
        assert table.add("192.0.2.1") == 0.0

    @pytest.mark.parametrize(
        ("first", "second", "same"),
        [
            ("192.0.2.1", "192.0.2.2", False),
            ("2001:db8::1", "2001:db8::ffff:2", True),
            ("2001:db8::1", "2001:db8:0:1::1", False),
            ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ],
    )
    def test_are_those_of_one_client_s_network(self, clock: Clock, first: str, second: str, same: bool) -> None:
        table = Guesses()
        for _ in range(FREE + 1):
            table.add(first)
        assert (table.add(second) > 0) is same

    @given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 30)), max_size=300))
    def test_are_bounded_in_number_and_addresses(self, guessed: list[tuple[int, float]]) -> None:
        clock, table, due = Clock(), Guesses(), list[float]()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(guesses, "time", clock)
            patch.setattr(guesses, "_MAX_ADDRESSES", 20)
            for number, pause in guessed:
                clock.now += pause
                delay = table.add(f"10.0.{number % 30}.1" if number % 3 else "192.0.2.1")
                assert 0 <= delay <= MAX_DELAY
                due = [*(each for each in due if each > clock.now), *([clock.now + delay] if delay else [])]
                assert len(due) <= 64
                assert len(table._counts) <= 20


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Return the port of a mount with a token."""
    bridge = Bridge("tcp://127.0.0.1:1", "tcp://127.0.0.1:1")
    server = Server.of(bridge, Application(rbkit_routes(bridge, token="s3cret")))
    yield server.port
    await server.close()


async def status(port: int, token: str) -> tuple[int, float]:
    """Return the status of a request with a token, and the seconds that it took."""
    began = time.monotonic()
    request = f"GET /rbkit/status?token={token} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    async with Raw(port) as client:
        client.writer.write(request.encode())
        answer = await client.end(60)
    return int(answer.split()[1]), time.monotonic() - began


@pytest.fixture
def forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each wrong token answered an hour later."""
    monkeypatch.setattr(guesses, "FREE", 0)
    monkeypatch.setattr(guesses, "FIRST_DELAY", 3600.0)
    monkeypatch.setattr(guesses, "MAX_DELAY", 3600.0)


async def test_wrong_tokens_are_slowed_down(port: int) -> None:
    for _ in range(FREE):
        assert (await status(port, "wrong"))[0] == 401
    for doublings in range(3):
        code, seconds = await status(port, "wrong")
        assert code == 401
        assert seconds >= FIRST_DELAY * 2**doublings


@pytest.mark.usefixtures("forever")
async def test_the_right_token_is_not_slowed_down_by_others_of_its_address(port: int) -> None:
    wrong = [asyncio.create_task(status(port, f"wrong-{number}")) for number in range(100)]
    await until(lambda: len([task for task in wrong if task.done()]) == 36, "64 wait, as many as may")
    assert (await status(port, "s3cret"))[0] == 200
    assert len([task for task in wrong if not task.done()]) == 64
    for task in wrong:
        task.cancel()
    await asyncio.wait(wrong)


@pytest.mark.usefixtures("forever")
async def test_a_missing_token_is_not_a_guess(port: int) -> None:
    assert (await status(port, ""))[0] == 401


@pytest.mark.usefixtures("forever")
@pytest.mark.parametrize("path", ["/rbkit/status", "/rbkit/static/app.js", "/rbkit/ws", "/anywhere"])
async def test_who_gives_up_waiting_is_not_waited_for(port: int, path: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tornado.access"):
        async with Raw(port) as client:
            client.writer.write(upgrade_request(f"{path}?token=wrong"))
            await client.writer.drain()
            assert (await status(port, "s3cret"))[0] == 200, "the other request has been read"
            assert not [record for record in caplog.records if "401" in record.getMessage()]
        await until(lambda: "401 GET " + path in caplog.text, "it has ended")
