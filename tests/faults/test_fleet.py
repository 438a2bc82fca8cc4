"""Faults of a fleet: killed, frozen and lying agents, bridges and servers, a cut network, and many hosts at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.conftest import until
from tests.fake_rbkit import FakeRbkit, FakeRbkitProcess
from tests.faults.fleet import (
    Node,
    Processes,
    Wire,
    bystander,
    connected,
    freeze,
    lease,
    publish,
    raw_link,
    running_node,
)
from tests.fleet.conftest import FOREVER, Machine, patient_fleet
from tests.fleet.test_commands import shown
from tornado_rbkit import Bridge, ConnectionLost, RbkitClient
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.errors import CommandError
from tornado_rbkit.fleet import control as control_module
from tornado_rbkit.fleet import subjects
from tornado_rbkit.fleet import targets as targets_module
from tornado_rbkit.fleet import transport as transport_module
from tornado_rbkit.fleet.agent import Agent
from tornado_rbkit.fleet.framing import WINDOW, Kind
from tornado_rbkit.fleet.hello import VERSION
from tornado_rbkit.fleet.link import PATIENCE, LinkError, Message
from tornado_rbkit.fleet.subjects import Watcher

__all__ = ["patient_fleet"]  # a fixture

pytestmark = pytest.mark.usefixtures("patient_fleet")

RAW = Watcher("raw", "one")
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGSTOP")


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    yield from running_node(tmp_path_factory.mktemp("nats"))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Run a server that a test may kill."""
    yield from running_node(tmp_path)


@pytest.fixture
def processes() -> Iterator[Processes]:
    with ExitStack() as stack:
        yield Processes(stack)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def published() -> dict[int, bytes]:
    return {}


def at(node: Node, stack: AsyncExitStack) -> Machine:
    return Machine(stack, node.servers)


def expire(agent: Agent, bridge: str = "") -> None:
    """Let the time of the leases of `puma`, or those of one bridge, pass; each renewal begins it anew."""
    for watcher, leased in agent._leases.of("puma").items():
        if bridge in ("", watcher.bridge):
            leased.age = FOREVER


def shorten_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an agent that does not reply count as disconnected; one that is only late replies before."""
    for module in (control_module, transport_module):
        monkeypatch.setattr(module, "LEASE_TIMEOUT", 10.0)


def count(rbkit: FakeRbkit, command: bytes) -> int:
    return rbkit.received.count(command)


# Killed and frozen


@needs_signals
async def test_an_agent_that_is_frozen_then_killed_and_restarted_loses_no_client_and_all_loss_is_reported(
    shared_node: Node,
    stack: AsyncExitStack,
    processes: Processes,
    rbkit: FakeRbkit,
    published: dict[int, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shorten_leases(monkeypatch)
    command = ("agent", "--nats", shared_node.url, "--host-name", "frozen", f"--target=puma={rbkit.pub},{rbkit.req}")
    agent, _ = await processes.start(*command)
    targets = await at(shared_node, stack).bridge(command_timeouts={"trigger_gc": 3600})
    server = await at(shared_node, stack).served(targets, "frozen~puma")
    raw = await stack.enter_async_context(raw_link(shared_node))
    async with bystander(server, rbkit, published) as client:
        leased = await lease(raw, "frozen", RAW)
        deadline = leased["now"] + 0.1
        freeze(agent.pid)
        late = asyncio.create_task(
            raw.request(
                subjects.command("frozen", "puma", RAW, "trigger_gc"),
                msgpack.packb({"instance": leased["instance"], "deadline": deadline}),
                60,
            )
        )
        await until(lambda: targets.hosts["frozen"] == "frozen", "the host is frozen", timeout=60)
        await until(lambda: server.bridge.state is State.DISCONNECTED, "the clients know", timeout=60)
        assert time.monotonic() > deadline  # the agent's clock, as it is on this machine
        publish(rbkit, published)
        os.kill(agent.pid, signal.SIGCONT)
        assert (await late).startswith(b"error:timeout")
        assert count(rbkit, b"trigger_gc") == 0, "a command is never carried out after its deadline"
        await until(lambda: targets.hosts["frozen"] == "here", "the host is here again", timeout=60)
        await until(lambda: server.bridge.state is State.CONNECTED, "and the clients go on", timeout=60)
        await client.all_accounted()

        assert await client.ask("trigger_gc") == b"ok"
        freeze(agent.pid)
        asking = asyncio.create_task(client.ask("trigger_gc"))
        await until(lambda: server.bridge.stats()["commands_waiting"] or asking.done(), "it is sent", timeout=60)
        agent.kill()
        assert (await asking).startswith(b"error:unavailable"), "long before its time-out"
        await until(lambda: targets.hosts["frozen"] == "gone", "the host is gone", timeout=60)
        await until(lambda: server.bridge.state is State.DISCONNECTED, "the clients know", timeout=60)
        assert (await client.ask("trigger_gc")).startswith(b"error:unavailable")
        told = client.told
        for _ in range(7):
            publish(rbkit, published, to_nobody=True)
        await until(lambda: rbkit.sent == rbkit.counter, "they are published to nobody")
        await processes.start(*command)
        await until(lambda: server.bridge.state is State.CONNECTED, "the agent is found again", timeout=60)
        await client.all_accounted()
        assert client.told >= told + 7
        assert client.notices["disconnected"] == client.notices["connected"] == 2
        assert await client.ask("trigger_gc") == b"ok"
        assert count(rbkit, b"trigger_gc") == 2


@needs_signals
async def test_the_lease_of_a_bridge_that_is_frozen_or_killed_ends_and_nothing_is_sent_to_it(
    shared_node: Node,
    stack: AsyncExitStack,
    processes: Processes,
    rbkit: FakeRbkit,
) -> None:
    puma = Bridge(**rbkit.endpoints, idle_grace=0.1)
    agent = await at(shared_node, stack).agent({"puma": puma}, "watched")

    def is_over() -> bool:
        """Return whether the lease that is not renewed has ended, once its time has passed for the agent."""
        expire(agent)
        return puma.state is State.IDLE

    raw = await stack.enter_async_context(raw_link(shared_node))
    frames: list[Message] = []
    await raw.subscribe("rbkit.to.>", frames.append)
    bridge, url = await processes.start("serve", "--nats", shared_node.url, "--port", "0")
    ws = await shown(url, "watched~puma")
    while "memory_profile" not in rbkit.enabled:
        with contextlib.suppress(ConnectionLost, CommandError):  # on a busy machine it may not connect in time
            client = await stack.enter_async_context(RbkitClient(ws))
            assert await client.command("start_memory_profile") == "ok"
    freeze(bridge.pid)
    await until(is_over, "its lease has ended", timeout=60)
    assert rbkit.received[-1] == b"stop_memory_profile", "what was started through it is stopped"
    os.kill(bridge.pid, signal.SIGCONT)
    await until(lambda: puma.state is State.CONNECTED, "it has another lease", timeout=60)
    frames.clear()
    while not frames:
        rbkit.publish_collection(padding=1000)
        await asyncio.sleep(0.05)
    bridge.kill()
    await until(is_over, "its lease has ended", timeout=60)
    hellos: list[Message] = []
    await raw.subscribe(subjects.hello("watched"), hellos.append)
    await until(lambda: hellos, "what was sent before has arrived")
    frames.clear()
    sent = rbkit.sent
    for _ in range(20):
        rbkit.publish_collection(padding=1000, to_nobody=True)
    await until(lambda: rbkit.sent == sent + 20, "they are published to nobody")
    hellos.clear()
    await until(lambda: hellos, "whatever the agent has sent has arrived")
    assert frames == [], "not a byte of a target that nobody watches leaves its host"


async def test_all_servers_gone_and_back_keep_clients_and_leases_and_repeat_no_command(
    node: Node, stack: AsyncExitStack, rbkit: FakeRbkit, published: dict[int, bytes]
) -> None:
    puma = Bridge(**rbkit.endpoints, idle_grace=0.1)
    agent = await at(node, stack).agent({"puma": puma}, "web-1")
    targets = await at(node, stack).bridge()
    server = await at(node, stack).served(targets, "web-1~puma")
    async with bystander(server, rbkit, published) as client:
        (leased,) = agent._leases.of("puma").values()
        assert await client.ask("trigger_gc") == b"ok", "and no handshake is in its way"
        rbkit.answering.clear()
        asking = asyncio.create_task(client.ask("trigger_gc"))
        await until(lambda: count(rbkit, b"trigger_gc") == 2, "the profiler has the command", timeout=60)
        node.kill()
        assert (await asking).startswith(b"error:unavailable"), "long before its time-out"
        rbkit.answering.set()
        await until(lambda: server.bridge.state is State.DISCONNECTED, "the clients know", timeout=60)
        assert (await client.ask("trigger_gc")).startswith(b"error:unavailable")
        for _ in range(5):
            publish(rbkit, published, padding=1000)
        await node.start()
        await until(lambda: server.bridge.state is State.CONNECTED, "it is connected again", timeout=60)
        await client.all_accounted()
        assert list(agent._leases.of("puma").values()) == [leased], "an outage ends no lease"
        assert puma.state is State.CONNECTED
        assert count(rbkit, b"trigger_gc") == 2, "nothing is carried out twice, or after it was refused"
        assert await client.ask("trigger_gc") == b"ok"
        await until(lambda: targets.hosts == {"web-1": "here"}, "the host is here", timeout=60)


@needs_signals
async def test_a_profiler_behind_an_agent_that_is_frozen_killed_and_restarted(
    shared_node: Node, stack: AsyncExitStack
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        profiler = FakeRbkitProcess(f"ipc://{folder}/pub", f"ipc://{folder}/req")
        stack.callback(profiler.kill)
        await asyncio.to_thread(profiler.start)
        puma = Bridge(**profiler.endpoints, command_timeouts={"use_cpu_time": 0.3})  # asked while it is frozen
        await at(shared_node, stack).agent({"puma": puma}, "profiled")
        targets = await at(shared_node, stack).bridge()
        server = await at(shared_node, stack).served(targets, "profiled~puma")
        await connected(server)
        async with server.client() as client:
            assert await client.command("trigger_gc") == "ok"
            profiler.freeze()
            with pytest.raises(CommandError) as refused:
                await client.command("use_cpu_time")
            assert refused.value.reason == "timeout"
            profiler.send_signal(signal.SIGCONT)
            await until(lambda: puma.stats()["trouble"] is None, "it answers again", timeout=60)
            profiler.kill()
            await until(lambda: server.bridge.state is State.DISCONNECTED, "the clients know", timeout=60)
            await asyncio.to_thread(profiler.start)
            await until(lambda: server.bridge.state is State.CONNECTED, "it is found again", timeout=60)
            assert await client.command("trigger_gc") == "ok"


# The network


async def test_a_network_that_is_cut_without_a_word_ends_one_lease_and_delays_nobody_else(
    shared_node: Node,
    stack: AsyncExitStack,
    rbkit: FakeRbkit,
    published: dict[int, bytes],
) -> None:
    machine = at(shared_node, stack)
    agent = await machine.agent({"puma": Bridge(**rbkit.endpoints)}, "cut-off")
    good = await machine.served(await machine.bridge("good"), "cut-off~puma")
    wire = await stack.enter_async_context(Wire(shared_node.port))
    far = await Machine(stack, wire.servers).bridge("far")
    far._control.link._patience = PATIENCE
    cut = await machine.served(far, "cut-off~puma")

    def is_over() -> bool:
        """Return whether the lease that is not renewed has ended, once its time has passed for the agent."""
        expire(agent, "far")
        return len(agent._leases.of("puma")) == 1

    async with bystander(good, rbkit, published) as client, bystander(cut, rbkit, published) as lost:
        wire.cut()
        await client.goes_on(padding=100_000)
        await until(lambda: cut.bridge.state is State.DISCONNECTED, "the loss is noticed", timeout=60)
        await until(is_over, "its lease has ended", timeout=60)
        await client.goes_on()
        wire.mend()
        await until(lambda: cut.bridge.state is State.CONNECTED, "it is connected again", timeout=60)
        await lost.all_accounted()
        await client.all_accounted()
        assert client.told == 0
        assert client.notices["disconnected"] == 0


async def test_fifty_agents_that_reconnect_at_once_are_all_there_again(
    node: Node, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets_module, "REJOIN_SECONDS", 60.0)  # a busy machine may need long for 50 connections
    machine = at(node, stack)
    hosts = [f"host-{number:02}" for number in range(50)]
    running = await asyncio.gather(*(machine.agent({"puma": Bridge()}, host) for host in hosts))
    targets = await machine.bridge()
    await until(lambda: len(targets) == 50, "all are announced", timeout=60)
    bridges = dict(targets)
    node.kill()
    await until(lambda: not any(agent.is_up for agent in running), "all have noticed it", timeout=60)
    await node.start()
    await until(lambda: all(agent.is_up for agent in running), "all are connected again", timeout=60)
    since = time.monotonic()
    await until(lambda: all(host.heard > since for host in targets._hosts.values()), "all are heard", timeout=60)
    await until(lambda: targets.hosts == dict.fromkeys(hosts, "here"), "all are here", timeout=60)
    assert dict(targets) == bridges, "and their targets have stayed"


# Two of one name


async def test_of_two_agents_with_one_name_one_serves_until_it_ends(
    shared_node: Node, stack: AsyncExitStack, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_leases(monkeypatch)
    machine = at(shared_node, stack)
    with FakeRbkit() as twin_rbkit:
        pumas = {rbkit: Bridge(**rbkit.endpoints), twin_rbkit: Bridge(**twin_rbkit.endpoints)}
        twins = {puma: await machine.agent({"puma": puma}, "twins") for puma in pumas.values()}
        targets = await machine.bridge()
        server = await machine.served(targets, "twins~puma")
        client = await connected(server)
        raw = await stack.enter_async_context(raw_link(shared_node))
        leases: list[Message] = []
        since = time.monotonic()
        await raw.subscribe(subjects.all_leases("twins"), leases.append)
        await until(
            lambda: sum(map(bool, (twin._leases.of("puma") for twin in twins.values()))) == 1, "one gives way", 60
        )
        (serving,) = (puma for puma, twin in twins.items() if twin._leases.of("puma"))
        (idle,) = (puma for puma in twins if puma is not serving)
        begun = len([message for message in leases if message.reply and ".puma." in message.subject])
        assert begun <= 3 * (time.monotonic() - since) + 3, "they do not take the lease from each other"
        (asked,) = (fake for fake, puma in pumas.items() if puma is serving)
        (unasked,) = (fake for fake in pumas if fake is not asked)
        await client.write_message("trigger_gc")
        await until(lambda: count(asked, b"trigger_gc") == 1, "the one that serves has the command")
        assert count(unasked, b"trigger_gc") == 0
        assert server.bridge.state is State.CONNECTED
        instance = targets._hosts["twins"].instance
        await machine.stop(twins[serving])
        await until(lambda: twins[idle]._leases.of("puma"), "the other one takes over", timeout=60)
        await until(lambda: server.bridge.state is State.CONNECTED, "and serves", timeout=60)
        await client.write_message("trigger_gc")
        await until(lambda: count(unasked, b"trigger_gc") == 1, "the other one has the command")
        assert count(asked, b"trigger_gc") == 1
        await until(lambda: targets.hosts["twins"] == "here", "the host is here", timeout=60)
        assert instance in {twin.instance for twin in twins.values()}


# Liars


class LyingAgent:
    """Answers leases with whatever comes to mind, and sends frames that were never granted."""

    def __init__(self, raw: Any, host: str, seed: int = 0) -> None:
        self.leases = 0
        self._raw = raw
        self._host = host
        self._random = random.Random(seed)

    async def begin(self) -> None:
        await self._raw.subscribe(subjects.all_leases(self._host), self._on_lease)
        await self._raw.subscribe(subjects.all_commands(self._host), self._on_command)

    async def hello(self, *names: object, **more: object) -> None:
        facts = {"v": VERSION, "instance": "liar", "digest": "1", "targets": [{"name": name} for name in names]}
        await self._raw.publish(subjects.hello(self._host), msgpack.packb(facts | more))

    async def _on_lease(self, message: Message) -> None:
        with contextlib.suppress(LinkError):
            await self._lie(message)

    async def _lie(self, message: Message) -> None:
        subject = subjects.parse(message.subject)
        assert subject is not None
        if not message.reply:
            return
        if subject.target == subjects.HOST_TARGET:
            await self._raw.publish(message.reply, b"\x80")
            return
        self.leases += 1
        stream = self._random.getrandbits(64)
        reply = {"instance": "liar", "now": time.monotonic(), "stream": stream, "sent": 1 << 63, "state": 1}
        reply |= self._random.choice([{}, {"viewers": 1 << 63}])
        await self._raw.publish(message.reply, msgpack.packb(reply))
        for _ in range(20):
            kind = self._random.choice([*Kind, 9])
            position = self._random.choice([0, 1, WINDOW, 1 << 63, (1 << 64) - 1])
            state = self._random.choice([1, 3, 0xFFFFFFFF])  # always connected
            body = self._random.choice([b"", bytes(300_000), b"\x1f\xff\xff\xff", bytes(4)])
            frame = kind.to_bytes(1, "big") + stream.to_bytes(8, "big") + position.to_bytes(8, "big")
            await self._raw.publish(
                subjects.stream(subject.watcher, self._host, subject.target),
                frame + state.to_bytes(4, "big") + body,
            )

    async def _on_command(self, message: Message) -> None:
        with contextlib.suppress(LinkError):
            await self._raw.publish(message.reply, b"dropped:7")


async def test_a_lying_agent_harms_nobody_but_itself(
    shared_node: Node,
    stack: AsyncExitStack,
    rbkit: FakeRbkit,
    published: dict[int, bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine = at(shared_node, stack)
    await machine.agent({"puma": Bridge(**rbkit.endpoints)}, "honest")
    targets = await machine.bridge()
    server = await machine.served(targets, "honest~puma")
    raw = await stack.enter_async_context(raw_link(shared_node))
    liar = LyingAgent(raw, "liar")
    await liar.begin()
    async with bystander(server, rbkit, published) as client:
        since = time.monotonic()
        await liar.hello("puma", "x" * 5000, "", "new\nline", 5, None)
        lied_to = await machine.served(targets, "liar~puma")
        assert [name for name in targets if name.startswith("liar")] == ["liar~puma"]
        other = await lied_to.connect()
        await until(lambda: liar.leases >= 3, "it has lied", timeout=60)
        await until(lambda: lied_to.bridge.state is State.CONNECTED, "the bridge believes it", timeout=60)
        assert liar.leases <= 2 * (time.monotonic() - since) + 3, "a new stream in each reply is no reason to hurry"
        reply = b"0error:unavailable"
        while reply.startswith(b"0error:unavailable"):  # while it says that its profiler is disconnected
            await other.write_message("trigger_gc")
            reply = await read_reply(other)
        assert reply.startswith(b"0error:invalid-reply"), "a reply is not taken for a notice"
        impostor = LyingAgent(raw, "honest")
        await impostor.hello(instance="impostor", digest="2")
        await impostor.hello(v=VERSION + 1)
        for _ in range(100):
            await liar.hello(*range(3), digest=str(random.random()))
        await client.goes_on(padding=100_000)
        assert server.bridge.state is State.CONNECTED
        assert client.told == 0


async def read_reply(connection: Any) -> bytes:
    while True:
        message = await asyncio.wait_for(connection.read_message(), 60)
        assert message is not None
        if message.startswith(b"0error") or message == b"0ok":
            return bytes(message)


async def test_a_lying_bridge_harms_nobody_but_itself(
    shared_node: Node,
    stack: AsyncExitStack,
    rbkit: FakeRbkit,
    published: dict[int, bytes],
) -> None:
    machine = at(shared_node, stack)
    puma = Bridge(**rbkit.endpoints)
    agent = await machine.agent({"puma": puma}, "lied-to")
    server = await machine.served(await machine.bridge(), "lied-to~puma")
    raw = await stack.enter_async_context(raw_link(shared_node, "greedy"))
    async with bystander(server, rbkit, published) as client:
        refused = 0
        for number in range(200):
            reply = await lease(raw, "lied-to", Watcher("greedy", str(number)))
            refused += "error" in reply
        assert len(agent._leases.of("puma")) == 1 + 64
        assert refused == 200 - 64
        watcher = Watcher("greedy", "0")
        stream = (await lease(raw, "lied-to", watcher))["stream"]
        grants: list[Any] = [-1, 1 << 63, (1 << 64) - 1, 1e308, None, [], {}, "x", b"x", True]
        for grant in grants:
            for named in (stream, 0, -1, (1 << 64) - 1, "x", None):
                asked = {"stream": named, "grant": grant, "viewers": grant, "instance": agent.instance}
                await raw.publish(subjects.watch("lied-to", "puma", watcher), msgpack.packb(asked))
        for data in (b"", b"\xc1", b"\x90", msgpack.packb({"instance": agent.instance, "deadline": float("nan")})):
            for name in ("trigger_gc", "%00trigger_gc", "x" * 1000, "start%20memory", "%2A", "trigger%5Fgc"):
                await raw.publish(f"rbkit.cmd.lied-to.puma.greedy.0.{name}", data)
        stolen: list[Message] = []
        await raw.subscribe("rbkit.to.victim.>", stolen.append)
        victim = subjects.stream(Watcher("victim", "x"), "lied-to", "puma")
        client_of_nats = raw._client
        await client_of_nats.publish(subjects.watch("lied-to", "puma", watcher), msgpack.packb({}), reply=victim)
        await client.goes_on(padding=500_000, times=12)
        assert client.told == 0
        assert stolen == [], "the agent replies only to the one that asks"
        leases = agent._leases.of("puma")
        assert all(each.sender.position <= WINDOW for who, each in leases.items() if who.bridge == "greedy")
        assert await client.ask("trigger_gc") == b"ok"
        assert count(rbkit, b"trigger_gc") == 1


async def test_generated_messages_on_every_subject_harm_nobody(
    shared_node: Node, stack: AsyncExitStack, rbkit: FakeRbkit, published: dict[int, bytes], soak: float
) -> None:
    machine = at(shared_node, stack)
    agent = await machine.agent({name: Bridge(**rbkit.endpoints) for name in ("puma", "other")}, "fuzzed")
    targets = await machine.bridge()
    server = await machine.served(targets, "fuzzed~puma")
    spoiled = await machine.served(targets, "fuzzed~other")
    raw = await stack.enter_async_context(raw_link(shared_node))
    watcher = targets._control.watcher
    real: dict[str, list[bytes]] = {}
    generated = random.Random(20)

    def remember(message: Message) -> None:
        seen = real.setdefault(message.subject, [])
        if len(seen) < 20 and message.data not in odd:
            seen.append(message.data)

    odd: set[bytes] = set()
    for subject in ("rbkit.watch.fuzzed.>", "rbkit.cmd.fuzzed.>", "rbkit.to.>", subjects.HELLOS):
        await raw.subscribe(subject, remember)
    async with bystander(server, rbkit, published) as client:
        assert await client.ask("trigger_gc") == b"ok"
        await until(lambda: len(real) >= 4, "one of each has been seen", timeout=60)
        disturbed: set[str | bytes | None] = set()
        connection = await connected(spoiled)
        reading = asyncio.create_task(read_all(connection, disturbed))
        leased = subjects.watch("fuzzed", "puma", Watcher("fuzz", "x"))
        command = subjects.command("fuzzed", "puma", Watcher("fuzz", "x"), "trigger_gc")
        places = [
            subjects.stream(watcher, "fuzzed", "other"),  # which only its host may use
            *itertools.repeat(leased, 3),
            command,
            subjects.hello("stranger"),
            subjects.watch("fuzzed", "_host", watcher),
            subjects.watch("fuzzed", "nobody", watcher),
            "rbkit.watch.fuzzed.%00.%ff.%2e",
            "rbkit.cmd.fuzzed.puma.fuzz.%6F.x",
            subjects.WHO,
        ]
        ends = time.monotonic() + soak
        rounds = 0
        while rounds < 5 or time.monotonic() < ends:
            rounds += 1
            samples = [data for seen in list(real.values()) for data in seen]
            for _ in range(200):
                data = mutated(generated, generated.choice(samples))
                odd.add(data)
                await raw.publish(generated.choice(places), data)
            odd.clear()
            await client.goes_on(padding=1000)
        assert agent.is_up
        await until(lambda: targets.hosts["fuzzed"] == "here", "the host is here", timeout=60)
        assert await client.ask("trigger_gc") == b"ok"
        since = rbkit.counter

        def is_repaired() -> bool:
            if rbkit.sent == rbkit.counter:
                publish(rbkit, published)
            return any(b"1" + published[number] in disturbed for number in range(since, rbkit.counter))

        await until(is_repaired, "the stream with frames that were not its own is repaired", timeout=60)
        connection.close()
        await reading


async def read_all(connection: Any, seen: set[str | bytes | None]) -> None:
    while (message := await connection.read_message()) is not None:
        seen.add(message)


def mutated(generated: random.Random, data: bytes) -> bytes:
    """Return a message with a few other bytes, or cut off, or with an end of something else."""
    changed = bytearray(data)
    for _ in range(generated.randrange(1, 6)):
        if changed:
            changed[generated.randrange(min(len(changed), 64))] = generated.randrange(256)
    kept = changed[: generated.randrange(len(changed) + 1)] if generated.random() < 0.3 else changed
    return bytes(kept) + (generated.randbytes(9) if generated.random() < 0.2 else b"")
