"""Origin, Host, token, authorize and read_only at every path. The refusal names the setting."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trustme
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import Application, RequestHandler
from tornado.websocket import websocket_connect

from tests.conftest import Serve, Server, ask, closing, receive, until
from tests.fake_rbkit import FakeRbkit
from tests.raw import Raw, frame, upgrade_request
from tests.test_deadline import Clock, clock
from tornado_rbkit import Access, Bridge, CommandError, IndexHandler, RbkitWebSocketHandler, rbkit_routes

__all__ = ["clock"]  # a fixture

PAGES = ["/rbkit/", "/rbkit/static/app.js", "/rbkit/status", "/rbkit/targets", "/rbkit/metrics"]
DOORS = ["/rbkit/ws", "/any/where", *PAGES]


class OddError(BaseException):
    """What no `except Exception` catches."""


class Unsure:
    """What cannot be taken for true or false, as the arrays of numpy and the expressions of SQLAlchemy."""

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


async def knock(server: Server, path: str, query: str = "", **headers: str) -> tuple[int, str]:
    """Return the status and the text with which a door answers: 101 and nothing for an open WebSocket."""
    try:
        if path.endswith(("ws", "where")):
            await server.connect(query, path=path, subprotocols=["rbkit"], **headers)
            return 101, ""
        url = server.url + path + query
        response = await AsyncHTTPClient().fetch(url, headers={k.replace("_", "-"): v for k, v in headers.items()})
        return response.code, ""
    except HTTPClientError as error:
        return error.code, error.response.body.decode() if error.response else ""


async def is_open(server: Server, path: str, query: str = "", **headers: str) -> bool:
    status, text = await knock(server, path, query, **headers)
    assert status in (101, 200, 401, 403), text
    return status in (101, 200)


class TestOrigin:
    @pytest.mark.parametrize("path", ["/rbkit/ws", "/any/where"])
    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "file://"])
    async def test_a_foreign_one_is_refused(self, serve: Serve, rbkit: FakeRbkit, path: str, origin: str) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        status, text = await knock(server, path, Origin=origin)
        assert status == 403
        assert "`allowed_origins`" in text
        assert origin in text

    async def test_the_server_s_own_and_none_are_admitted(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        assert await is_open(server, "/rbkit/ws", Origin=server.url)
        assert await is_open(server, "/rbkit/ws")

    async def test_those_of_the_setting_are_admitted(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints), allowed_origins=["https://Tools.example"])
        assert await is_open(server, "/rbkit/ws", Origin="https://tools.example")
        for origin in ("http://tools.example", "https://tools.example.evil", "https://tools.example:444"):
            assert not await is_open(server, "/rbkit/ws", Origin=origin)

    async def test_a_star_admits_everybody(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints), allowed_origins=["*"])
        assert await is_open(server, "/rbkit/ws", Origin="http://any.example")


class TestHost:
    @pytest.mark.parametrize("path", DOORS)
    async def test_a_name_that_is_not_listed_is_refused(self, serve: Serve, rbkit: FakeRbkit, path: str) -> None:
        server = await serve(Bridge(**rbkit.endpoints), allowed_hosts=["tools.example"])
        status, text = await knock(server, path, Host="rebound.example")
        assert status == 403
        assert "`allowed_hosts`" in text
        assert "--allow-host" in text
        for host in (f"127.0.0.1:{server.port}", "localhost", "[::1]:80", "TOOLS.example:8765", "tools.example."):
            assert await is_open(server, path, Host=host), host

    async def test_none_is_refused_where_nothing_is_listed(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        assert await is_open(server, "/rbkit/ws", Host="whatever.example")


class TestToken:
    @pytest.mark.parametrize("path", DOORS)
    async def test_is_demanded_at_every_door(self, serve: Serve, rbkit: FakeRbkit, path: str) -> None:
        server = await serve(Bridge(**rbkit.endpoints), token="s3cret")
        status, text = await knock(server, path)
        assert status == 401
        assert "--token" in text
        for query, headers in [
            ("?token=wrong", {}),
            ("?token=", {}),
            ("?token=s3cre", {}),
            ("?TOKEN=s3cret", {}),
            ("", {"Authorization": "Bearer wrong"}),
            ("", {"Authorization": "Basic s3cret"}),
            ("", {"Cookie": "token=s3cret"}),
        ]:
            assert not await is_open(server, path, query, **headers), (query, headers)
        assert await is_open(server, path, "?token=s3cret")
        assert await is_open(server, path, Authorization="Bearer s3cret")
        assert await is_open(server, path, Authorization="bearer s3cret")


class TestAuthorize:
    @pytest.mark.parametrize("path", DOORS)
    async def test_is_asked_at_every_door(self, serve: Serve, rbkit: FakeRbkit, path: str) -> None:
        def authorize(handler: RequestHandler, command: str) -> bool:
            return handler.request.headers.get("X-User") == "ann"

        server = await serve(Bridge(**rbkit.endpoints), authorize=authorize)
        status, text = await knock(server, path)
        assert status == 403
        assert "`authorize`" in text
        assert await is_open(server, path, X_User="ann")

    @pytest.mark.parametrize("kind", ["sync", "async"])
    async def test_is_asked_before_each_command_and_replies_keep_their_order(
        self, serve: Serve, rbkit: FakeRbkit, kind: str
    ) -> None:
        asked: list[str] = []

        def authorize(handler: RequestHandler, command: str) -> bool:
            asked.append(command)
            return command != "trigger_gc"

        async def authorize_later(handler: RequestHandler, command: str) -> bool:
            await asyncio.sleep(0.03 / len(asked or "x"))  # each answer comes faster than the one before
            return authorize(handler, command)

        rule: Callable[..., Any] = authorize if kind == "sync" else authorize_later
        server = await serve(Bridge(**rbkit.endpoints), authorize=rule)
        connection = await server.connected()
        rbkit.reply[b"use_cpu_time"] = b"cpu"
        for command in ("use_cpu_time", "trigger_gc", "nonsense", "use_wall_time"):
            await connection.write_message(command)
        assert await receive(connection) == b"0cpu"
        refusal = await receive(connection)
        assert isinstance(refusal, bytes)
        assert refusal.startswith(b"0error:forbidden trigger_gc")
        assert b"`authorize`" in refusal
        assert str(await receive(connection)).startswith('b"0error:unknown-command')
        assert await receive(connection) == b"0ok"
        assert asked == ["handshake", "use_cpu_time", "trigger_gc", "use_wall_time"]
        assert b"trigger_gc" not in rbkit.received

    @pytest.mark.logs_errors
    async def test_that_raises_refuses_and_is_logged_now_and_then(
        self, serve: Serve, rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture
    ) -> None:
        def authorize(handler: RequestHandler, command: str) -> bool:
            if command != "handshake":
                raise LookupError("no such user")
            return True

        server = await serve(Bridge(**rbkit.endpoints), authorize=authorize)
        connection = await server.connected()
        for _ in range(30):
            assert (await ask(connection, "trigger_gc")).startswith(b"0error:forbidden")
        assert "no such user" in caplog.text
        assert caplog.text.count("authorize raised") == 2, "the first and the tenth"
        assert b"trigger_gc" not in rbkit.received
        assert (await ask(connection, "handshake")) == b"0" + rbkit.handshake()

    async def test_that_hangs_stops_only_its_own_client(self, serve: Serve, rbkit: FakeRbkit, clock: Clock) -> None:

        async def authorize(handler: RequestHandler, command: str) -> bool:
            if command == "trigger_gc":
                await asyncio.Event().wait()
            return True

        server = await serve(Bridge(**rbkit.endpoints, threaded=False, ping_interval=0), authorize=authorize)
        stuck, other = await server.connected(), await server.connected()
        await stuck.write_message("trigger_gc")
        await stuck.write_message("use_cpu_time")
        assert await ask(other, "use_wall_time") == b"0ok"
        assert b"use_cpu_time" not in rbkit.received
        while b"use_cpu_time" not in rbkit.received:
            await clock.run(1)
        assert (await ask(stuck, "handshake")).startswith(b"0error:forbidden trigger_gc")

    @pytest.mark.logs_errors
    async def test_whose_own_waiting_is_cancelled_refuses_and_answers_on(self, serve: Serve, rbkit: FakeRbkit) -> None:
        async def authorize(handler: RequestHandler, command: str) -> bool:
            if command == "trigger_gc":
                raise asyncio.CancelledError
            return True

        server = await serve(Bridge(**rbkit.endpoints), authorize=authorize)
        connection = await server.connected()
        assert (await ask(connection, "trigger_gc")).startswith(b"0error:forbidden")
        assert await ask(connection, "use_cpu_time") == b"0ok"

    @pytest.mark.logs_errors
    @pytest.mark.parametrize("kind", ["sync", "async", "future"])
    @pytest.mark.parametrize(
        "answer", [ValueError(), asyncio.CancelledError(), asyncio.TimeoutError(), OddError(), Unsure()]
    )
    async def test_that_answers_oddly_refuses_and_answers_on(
        self, serve: Serve, rbkit: FakeRbkit, kind: str, answer: object
    ) -> None:
        def decide(command: str) -> object:
            if command != "trigger_gc":
                return True
            if isinstance(answer, BaseException):
                raise answer
            return answer

        async def decide_later(command: str) -> object:
            await asyncio.sleep(0)
            return decide(command)

        def decide_in_a_future(command: str) -> asyncio.Future[object]:
            future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            try:
                future.set_result(decide(command))
            except BaseException as error:  # noqa: BLE001 - it is what is tested
                future.set_exception(error)
            return future

        rules: dict[str, Callable[[str], Any]] = {"sync": decide, "async": decide_later, "future": decide_in_a_future}
        server = await serve(Bridge(**rbkit.endpoints), authorize=lambda handler, command: rules[kind](command))
        connection = await server.connected()
        for _ in range(2):
            assert (await ask(connection, "trigger_gc")).startswith(b"0error:forbidden trigger_gc: `authorize` failed")
        assert await ask(connection, "use_cpu_time") == b"0ok"
        assert b"trigger_gc" not in rbkit.received

    @pytest.mark.parametrize("end", ["cancelled", "failed"])
    @pytest.mark.logs_errors
    async def test_the_end_of_the_asking_task_refuses_what_waits_and_the_next_command_is_asked_for(
        self, serve: Serve, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch, end: str
    ) -> None:
        asking: list[asyncio.Task[Any]] = []
        goes_on = asyncio.Event()

        async def refusal(*arguments: object) -> CommandError | None:
            task = asyncio.current_task()
            assert task is not None
            asking.append(task)
            await goes_on.wait()
            raise MemoryError

        server = await serve(Bridge(**rbkit.endpoints), authorize=lambda handler, command: True)
        connection = await server.connected()
        with monkeypatch.context() as patch:
            patch.setattr(Access, "refusal", refusal)
            for command in ("trigger_gc", "use_cpu_time"):
                await connection.write_message(command)
            await until(lambda: server.bridge.stats()["clients"][0]["commands_waiting"] == 2, "both wait")
            if end == "cancelled":
                asking[0].cancel()
            goes_on.set()
            for command in ("trigger_gc", "use_cpu_time"):
                message = await receive(connection)
                assert isinstance(message, bytes)
                assert message.startswith(f"0error:forbidden {command}".encode())
        assert await ask(connection, "use_wall_time") == b"0ok"
        assert server.bridge.stats()["clients"][0]["commands_waiting"] == 0
        assert b"trigger_gc" not in rbkit.received

    async def test_that_answers_several_clients_with_one_future_answers_those_that_stay(
        self, serve: Serve, rbkit: FakeRbkit
    ) -> None:
        looked_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        asked: list[str] = []

        def authorize(handler: RequestHandler, command: str) -> bool | asyncio.Future[bool]:
            asked.append(command)
            return True if command == "handshake" else looked_up

        server = await serve(Bridge(**rbkit.endpoints), authorize=authorize)
        leaving, staying = await server.connected(), await server.connected()
        for connection in (leaving, staying):
            await connection.write_message("trigger_gc")
        await until(lambda: asked.count("trigger_gc") == 2, "both wait for it")
        leaving.close()
        await until(lambda: len(server.bridge.stats()["clients"]) == 1, "one has left")
        assert await is_open(server, "/rbkit/targets")  # the loop has had its turns
        looked_up.set_result(True)
        assert await ask(staying, "use_cpu_time") == b"0ok"
        assert rbkit.received.count(b"trigger_gc") == 1

    async def test_has_the_client_s_certificate_at_the_opening_and_at_each_command(self, rbkit: FakeRbkit) -> None:
        authority = trustme.CA()
        server_side, client_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(server_side)
        authority.configure_trust(server_side)
        server_side.verify_mode = ssl.CERT_REQUIRED
        authority.issue_cert("ann@example.org").configure_cert(client_side)
        authority.configure_trust(client_side)
        seen: list[tuple[str, object, object]] = []

        def authorize(handler: RequestHandler, command: str) -> bool:
            certificate = handler.request.get_ssl_certificate()
            assert isinstance(certificate, dict)
            seen.append((command, certificate["subjectAltName"], handler.request.get_ssl_certificate(True)))
            return True

        bridge = Bridge(**rbkit.endpoints)
        routes = rbkit_routes(bridge, authorize=authorize)
        server = Server.of(bridge, Application(routes), ssl_options=server_side)
        url = f"wss://127.0.0.1:{server.port}/rbkit/ws"
        connection = await websocket_connect(HTTPRequest(url, ssl_options=client_side), subprotocols=["rbkit"])
        for command in ("trigger_gc", "use_cpu_time"):
            assert await ask(connection, command) == b"0ok"
        assert [command for command, *_ in seen] == ["handshake", "trigger_gc", "use_cpu_time"]
        assert seen[0][1] == (("email", "ann@example.org"),)
        assert seen[0][1:] == seen[1][1:] == seen[2][1:]
        ends = asyncio.create_task(closing(connection))
        await server.close()
        await ends

    async def test_that_takes_watching_away_closes_with_1008(self, serve: Serve, rbkit: FakeRbkit) -> None:
        allowed = {"handshake"}

        def authorize(handler: RequestHandler, command: str) -> bool:
            return command in allowed

        server = await serve(Bridge(**rbkit.endpoints), authorize=authorize)
        connection = await server.connected()
        allowed.clear()
        assert (await ask(connection, "handshake")).startswith(b"0error:forbidden")
        assert await closing(connection) == (1008, "not authorized any more (authorize)")
        await until(lambda: not server.bridge.stats()["clients"], "it is gone")


async def test_read_only_refuses_all_but_handshake(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints), read_only=True)
    connection = await server.connected()
    for command in ("start_cpu_profiling", "trigger_gc", "objectspace_snapshot"):
        reply = await ask(connection, command)
        assert reply.startswith(b"0error:forbidden " + command.encode())
        assert b"`read_only`" in reply
    assert await ask(connection, "handshake") == b"0" + rbkit.handshake()
    assert set(rbkit.received) == {b"handshake"}
    message = rbkit.publish_collection()
    assert await receive(connection) == b"1" + message


async def test_what_a_client_sends_does_not_forge_log_lines(
    serve: Serve, rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture
) -> None:
    server = await serve(Bridge(**rbkit.endpoints), allowed_hosts=[])
    connection = await server.connected()
    await ask(connection, "x\nERROR forged")
    await knock(server, "/rbkit/ws", Origin="http://evil\x85ERROR forged")
    assert "evil" in caplog.text
    assert [line for line in caplog.text.splitlines() if line.startswith("ERROR")] == []


@pytest.mark.logs_errors  # Tornado logs what an application's hook raises
async def test_an_error_of_the_application_does_not_put_the_token_into_the_log(
    rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(RbkitWebSocketHandler):
        def open(self, *args: str, **kwargs: str) -> None:
            raise ZeroDivisionError

    bridge = Bridge(**rbkit.endpoints)
    access = Access(token="s3cret")
    server = Server.of(bridge, Application([("/profiler", Raising, {"bridge": bridge, "access": access})]))
    try:
        connection = await server.connect("?token=s3cret", path="/profiler")
        await closing(connection)
        assert "ZeroDivisionError" in caplog.text
        assert "GET /profiler" in caplog.text
        assert "s3cret" not in caplog.text
    finally:
        await server.close()


@pytest.mark.parametrize("opcode", [0x1, 0x2, 0x8, 0x9, 0xA])
@pytest.mark.parametrize("fragmented", [False, True])
async def test_what_cannot_be_decompressed_ends_its_connection_and_is_no_error(
    serve: Serve, rbkit: FakeRbkit, opcode: int, fragmented: bool
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, compression_level=1))
    async with Raw(server.port) as client:
        client.writer.write(upgrade_request(Sec_WebSocket_Extensions="permessage-deflate"))
        assert b"permessage-deflate" in await client.reader.readuntil(b"\r\n\r\n")
        begin = frame(b"\xff\xff", first=0x40 | opcode) if fragmented else b""
        client.writer.write(begin + frame(b"\xff\xff", first=0x80 if fragmented else 0xC0 | opcode))
        await client.end()
    await until(lambda: not server.bridge.stats()["clients"], "the client has left")


class TestOpenMount:
    @pytest.mark.parametrize("path", ["/rbkit/status", "/any/where"])
    async def test_is_warned_about_once_when_somebody_comes_from_another_machine(
        self, serve: Serve, rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture, path: str
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "127.1.2.3, 127.0.0.1", "unknown", ""):
            assert await is_open(server, path, X_Forwarded_For=address)
        assert "can view and command" not in caplog.text
        for address in ("192.0.2.7", "127.0.0.1, 192.0.2.8", "192.0.2.9"):
            assert await is_open(server, path, X_Forwarded_For=address)
        (line,) = [record.getMessage() for record in caplog.records if "can view and command" in record.getMessage()]
        for part in ("192.0.2.7", "`token`", "`authorize`", "`read_only`"):
            assert part in line

    async def test_is_warned_about_without_text_that_the_client_may_choose(
        self, serve: Serve, rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        assert await is_open(server, "/rbkit/status", X_Forwarded_For="fe80::1%\x85ERROR this is not true")
        (line,) = [record.getMessage() for record in caplog.records if "can view and command" in record.getMessage()]
        assert "such as fe80::1, can" in line

    async def test_is_warned_about_where_the_connection_is_from_another_machine(
        self, rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture
    ) -> None:
        access, start = Access(), RequestStartLine("GET", "/", "HTTP/1.1")
        for remote, warns in (("127.0.0.1", False), ("0.0.0.0", False), ("::1", False), ("192.0.2.7", True)):
            request = HTTPServerRequest(start_line=start, headers=HTTPHeaders({"Host": "a"}))
            request.remote_ip = remote  # what Tornado has of the socket; of a Unix socket it is 0.0.0.0
            access._warn_if_open(request)
            assert ("can view and command" in caplog.text) is warns

    @pytest.mark.parametrize(
        "rules",
        [{"token": "s3cret"}, {"read_only": True}, {"authorize": lambda handler, command: True}],
        ids=["token", "read_only", "authorize"],
    )
    async def test_is_not_one_that_has_rules(
        self, serve: Serve, rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture, rules: dict[str, Any]
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints), **rules)
        assert await is_open(server, "/rbkit/status", "?token=s3cret", X_Forwarded_For="192.0.2.7")
        assert caplog.text == ""


class TestAddressesOfClients:
    @pytest.mark.parametrize(
        ("rules", "shown"),
        [
            ({}, True),
            ({"token": "s3cret"}, True),
            ({"read_only": True}, False),
            ({"commands": ["handshake", "trigger_gc"]}, False),
            ({"commands": ["objectspace_snapshot"]}, True),
            ({"commands": "any"}, True),
            ({"commands": "any", "read_only": True}, False),
            ({"authorize": lambda handler, command: command == "handshake"}, False),
            ({"authorize": lambda handler, command: command != "trigger_gc"}, True),
        ],
    )
    async def test_are_shown_to_those_who_may_take_a_snapshot(
        self, serve: Serve, rbkit: FakeRbkit, rules: dict[str, Any], shown: bool
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints), **rules)
        await server.connect("?token=s3cret")
        await until(lambda: server.bridge.stats()["clients"], "it has joined")
        response = await AsyncHTTPClient().fetch(server.url + "/rbkit/status?token=s3cret")
        (client,) = json.loads(response.body)["clients"]
        assert client.get("remote") == ("127.0.0.1" if shown else None)
        assert client["bytes_waiting"] == 0, "the figures are there all the same"
        assert server.bridge.stats()["clients"][0]["remote"] == "127.0.0.1", "the bridge's own are whole"

    @pytest.mark.parametrize("page", ["/rbkit/targets", "/rbkit/metrics", "/rbkit/"])
    async def test_are_on_no_other_page(self, serve: Serve, rbkit: FakeRbkit, page: str) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        await server.connected()
        assert b"127.0.0.1" not in (await AsyncHTTPClient().fetch(server.url + page)).body


class TestHead:
    @pytest.mark.parametrize("path", PAGES)
    async def test_is_answered_as_get_is_without_the_body(self, serve: Serve, rbkit: FakeRbkit, path: str) -> None:
        server = await serve(Bridge(**rbkit.endpoints), token="s3cret")
        for query in ("?token=s3cret", "?token=wrong"):
            get = await AsyncHTTPClient().fetch(server.url + path + query, raise_error=False)
            head = await AsyncHTTPClient().fetch(server.url + path + query, method="HEAD", raise_error=False)
            assert head.code == get.code
            assert (head.body, head.headers["Content-Type"]) == (b"", get.headers["Content-Type"])
            assert abs(int(head.headers["Content-Length"]) - len(get.body)) < 50, "figures may have changed"


class TestHeaders:
    @pytest.mark.parametrize("path", [*PAGES, "/rbkit/ws", "/rbkit"])
    @pytest.mark.parametrize("query", ["", "?token=s3cret"])
    async def test_no_response_lets_the_address_go_to_other_sites(
        self, serve: Serve, rbkit: FakeRbkit, path: str, query: str
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints), token="s3cret")
        response = await AsyncHTTPClient().fetch(server.url + path + query, raise_error=False, follow_redirects=False)
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["X-Content-Type-Options"] == "nosniff"

    @pytest.mark.parametrize(
        ("rules", "expected"),
        [
            ({}, ["frame-ancestors 'self'"]),
            ({"frame_ancestors": "'self' https://portal.example"}, ["frame-ancestors 'self' https://portal.example"]),
            ({"frame_ancestors": "*"}, ["frame-ancestors *"]),
            ({"frame_ancestors": None}, []),
        ],
        ids=str,
    )
    async def test_which_sites_may_frame_the_page_is_a_setting(
        self, serve: Serve, rbkit: FakeRbkit, rules: dict[str, Any], expected: list[str]
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints), **rules)
        headers = (await AsyncHTTPClient().fetch(server.url + "/rbkit/")).headers
        assert re.findall(r"frame-ancestors[^;]*", "; ".join(headers.get_list("Content-Security-Policy"))) == expected
        assert "default-src 'none'" in headers["Content-Security-Policy"]

    async def test_which_sites_may_frame_the_page_is_the_application_s_where_it_says_so(self) -> None:
        class Mine(IndexHandler):
            def set_default_headers(self) -> None:
                super().set_default_headers()
                self.set_header("Content-Security-Policy", "frame-ancestors https://portal.example")

        bridge = Bridge("tcp://127.0.0.1:1", "tcp://127.0.0.1:1")
        server = Server.of(bridge, Application([("/mine/", Mine, {"bridge": bridge})]))
        headers = (await AsyncHTTPClient().fetch(server.url + "/mine/")).headers
        policies = headers.get_list("Content-Security-Policy")
        assert policies[0] == "frame-ancestors https://portal.example"
        assert [policy for policy in policies[1:] if "frame-ancestors" in policy] == []
        assert policies[1].startswith("default-src 'none'")
        await server.close()

    @pytest.mark.parametrize("value", ["", "'self'; script-src *", "a\nb", "a, b", "ä"])
    def test_sources_that_are_invalid_are_refused_at_once(self, value: str) -> None:
        with pytest.raises(ValueError, match=r"frame_ancestors=.*; allowed: "):
            Access(frame_ancestors=value)
