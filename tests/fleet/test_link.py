"""The connection to NATS, at a real server that stops, freezes, and is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import until
from tornado_rbkit.fleet.link import (
    PATIENCE,
    FleetExtraMissingError,
    Link,
    LinkDownError,
    LinkError,
    Message,
    NoRespondersError,
    RequestTimeoutError,
    TooLongError,
    _wait_for_any,
    require_nats,
)
from tornado_rbkit.fleet.nats import NatsServers
from tornado_rbkit.fleet.server import (
    LocalServer,
    NatsServer,
    find_program,
    forget_local_server,
    local_servers,
    start_local_server,
    write_private,
)


class Links:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def up(self, **options: object) -> Link:
        link = Link(local_servers, "test", **{"patience": 3600, **options})  # type: ignore[arg-type]
        task = asyncio.create_task(link.run())

        async def stop() -> None:
            task.cancel()
            await asyncio.wait([task])

        self._stack.push_async_callback(stop)
        await asyncio.wait_for(link.wait_until_up(), 60)
        return link


@pytest.fixture
async def links(nats: NatsServer) -> AsyncIterator[Links]:
    async with AsyncExitStack() as stack:
        yield Links(stack)


async def echo(link: Link, subject: str) -> list[bytes]:
    """Answer requests on a subject with their data; return a list of it."""
    asked: list[bytes] = []

    async def answer(message: Message) -> None:
        asked.append(message.data)
        await link.publish(message.reply, message.data)

    await link.subscribe(subject, answer)
    return asked


async def test_a_request_gets_its_reply_and_nobody_is_told_at_once(links: Links) -> None:
    agent, bridge = await links.up(), await links.up(inbox="_INBOX_b1")
    await echo(agent, "a.echo")
    await until(lambda: agent.is_up, "it is up")
    assert await bridge.request("a.echo", b"one", 10) == b"one"
    assert await asyncio.gather(*(bridge.request("a.echo", b"%d" % n, 10) for n in range(20))) == [
        b"%d" % n for n in range(20)
    ]
    with pytest.raises(NoRespondersError):
        await bridge.request("a.nobody", b"", 3600)
    await agent.subscribe("a.silent", lambda message: None)
    with pytest.raises(RequestTimeoutError):
        await bridge.request("a.silent", b"", 0.05)


async def test_another_client_takes_over_when_the_server_was_replaced(links: Links, nats: NatsServer) -> None:
    agent, bridge = await links.up(), await links.up(inbox="_INBOX_b1")
    await echo(agent, "a.echo")
    request = asyncio.create_task(bridge.request("a.never", b"", 3600))
    await agent.subscribe("a.never", lambda message: None)
    nats.stop()
    with pytest.raises(LinkError):
        await request
    await until(lambda: not agent.is_up and not bridge.is_up, "the loss is noticed")
    with pytest.raises(LinkDownError):
        await bridge.request("a.echo", b"", 10)
    with pytest.raises(LinkDownError):
        await bridge.publish("a.echo", b"")
    forget_local_server(nats)
    other = await start_local_server()
    try:
        await until(lambda: agent.is_up and bridge.is_up, "both are connected to the other server")
        assert await bridge.request("a.echo", b"again", 10) == b"again"
    finally:
        other.stop()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP")
async def test_a_frozen_server_is_noticed_and_what_was_refused_is_never_carried_out(
    links: Links, nats: NatsServer
) -> None:
    agent, bridge = await links.up(patience=PATIENCE), await links.up(inbox="_INBOX_b1", patience=PATIENCE)
    asked = await echo(agent, "a.echo")
    os.kill(nats.pid, signal.SIGSTOP)
    try:
        await until(lambda: not bridge.is_up and not agent.is_up, "the loss is noticed", timeout=60)
        with pytest.raises(LinkDownError):
            await bridge.request("a.echo", b"while it is frozen", 10)
    finally:
        os.kill(nats.pid, signal.SIGCONT)
    await until(lambda: agent.is_up and bridge.is_up, "both are connected again", timeout=60)
    assert await bridge.request("a.echo", b"later", 10) == b"later"
    assert asked == [b"later"]


def test_without_the_extra_the_package_is_importable_and_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'nats' else find(name, *rest)\n"
        "sys.modules['nats'] = None\n"
    )
    program = (
        "import tornado_rbkit, tornado_rbkit.fleet.agent, tornado_rbkit.fleet.targets, tornado_rbkit.cli.main\n"
        "from tornado_rbkit.fleet.link import require_nats\n"
        "try:\n    require_nats()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout == "FleetExtraMissingError nats is not installed; pip install 'tornado_rbkit[fleet]'\n", done
    require_nats()
    assert FleetExtraMissingError.exit_status == 2


async def test_agents_that_begin_at_the_same_time_share_one_server(runtime_folder: Path) -> None:
    agents = [LocalServer() for _ in range(4)]
    try:
        await asyncio.gather(*(agent.ensure() for agent in agents))
        running = [agent._own for agent in agents if agent._own is not None]
        assert len(running) == 1
        servers = local_servers()
        assert servers is not None
        assert servers.urls[0].endswith(running[0].url.rpartition(":")[2])
    finally:
        for agent in agents:
            agent.stop()


async def test_a_port_that_another_program_has_got_is_not_taken_for_a_server(runtime_folder: Path) -> None:
    def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example\r\n")
        writer.close()

    other = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    runtime_folder.mkdir(mode=0o700)
    write_private(runtime_folder / "nats.json", json.dumps({"url": f"nats://u:p@127.0.0.1:{port}", "pid": 1}))
    agent = LocalServer()
    try:
        await agent.ensure()
        assert agent._own is not None
    finally:
        agent.stop()
        other.close()


async def test_a_server_that_takes_too_short_messages_is_refused_in_clear_words(
    runtime_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime_folder.mkdir(mode=0o700)
    config = runtime_folder / "small.conf"
    config.write_text(
        f'listen: "127.0.0.1:-1"\nmax_payload: 65536\nports_file_dir: {json.dumps(str(runtime_folder))}\n'
    )
    server = await NatsServer.start(find_program((2, 9, 0)), config, runtime_folder)
    link = Link(lambda: NatsServers(urls=(server.url,)), "test")
    running = asyncio.create_task(link.run())
    try:
        await until(lambda: "max_payload is 65536 bytes; needed: 524288 or more" in caplog.text, "it is logged")
        assert not link.is_up
    finally:
        running.cancel()
        await asyncio.wait([running])
        server.stop()


async def test_a_message_that_is_too_long_does_not_cost_the_connection(links: Links) -> None:
    link = await links.up(inbox="_INBOX_b1")
    with pytest.raises(TooLongError, match="allowed: 1048576"):
        await link.publish("a.long", bytes(2 << 20))
    with pytest.raises(TooLongError):
        await link.request("a.long", bytes(2 << 20), 10)
    assert link.is_up
    assert not link._lost.is_set()


@pytest.mark.logs_errors
async def test_a_callback_that_fails_is_logged_and_the_next_message_arrives(
    links: Links, caplog: pytest.LogCaptureFixture
) -> None:
    link = await links.up()
    heard: list[bytes] = []

    def listen(message: Message) -> None:
        heard.append(message.data)
        if message.data == b"odd":
            raise OverflowError("a fault of ours")

    await link.subscribe("a.heard", listen)
    await link.publish("a.heard", b"odd")
    await link.publish("a.heard", b"good")
    await until(lambda: heard == [b"odd", b"good"], "both have arrived")
    assert "handling a message on a.heard failed" in caplog.text
    assert "a fault of ours" in caplog.text


def test_every_server_is_tried_before_one_is_tried_again() -> None:
    servers = NatsServers(urls=tuple(f"nats://127.0.0.1:{port}" for port in (1, 2, 3)))
    link = Link(lambda: servers, "test")
    tried = [link._next_url(servers) for _ in range(30)]
    assert all(set(tried[at : at + 3]) == set(servers.urls) for at in range(0, 30, 3))


async def test_a_link_that_is_cancelled_twice_closes_its_connection(nats: NatsServer) -> None:
    link = Link(local_servers, "test")
    running = asyncio.create_task(link.run())
    await asyncio.wait_for(link.wait_until_up(), 60)
    client = link._client
    running.cancel()
    while not link._closing:
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert not link._closing
    assert client.is_closed


async def test_what_arrived_while_the_process_was_stopped_is_read_before_a_time_out_is_judged() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    future: asyncio.Future[bytes] = loop.create_future()

    async def parse(data: bytes) -> None:
        for _ in range(5):  # a stream's reader, its parser and the callback take a few turns of the loop
            await asyncio.sleep(0)
        future.set_result(data)

    parsing: list[asyncio.Task[None]] = []

    def read() -> None:
        loop.remove_reader(ours)
        parsing.append(loop.create_task(parse(ours.recv(1))))

    loop.add_reader(ours, read)
    with ours, theirs:
        waiting = asyncio.create_task(_wait_for_any([future], 0.6))
        await asyncio.sleep(0)
        theirs.send(b"x")
        time.sleep(0.65)
        await waiting
        assert future.done()
