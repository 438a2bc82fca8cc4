"""The figures of a bridge for an operator, as JSON and for Prometheus."""

from __future__ import annotations

import json
import re

import msgpack
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tornado.httpclient import AsyncHTTPClient

from tests.conftest import Serve, Server, ask, receive_data, until
from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge


async def status(server: Server) -> dict[str, object]:
    response = await AsyncHTTPClient().fetch(server.url + "/rbkit/status")
    assert response.headers["Content-Type"].startswith("application/json")
    assert response.headers["Cache-Control"] == "no-store"
    value: dict[str, object] = json.loads(response.body)
    return value


async def test_status_tells_state_facts_clients_and_figures(serve: Serve, rbkit: FakeRbkit, threaded: bool) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
    assert (await status(server))["state"] == "idle"
    connection = await server.connected("?encoding=escaped")
    other = await server.connected()
    await ask(other, "trigger_gc")
    message = rbkit.publish_collection(1000)
    assert await receive_data(other) == message
    await until(lambda: server.bridge.stats()["messages_sent"] == 2, "both were sent to")
    figures = await status(server)
    assert figures == json.loads(json.dumps(server.bridge.stats())), "it is Bridge.stats()"
    assert figures["state"] == "connected"
    assert (figures["pub"], figures["req"]) == (rbkit.pub, rbkit.req)
    assert figures["handshake"]["process_name"] == "fake"  # type: ignore[index]
    assert (figures["messages_in"], figures["bytes_in"]) == (1, len(message))
    assert (figures["messages_dropped"], figures["messages_missed"], figures["commands_waiting"]) == (0, 0, 0)
    assert figures["answers"] is True
    last = figures["last_commands"][-1]  # type: ignore[index]
    assert (last["command"], last["outcome"]) == ("trigger_gc", "ok")
    assert 0 < last["seconds"] < 60
    escaped, binary = figures["clients"]  # type: ignore[misc]
    assert (escaped["encoding"], binary["encoding"]) == ("escaped", "binary")  # type: ignore[has-type]
    assert escaped["bytes_sent"] > binary["bytes_sent"] > len(message)  # type: ignore[has-type]
    connection.close()


async def test_totals_keep_what_was_sent_to_clients_that_left(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    for expected in range(1, 4):
        connection = await server.connected()
        rbkit.publish_collection()
        await receive_data(connection)
        connection.close()
        await until(lambda: not server.bridge.stats()["clients"], "it has left")
        assert server.bridge.stats()["messages_sent"] == expected


async def test_paths_that_are_not_utf8_do_not_break_it(serve: Serve, rbkit: FakeRbkit) -> None:
    rbkit.reply[b"handshake"] = rbkit.handshake().replace(b"\xa4/srv", b"\xa4/\xff\xfev")
    rbkit.handshake = lambda: rbkit.reply[b"handshake"]  # type: ignore[method-assign]
    server = await serve(Bridge(**rbkit.endpoints))
    await server.connected()
    await until(lambda: server.bridge.stats()["handshake"], "the handshake is known")
    assert (await status(server))["handshake"]["pwd"] == "/\udcff\udcfev"  # type: ignore[index]


async def test_metrics_are_what_prometheus_reads(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    connection = await server.connected()
    message = rbkit.publish_collection(500)
    await receive_data(connection)
    response = await AsyncHTTPClient().fetch(server.url + "/rbkit/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(response.body.decode())
        for sample in family.samples
    }
    assert values["rbkit_messages_in_total"] == 1
    assert values["rbkit_bytes_in_total"] == len(message)
    assert values["rbkit_messages_sent_total"] == 1
    assert values["rbkit_messages_dropped_total"] == 0
    assert values["rbkit_connected"] == 1
    assert values["rbkit_clients"] == 1
    assert not re.search(rb"_created", response.body)


@pytest.mark.parametrize(
    "facts",
    [{"pid": "seven"}, {"pwd": b"bytes"}, {"clock_type": 5}, {"process_name": None}, {"timestamp": float("nan")}],
)
async def test_a_handshake_that_is_not_rbkit_s_does_not_break_it(
    serve: Serve, rbkit: FakeRbkit, facts: dict[str, object]
) -> None:
    message = msgpack.unpackb(rbkit.handshake(), strict_map_key=False)
    if "timestamp" in facts:
        message[1] = facts["timestamp"]
    else:
        message[2].update(facts)
    reply: bytes = msgpack.packb(message)
    rbkit.handshake = lambda: reply  # type: ignore[method-assign]
    server = await serve(Bridge(**rbkit.endpoints))
    assert await ask(await server.connected(), "handshake") == b"0" + reply
    assert (await status(server))["handshake"] is None
