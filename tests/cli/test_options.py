"""The options of `serve` with each other: every pair of values, at real servers, against a model of the README.

The model is written from the README, and shares nothing with the code.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from tests.fake_rbkit import FakeRbkit
from tests.patient import PATIENT

VALUES: dict[str, list[Any]] = {
    "token": [None, "s3cret"],
    "prefix": ["/rbkit", "/tools/x/", "/"],
    "read_only": [False, True],
    "any_command": [False, True],
    "allow_origin": [[], ["https://tools.example"], ["*"]],
    "allow_host": [[], ["tools.example"], ["*"]],
    "encoding": ["binary", "escaped"],
    "host": ["127.0.0.1", "localhost", "0.0.0.0"],
}
PATHS = ["ws", "any/where", "", "status", "targets", "metrics", "static/app.js"]
HOSTS = ["127.0.0.1:PORT", "localhost", "tools.example", "tools.example:8765", "evil.example", "10.0.0.1"]
ORIGINS = [None, "http://HOST", "https://HOST", "https://tools.example", "http://tools.example", "http://evil.example"]
TOKENS = [None, "?right", "bearer right", "?wrong", "bearer wrong"]
COMMANDS = ["handshake", "trigger_gc", "objectspace_snapshot", "bogus", ""]


def covering(values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return combinations of values that contain every pair of values of two options."""
    numbers = random.Random(1)
    pairs = {
        (a, i, b, j)
        for a, b in itertools.combinations(values, 2)
        for i, j in itertools.product(range(len(values[a])), range(len(values[b])))
    }
    chosen = []
    while pairs:
        candidates = [{name: numbers.randrange(len(each)) for name, each in values.items()} for _ in range(200)]
        covered = [
            {(a, one[a], b, one[b]) for a, b in itertools.combinations(values, 2)} & pairs for one in candidates
        ]
        best = max(range(len(candidates)), key=lambda at: len(covered[at]))
        pairs -= covered[best]
        chosen.append({name: values[name][at] for name, at in candidates[best].items()})
    return chosen


@dataclass
class Request:
    """One request. `PORT` and `HOST` in its parts are the server's port and its Host header."""

    path: str
    method: str
    host: str
    origin: str | None
    token: str | None
    encoding: str | None
    command: str

    @property
    def opens(self) -> bool:
        return self.path in ("ws", "any/where")


def some_requests(seed: int, count: int) -> list[Request]:
    numbers = random.Random(seed)
    return [
        Request(
            path=numbers.choice([*PATHS, "ws", "any/where", "ws"]),
            method=numbers.choice(["GET", "HEAD"]),
            host=numbers.choice(HOSTS),
            origin=numbers.choice(ORIGINS),
            token=numbers.choice([*TOKENS, "?right", "bearer right"]),
            encoding=numbers.choice([None, None, "binary", "escaped"]),
            command=numbers.choice(COMMANDS),
        )
        for _ in range(count)
    ]


def expected(options: dict[str, Any], request: Request) -> tuple[int, str, type | None]:
    """Return the expected status, the beginning of the reply, and its type."""
    if options["token"] or options["host"] == "0.0.0.0":  # on which one is made up
        if request.token is None or "wrong" in request.token:
            return 401, "", None
    elif not (request.host.startswith(("127.0.0.1", "localhost")) or "*" in options["allow_host"]):
        name = request.host.split(":")[0]
        if name not in options["allow_host"]:
            return 403, "", None
    if not request.opens:
        return 200, "", None
    allowed = [None, "http://HOST", "https://HOST", *options["allow_origin"]]
    names_itself = request.origin is not None and request.origin.split("//")[1] == request.host
    if not (request.origin in allowed or names_itself or "*" in options["allow_origin"]):
        return 403, "", None
    encoding = request.encoding or options["encoding"]
    if request.command == "":
        reply = "error:invalid-command"
    elif request.command == "bogus" and not options["any_command"]:
        reply = "error:unknown-command"
    elif options["read_only"] and request.command != "handshake":
        reply = "error:forbidden"
    else:
        reply = "" if request.command == "handshake" else "ok"
    return 101, "0" + reply, str if encoding == "escaped" else bytes


class Serving:
    """`tornado-rbkit serve` with some options."""

    def __init__(self, options: dict[str, Any], rbkit: FakeRbkit, folder: Path) -> None:
        arguments = ["--pub", rbkit.pub, "--req", rbkit.req, "--port", "0", "--host", options["host"]]
        arguments += ["--prefix", options["prefix"], "--encoding", options["encoding"]]
        arguments += ["--token", options["token"]] if options["token"] else []
        arguments += ["--read-only"] if options["read_only"] else []
        arguments += ["--any-command"] if options["any_command"] else []
        arguments += [f"--allow-host={name}" for name in options["allow_host"]]
        arguments += [f"--allow-origin={name}" for name in options["allow_origin"]]
        self.log = folder / "log"
        command = [sys.executable, *PATIENT, "serve", *arguments]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RBKIT_")}
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert self.process.stdout is not None
        self.token = options["token"]
        for line in self.process.stdout:
            if line.startswith("token "):
                self.token = line.split()[1]
            if line.startswith("ready "):
                self.port = int(line.split(":")[2].split("/")[0])
                self.prefix = "/" + line.split(":")[2].partition("/")[2].rstrip("\n")
                return
        pytest.fail(self.log.read_text())

    @functools.cached_property
    def http(self) -> AsyncHTTPClient:
        return AsyncHTTPClient(force_instance=True, max_clients=100)

    async def verdict(self, request: Request) -> tuple[int, str, type | None]:
        """Return the status of a request, the reply, and its type."""
        host = request.host.replace("PORT", str(self.port))
        headers = {"Host": host}
        if request.origin is not None:
            headers["Origin"] = request.origin.replace("HOST", host)
        query = [] if request.encoding is None else [f"encoding={request.encoding}"]
        if request.token is not None:
            token = (self.token or "s3cret") if "right" in request.token else "wr0ng"
            if request.token.startswith("?"):
                query.append(f"token={token}")
            else:
                headers["Authorization"] = f"Bearer {token}"
        path = f"/{request.path}" if request.path == "any/where" else self.prefix + request.path
        address = f"127.0.0.1:{self.port}{path}?{'&'.join(query)}"
        try:
            if not request.opens:
                response = await self.http.fetch(f"http://{address}", method=request.method, headers=headers)
                return response.code, "", None
            connection = await websocket_connect(
                HTTPRequest(f"ws://{address}", headers=headers), subprotocols=["rbkit"]
            )
        except HTTPClientError as error:
            return error.code, "", None
        await connection.write_message(request.command)
        while True:
            message = await connection.read_message()
            assert message is not None, "it was closed"
            text = (unquote_to_bytes(message) if isinstance(message, str) else message).decode("latin-1")
            if not text.startswith(("1", "0client_count:", "0server:")):
                connection.close()
                while await connection.read_message() is not None:
                    pass  # until it is closed
                return 101, text, type(message)

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture
def serving(request: pytest.FixtureRequest, rbkit: FakeRbkit, tmp_path: Path) -> Iterator[Serving]:
    server = Serving(request.param, rbkit, tmp_path)
    yield server
    server.close()
    assert server.process.returncode == 0, server.log.read_text()
    assert "ERROR" not in server.log.read_text()


COMBINATIONS = covering(VALUES)


@pytest.mark.parametrize(
    ("serving", "number"), list(zip(COMBINATIONS, itertools.count(), strict=False)), indirect=["serving"]
)
async def test_every_pair_of_options_does_what_both_say(serving: Serving, number: int) -> None:
    options = COMBINATIONS[number]
    requests = some_requests(number, 80)
    got = await asyncio.gather(*map(serving.verdict, requests))
    serving.http.close()
    for request, (status, reply, kind) in zip(requests, got, strict=True):
        wanted = expected(options, request)
        assert (status, kind) == (wanted[0], wanted[2]), f"{request} at {options}: {reply}"
        assert reply.startswith(wanted[1]), f"{request} at {options}"


def test_the_combinations_have_every_pair() -> None:
    for a, b in itertools.combinations(VALUES, 2):
        for one, other in itertools.product(VALUES[a], VALUES[b]):
            assert any(each[a] == one and each[b] == other for each in COMBINATIONS), (a, one, b, other)


def test_the_requests_have_every_verdict() -> None:
    """Otherwise the model would agree with anything."""
    found = {expected(COMBINATIONS[at], one)[:2] for at in range(len(COMBINATIONS)) for one in some_requests(at, 80)}
    replies = {"0", "0ok", "0error:forbidden", "0error:unknown-command", "0error:invalid-command"}
    assert found == {(200, ""), (401, ""), (403, ""), *((101, reply) for reply in replies)}
