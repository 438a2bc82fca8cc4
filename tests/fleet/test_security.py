"""What the server and the agent refuse, asserted at a real server with TLS, nkeys and the permissions of the hub."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import msgpack
import pytest

from tests.conftest import until
from tests.fake_rbkit import FakeRbkit
from tests.fleet.conftest import Machine
from tornado_rbkit import Bridge
from tornado_rbkit.errors import CommandError
from tornado_rbkit.fleet import link as links
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet.hub import Hub
from tornado_rbkit.fleet.link import ForbiddenError, Link, Message, NoRespondersError, RequestTimeoutError
from tornado_rbkit.fleet.nats import Credentials, NatsServers
from tornado_rbkit.fleet.subjects import Watcher
from tornado_rbkit.protocol import Handshake

pytestmark = pytest.mark.usefixtures("patient_fleet")

USERS = {"h1": "host", "h2": "host", "b1": "bridge", "b2": "bridge", "reader": "bridge", "stranger": "bridge"}
B1 = Watcher("b1", "one")


class Fleet:
    """A hub, and links with the credentials of its users."""

    def __init__(self, hub: Hub, url: str, stack: AsyncExitStack) -> None:
        self.hub = hub
        self.url = url
        self.stack = stack

    def servers(self, name: str) -> NatsServers:
        return NatsServers(urls=(self.url,), credentials=Credentials.read(str(self.hub.folder / f"{name}.creds")))

    def start(self, servers: NatsServers, inbox: str = "") -> Link:
        link = Link(lambda: servers, "test", inbox=inbox, patience=60)  # so that a busy machine does not fail the test
        task = asyncio.create_task(link.run())

        async def stop() -> None:
            task.cancel()
            await asyncio.wait([task])

        self.stack.push_async_callback(stop)
        return link

    async def link(self, name: str) -> Link:
        link = self.start(self.servers(name), subjects.inbox(name) if USERS[name] == "bridge" else "")
        await asyncio.wait_for(link.wait_until_up(), 60)
        return link


@pytest.fixture
async def fleet(tmp_path: Path, runtime_folder: Path) -> AsyncIterator[Fleet]:
    hub = Hub(tmp_path / "hub")
    hub.configure("127.0.0.1:-1", ["127.0.0.1"])
    for name, kind in USERS.items():
        hub.add(kind, name, hub.folder / f"{name}.creds", read_only=name == "reader")
    hub.remove("stranger")
    hub.reload()
    server = await hub.start()
    async with AsyncExitStack() as stack:
        yield Fleet(hub, server.url.replace("nats://", "tls://"), stack)
    server.stop()


async def heard(link: Link, subject: str) -> list[Message]:
    messages: list[Message] = []
    await link.subscribe(subject, messages.append)
    return messages


async def settled(fleet: Fleet) -> None:
    """Wait until whatever was published before is delivered or refused: a message of another user comes through."""
    h1, b1 = await fleet.link("h1"), await fleet.link("b1")
    hellos = await heard(b1, subjects.hello("h1"))
    await h1.publish(subjects.hello("h1"), b"last")
    await until(lambda: b"last" in [message.data for message in hellos], "a hello arrives")


@pytest.mark.parametrize("who", ["nobody", "stranger"])
async def test_without_the_right_key_nobody_connects(fleet: Fleet, who: str, caplog: pytest.LogCaptureFixture) -> None:
    servers = fleet.servers("b1" if who == "nobody" else who)
    if who == "nobody":
        servers = dataclasses.replace(servers, credentials=Credentials(ca=servers.credentials.ca), insecure=True)
    link = fleet.start(servers)
    await until(lambda: link.refusal, "the server has refused it")
    assert not link.is_up
    assert "cannot connect to NATS" in caplog.text


async def test_without_tls_nobody_gets_a_byte(fleet: Fleet) -> None:
    parts = urlsplit(fleet.url)
    with socket.create_connection((str(parts.hostname), parts.port or 0), 60) as plain:
        plain.sendall(b'CONNECT {"verbose":true}\r\nPING\r\n')
        try:
            received = await asyncio.to_thread(plain.recv, 1000)
        except ConnectionError:
            received = b""
    assert b"INFO" not in received
    assert b"PONG" not in received


async def test_a_server_of_another_authority_is_refused_by_the_client(fleet: Fleet, tmp_path: Path) -> None:
    other = Hub(tmp_path / "other")
    other.add("bridge", "b1", other.folder / "b1.creds")
    mine = fleet.servers("b1")
    theirs = Credentials.read(str(other.folder / "b1.creds"))
    link = fleet.start(dataclasses.replace(mine, credentials=dataclasses.replace(mine.credentials, ca=theirs.ca)))
    await until(lambda: "certificate" in link._reason.lower(), "the certificate is refused")
    assert not link.is_up


@pytest.mark.parametrize(
    ("who", "subject", "listener"),
    [
        ("h2", subjects.hello("h1"), "b1"),
        ("h2", subjects.vitals("h1"), "b1"),
        ("h2", subjects.stream(B1, "h1", "puma"), "b1"),
        ("h2", subjects.command("h1", "puma", B1, "trigger_gc"), "h1"),
        ("h2", subjects.watch("h1", "puma", B1), "h1"),
        ("b2", subjects.watch("h1", "puma", B1), "h1"),
        ("b2", subjects.command("h1", "puma", B1, "trigger_gc"), "h1"),
        ("b2", subjects.stream(B1, "h1", "puma"), "b1"),
        ("b2", subjects.hello("h1"), "b1"),
        ("b2", subjects.vitals("h1"), "b1"),
        ("reader", subjects.command("h1", "puma", Watcher("reader", "one"), "trigger_gc"), "h1"),
    ],
)
async def test_what_a_user_may_not_publish_reaches_nobody(fleet: Fleet, who: str, subject: str, listener: str) -> None:
    messages = await heard(await fleet.link(listener), subject)
    link = await fleet.link(who)
    await link.publish(subject, b"forged")
    await until(lambda: "permissions violation" in link._reason.lower(), "the server has refused it")
    await settled(fleet)
    assert [message for message in messages if message.data == b"forged"] == []
    assert link.is_up, "the connection stays"


@pytest.mark.parametrize(
    ("who", "subject", "publisher"),
    [
        ("h2", subjects.all_commands("h1"), "b1"),
        ("h2", subjects.all_leases("h1"), "b1"),
        ("b2", "rbkit.to.b1.>", "h1"),
        ("b2", f"{subjects.inbox('b1')}.>", "h1"),
        ("reader", "rbkit.to.b1.>", "h1"),
        ("reader", f"{subjects.inbox('b1')}.>", "h1"),
        ("b2", ">", "h1"),
        ("h2", ">", "h1"),
    ],
)
async def test_what_a_user_may_not_subscribe_is_not_delivered(
    fleet: Fleet, who: str, subject: str, publisher: str
) -> None:
    spy = await fleet.link(who)
    stolen = await heard(spy, subject)
    await until(lambda: "permissions violation" in spy._reason.lower(), "the server has refused it")
    link = await fleet.link(publisher)
    for secret in (
        subjects.stream(B1, "h1", "puma"),
        subjects.command("h1", "puma", B1, "trigger_gc"),
        subjects.watch("h1", "puma", B1),
    ):
        await link.publish(secret, b"secret")
    await settled(fleet)
    assert stolen == []


async def test_a_read_only_bridge_may_handshake_and_is_told_at_once_about_the_rest(
    fleet: Fleet, rbkit: FakeRbkit
) -> None:
    machine = Machine(fleet.stack, lambda: fleet.servers("h1"))
    await machine.agent({"puma": Bridge(**rbkit.endpoints)}, "h1")
    machine.servers = lambda: fleet.servers("reader")
    targets = await machine.bridge("reader")
    server = await machine.served(targets, "h1~puma")
    async with server.client() as client:
        handshake = await client.command("handshake")
        assert isinstance(handshake, Handshake)
        assert handshake.process_name == "fake"
        with pytest.raises(CommandError) as refused:
            await asyncio.wait_for(client.command("trigger_gc"), 60)
    assert refused.value.reason == "forbidden"
    assert rbkit.received.count(b"trigger_gc") == 0


async def test_a_command_to_a_host_that_is_not_there_is_refused_at_once(fleet: Fleet) -> None:
    b1 = await fleet.link("b1")
    with pytest.raises(NoRespondersError):
        await b1.request(subjects.command("h9", "puma", B1, "trigger_gc"), b"", 3600)
    with pytest.raises(ForbiddenError):
        await b1.request(subjects.command("h9", "puma", Watcher("b2", "one"), "trigger_gc"), b"", 3600)


async def test_a_removed_host_is_cut_and_the_others_stay(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "CHECK_INTERVAL", 0.1)
    h1, h2 = await fleet.link("h1"), await fleet.link("h2")
    fleet.hub.remove("h2")
    assert fleet.hub.reload()
    await until(lambda: not h2.is_up, "its connection is cut")
    assert h1.is_up
    await until(lambda: h2.refusal, "it is not let in again")
    assert h1.is_up


async def test_a_host_may_answer_a_request_once(fleet: Fleet) -> None:
    h1, b1 = await fleet.link("h1"), await fleet.link("b1")
    subject = subjects.watch("h1", "puma", B1)

    async def answer(message: Message) -> None:
        await h1.publish(message.reply, b"one")
        await h1.publish(message.reply, b"two")

    await h1.subscribe(subjects.all_leases("h1"), answer)
    assert await b1.request(subject, b"", 10) == b"one"
    await until(lambda: "permissions violation" in h1._reason.lower(), "the second reply is refused")


async def lease(link: Link, watcher: Watcher, target: str = "puma") -> dict[str, object]:
    reply = await link.request(subjects.watch("h1", target, watcher), msgpack.packb({"stream": 0, "grant": 0}), 10)
    unpacked: dict[str, object] = msgpack.unpackb(reply)
    return unpacked


async def asked(link: Link, watcher: Watcher, command: str, **more: object) -> bytes:
    subject = subjects.command("h1", "puma", watcher, command)
    return await link.request(subject, msgpack.packb(more), 10)


@pytest.mark.parametrize(
    ("options", "command", "reply"),
    [
        ({}, "trigger_gc", b"ok"),
        ({}, "erase_all", b"error:unknown-command 'erase_all' is not one of"),
        ({}, "\0trigger_gc", b"error:invalid-command"),
        ({"commands": "any"}, "\0trigger_gc", b"error:invalid-command"),
        ({"commands": "any"}, "erase_all", b"ok"),
        ({"read_only": True}, "trigger_gc", b"error:forbidden 'trigger_gc' is refused: the agent of h1 is read-only"),
    ],
)
async def test_the_agent_checks_commands_itself(
    fleet: Fleet, rbkit: FakeRbkit, options: dict[str, object], command: str, reply: bytes
) -> None:
    machine = Machine(fleet.stack, lambda: fleet.servers("h1"))
    bridge = Bridge(**rbkit.endpoints)
    await machine.agent({"puma": bridge}, "h1", **options)
    b1 = await fleet.link("b1")
    leased = await lease(b1, B1)
    await until(lambda: bridge.state.value == "connected", "the agent is connected")
    now = leased["now"]
    assert isinstance(now, float)
    facts = {"instance": leased["instance"], "deadline": now + 3600}
    before = list(rbkit.received)
    assert (await asked(b1, B1, command, **facts)).startswith(reply)
    if reply.startswith(b"error"):
        assert [each for each in rbkit.received[len(before) :] if each != b"handshake"] == []


async def test_a_command_without_a_lease_of_this_agent_or_after_its_deadline_is_not_carried_out(
    fleet: Fleet, rbkit: FakeRbkit
) -> None:
    machine = Machine(fleet.stack, lambda: fleet.servers("h1"))
    bridge = Bridge(**rbkit.endpoints)
    await machine.agent({"puma": bridge}, "h1")
    b1 = await fleet.link("b1")
    assert (await asked(b1, B1, "trigger_gc", instance="", deadline=1e18)).startswith(b"error:unavailable")
    leased = await lease(b1, B1)
    await until(lambda: bridge.state.value == "connected", "the agent is connected")
    instance, now = leased["instance"], leased["now"]
    assert isinstance(now, float)
    with pytest.raises(RequestTimeoutError):  # another agent with this name may be carrying it out
        await b1.request(
            subjects.command("h1", "puma", B1, "trigger_gc"),
            msgpack.packb({"instance": "other", "deadline": now + 60}),
            0.1,
        )
    other = Watcher("b1", "two")
    assert (await asked(b1, other, "trigger_gc", instance=instance, deadline=now + 60)).startswith(b"error:unavail")
    for deadline in (now - 1, None, "x", math.nan, math.inf):
        assert (await asked(b1, B1, "trigger_gc", instance=instance, deadline=deadline)).startswith(b"error:timeout")
    assert rbkit.received.count(b"trigger_gc") == 0


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\x01", msgpack.packb({"stream": -1, "grant": "x"}), b"\xdf\xff"])
async def test_odd_leases_do_no_harm(fleet: Fleet, rbkit: FakeRbkit, data: bytes) -> None:
    machine = Machine(fleet.stack, lambda: fleet.servers("h1"))
    await machine.agent({"puma": Bridge(**rbkit.endpoints)}, "h1")
    b1 = await fleet.link("b1")
    for target in ("puma", "nobody"):
        await b1.publish(subjects.watch("h1", target, B1), data)
    assert "stream" in await lease(b1, B1)
    assert "there is no target nobody on h1" in str((await lease(b1, B1, "nobody"))["error"])
