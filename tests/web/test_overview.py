"""The document of the page of all targets: what it says of each, from where, and its bounds."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import msgpack
import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.web import Application

from tests.conftest import Server, ask, until
from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge, RbkitClient, rbkit_routes
from tornado_rbkit.profiler.discovery import RunningServer
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.web import overview as overviews
from tornado_rbkit.web.discovered import DiscoveredTargets
from tornado_rbkit.web.overview import overview, own_figures

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the figures are those of /proc")


def shake_hands_as(rbkit: FakeRbkit, **facts: Any) -> None:
    """Have a fake rbkit send other facts in its handshake."""
    message = msgpack.unpackb(rbkit.handshake(), strict_map_key=False)
    message[2] |= facts
    reply: bytes = msgpack.packb(message)
    rbkit.handshake = lambda: reply  # type: ignore[method-assign]


async def serve_two(rbkit: FakeRbkit, **access: Any) -> Server:
    """Serve the targets `one`, which is rbkit, and `two`, at whose endpoint nothing is."""
    bridges = {"one": Bridge(**rbkit.endpoints), "two": Bridge("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")}
    return Server.of(bridges["one"], Application(rbkit_routes(bridges, **access)))


async def read(server: Server) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((await AsyncHTTPClient().fetch(f"{server.url}/rbkit/targets?fleet")).body)
    return document


async def test_it_has_what_the_bridges_know_of_each_target(rbkit: FakeRbkit) -> None:
    server = await serve_two(rbkit)
    unknown = dict.fromkeys(["trouble", "process", "pid", "rss", "cpu_ms"])
    for row in (await read(server))["targets"]:
        assert row.items() >= {**unknown, "state": "idle", "recording": [], "viewers": 0, "bytes_sent": 0}.items()
    async with RbkitClient(f"ws://127.0.0.1:{server.port}/rbkit/one/ws") as client:
        await client.command("start_cpu_profiling")
        await until(lambda: server.bridge.handshake is not None, "the bridge has a handshake")
        document = await read(server)
        one, two = document["targets"]
        expected = {"name": "one", "state": "connected", "process": "fake", "pid": os.getpid(), "recording": ["cpu"]}
        assert one.items() >= {**expected, "viewers": 1, "trouble": None}.items()
        assert (two["name"], two["state"]) == ("two", "idle")
        assert one["bytes_sent"] == server.bridge.stats()["bytes_sent"] > 0
        assert (document["hosts"], document["left_out"]) == ([], 0)
        await client.command("stop_cpu_profiling")
        assert (await read(server))["targets"][0]["recording"] == []
    await server.close()


async def test_it_is_refused_like_the_list(rbkit: FakeRbkit) -> None:
    server = await serve_two(rbkit, token="secret")
    for path, status in [("targets?fleet", 401), ("targets?fleet&token=secret", 200)]:
        answer = await AsyncHTTPClient().fetch(f"{server.url}/rbkit/{path}", raise_error=False)
        assert answer.code == status
    await server.close()


async def test_a_page_that_asks_each_second_fills_no_log(rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server = await serve_two(rbkit, token="secret")
    for query in ("", "&token=secret"):
        await AsyncHTTPClient().fetch(f"{server.url}/rbkit/targets?fleet{query}", raise_error=False)
    assert [record.getMessage().split()[0] for record in caplog.records if record.name == "tornado.access"] == ["401"]
    await server.close()


@linux
@pytest.mark.parametrize(
    ("facts", "is_known"),
    [
        ({"pwd": os.getcwd()}, True),
        ({"pwd": "/srv"}, False),
        ({"pwd": "/", "pid": 1}, False),
        ({"pid": 1 << 40}, False),
    ],
)
async def test_a_process_has_figures_if_its_handshake_is_certainly_of_this_machine(
    rbkit: FakeRbkit, facts: dict[str, Any], is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's port may be this machine's, but its pids are another namespace's."""
    monkeypatch.setattr(os, "readlink", odd_readlink(os.readlink))
    shake_hands_as(rbkit, **facts)
    server = await serve_two(rbkit)
    connection = await server.connect(path="/rbkit/one/ws")
    assert await ask(connection, "trigger_gc") == b"0ok"
    await until(lambda: server.bridge.handshake is not None, "the bridge has a handshake")
    row = (await read(server))["targets"][0]
    assert (row["rss"] is not None and row["rss"] > 1 << 20 and row["cpu_ms"] > 0) == is_known
    assert (row["rss"] is None) == (not is_known)
    await server.close()


def odd_readlink(plain: Any) -> Any:
    """Return a readlink for which the first process has another working directory, whoever runs the test."""
    return lambda path: "/elsewhere" if path == "/proc/1/cwd" else plain(path)


class Shaken(Bridge):
    """A bridge that has the handshake of this process."""

    @property
    def handshake(self) -> Any:
        return type("Facts", (), {"pid": os.getpid(), "pwd": os.getcwd()})


@linux
def test_a_process_at_another_machine_has_no_figures_here() -> None:
    assert own_figures(Shaken("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")) != {}
    assert own_figures(Shaken("ipc:///run/a", "ipc:///run/b")) != {}
    for req in ("tcp://10.0.0.1:2", "tcp://127.0.0.1.example:2", "tcp://localhost.example:2"):
        assert own_figures(Shaken("tcp://127.0.0.1:1", req)) == {}


@linux
def test_a_discovered_process_has_figures_before_anybody_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        RunningServer("mine", os.getpid(), "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", 1.0, here=True),
        RunningServer("of a container", os.getpid(), "tcp://127.0.0.1:3", "tcp://127.0.0.1:4", 1.0),
        RunningServer("connected", os.getpid(), "tcp://127.0.0.1:5", "tcp://127.0.0.1:6", 1.0),
    ]
    monkeypatch.setattr("tornado_rbkit.web.discovered.list_servers", lambda: listed)

    def make_bridge(pub: str | None, req: str | None, thread: IOLoopThread) -> Bridge:
        return (Shaken if pub == listed[2].pub else Bridge)(pub, req, threaded=thread)

    targets = DiscoveredTargets(make_bridge, default_ports=False)
    targets.scan()
    mine, other, connected = overview(targets)["targets"]
    assert (mine["name"], mine["process"], mine["pid"]) == ("mine", "mine", os.getpid())
    assert mine["rss"] > 1 << 20
    assert (other["process"], other["pid"], other["rss"]) == ("of a container", os.getpid(), None)
    assert connected["rss"] > 1 << 20, "by the handshake"


def test_texts_are_printable_and_everything_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hostile(Bridge):
        def summary(self) -> dict[str, Any]:
            return {**super().summary(), "process": "\x1b]0;\u202e\ud800<b>" + "x" * 10_000, "trouble": "\n"}

    monkeypatch.setattr(overviews, "MAX_TARGETS", 3)
    document = overview({f"t{i}": Hostile() for i in range(5)})
    assert document["left_out"] == 2
    assert [row["name"] for row in document["targets"]] == ["t0", "t1", "t2"]
    assert document["targets"][0]["process"].startswith("?]0;??<b>xxx")
    assert len(document["targets"][0]["process"]) == 300
    assert document["targets"][0]["trouble"] == "?"
    assert overview({"": Bridge()})["targets"] == [], "a target without a name is the only one"
