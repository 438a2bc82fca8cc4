"""Notices are state: the number that waits for a client is bounded, and the last ones are correct."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bridge.test_fanout import StalledClient, stall, stalled
from tests.bridge.test_interleaving import ShortStream, join, split
from tests.bridge.test_outbox import KIB, chunk
from tests.conftest import Serve, receive, until
from tests.encoded import encode_data
from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge
from tornado_rbkit.bridge.clients import Clients
from tornado_rbkit.bridge.fanout import ClientCount, FanOut
from tornado_rbkit.bridge.outbox import Outbox
from tornado_rbkit.frames import Encoding, encode_notice, encode_reply
from tornado_rbkit.protocol import RESTARTED, Notice, parse_notice
from tornado_rbkit.upstream.encoder import MAX_DELIVERED

__all__ = ["stall"]  # a fixture

BINARY = Encoding()
CONNECTED, DISCONNECTED = Notice("server", "connected"), Notice("server", "disconnected")


class Near:
    """An outbox on a `ShortStream`, and the notices that its client got."""

    def __init__(self, max_backlog_bytes: int = 1 << 20) -> None:
        self.stream = ShortStream()
        self.outbox = Outbox(
            self.stream,
            max_backlog_bytes=max_backlog_bytes,
            stall_timeout=3600,
            on_stalled=lambda: None,
            on_caught_up=lambda count: self.notify(Notice("dropped", str(count))),
        )

    def notify(self, notice: Notice, *, keeps_place: bool = False) -> None:
        chunk = encode_notice(notice.to_bytes(), BINARY)
        self.outbox.send_notice(notice.kind, chunk, keeps_place=keeps_place)

    def reply(self, payload: bytes) -> None:
        self.outbox.send_reply(encode_reply(payload, BINARY))

    def block(self) -> None:
        """Block the stream, so that everything after this waits."""
        self.stream.make_room(0)
        self.reply(b"stuck")
        assert self.outbox.blocked

    async def received(self) -> list[bytes]:
        """Let the outbox write everything; return the payloads of the reply channel."""
        while self.outbox.bytes_waiting or self.stream.writing():
            self.stream.make_room(1 << 20)
            await asyncio.sleep(0)
        messages = [frame[2:] for frame in join(split(bytes(self.stream.kernel.wire))) if len(frame) < 128]
        return [message[1:] for message in messages if message.startswith(b"0")]


# What waits for one client


async def test_of_each_kind_only_the_newest_waits() -> None:
    near = Near()
    near.block()
    before = near.outbox.bytes_waiting
    for number in range(2, 5000):
        near.notify(Notice("client_count", str(number)), keeps_place=True)
        near.notify(DISCONNECTED)
        near.notify(CONNECTED)
        near.notify(RESTARTED)
    assert near.outbox.replies_waiting == 3
    assert near.outbox.bytes_waiting - before < 100
    assert await near.received() == [b"stuck", b"client_count:4999", b"server:connected", b"server:restarted"]


async def test_a_number_keeps_its_place_before_the_replies_after_it() -> None:
    near = Near()
    near.block()
    near.notify(Notice("client_count", "2"), keeps_place=True)
    near.reply(b"ok")
    near.notify(Notice("client_count", "3"), keeps_place=True)
    assert await near.received() == [b"stuck", b"client_count:3", b"ok"]


async def test_a_restart_comes_after_the_replies_of_the_process_before() -> None:
    near = Near()
    near.block()
    near.notify(RESTARTED)
    near.reply(b"the handshake of the second process")
    near.notify(RESTARTED)
    near.reply(b"the handshake of the third process")
    assert (await near.received())[1:] == [
        b"the handshake of the second process",
        b"server:restarted",
        b"the handshake of the third process",
    ]


async def test_dropped_messages_are_added_up_wherever_they_were_lost() -> None:
    near = Near(max_backlog_bytes=300 * KIB)
    near.stream.make_room(0)
    for number in range(40):
        near.outbox.send_data([chunk(number, 100 * KIB)])
        near.outbox.add_missed(2)
    told = [int(payload.removeprefix(b"dropped:")) for payload in await near.received()]
    assert sum(told) == near.outbox.messages_dropped + 80
    assert len(told) <= 2


async def test_messages_dropped_while_a_report_waits_are_in_the_next_one() -> None:
    near = Near()
    near.block()
    for _ in range(1000):
        near.outbox.add_missed(3)
    assert near.outbox.replies_waiting == 1
    told = [int(payload.removeprefix(b"dropped:")) for payload in (await near.received())[1:]]
    assert (sum(told), len(told)) == (3000, 2)


@given(
    st.lists(st.sampled_from(["disconnected", "connected", "restarted", "reply", "count", "missed", "out", "block"]))
)
def test_whatever_happens_the_client_knows_the_truth_in_the_end(events: list[str]) -> None:
    async def play() -> None:
        near = Near()
        replies: list[bytes] = []
        counts = missed = 0
        for event in events:
            if event == "reply":
                replies.append(
                    b"reply %d after %d restarts" % (len(replies), events[: len(replies)].count("restarted"))
                )
                near.reply(replies[-1])
            elif event == "count":
                counts += 1
                near.notify(Notice("client_count", str(counts)), keeps_place=True)
            elif event == "missed":
                missed += 1
                near.outbox.add_missed(1)
            elif event == "out":
                near.stream.make_room(1000)
                await asyncio.sleep(0)
            elif event == "block":
                near.stream.make_room(0)
            else:
                near.notify(Notice("server", event))
            assert near.outbox.replies_waiting <= len(replies) + 4
        received = await near.received()
        notices = [notice for payload in received if (notice := parse_notice(payload))]
        assert [payload for payload in received if not parse_notice(payload)] == replies
        numbers = [int(notice.value) for notice in notices if notice.name == "client_count"]
        assert numbers == sorted(numbers)
        assert numbers[-1:] == [counts][: bool(counts)]
        assert sum(int(notice.value) for notice in notices if notice.name == "dropped") == missed
        for kind in (["disconnected", "connected"], ["restarted"]):
            happened = [event for event in events if event in kind]
            told = [notice.value for notice in notices if notice.value in kind]
            assert told[-1:] == happened[-1:]
            assert len(told) <= len(happened)

    asyncio.run(play())


async def test_many_small_batches_are_bounded_by_what_they_cost() -> None:
    near = Near(max_backlog_bytes=100_000)
    near.block()
    small = encode_data([b"x" * 20], BINARY)
    for _ in range(10_000):
        near.outbox.send_data(small)
    assert near.outbox.messages_waiting < 500, "each costs a few hundred bytes of memory"
    assert near.outbox.messages_waiting + near.outbox.messages_dropped == 10_000


async def test_what_is_under_way_is_in_the_figures_until_it_is_taken() -> None:
    near = Near()
    near.stream.make_room(10)
    near.reply(bytes(5000))
    assert near.outbox.bytes_waiting == len(near.stream.committed)
    near.stream.make_room(4000)
    await asyncio.sleep(0)
    assert near.outbox.bytes_waiting == len(near.stream.committed)
    near.stream.make_room(4000)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert near.outbox.bytes_waiting == 0


# To many clients


class Told:
    """A session of the bridge, as far as `FanOut` and `ClientCount` use one."""

    encoding = BINARY

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notify(self, notice: Notice) -> None:
        self.notices.append(":".join(notice))


@pytest.fixture
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tornado_rbkit.bridge.fanout.CLIENT_COUNT_INTERVAL", 0.02)


@pytest.mark.usefixtures("short_interval")
async def test_a_thousand_joins_cost_each_client_a_few_notices_and_all_know_the_number() -> None:
    audience, fan_out = Clients(), FanOut()
    count = ClientCount(audience, fan_out)
    sessions = [Told() for _ in range(1000)]
    for session in sessions:
        audience.add(session)  # type: ignore[arg-type]
        count.update()
    await until(lambda: sessions[0].notices[-1:] == ["client_count:1000"], "the newest number is told")
    await until(lambda: sessions[-2].notices == ["client_count:1000"], "to everybody who was there before")
    assert sessions[-1].notices == [], "nobody has connected after it"
    assert sum(len(session.notices) for session in sessions) <= 1000, "one for each, and one for the very first"


@pytest.mark.usefixtures("short_interval")
async def test_a_count_is_not_reported_twice_and_a_later_join_is_told_at_once() -> None:
    audience, fan_out = Clients(), FanOut()
    count = ClientCount(audience, fan_out)
    sessions = [Told() for _ in range(3)]
    for session in sessions[:2]:
        audience.add(session)  # type: ignore[arg-type]
        count.update()
    assert sessions[0].notices == ["client_count:2"]
    await asyncio.sleep(0.1)  # several intervals, in which nothing must happen
    assert sessions[0].notices == ["client_count:2"]
    audience.add(sessions[2])  # type: ignore[arg-type]
    count.update()
    assert [session.notices[-1:] for session in sessions] == [["client_count:3"], ["client_count:3"], []]


@pytest.mark.usefixtures("short_interval")
async def test_clients_at_other_bridges_count_too_and_a_larger_number_is_reported_to_all() -> None:
    audience, fan_out = Clients(), FanOut()
    count = ClientCount(audience, fan_out)
    count.set_elsewhere(4)  # before the first client has joined
    sessions = [Told() for _ in range(2)]
    for session in sessions:
        audience.add(session)  # type: ignore[arg-type]
        count.update()
    await until(lambda: sessions[0].notices[-1:] == ["client_count:6"], "the first client knows")
    for elsewhere in (4, 3, 5):
        count.set_elsewhere(elsewhere)
    await until(lambda: [session.notices[-1:] for session in sessions] == [["client_count:7"]] * 2, "both know")


def deliveries(log: list[tuple[str, int]], name: str) -> Callable[[Any], None]:
    return lambda session: log.append((name, session))


async def test_deliveries_take_turns_with_the_loop_and_keep_their_order() -> None:
    fan_out = FanOut()
    log: list[tuple[str, int]] = []
    ends: list[float] = []
    clients = list(range(1000))
    fan_out.begin(clients, deliveries(log, "restarted"), done=ends.append)  # type: ignore[arg-type]
    first_turn = len(log)
    assert 1 < first_turn < 1000
    fan_out.begin(clients, deliveries(log, "data"), size=MAX_DELIVERED, done=ends.append)  # type: ignore[arg-type]
    assert len(log) == first_turn, "it waits for its turn"
    await until(lambda: len(ends) == 2, "all is delivered")
    assert log == [("restarted", number) for number in clients] + [("data", number) for number in clients]


async def test_a_newer_delivery_replaces_an_older_one_where_that_has_not_come() -> None:
    fan_out = FanOut()
    log: list[tuple[str, int]] = []
    ends: list[float] = []
    clients = list(range(1000))
    for name in ("disconnected", "connected"):
        fan_out.begin(clients, deliveries(log, name), key="server", done=ends.append)  # type: ignore[arg-type]
    await until(lambda: ends, "all is delivered")
    assert len(log) < 1500
    assert {number: name for name, number in log} == dict.fromkeys(clients, "connected")
    assert len(ends) == 1


async def test_a_delivery_replaced_while_its_last_client_is_served_leaves_the_newer_one() -> None:
    fan_out = FanOut()
    log: list[tuple[str, int]] = []
    ends: list[str] = []

    def replaces(session: Any) -> None:
        log.append(("older", session))
        fan_out.begin(
            [1, 2],  # type: ignore[list-item]
            deliveries(log, "newer"),
            key="server",
            done=lambda seconds: ends.append("newer"),
        )

    fan_out.begin([0], replaces, key="server", done=lambda seconds: ends.append("older"))  # type: ignore[list-item]
    await until(lambda: ends, "one has ended")
    assert (log, ends) == ([("older", 0), ("newer", 1), ("newer", 2)], ["newer"])


async def test_a_delivery_that_raises_does_not_stop_the_others() -> None:
    fan_out = FanOut()
    log: list[tuple[str, int]] = []

    def fails(session: object) -> None:
        log.append(("fails", 0))
        raise ValueError

    with pytest.raises(ValueError):
        fan_out.begin([1, 2], fails, done=lambda seconds: log.append(("done", 0)))  # type: ignore[list-item]
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["exception"]))
    fan_out.begin([3], deliveries(log, "next"))  # type: ignore[list-item]
    await until(lambda: ("next", 3) in log, "the next one")
    assert Counter(name for name, _ in log) == {"fails": 2, "done": 1, "next": 1}
    assert len(complaints) == 1


# All of it


async def test_joins_cost_a_client_that_does_not_read_next_to_nothing(
    serve: Serve, rbkit: FakeRbkit, stall: list[StalledClient]
) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    await stalled(server, stall)
    await until(lambda: server.bridge.stats()["handshake"], "the bridge is connected")
    rbkit.publish_collection(20_000_000)
    await until(lambda: server.bridge.stats()["clients"][0]["blocked"], "it is stuck")
    before = server.bridge.stats()["clients"][0]["bytes_waiting"]
    for _ in range(150):
        passer_by = await stalled(server, stall)
        passer_by.socket.close()
    assert server.bridge.stats()["clients"][0]["bytes_waiting"] - before < 100


async def test_a_client_that_asks_and_does_not_read_is_not_read_further(
    serve: Serve, rbkit: FakeRbkit, stall: list[StalledClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornado_rbkit.bridge.session.MAX_PENDING_REPLIES", 100)
    server = await serve(Bridge(**rbkit.endpoints))
    client = await stalled(server, stall)
    await until(lambda: server.bridge.stats()["handshake"], "the bridge is connected")
    rbkit.publish_collection(20_000_000)
    await until(lambda: server.bridge.stats()["clients"][0]["blocked"], "it is stuck")
    before = server.bridge.stats()["clients"][0]["bytes_waiting"]
    loop = asyncio.get_running_loop()

    async def ask_for_ever() -> None:
        while True:
            await loop.sock_sendall(client.socket, b"\x81\x81\0\0\0\0x" * 10_000)

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(ask_for_ever(), 2)
    await until(lambda: server.bridge.stats()["clients"][0]["bytes_waiting"] > before, "it is read")
    assert server.bridge.stats()["clients"][0]["bytes_waiting"] - before < 100_000


async def test_a_server_that_returns_is_reported_after_its_disconnection(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    connection = await server.connected()
    with FakeRbkit() as other:
        server.bridge.retarget(other.endpoints["pub"], other.endpoints["req"])
        told = [await receive(connection) for _ in range(3)]
        assert told == [b"0server:disconnected", b"0server:connected", b"0server:restarted"]
