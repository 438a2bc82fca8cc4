"""Nothing that could hurt rbkit is ever sent to it, whatever a client sends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websockets_connect
from websockets.typing import Subprotocol

from tests.conftest import Serve, ask, closing, receive, until
from tests.fake_rbkit import FakeRbkit
from tests.raw import upgrade_request
from tornado_rbkit import Bridge

HARMFUL: list[str | bytes] = [
    "",
    b"",
    b"\0handshake",
    "handshake\ntrigger_gc",
    "händshake",
    b"\xff\xfe",
    "x" * 257,
    b"x" * 60_000,
]


@pytest.mark.parametrize("rules", [{}, {"commands": "any"}], ids=["default", "any"])
async def test_harmful_messages_are_answered_and_never_sent_on(
    serve: Serve, rbkit: FakeRbkit, rules: dict[str, str]
) -> None:
    server = await serve(Bridge(**rbkit.endpoints), **rules)
    victim = await server.connected()
    offender = await server.connected()
    for message in HARMFUL:
        assert (await ask(offender, message)).startswith(b"0error:invalid-command "), message
        assert await ask(offender, "trigger_gc") == b"0ok"
    assert await ask(victim, "trigger_gc") == b"0ok"
    assert not rbkit.dead
    assert set(rbkit.received) == {b"handshake", b"trigger_gc"}


async def test_any_accepts_every_line_of_printable_ascii(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints), commands="any")
    connection = await server.connected()
    for command in ("x", "Handshake", " handshake ", "a" * 256, "start_memory_profile --all"):
        assert await ask(connection, command) == b"0ok"
        assert rbkit.received[-1] == command.encode()


async def test_a_list_of_commands_replaces_the_nine(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints), commands=["trigger_gc", "dump_all"])
    connection = await server.connected()
    assert await ask(connection, "dump_all") == b"0ok"
    reply = await ask(connection, "handshake")
    assert reply.startswith(b"0error:unknown-command 'handshake' is not one of: dump_all, trigger_gc ")
    assert b"`commands`" in reply


async def test_a_message_too_long_for_a_command_closes_with_1009(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    bystander = await server.connected()
    offender = await server.connected()
    await offender.write_message(b"x" * 70_000, binary=True)
    code, reason = await closing(offender)
    assert code == 1009
    assert reason is not None
    assert "65536 bytes" in reason
    assert await ask(bystander, "trigger_gc") == b"0ok"


async def test_a_flood_of_commands_is_answered_one_by_one_and_disturbs_nobody(
    serve: Serve, rbkit: FakeRbkit, threaded: bool
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, command_timeouts={"trigger_gc": 3600}))
    flooder, bystander = await server.connected(), await server.connected()
    assert await receive(flooder) == b"0client_count:2"
    rbkit.answering.clear()  # so that all of them wait for the first
    for _ in range(10_000):
        await flooder.write_message("trigger_gc")
    await until(lambda: server.bridge.stats()["clients"][0]["commands_waiting"] == 32, "as many wait as may")
    await bystander.write_message("use_cpu_time")
    await until(lambda: server.bridge.stats()["clients"][1]["commands_waiting"] == 1, "there is room for others")
    rbkit.answering.set()
    assert await receive(bystander) == b"0ok"
    replies = [await receive(flooder) for _ in range(10_000)]
    assert replies[:32] == [b"0ok"] * 32
    busy = replies.count(replies[-1])
    assert replies.count(b"0ok") + busy == 10_000
    assert str(replies[-1]).startswith("b'0error:busy trigger_gc: 32 commands are waiting") or replies[-1] == b"0ok"
    assert rbkit.received.count(b"trigger_gc") == replies.count(b"0ok")
    assert not rbkit.dead


async def test_all_clients_together_may_have_256_commands_waiting(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints, command_timeouts={"trigger_gc": 3600}))
    await ask(await server.connected(), "handshake")
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(websockets_connect(server.ws, subprotocols=[Subprotocol("rbkit")]))
            for _ in range(9)
        ]
        rbkit.answering.clear()
        for client in clients:
            for _ in range(32):
                await client.send("trigger_gc")
            await (await client.ping())  # so all have been taken
        assert server.bridge.stats()["commands_waiting"] == 257, "256 wait behind the one in flight"
        rbkit.answering.set()
        replies = [message for client in clients async for message in take_replies(client, 32)]
    busy = [reply for reply in replies if reply != b"0ok"]
    assert len(busy) == 9 * 32 - 257
    assert all(reply.startswith(b"0error:busy trigger_gc: 256 commands are waiting") for reply in busy)


async def take_replies(client: ClientConnection, count: int) -> AsyncIterator[bytes]:
    """Yield that many replies, skipping notices."""
    while count:
        message = await asyncio.wait_for(client.recv(), 60)
        assert isinstance(message, bytes)
        if not message.startswith(b"0client_count"):
            count -= 1
            yield message


async def test_a_client_that_floods_and_does_not_read_is_not_read_further(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints, ping_interval=0))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(upgrade_request())
    await reader.readuntil(b"\r\n\r\n")
    command = b"\x81\x84\0\0\0\0nope"
    paused = False
    for _ in range(3000):  # 30 MB of commands, for which it would be pending 660 MB
        writer.write(command * 1000)
        try:
            await asyncio.wait_for(writer.drain(), 2)
        except asyncio.TimeoutError:
            paused = True
            break
    assert paused, "its commands are still taken"
    assert server.bridge.stats()["clients"][0]["bytes_waiting"] < 4 * 1024 * 1024
    bystander = await server.connected()
    assert await ask(bystander, "trigger_gc") == b"0ok"
    writer.transport.abort()
    reader.feed_eof()
    await until(lambda: len(server.bridge.stats()["clients"]) == 1, "it is forgotten once it is gone")
