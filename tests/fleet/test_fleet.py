"""Profilers, agents, bridges and clients together, at a real NATS server."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.conftest import Server, ask, closing, receive, receive_data, until
from tests.fake_rbkit import FakeRbkit
from tests.fleet.conftest import Machine
from tornado_rbkit import Bridge
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.fleet.framing import WINDOW, StreamReceiver


async def test_a_client_of_a_bridge_sees_and_steers_a_profiler_of_another_host(
    machine: Machine, rbkit: FakeRbkit, bridge_to_rbkit: Bridge
) -> None:
    await machine.agent({"puma": bridge_to_rbkit})
    targets = await machine.bridge()
    server = await machine.served(targets, "web-1~puma")
    client = await server.connected()
    assert await ask(client, "trigger_gc") == b"0ok"
    message = rbkit.publish_collection(padding=100)
    assert await receive_data(client) == message
    large = rbkit.publish_collection(padding=5_000_000)
    assert await receive_data(client) == large
    assert rbkit.received.count(b"trigger_gc") == 1


async def test_an_unwatched_target_has_no_connection_to_its_profiler(
    machine: Machine, rbkit: FakeRbkit, bridge_to_rbkit: Bridge
) -> None:
    await machine.agent({"puma": bridge_to_rbkit})
    targets = await machine.bridge(idle_grace=0.1)
    server = await machine.served(targets, "web-1~puma")
    assert bridge_to_rbkit.state is State.IDLE
    client = await server.connected()
    assert await ask(client, "start_memory_profile") == b"0ok"
    client.close()
    await until(lambda: bridge_to_rbkit.state is State.IDLE, "the agent has disconnected")
    assert rbkit.received[-1] == b"stop_memory_profile", "what was started through the agent is stopped"


async def test_a_restarted_agent_is_found_again_and_what_was_lost_is_reported(
    machine: Machine, rbkit: FakeRbkit, bridge_to_rbkit: Bridge
) -> None:
    agent = await machine.agent({"puma": bridge_to_rbkit})
    targets = await machine.bridge()
    server = await machine.served(targets, "web-1~puma")
    client = await server.connected()
    first = rbkit.publish_collection()
    assert await receive_data(client) == first
    await machine.stop(agent)
    await until(lambda: server.bridge.state is State.DISCONNECTED, "the loss is noticed")
    for _ in range(5):
        rbkit.publish_collection(to_nobody=True)
    await until(lambda: rbkit.sent >= 6, "they are published to nobody")
    await machine.agent({"puma": Bridge(**rbkit.endpoints)})
    await until(lambda: server.bridge.state is State.CONNECTED, "the agent is found again")
    last = rbkit.publish_collection()
    assert await receive_data(client) == last
    assert server.bridge.stats()["messages_missed"] == 5
    assert server.bridge.stats()["disconnects"] == 1


async def test_a_flood_larger_than_many_windows_arrives_complete_and_in_order(
    machine: Machine, rbkit: FakeRbkit, bridge_to_rbkit: Bridge
) -> None:
    await machine.agent({"puma": bridge_to_rbkit})
    targets = await machine.bridge()
    server = await machine.served(targets, "web-1~puma")
    client = await server.connected()
    published = [rbkit.publish_collection(padding=size) for size in [200, 70_000, 300_000] * 60]
    assert sum(map(len, published)) > 8 * WINDOW
    for message in published:
        assert await receive_data(client) == message
    assert server.bridge.stats()["messages_missed"] == 0
    (lease,) = bridge_to_rbkit.stats()["clients"]
    assert (lease["messages_sent"], lease["messages_dropped"]) == (len(published), 0)


async def test_a_bridge_that_takes_nothing_delays_no_other_and_its_loss_is_counted(
    machine: Machine, rbkit: FakeRbkit
) -> None:
    await machine.agent({"puma": Bridge(**rbkit.endpoints)}, max_backlog_bytes=1_000_000)
    slow, good = await machine.bridge("slow"), await machine.bridge("good")
    slow_server = await machine.served(slow, "web-1~puma")
    server = await machine.served(good, "web-1~puma")
    await slow_server.connected()
    client = await server.connected()
    first = rbkit.publish_collection()
    assert await receive_data(client) == first
    await until(lambda: slow_server.bridge.stats()["messages_in"] == 1, "both get the stream")
    stopped, go = threading.Event(), threading.Event()

    def stop_the_thread() -> None:
        stopped.set()
        go.wait()

    slow._thread.io_loop.add_callback(stop_the_thread)
    await asyncio.to_thread(stopped.wait)
    try:
        for _ in range(60):
            message = rbkit.publish_collection(padding=200_000)
            assert await receive_data(client) == message
    finally:
        go.set()
    await until(lambda: slow_server.bridge.state is State.CONNECTED, "the slow one is connected", timeout=60)
    await until(lambda: _accounted(slow_server, rbkit), "what it has not got is counted", timeout=60)
    assert slow_server.bridge.stats()["messages_missed"] > 0
    assert server.bridge.stats()["messages_missed"] == 0


def _accounted(server: Server, rbkit: FakeRbkit) -> bool:
    """Return whether every message has arrived or is counted as missed; publish another one if not."""
    stats = server.bridge.stats()
    if stats["messages_in"] + stats["messages_missed"] == rbkit.counter:
        return True
    if rbkit.sent == rbkit.counter:
        rbkit.publish_collection()
    return False


async def test_the_clients_of_all_bridges_are_counted_together(
    machine: Machine, rbkit: FakeRbkit, bridge_to_rbkit: Bridge
) -> None:
    await machine.agent({"puma": bridge_to_rbkit})
    one = await machine.served(await machine.bridge("one"), "web-1~puma")
    two = await machine.served(await machine.bridge("two"), "web-1~puma")
    first = await one.connected()
    await two.connected()
    assert await receive(first, 60) == b"0client_count:2"
    await two.connected()
    assert await receive(first, 60) == b"0client_count:3"
    late = await one.connected()
    assert await receive(first, 60) == b"0client_count:4"
    first.close()
    await until(lambda: len(one.bridge.stats()["clients"]) == 1, "it has left")
    await two.connected()
    assert await receive(late, 60) == b"0client_count:4"


@pytest.mark.logs_errors
async def test_clients_are_closed_when_a_task_of_their_connection_fails_and_the_next_one_reopens_it(
    machine: Machine,
    rbkit: FakeRbkit,
    bridge_to_rbkit: Bridge,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await machine.agent({"puma": bridge_to_rbkit})
    server = await machine.served(await machine.bridge(), "web-1~puma")

    def fail(receiver: StreamReceiver, *reply: int) -> None:
        raise OverflowError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(StreamReceiver, "on_lease", fail)
        code, reason = await closing(await server.connect(), 60)
    assert code == 1013
    assert reason is not None
    assert "a fault of ours" in reason
    assert "the connection to web-1~puma failed" in caplog.text
    assert await ask(await server.connected(), "trigger_gc") == b"0ok"
