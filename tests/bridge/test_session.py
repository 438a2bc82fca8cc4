"""The state of one client, without a WebSocket: order of replies, bounds, authorization, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import until
from tornado_rbkit.bridge import session as session_module
from tornado_rbkit.bridge.session import MAX_ESCAPED_REPLY, MAX_WAITING, Session
from tornado_rbkit.frames import Chunk, Encoding
from tornado_rbkit.protocol import CLIENT_COUNT, CommandError, Notice, parse_command
from tornado_rbkit.upstream.types import Batch, CommandResult

BINARY, ESCAPED = Encoding(), Encoding(escaped=True)


class FakeOutbox:
    """Records what a session sends; replies stay pending until `taken` is set."""

    def __init__(self, *arguments: object, **options: Any) -> None:
        self.on_stalled: Callable[[], None] = options["on_stalled"]
        self.on_caught_up: Callable[[int], None] = options["on_caught_up"]
        self.replies: list[bytes] = []
        self.notices: dict[str, bytes] = {}
        self.keeps_place: dict[str, bool] = {}
        self.data: list[Chunk] = []
        self.missed = self.replies_waiting = self.reply_bytes = 0
        self.taken = asyncio.Event()
        self.closed = False

    def send_reply(self, chunk: Chunk) -> None:
        self.replies.append(payload(chunk))

    def send_notice(self, kind: str, chunk: Chunk, *, keeps_place: bool = False) -> None:
        self.notices[kind] = payload(chunk)
        self.keeps_place[kind] = keeps_place

    def send_data(self, chunks: list[Chunk]) -> None:
        self.data += chunks

    def add_missed(self, messages: int) -> None:
        self.missed += messages

    async def drain(self) -> None:
        await self.taken.wait()

    def close(self) -> None:
        self.closed = True


def payload(chunk: Chunk) -> bytes:
    """Return the payload of a short unmasked frame, without the channel."""
    frame = b"".join(buffer for unit in chunk.units for buffer in unit)
    return frame[{126: 4, 127: 10}.get(frame[1], 2) + 1 :]


class Rules:
    """Allows the commands of protocol 2.1; `decide` answers for `authorize`."""

    def __init__(self, decide: Callable[[str], Awaitable[CommandError | None]] | None) -> None:
        self.authorize = decide

    def parse(self, message: str | bytes) -> str:
        return parse_command(message, "any")

    async def refusal(self, handler: object, command: str) -> CommandError | None:
        assert self.authorize is not None
        return await self.authorize(command)


class Seat:
    """A session, the commands that it submitted, and how it was closed."""

    def __init__(self, encoding: Encoding, decide: Callable[[str], Awaitable[CommandError | None]] | None) -> None:
        self.closed: list[tuple[int, str]] = []
        self.submitted: list[tuple[str, Callable[[CommandResult], None]]] = []
        self.stream_closed = False
        handler: Any = SimpleNamespace(request=SimpleNamespace(remote_ip="192.0.2.1"))
        stream: Any = SimpleNamespace(close=self._close_stream)
        self.session = Session(
            handler,
            lambda code, reason: self.closed.append((code, reason)),
            stream,
            encoding,
            Rules(decide),
            lambda name, answer, owner, *, expires=0.0: self.submitted.append((name, answer)),
            max_backlog_bytes=1 << 20,
            stall_timeout=60.0,
        )
        self.outbox: Any = self.session.outbox
        assert isinstance(self.outbox, FakeOutbox)

    def _close_stream(self) -> None:
        self.stream_closed = True

    def answer(self, at: int, reply: bytes = b"ok") -> None:
        self.submitted[at][1](CommandResult(reply, None, 0.01))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.submitted]


MakeSeat = Callable[..., Seat]


@pytest.fixture
def seat(monkeypatch: pytest.MonkeyPatch) -> MakeSeat:
    monkeypatch.setattr(session_module, "Outbox", FakeOutbox)

    def make(
        encoding: Encoding = BINARY, decide: Callable[[str], Awaitable[CommandError | None]] | None = None
    ) -> Seat:
        return Seat(encoding, decide)

    return make


class TestReplies:
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
    async def test_are_sent_in_the_order_of_the_commands(self, seat: MakeSeat, order: tuple[int, ...]) -> None:
        one = seat()
        for command in ("a", "b", "c"):
            assert one.session.ask(command) is None
        for at in order:
            one.answer(at, b"reply %d" % at)
        assert one.outbox.replies == [b"reply 0", b"reply 1", b"reply 2"]
        assert one.session.waiting == 0

    async def test_to_a_command_that_is_refused_at_once_waits_for_the_earlier_ones(self, seat: MakeSeat) -> None:
        one = seat()
        one.session.ask("a")
        one.session.ask("")
        assert one.outbox.replies == []
        one.answer(0)
        assert one.outbox.replies[0] == b"ok"
        assert one.outbox.replies[1].startswith(b"error:invalid-command ")

    async def test_are_busy_past_the_bound_of_waiting_commands(self, seat: MakeSeat) -> None:
        one = seat()
        for number in range(MAX_WAITING + 1):
            one.session.ask(f"c{number}")
        assert len(one.submitted) == MAX_WAITING == one.session.waiting
        for at in range(MAX_WAITING):
            one.answer(at)
        assert one.outbox.replies[MAX_WAITING].startswith(b"error:busy c32: 32 commands are waiting; allowed: 32")
        one.session.ask("again")
        assert one.names[-1] == "again"

    @pytest.mark.parametrize(
        ("encoding", "size", "passes"),
        [
            (BINARY, MAX_ESCAPED_REPLY + 1, True),
            (ESCAPED, MAX_ESCAPED_REPLY, True),
            (ESCAPED, MAX_ESCAPED_REPLY + 1, False),
        ],
    )
    async def test_too_long_to_be_escaped_are_an_error(
        self, seat: MakeSeat, encoding: Encoding, size: int, passes: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[bytes] = []
        monkeypatch.setattr(session_module, "encode_reply", lambda reply, encoding: Chunk(((reply,),), len(reply), 1))
        one = seat(encoding)
        one.outbox.send_reply = lambda chunk: sent.append(bytes(chunk.units[0][0]))
        one.session.ask("handshake")
        one.answer(0, b"x" * size)
        assert (len(sent[0]) == size) == passes
        assert sent[0].startswith(b"error:invalid-reply handshake: the reply has ") != passes


class TestReadingStops:
    async def test_while_too_many_replies_are_pending(self, seat: MakeSeat, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_module, "MAX_PENDING_REPLIES", 3)
        one = seat()
        assert one.session.ask("a") is None
        assert one.session.ask("b") is None
        room = one.session.ask("c")
        assert room is not None
        task = asyncio.ensure_future(room)
        one.outbox.taken.set()
        await asyncio.sleep(0)
        assert not task.done()
        one.answer(0)
        await task

    async def test_until_the_outbox_has_sent_its_replies(self, seat: MakeSeat) -> None:
        one = seat()
        one.outbox.reply_bytes = session_module.MAX_PENDING_REPLY_BYTES
        room = one.session.ask("a")
        assert room is not None
        task = asyncio.ensure_future(room)
        await asyncio.sleep(0)
        assert not task.done()
        one.outbox.taken.set()
        await task

    async def test_no_longer_than_the_client_stays(self, seat: MakeSeat, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session_module, "MAX_PENDING_REPLIES", 1)
        one = seat()
        one.outbox.taken.set()
        room = one.session.ask("a")
        assert room is not None
        one.session.leave()
        await asyncio.wait_for(asyncio.ensure_future(room), 60)


class TestNotices:
    @pytest.mark.parametrize(
        ("encoding", "expected"),
        [
            (BINARY, {b"client_count:2", b"server:connected", b"dropped:5"}),
            (ESCAPED, {b"client_count:2"}),
        ],
    )
    async def test_escaped_clients_get_client_count_only(
        self, seat: MakeSeat, encoding: Encoding, expected: set[bytes]
    ) -> None:
        one = seat(encoding)
        one.session.notify(Notice("client_count", "2"))
        one.session.notify(Notice("server", "connected"))
        one.outbox.on_caught_up(5)
        assert set(one.outbox.notices.values()) == expected

    async def test_only_a_newer_number_of_clients_keeps_the_place_of_the_older(self, seat: MakeSeat) -> None:
        one = seat()
        for notice in (Notice(CLIENT_COUNT, "2"), Notice("server", "connected")):
            one.session.notify(notice)
        assert one.outbox.keeps_place == {CLIENT_COUNT: True, "server": False}

    async def test_a_batch_is_delivered_in_the_client_s_encoding_with_its_losses(self, seat: MakeSeat) -> None:
        chunk = Chunk(((b"x",),), 1, 1)
        one, other = seat(BINARY), seat(ESCAPED)
        batch = Batch({BINARY: [chunk]}, 1, missed=3)
        for each in (one, other):
            each.session.deliver(batch)
        assert (one.outbox.data, one.outbox.missed) == ([chunk], 3)
        assert (other.outbox.data, other.outbox.missed) == ([], 3)


class TestAuthorization:
    async def test_keeps_the_order_of_the_commands(self, seat: MakeSeat) -> None:
        answers = {name: asyncio.get_running_loop().create_future() for name in ("a", "b")}

        async def decide(command: str) -> CommandError | None:
            result: CommandError | None = await answers[command]
            return result

        one = seat(decide=decide)
        one.session.ask("a")
        one.session.ask("b")
        answers["b"].set_result(CommandError("forbidden", "b: not for you"))
        await asyncio.sleep(0)
        assert one.submitted == []
        answers["a"].set_result(None)
        await until(lambda: one.session.waiting == 1, "both are decided")
        assert one.names == ["a"]
        one.answer(0)
        assert one.outbox.replies == [b"ok", b"error:forbidden b: not for you"]

    async def test_that_refuses_a_handshake_closes_the_client(self, seat: MakeSeat) -> None:
        async def decide(command: str) -> CommandError | None:
            return CommandError("forbidden", "no")

        one = seat(decide=decide)
        one.session.ask("handshake")
        await until(lambda: one.closed, "it is closed")
        assert one.closed == [(1008, "not authorized any more (authorize)")]

    async def test_begins_again_for_a_command_that_arrives_while_it_ends(self, seat: MakeSeat) -> None:
        async def decide(command: str) -> CommandError | None:
            if command == "first":  # after the task has looked for another command, and before its end is noticed
                asyncio.get_running_loop().call_soon(one.session.ask, "second")
            return None

        one = seat(decide=decide)
        one.session.ask("first")
        await until(lambda: one.names == ["first", "second"], "both are submitted")

    @pytest.mark.logs_errors
    async def test_that_fails_refuses_what_waits_and_continues(self, seat: MakeSeat) -> None:
        results: list[BaseException | None] = [RuntimeError("broken"), None]

        async def decide(command: str) -> CommandError | None:
            error = results.pop(0)
            if error is not None:
                raise error
            return None

        one = seat(decide=decide)
        one.session.ask("a")
        one.session.ask("b")
        await until(lambda: len(one.outbox.replies) == 2, "both are answered")
        assert all(b"`authorize` failed; the server's log has the reason" in reply for reply in one.outbox.replies)
        assert one.session.waiting == 0
        one.session.ask("c")
        await until(lambda: one.names == ["c"], "the next one is asked for again")


class TestEnd:
    async def test_closes_once_with_the_first_reason(self, seat: MakeSeat) -> None:
        one = seat()
        one.outbox.on_stalled()
        one.session.close(1001, "server shutting down")
        assert one.closed == [(1008, "too slow for 60 s (stall_timeout)")]
        assert one.outbox.closed

    async def test_a_late_result_goes_to_nobody(self, seat: MakeSeat) -> None:
        one = seat()
        one.session.ask("a")
        one.session.leave()
        one.session.leave()
        one.answer(0)
        assert one.outbox.replies == []
        assert one.session.ask("b") is None
        assert one.names == ["a"]

    async def test_abort_closes_the_stream(self, seat: MakeSeat) -> None:
        one = seat()
        one.session.abort()
        assert one.stream_closed
        assert one.closed == []

    @pytest.mark.parametrize("end", ["connected", "left", None])
    async def test_waits_for_the_profiler_until_it_is_connected_or_the_client_leaves(
        self, seat: MakeSeat, end: str | None
    ) -> None:
        one, witness = seat(), seat()
        given_up: list[Seat] = []
        one.session.await_profiler(0.02, lambda: given_up.append(one))
        if end == "connected":
            one.session.on_profiler_connected()
        elif end == "left":
            one.session.leave()
        witness.session.await_profiler(0.05, lambda: given_up.append(witness))
        due = 1 if end else 2
        await until(lambda: len(given_up) == due, "the time-outs that are not cancelled have passed")
        assert (one in given_up) == (end is None)
