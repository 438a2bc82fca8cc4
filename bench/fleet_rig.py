"""A NATS server, agents and bridges, each a process of its own: the commands as they are installed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from measure import Child, UnavailableError, child
from rig import Rig

PATH: Final = "/rbkit/{}/ws"
_PATIENCE: Final = 60.0  # seconds


class Program(Child):
    """One of the commands. `told` is what follows ``ready`` in its first line."""

    def __init__(self, *arguments: str, env: Mapping[str, str]) -> None:
        super().__init__([sys.executable, "-m", "tornado_rbkit", *arguments], env)
        self.told = self.line().removeprefix("ready ").strip()

    @property
    def port(self) -> int:
        """The port of the pages of `serve`."""
        return int(self.told.split("/")[2].rpartition(":")[2])

    def page(self, path: str) -> Any:
        """Return a JSON page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/rbkit/{path}", timeout=_PATIENCE) as answer:
            return json.load(answer)

    def host_states(self) -> list[str]:
        """Return the states of the hosts."""
        return [each["state"] for each in self.page("targets?fleet")["hosts"]]

    def targets(self) -> set[str]:
        """Return the names of the targets."""
        return {each["name"] for each in self.page("targets")}


class Fleet:
    """A NATS server with agents and bridges; everything ends with `stack`."""

    def __init__(self, stack: contextlib.ExitStack, *, tls: bool = False) -> None:
        try:
            from tornado_rbkit.fleet.hub import Hub
            from tornado_rbkit.fleet.nats import NatsServers  # noqa: F401
            from tornado_rbkit.fleet.server import NatsServer, NatsServerError, find_program
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        self.tls = tls
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-fleet-")))
        self._stack = stack
        self._hub: Hub | None = None
        try:
            if tls:
                self._hub = Hub(self.folder / "hub")
                self._hub.configure("127.0.0.1:-1", ["127.0.0.1"])
                self._hub.add("host", "h0", self.folder / "h0.creds")
                self._hub.add("bridge", "b", self.folder / "b.creds")
                self._hub.reload()
                server = asyncio.run(self._hub.start())
            else:
                config = self.folder / "nats.conf"
                config.write_text(f'listen: "127.0.0.1:-1"\nports_file_dir: {json.dumps(str(self.folder))}\n')
                server = asyncio.run(NatsServer.start(find_program((2, 9, 0)), config, self.folder))
        except NatsServerError as error:
            raise UnavailableError(str(error)) from error
        stack.callback(server.stop)
        self.nats = server.pid
        self.nats_port = int(server.url.rpartition(":")[2])

    def env(self, host: str) -> dict[str, str]:
        """Return the environment of a host, with a runtime folder of its own."""
        return {"RBKIT_RUNTIME_DIR": str(self.folder / host), "RBKIT_NATS_URL": ""}

    def agent(self, host: str, targets: Mapping[str, Sequence[str]], port: int | None = None) -> Program:
        """Start the agent of a host, with the endpoints of its targets; through a `wire` if there is a port."""
        named = [f"--target={name}={pub},{req}" for name, (pub, req) in targets.items()]
        arguments = ("agent", *self._server("h0.creds", port), f"--host-name={host}", *named)
        return self._program(*arguments, env=self.env(host))

    def bridge(self, port: int | None = None) -> Program:
        """Start a bridge; through a `wire` if there is a port."""
        arguments = ("serve", "--port=0", *self._server("b.creds", port))
        return self._program(*arguments, env=self.env("bridge"))

    def wire(self, rate: float | None = None) -> tuple[Child, int]:
        """Start a link to the server, and return it with its port; `rate` in bytes per second bounds one way."""
        started = self._stack.enter_context(child("wire.py", str(self.nats_port), str(rate or 0)))
        return started, int(started.hear()["port"])

    def _server(self, credentials: str, port: int | None) -> tuple[str, ...]:
        port = port or self.nats_port
        if self.tls:
            return f"--nats=tls://127.0.0.1:{port}", f"--creds={self.folder / credentials}"
        return (f"--nats=nats://127.0.0.1:{port}",)

    def _program(self, *arguments: str, env: Mapping[str, str]) -> Program:
        started = Program(*arguments, env=env)
        self._stack.callback(started.end)
        return started


def wait_for(condition: Callable[[], object], what: str) -> float:
    """Wait until a condition holds; return the seconds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > _PATIENCE:
            raise RuntimeError(f"not within {_PATIENCE:g} s: {what}")
        time.sleep(0.01)
    return time.monotonic() - began


@contextlib.contextmanager
def fleet_rig(setting: str, bridges: int) -> Iterator[tuple[Rig, dict[str, int]]]:
    """Set up one target with one client at each bridge; yield it with the processes that are measured.

    Args:
        setting: ``serve`` for no fleet, ``fleet``, or ``fleet, TLS``.
        bridges: their number.
    """
    with contextlib.ExitStack() as stack:
        feed, replies = (stack.enter_context(child("feed.py", role)) for role in ("publish", "reply"))
        endpoints = (feed.hear()["endpoint"], replies.hear()["endpoint"])
        viewers = stack.enter_context(child("clients.py"))
        if setting == "serve":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-serve-"))
            serve = Program(
                "serve", "--port=0", f"--target=t={','.join(endpoints)}", env={"RBKIT_RUNTIME_DIR": folder}
            )
            stack.callback(serve.end)
            pids, path, fronts = {"host": serve.pid}, PATH.format("t"), [serve] * bridges
        else:
            fleet = Fleet(stack, tls=setting.endswith("TLS"))
            agent = fleet.agent("h0", {"t": endpoints})
            fronts = [fleet.bridge() for _ in range(bridges)]
            pids = {"host": agent.pid, "server": fleet.nats}
            pids |= {f"bridge {number}": front.pid for number, front in enumerate(fronts)}
            path = PATH.format("h0~t")
        for front in fronts:
            wait_for(lambda front=front: any(name.endswith("t") for name in front.targets()), "the target is listed")  # type: ignore[misc]
            viewers.ask(do="connect", port=front.port, clients=1, path=path)
        feed.tell(do="sync")
        viewers.ask(do="sync")
        yield Rig(fronts[0], fronts[0].port, feed, viewers, endpoints[1]), pids


@contextlib.contextmanager
def stamped(loads: Sequence[tuple[int, float]]) -> Iterator[tuple[Child, Child, list[tuple[str, str]]]]:
    """Start the publisher of some targets and their viewers; yield both with the endpoints."""
    arguments = [f"{size}x{rate:g}" for size, rate in loads]
    with (
        child("stamped.py", "publish", *arguments) as publisher,
        child("stamped.py", "view", *arguments) as viewers,
        child("feed.py", "reply") as replies,
    ):
        req = replies.hear()["endpoint"]
        yield publisher, viewers, [(pub, req) for pub in publisher.hear()["endpoints"]]
