"""Mounting: at every path, below a prefix, several profilers, and each part by itself."""

from __future__ import annotations

import asyncio
import errno
import json
import os

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPResponse
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketError, WebSocketHandler

from tests.conftest import Serve, Server, ask, receive, until
from tests.fake_rbkit import FakeRbkit
from tests.patient import patient
from tornado_rbkit import (
    Access,
    Bridge,
    IOLoopThread,
    RbkitWebSocketHandler,
    StatusHandler,
    SubprotocolMatches,
    rbkit_routes,
)
from tornado_rbkit.bridge.profiler_state import State


class Echo(WebSocketHandler):
    """The application's own WebSocket."""

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return subprotocols[0] if subprotocols else None

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)


class Page(RequestHandler):
    def get(self) -> None:
        self.write("the application's")


AFTER = [(r"/rbkit/ws/mine", Echo), (r"/.*ws", Echo), (r"/.*", Page)]


async def fetch(server: Server, path: str, **headers: str) -> HTTPResponse:
    return await AsyncHTTPClient().fetch(server.url + path, raise_error=False, headers=headers)


class TestAnywhereMount:
    @pytest.mark.parametrize("path", ["/", "/ws", "/any/where", "/rbkit/ws/mine"])
    @pytest.mark.parametrize("offer", [["rbkit"], ["foo", "rbkit"]])
    async def test_takes_upgrades_that_offer_rbkit_at_any_path(
        self, serve: Serve, rbkit: FakeRbkit, path: str, offer: list[str]
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints), routes_after=AFTER)
        connection = await server.connect(path=path, subprotocols=offer)
        assert connection.selected_subprotocol == "rbkit"
        assert await ask(connection, "trigger_gc") == b"0ok"

    @pytest.mark.parametrize("offer", [[], ["foo"], ["foo", "bar"]])
    async def test_leaves_other_websockets_to_the_application(
        self, serve: Serve, rbkit: FakeRbkit, offer: list[str]
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints), routes_after=AFTER)
        connection = await server.connect(path="/app/ws", subprotocols=offer)
        assert connection.selected_subprotocol == (offer[0] if offer else None)
        await connection.write_message("handshake")
        assert await receive(connection) == "handshake"
        assert rbkit.received == []

    async def test_leaves_pages_to_the_application_whatever_they_offer(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints), routes_after=AFTER)
        assert (await fetch(server, "/page")).body == b"the application's"
        assert (await fetch(server, "/page", **{"Sec-WebSocket-Protocol": "rbkit"})).body == b"the application's"

    async def test_can_be_left_out(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints), routes_after=AFTER, anywhere=False)
        for path in ("/robots.txt", "/rbkit/", "/rbkit/wsx"):
            with pytest.raises(WebSocketError, match="Non-websocket response"):
                await server.connect(path=path)
        mine = await server.connect(path="/any/ws")
        await mine.write_message("echo")
        assert await receive(mine) == "echo", "it is the application's"
        assert await ask(await server.connect(), "trigger_gc") == b"0ok"


class TestPrefix:
    async def test_has_a_page_the_status_and_the_websocket(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints), prefix="/tools/rbkit/")
        connection = await server.connect(path="/tools/rbkit/ws")
        assert await ask(connection, "trigger_gc") == b"0ok"
        status = json.loads((await fetch(server, "/tools/rbkit/status")).body)
        assert status["state"] == "connected"
        assert status["handshake"]["process_name"] == "fake"
        assert len(status["clients"]) == 1
        page = await fetch(server, "/tools/rbkit/")
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert b'src="static/app.js"' in page.body
        assert (await fetch(server, "/tools/rbkit/static/app.js")).code == 200
        assert (await fetch(server, "/rbkit/")).code == 404

    @pytest.mark.logs_errors  # Tornado's own of a 503
    async def test_what_no_descriptor_is_left_for_is_refused_for_now(
        self, serve: Serve, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: object) -> object:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        server = await serve(Bridge(**rbkit.endpoints))
        monkeypatch.setattr("tornado.web.open", fail, raising=False)
        assert (await fetch(server, "/rbkit/static/app.css")).code == 503
        assert "app.css cannot be read: Too many open files" in caplog.text
        assert "Traceback" not in caplog.text

    @pytest.mark.parametrize("prefix", ["", "/"])
    async def test_may_be_the_root(self, serve: Serve, rbkit: FakeRbkit, prefix: str) -> None:
        server = await serve(Bridge(**rbkit.endpoints), prefix=prefix)
        assert (await fetch(server, "/status")).code == 200
        assert (await fetch(server, "/")).code == 200

    async def test_may_come_without_its_slash(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints), prefix="tools")
        assert (await fetch(server, "/tools/status")).code == 200
        page = await fetch(server, "/tools?token=x")
        assert page.effective_url == server.url + "/tools/?token=x"
        assert b'src="static/app.js?token=x"' in page.body

    @pytest.mark.parametrize(
        "prefix", ["/a b", "/a?b", "/a#b", "/a%20b", "/größe", "/a/../b", "..", "/./a", '/"', "/a\\b"]
    )
    def test_cannot_be_what_browsers_send_otherwise(self, prefix: str) -> None:
        with pytest.raises(ValueError, match=r"the prefix .* is not the path of a URL; allowed: .*--prefix"):
            rbkit_routes(Bridge(), prefix=prefix)

    async def test_is_taken_literally(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints), prefix="/a.b")
        assert (await fetch(server, "/a.b/status")).code == 200
        assert (await fetch(server, "/aXb/status")).code == 404


class TestSeveralProfilers:
    async def test_have_paths_of_their_own_and_may_share_a_thread(self) -> None:
        thread = IOLoopThread()
        thread.start()
        with FakeRbkit() as one, FakeRbkit() as two:
            one.reply[b"trigger_gc"], two.reply[b"trigger_gc"] = b"one", b"two"
            bridges = {
                "web-1": Bridge(**one.endpoints, threaded=thread),
                "web-2": patient(Bridge(**two.endpoints, threaded=thread)),
            }
            server = Server.of(bridges["web-1"], Application(rbkit_routes(bridges)))
            first = await server.connect(path="/rbkit/web-1/ws")
            second = await server.connect(path="/rbkit/web-2/ws")
            assert await ask(first, "trigger_gc") == b"0one"
            assert await ask(second, "trigger_gc") == b"0two"
            anywhere = await server.connect(path="/else/where")
            assert await ask(anywhere, "trigger_gc") == b"0one"
            targets = json.loads((await fetch(server, "/rbkit/targets")).body)
            assert [target["name"] for target in targets] == ["web-1", "web-2"]
            assert targets[1]["ws"] == "web-2/ws"
            assert json.loads((await fetch(server, "/rbkit/web-2/status")).body)["pub"] == two.pub
            everything = json.loads((await fetch(server, "/rbkit/status")).body)["targets"]
            assert everything["web-1"]["pub"] == one.pub
            assert (await fetch(server, "/rbkit/")).code == 200
            await bridges["web-2"].close()
            await server.close()
        thread.stop()
        assert not thread.is_alive()

    async def test_that_are_not_there_are_not_mistaken_for_others(self, rbkit: FakeRbkit) -> None:
        bridge = Bridge(**rbkit.endpoints)
        server = Server.of(bridge, Application(rbkit_routes({"web-1": bridge})))
        with pytest.raises(HTTPClientError) as refused:
            await server.connect(path="/rbkit/web-2/ws")
        assert refused.value.code == 404
        assert rbkit.received == []
        await server.close()

    @pytest.mark.parametrize("name", ["ws", "status", "targets", "metrics", "static", "a/b", "..", "ä", "a b"])
    def test_cannot_have_names_that_paths_cannot_have(self, name: str) -> None:
        with pytest.raises(ValueError, match="cannot name a target; allowed: letters"):
            rbkit_routes({name: Bridge()})

    async def test_who_leaves_before_the_answer_leaves_no_error(self, rbkit: FakeRbkit, serve: Serve) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        for path in ("status", "targets", "metrics", ""):
            for _ in range(20):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(f"GET /rbkit/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
                await writer.drain()
                writer.transport.abort()
        async with server.client() as client:
            assert await client.command("trigger_gc") == "ok"

    async def test_may_come_and_go_while_the_server_runs(self, rbkit: FakeRbkit) -> None:
        bridges: dict[str, Bridge] = {}
        server = Server.of(Bridge(**rbkit.endpoints), Application(rbkit_routes(bridges)))
        for path in ("/rbkit/late/ws", "/rbkit/ws", "/anywhere", "/rbkit/late/status"):
            assert (await fetch(server, path)).code == 404
        assert (await fetch(server, "/rbkit/")).code == 200
        bridges["late"] = server.bridge
        assert await ask(await server.connect(path="/rbkit/late/ws"), "trigger_gc") == b"0ok"
        assert await ask(await server.connect(path="/anywhere"), "trigger_gc") == b"0ok"
        del bridges["late"]
        assert (await fetch(server, "/rbkit/late/status")).code == 404
        await server.close()


async def test_each_part_can_be_mounted_by_itself(rbkit: FakeRbkit) -> None:
    bridge = Bridge(**rbkit.endpoints)
    application = Application(
        [
            (r"/profiler", RbkitWebSocketHandler, {"bridge": bridge}),
            (r"/watch", RbkitWebSocketHandler, {"bridge": bridge, "access": Access(read_only=True)}),
            (r"/figures", StatusHandler, {"bridge": bridge}),
            (SubprotocolMatches("other"), Page),
        ]
    )
    server = Server.of(bridge, application)
    connection = await server.connect(path="/profiler")
    assert await ask(connection, "trigger_gc") == b"0ok"
    watcher = await server.connect(path="/watch")
    assert (await ask(watcher, "trigger_gc")).startswith(b"0error:forbidden")
    assert json.loads((await fetch(server, "/figures")).body)["state"] == "connected"
    await server.close()


async def test_no_bridge_means_rbkit_s_default_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RBKIT_PUB_PORT", raising=False)
    monkeypatch.delenv("RBKIT_REQ_PORT", raising=False)
    assert (Bridge().pub, Bridge().req) == ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556")
    monkeypatch.setenv("RBKIT_PUB_PORT", "7001")
    monkeypatch.setenv("RBKIT_REQ_PORT", "7002")
    assert (Bridge().pub, Bridge().req) == ("tcp://127.0.0.1:7001", "tcp://127.0.0.1:7002")
    assert rbkit_routes()


async def test_nothing_is_connected_before_the_first_client(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    assert (await fetch(server, "/rbkit/status")).code == 200
    assert server.bridge.state is State.IDLE
    await server.connect()
    await until(lambda: server.bridge.state is State.CONNECTED, "the first client connects the bridge")


async def test_a_plain_request_for_the_websocket_is_told_what_it_is(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    response = await fetch(server, "/rbkit/ws")
    assert response.code == 400
    assert b"subprotocol" in response.body
    with pytest.raises(HTTPClientError):
        await AsyncHTTPClient().fetch(server.url + "/rbkit/ws")
