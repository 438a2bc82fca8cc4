"""Access to every path of the extension: Jupyter's identity, authorizer, origins and hosts."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from jupyter_server.auth.authorizer import Authorizer
from jupyter_server.base.handlers import JupyterHandler
from tornado.httpclient import AsyncHTTPClient, HTTPRequest

from tests.conftest import ask
from tests.fake_rbkit import FakeRbkit
from tests.jupyter.conftest import TOKEN, StartJupyter
from tornado_rbkit.jupyter import handlers

SOCKETS = ["rbkit/ws", "rbkit/web-1/ws"]
PAGES = ["rbkit/", "rbkit/status", "rbkit/targets", "rbkit/web-1/status", "rbkit/static/app.js"]
DOORS = [*SOCKETS, *PAGES]


class Watchers(Authorizer):
    """Lets everybody read, and nobody do anything else."""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return (action, resource) == ("read", "rbkit")


class Nobody(Authorizer):
    """Lets nobody do anything."""

    async def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return False


@pytest.fixture
def settings(rbkit: FakeRbkit) -> dict[str, Any]:
    return {"targets": {"web-1": rbkit.endpoints}, "discovery": False}


@pytest.mark.parametrize("strict", [False, True])
async def test_nobody_gets_in_without_credentials(
    jupyter: StartJupyter, settings: dict[str, Any], strict: bool
) -> None:
    server = await jupyter({"allow_unauthenticated_access": not strict}, **settings)
    for path in DOORS:
        refused = 302 if path == "rbkit/" else 403  # a person is shown the login page
        for token in (None, "", "wrong", "s3cre"):
            assert await server.knock(path, token) == refused, (path, token)
        assert await server.knock(path, None, query="?token=wrong") == refused, path
        assert await server.knock(path, None, query=f"?token={TOKEN}") in (101, 200), path
        assert await server.knock(path, None, Cookie="username-127-0-0-1=forged") == refused, path
        assert await server.knock(path) in (101, 200), path


async def test_a_foreign_origin_with_a_cookie_is_refused(jupyter: StartJupyter, settings: dict[str, Any]) -> None:
    server = await jupyter(**settings)
    cookie = await server.log_in()
    for path in DOORS:
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            assert await server.knock(path, None, Cookie=cookie, Origin=origin) == 403, (path, origin)
        assert await server.knock(path, None, Cookie=cookie, Origin=server.origin) in (101, 200), path
        assert await server.knock(path, None, Cookie=cookie) in (101, 200), path


async def test_an_origin_that_jupyter_allows_is_admitted(jupyter: StartJupyter, settings: dict[str, Any]) -> None:
    server = await jupyter({"allow_origin": "https://tools.example"}, **settings)
    cookie = await server.log_in()
    for path in SOCKETS:
        assert await server.knock(path, None, Cookie=cookie, Origin="https://tools.example") == 101, path
        assert await server.knock(path, None, Cookie=cookie, Origin="https://other.example") == 403, path


async def test_a_host_that_is_not_local_is_refused(jupyter: StartJupyter, settings: dict[str, Any]) -> None:
    server = await jupyter({"allow_remote_access": False}, **settings)
    for path in DOORS:
        assert await server.knock(path, Host="rebound.example") == 403, path
        assert await server.knock(path) in (101, 200), path


async def test_an_authorizer_that_denies_is_obeyed(jupyter: StartJupyter, settings: dict[str, Any]) -> None:
    server = await jupyter({"authorizer_class": Nobody}, **settings)
    for path in DOORS:
        assert await server.knock(path) == 403, path


async def test_reading_is_watching_and_commands_are_executing(
    jupyter: StartJupyter, settings: dict[str, Any], rbkit: FakeRbkit
) -> None:
    server = await jupyter({"authorizer_class": Watchers}, **settings)
    connection = await server.connect()
    assert await ask(connection, "handshake") == b"0" + rbkit.handshake()
    refusal = await ask(connection, "trigger_gc")
    assert refusal.startswith(b"0error:forbidden trigger_gc")
    assert b"'execute'" in refusal
    assert b"ServerApp.authorizer_class" in refusal
    assert b"trigger_gc" not in rbkit.received


async def test_read_only_refuses_commands(jupyter: StartJupyter, settings: dict[str, Any], rbkit: FakeRbkit) -> None:
    server = await jupyter(**settings, read_only=True)
    connection = await server.connect()
    assert (await ask(connection, "trigger_gc")).startswith(b"0error:forbidden")


@pytest.mark.parametrize("policy", [None, "frame-ancestors 'self' https://portal.example", "img-src *"])
async def test_which_sites_may_frame_it_is_in_jupyter_s_policy_alone(
    jupyter: StartJupyter, settings: dict[str, Any], policy: str | None
) -> None:
    headers = {"headers": {"Content-Security-Policy": policy}} if policy else {}
    server = await jupyter({"tornado_settings": headers}, **settings)
    for path in PAGES:
        response = await server.get(path)
        policies = response.headers.get_list("Content-Security-Policy")
        expected = policy or "frame-ancestors 'self'; report-uri"
        assert [each for each in policies if expected in each], f"Jupyter's, of {path}"
        assert len([each for each in policies if "frame-ancestors" in each]) == ("frame-ancestors" in expected), path
        assert len([each for each in policies if "default-src 'none'" in each]) == (path == "rbkit/"), path
        assert response.headers["X-Content-Type-Options"] == "nosniff", path
        assert response.headers["Referrer-Policy"] == "no-referrer", path


async def test_head_is_answered_as_get_is(jupyter: StartJupyter, settings: dict[str, Any]) -> None:
    server = await jupyter(**settings)
    for path in PAGES:
        assert await server.knock(path, method="HEAD") == 200, path
        assert await server.knock(path, None, method="HEAD") in (302, 403), path


@pytest.mark.parametrize(("configuration", "shown"), [({}, True), ({"authorizer_class": Watchers}, False)])
async def test_addresses_of_clients_are_for_those_who_may_execute(
    jupyter: StartJupyter, settings: dict[str, Any], configuration: dict[str, Any], shown: bool
) -> None:
    server = await jupyter(configuration, **settings)
    await ask(await server.connect("rbkit/web-1/ws"), "handshake")
    status = json.loads((await server.get("rbkit/web-1/status")).body)
    assert ["remote" in client for client in status["clients"]] == [shown]


async def test_nothing_but_reading_is_there(jupyter: StartJupyter, settings: dict[str, Any]) -> None:
    server = await jupyter(**settings)
    cookie = await server.log_in()
    for path in PAGES:
        assert await server.knock(path, None, method="POST", Cookie=cookie) == 403, f"{path} without the XSRF token"
        assert await server.knock(path, method="POST") == 405, path


async def test_a_target_that_is_not_there_is_not_found(jupyter: StartJupyter, settings: dict[str, Any]) -> None:
    server = await jupyter(**settings)
    for path in ("rbkit/other/ws", "rbkit/other/status", "rbkit/other", "rbkit/kernels/0-0"):
        assert await server.knock(path) == 404, path


async def test_the_figures_of_kernels_are_for_those_who_may_read(
    jupyter: StartJupyter, settings: dict[str, Any]
) -> None:
    server = await jupyter({"authorizer_class": Nobody}, **settings)
    for token in (None, TOKEN):
        assert await server.knock("rbkit/kernels/0-0", token) == 403


async def test_errors_of_what_scripts_ask_for_are_json(jupyter: StartJupyter, settings: dict[str, Any]) -> None:
    server = await jupyter(**settings)
    nobody: dict[str, str] = {}
    foreign = {"Cookie": await server.log_in(), "Origin": "http://evil.example"}
    for path, (headers, message) in itertools.product(
        ("rbkit/status", "rbkit/targets", "rbkit/web-1/status"),
        [(nobody, "Forbidden"), (foreign, "the origin 'http://evil.example' is not")],
    ):
        request = HTTPRequest(server.url + path, headers=headers)
        answer = await AsyncHTTPClient().fetch(request, raise_error=False)
        assert answer.code == 403
        assert answer.headers["Content-Type"] == "application/json"
        assert json.loads(answer.body)["message"].startswith(message)


def test_the_handlers_hide_nothing_of_jupyter_s() -> None:
    """Names that mean one thing to Jupyter and another to us would be found by nobody else."""
    meant = {"initialize", "get", "write_error", "finish", "check_origin", "head"}
    meant |= {"set_default_headers", "on_connection_close"}  # they call Jupyter's
    meant |= {"get_login_url", "auth_resource", "_request_summary", "_log", "log_exception"}
    meant |= {"access", "__module__", "__doc__", "__annotations__", "__firstlineno__", "__static_attributes__"}
    ours = [
        kind
        for handler in (
            handlers.JupyterWebSocketHandler,
            handlers.JupyterStatusHandler,
            handlers.JupyterIndexHandler,
            handlers.JupyterAssetHandler,
            handlers.JupyterKernelHandler,
        )
        for kind in handler.__mro__
        if kind.__module__.startswith("tornado_rbkit")
    ]
    assert {name for kind in ours for name in vars(kind) if hasattr(JupyterHandler, name)} - meant == set()
