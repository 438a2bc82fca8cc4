"""The extension's settings, and its life with the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.conftest import ask, closing, receive_data, until
from tests.fake_rbkit import FakeRbkit
from tests.fleet.conftest import Machine, machine, nats, patient_fleet
from tests.jupyter.conftest import StartJupyter
from tornado_rbkit import Bridge

__all__ = ["machine", "nats", "patient_fleet"]  # fixtures


async def test_data_and_commands_pass(jupyter: StartJupyter, rbkit: FakeRbkit) -> None:
    server = await jupyter(**rbkit.endpoints)
    connection = await server.connect("rbkit/default/ws")
    assert await ask(connection, "start_memory_profile") == b"0ok"
    message = rbkit.publish_collection()
    assert await receive_data(connection) == message
    status = json.loads((await server.get("rbkit/status")).body)
    assert status["targets"]["default"]["state"] == "connected"
    assert [target["name"] for target in json.loads((await server.get("rbkit/targets")).body)] == ["default"]


async def test_the_targets_of_a_fleet_are_shown(jupyter: StartJupyter, machine: Machine, rbkit: FakeRbkit) -> None:
    await machine.agent({"puma": Bridge(**rbkit.endpoints)})
    server = await jupyter(nats="auto")
    await until(lambda: "web-1~puma" in server.extension.bridges, "the target is announced")
    connection = await server.connect("rbkit/web-1~puma/ws")
    assert await ask(connection, "trigger_gc") == b"0ok"


async def test_viewers_are_closed_with_1001_when_the_server_stops(jupyter: StartJupyter, rbkit: FakeRbkit) -> None:
    server = await jupyter(**rbkit.endpoints)
    connection = await server.connect()
    await ask(connection, "handshake")
    stopping = asyncio.create_task(server.extension.stop_extension())
    assert await closing(connection) == (1001, "server shutting down")
    await stopping


async def test_what_is_at_rbkit_s_default_ports_is_not_shown_by_itself(
    jupyter: StartJupyter, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine of many users it may be somebody else's."""
    monkeypatch.setenv("RBKIT_PUB_PORT", rbkit.pub.rpartition(":")[2])
    monkeypatch.setenv("RBKIT_REQ_PORT", rbkit.req.rpartition(":")[2])
    server = await jupyter()
    assert list(server.extension.bridges) == []
    assert json.loads((await server.get("rbkit/targets")).body) == []
    assert json.loads((await server.get("rbkit/status")).body) == {"targets": {}}
    assert (await server.get("rbkit/")).code == 200
    assert await server.knock("rbkit/ws") == 404
    assert rbkit.received == []


async def test_the_end_of_discovery_is_logged_with_its_reason(
    jupyter: StartJupyter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornado_rbkit.web.discovered.SCAN_INTERVAL", 0.01)
    server = await jupyter()
    thread = server.extension.bridges._thread
    await until(thread.is_alive, "the thread runs")
    thread.stop()
    following = server.extension._following
    assert following is not None
    await until(following.done, "nothing is followed")
    await asyncio.sleep(0)  # for the callback that logs it
    assert "RbkitExtension is off until the server restarts: the I/O thread" in capsys.readouterr().err


async def test_what_the_package_reports_is_in_the_log_of_jupyter(
    jupyter: StartJupyter, rbkit: FakeRbkit, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await jupyter({"log_level": "INFO"}, **rbkit.endpoints)
    await ask(await server.connect(), "handshake")
    [line] = [line for line in capsys.readouterr().err.splitlines() if "connected to the rbkit server" in line]
    assert line.startswith("[I ")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"pub": "http://127.0.0.1:5555", "req": "tcp://127.0.0.1:5556"},
            "pub='http://127.0.0.1:5555' is not an endpoint",
        ),
        ({"pub": "tcp://127.0.0.1:5555"}, "req=None: one is not set; allowed: both, or neither"),
        ({"nats": "auto", "pub": "tcp://127.0.0.1:1"}, "nats cannot be combined with targets, pub and req"),
        ({"nats": "http://hub"}, "'http://hub' is not the URL of a NATS server; allowed: nats://HOST:PORT"),
        ({"req": "tcp://127.0.0.1:5556"}, "pub=None, req='tcp://127.0.0.1:5556': one is not set"),
        ({"targets": {"ws": {"pub": "tcp://127.0.0.1:1", "req": "tcp://127.0.0.1:2"}}}, "'ws' cannot name a target"),
        ({"targets": {"web-1": "tcp://127.0.0.1:1"}}, "targets['web-1'] is 'tcp://127.0.0.1:1'; allowed: a dict like"),
        ({"targets": {"web-1": {"pub": 5555, "req": 5556}}}, "targets['web-1'] is"),
        ({"stall_timeout": 0}, "stall_timeout=0.0 is out of range"),
        ({"max_clients": "many"}, "max_clients"),
        ({"read_only": 3}, "read_only"),
    ],
)
async def test_a_wrong_setting_is_one_line_in_the_log_and_jupyter_runs(
    jupyter: StartJupyter, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], told: str
) -> None:
    server = await jupyter(**settings)
    errors = capsys.readouterr().err
    [line] = [line for line in errors.splitlines() if "RbkitExtension is off" in line]
    assert told in line
    assert "Traceback" not in errors
    assert await server.knock("rbkit/status") == 404
    assert await server.knock("api/status") == 200
