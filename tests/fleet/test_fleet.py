"""Profilers, agents, bridges and clients together, at a real NATS server."""

from __future__ import annotations

from tests.conftest import ask, receive_data, until
from tests.fake_rbkit import FakeRbkit
from tests.fleet.conftest import Machine
from tornado_rbkit import Bridge
from tornado_rbkit.bridge.profiler_state import State


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
        rbkit.publish_collection()
    await until(lambda: rbkit.sent >= 6, "they are published to nobody")
    await machine.agent({"puma": Bridge(**rbkit.endpoints)})
    await until(lambda: server.bridge.state is State.CONNECTED, "the agent is found again")
    last = rbkit.publish_collection()
    assert await receive_data(client) == last
    assert server.bridge.stats()["messages_missed"] == 5
    assert server.bridge.stats()["disconnects"] == 1
