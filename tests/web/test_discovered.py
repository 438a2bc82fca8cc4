"""Bridges by name for discovered processes: names, starts and ends, and scans that fail."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import until
from tests.fake_rbkit import FakeRbkit, free_port
from tornado_rbkit import Bridge
from tornado_rbkit.errors import DiscoveryError
from tornado_rbkit.profiler.discovery import RunningServer
from tornado_rbkit.upstream.iothread import IOLoopThread
from tornado_rbkit.web.discovered import DEFAULT_NAME, KEEP_SECONDS, DiscoveredTargets, Endpoints
from tornado_rbkit.web.routes import NAME, RESERVED_NAMES


class WatchedBridge(Bridge):
    """A bridge that has clients when the test says so, and records that it was closed."""

    clients = False
    closed = False

    @property
    def watched(self) -> bool:
        return self.clients

    async def close(self) -> None:
        self.closed = True
        await super().close()


class Machine:
    """The processes of a machine, their `DiscoveredTargets`, and its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *fixed: str) -> None:
        self.processes: list[RunningServer] = []
        self.broken: set[int] = set()
        self.now = 0.0
        self.has_default = False  # whether something listens at rbkit's default ports
        self._started = 0
        monkeypatch.setattr("tornado_rbkit.web.discovered.time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr("tornado_rbkit.web.discovered.list_servers", lambda: list(self.processes))
        monkeypatch.setattr("tornado_rbkit.web.discovered.accepts", lambda endpoint: self.has_default)
        endpoints = {name: Endpoints("tcp://127.0.0.1:1", "tcp://127.0.0.1:2") for name in fixed}
        self.targets = DiscoveredTargets(self._make_bridge, endpoints)

    def start(self, name: str, pid: int) -> RunningServer:
        self._started += 1
        port = 1000 + 2 * self._started
        server = RunningServer(name, pid, f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port + 1}", self._started)
        self.processes.append(server)
        return server

    def shown(self) -> dict[str, str]:
        """Return the publisher's endpoint for each name."""
        return {name: bridge.pub for name, bridge in self.targets.items() if name}

    def _make_bridge(self, pub: str | None, req: str | None, thread: IOLoopThread) -> WatchedBridge:
        if pub is not None and int(pub.rpartition(":")[2]) in self.broken:
            raise ZeroDivisionError
        return WatchedBridge(pub, req, threaded=thread)


# The names and pids collide as often as they can.
programs = st.sampled_from(["web", "web-1", "web-2", "web-1-2", "web-2-2", "/srv/web", "ws", "-", "fixed", "fixed-1"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("start"), programs, st.integers(1, 2)),
        st.tuples(st.just("break"), programs, st.integers(1, 2)),
        st.tuples(st.sampled_from(["end", "watch", "unwatch", "hide", "look", "wait", "mend"]), st.integers(0, 9)),
    ),
    max_size=40,
)


@pytest.mark.logs_errors
@settings(max_examples=150)
@given(steps)
def test_each_process_has_one_entry_and_keeps_its_name_whatever_comes_and_goes(history: list[tuple[Any, ...]]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(_follow_history(monkeypatch, history))


async def _follow_history(monkeypatch: pytest.MonkeyPatch, history: list[tuple[Any, ...]]) -> None:
    machine = Machine(monkeypatch, "fixed")
    names: dict[RunningServer, str] = {}
    for action, *about in history:
        index = about[0] if isinstance(about[0], int) else 0
        chosen = machine.processes[index % len(machine.processes)] if machine.processes else None
        if action in ("start", "break"):
            server = machine.start(*about)
            if action == "break":
                machine.broken.add(int(server.pub.rpartition(":")[2]))
        elif action == "end" and chosen:
            machine.processes.remove(chosen)
        elif action in ("watch", "unwatch") and chosen in names:
            bridge = machine.targets[names[chosen]]
            assert isinstance(bridge, WatchedBridge)
            bridge.clients = action == "watch"
        elif action == "hide":
            everybody, machine.processes = machine.processes, []
            machine.targets.scan()
            machine.processes = everybody
        elif action == "wait":
            machine.now += KEEP_SECONDS / 2
        elif action == "mend":
            machine.broken.clear()
        kept = {s: n for s, n in names.items() if action != "hide" or _is_watched(machine, n)}
        machine.targets.scan()
        shown = machine.shown()
        assert shown.pop("fixed") == "tcp://127.0.0.1:1"
        reachable = [s for s in machine.processes if int(s.pub.rpartition(":")[2]) not in machine.broken]
        for server in reachable:
            assert list(shown.values()).count(server.pub) == 1, "a process has exactly one entry"
        names = {server: name for name, pub in shown.items() for server in machine.processes if server.pub == pub}
        for server, name in names.items():
            assert re.fullmatch(NAME, name)
            assert name not in RESERVED_NAMES
            assert kept.get(server, name) == name, "a process keeps its name"
            bridge = machine.targets[name]
            assert isinstance(bridge, WatchedBridge)
            assert not bridge.closed
        for name in shown.keys() - names.values():
            assert _is_watched(machine, name), "only an entry with clients outlives its process"
    machine.processes.clear()
    machine.now += KEEP_SECONDS
    machine.targets.scan()
    machine.now += KEEP_SECONDS
    machine.targets.scan()
    assert list(machine.targets) == ["fixed"]


def _is_watched(machine: Machine, name: str) -> bool:
    bridge = machine.targets.get(name)
    return bridge is not None and bridge.watched


async def test_a_name_made_of_name_and_pid_that_is_taken_is_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    squatter, first, second = machine.start("web-7", 1), machine.start("web", 6), machine.start("web", 7)
    machine.targets.scan()
    assert machine.shown() == {"web-7": squatter.pub, "web": first.pub, "web-7-2": second.pub}
    machine.processes.remove(squatter)
    machine.targets.scan()
    assert machine.shown() == {"web": first.pub, "web-7-2": second.pub}


async def test_a_file_that_was_missing_for_a_moment_disturbs_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    first, second = machine.start("web", 1), machine.start("web", 2)
    machine.targets.scan()
    bridges = dict(machine.targets)
    for bridge in bridges.values():
        assert isinstance(bridge, WatchedBridge)
        bridge.clients = True
    machine.processes.clear()
    machine.targets.scan()
    machine.processes[:] = [second, first]
    machine.targets.scan()
    machine.now += KEEP_SECONDS
    machine.targets.scan()
    assert dict(machine.targets) == bridges
    assert machine.shown() == {"web": first.pub, "web-2": second.pub}


@pytest.mark.logs_errors
async def test_a_look_that_fails_is_logged_a_few_times_and_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch)
    looks = 0

    def fail() -> list[RunningServer]:
        nonlocal looks
        looks += 1
        raise ZeroDivisionError("unexpected")

    monkeypatch.setattr("tornado_rbkit.web.discovered.SCAN_INTERVAL", 0.0)
    monkeypatch.setattr("tornado_rbkit.web.discovered.list_servers", fail)
    following = asyncio.create_task(machine.targets.follow())
    try:
        await until(lambda: looks > 50, "looks are repeated")
        machine.start("web", 1)
        monkeypatch.setattr("tornado_rbkit.web.discovered.list_servers", lambda: list(machine.processes))
        await until(lambda: "web" in machine.targets, "a process is found afterwards")
    finally:
        following.cancel()
        await asyncio.wait([following])
    assert caplog.text.count("the scan for processes failed") == len(str(looks)), "the 1st, the 10th, the 100th"


@pytest.mark.logs_errors
async def test_a_process_that_makes_a_look_fail_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    bad, good = machine.start("bad", 1), machine.start("good", 2)
    machine.broken.add(int(bad.pub.rpartition(":")[2]))
    machine.targets.scan()
    assert machine.shown() == {"good": good.pub}
    machine.broken.clear()
    machine.targets.scan()
    assert machine.shown() == {"good": good.pub, "bad": bad.pub}


def end_thread(targets: DiscoveredTargets) -> None:
    targets._thread.io_loop.add_callback(targets._thread.io_loop.stop)


def refuse_thread(targets: DiscoveredTargets) -> None:
    def start() -> None:
        raise OSError(24, "Too many open files")

    targets._thread.start = start  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("when", "fault", "reason"),
    [("before", refuse_thread, "did not start.*Too many open files"), ("after", end_thread, "has ended")],
)
async def test_following_ends_with_a_reason_without_its_thread(
    monkeypatch: pytest.MonkeyPatch, when: str, fault: Callable[[DiscoveredTargets], None], reason: str
) -> None:
    machine = Machine(monkeypatch)
    monkeypatch.setattr("tornado_rbkit.web.discovered.SCAN_INTERVAL", 0.01)
    if when == "before":
        fault(machine.targets)
    following = asyncio.create_task(machine.targets.follow())
    if when == "after":
        await until(machine.targets._thread.is_alive, "the thread runs")
        fault(machine.targets)
    with pytest.raises(DiscoveryError, match=reason):
        await asyncio.wait_for(following, 60)


# The profiler at rbkit's default ports


async def test_the_profiler_at_the_default_ports_is_shown_beside_those_that_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch)
    machine.has_default = True
    machine.targets.scan()
    assert list(machine.targets) == [""]
    default = machine.targets[""]
    machine.start("web", 1)
    machine.targets.scan()
    assert list(machine.targets) == ["web", DEFAULT_NAME]
    assert machine.targets[DEFAULT_NAME] is default

    machine.has_default = False
    machine.now += 5.0
    machine.targets.scan()
    assert list(machine.targets) == ["web"]


async def test_the_default_ports_stay_while_they_have_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    default = machine.targets[""]
    assert isinstance(default, WatchedBridge)
    default.clients = True
    machine.start("web", 1)
    machine.targets.scan()
    assert list(machine.targets) == ["web", DEFAULT_NAME]


async def test_a_process_at_the_default_ports_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.has_default = True
    default = machine.targets[""]
    machine.processes.append(RunningServer("web", 1, default.pub, default.req, 1))
    machine.start("rbkit", 2)
    machine.targets.scan()
    assert list(machine.targets) == ["web", "rbkit-2"]


async def test_default_ports_that_nobody_listens_at_are_not_shown_beside_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RBKIT_PUB_PORT", str(free_port()))
    monkeypatch.setenv("RBKIT_REQ_PORT", str(free_port()))
    server = RunningServer("web", 1, "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", 1)
    monkeypatch.setattr("tornado_rbkit.web.discovered.list_servers", lambda: [server])

    def names() -> list[str]:
        targets = DiscoveredTargets(lambda pub, req, thread: Bridge(pub, req, threaded=thread))
        targets.scan()
        return list(targets)

    assert names() == ["web"]
    with FakeRbkit(*(f"tcp://127.0.0.1:{os.environ[name]}" for name in ("RBKIT_PUB_PORT", "RBKIT_REQ_PORT"))):
        assert names() == ["web", DEFAULT_NAME]


DYING = """
import sys
from tornado_rbkit.cli import main as cli
from tornado_rbkit.upstream import iothread
if sys.argv.pop(1) == "start":
    def run(self):
        self._error = OSError(24, "Too many open files")
        self._ready.set()
    iothread.IOLoopThread._run = run
else:
    start = iothread.IOLoopThread.start
    def dying(self):
        start(self)
        self.io_loop.add_callback(self.io_loop.stop)
    iothread.IOLoopThread.start = dying
sys.exit(cli.main(["serve", "--port", "0"]))
"""


@pytest.mark.parametrize(("when", "reason"), [("start", "did not start"), ("later", "has ended")])
def test_serve_ends_with_a_reason_when_it_can_find_nobody_any_more(
    when: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", str(tmp_path / "runtime"))
    ended = subprocess.run([sys.executable, "-c", DYING, when], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert re.search(rf"^tornado-rbkit: the I/O thread of the profilers' connections {reason}", ended.stderr, re.M)
    assert "Traceback" not in ended.stderr
