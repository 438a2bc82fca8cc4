"""The figures of processes on other hosts: the message, who sends it for how long, and what is made of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Clock, ask, until
from tests.fake_rbkit import FakeRbkit
from tests.fleet.conftest import FakeLink, Machine
from tornado_rbkit import Bridge
from tornado_rbkit.fleet import subjects, targets, vitals_publisher
from tornado_rbkit.fleet.hello import MAX_TARGETS, VERSION, Hello
from tornado_rbkit.fleet.lease import LEASE_SECONDS
from tornado_rbkit.fleet.link import LinkDownError, Message, NoRespondersError
from tornado_rbkit.fleet.subjects import Watcher
from tornado_rbkit.fleet.targets import LOOK_SECONDS, REJOIN_SECONDS, SHOW_GONE, FleetTargets
from tornado_rbkit.fleet.vitals import MAX_BYTES, VITALS_INTERVAL, Vitals
from tornado_rbkit.fleet.vitals_publisher import VitalsPublisher
from tornado_rbkit.tasks import Tasks
from tornado_rbkit.web.discovered import path_name
from tornado_rbkit.web.overview import overview

FIGURES = {"process_rss": 12_345_678, "process_cpu_ms": 250}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=6,
)


class Known(dict[str, Bridge]):
    """Targets whose processes are looked at."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.looks = 0

    def facts(self, name: str) -> dict[str, Any]:
        return {"process": f"{name}.py", "pid": 4711}

    def figures(self, name: str) -> dict[str, float]:
        self.looks += 1
        return dict(FIGURES)


# The message


def test_figures_come_back_without_those_that_are_not_known() -> None:
    known = {"a": dict(FIGURES), "b": {"process_cpu_ms": 7}, "c": {"process_rss": 7}, "none": {}}
    sent = Vitals(12.5, known)  # type: ignore[arg-type]
    assert Vitals.parse(sent.pack(), 10) == Vitals(12.5, {name: known[name] for name in "abc"})  # type: ignore[misc]
    assert Vitals.parse(sent.pack(), 1) == Vitals(12.5, {"a": known["a"]})  # type: ignore[dict-item]


@given(
    st.binary(max_size=200)
    | ANYTHING.map(msgpack.packb)
    | st.tuples(ANYTHING | st.just(1.0), st.lists(st.lists(ANYTHING | st.just("a"), max_size=4))).map(msgpack.packb)
)
@settings(max_examples=300, deadline=None)
def test_no_bytes_of_a_host_are_more_than_figures(data: bytes) -> None:
    parsed = Vitals.parse(data, 2)
    if parsed is not None:
        assert 0 <= parsed.at < float("inf")
        assert len(parsed.processes) <= 2
        for figures in parsed.processes.values():
            assert all(type(value) is int and 0 <= value <= 1 << 53 for value in figures.values())
            assert figures.keys() <= FIGURES.keys()


def test_a_message_of_all_targets_that_there_may_be_is_taken_and_a_longer_one_is_not() -> None:
    most = {f"{number:064}": dict.fromkeys(FIGURES, 1 << 53) for number in range(MAX_TARGETS)}
    packed = Vitals(1e9, most).pack()  # type: ignore[arg-type]
    assert len(packed) < MAX_BYTES / 2
    assert Vitals.parse(packed, MAX_TARGETS) is not None
    assert Vitals.parse(packed + b" " * MAX_BYTES, MAX_TARGETS) is None


# The agent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (vitals_publisher, targets):
        monkeypatch.setattr(module, "time", clock)
    return clock


async def test_an_agent_looks_at_processes_only_while_a_bridge_has_leased_it(clock: Clock) -> None:
    known, link, tasks = Known({"puma": Bridge(), "": Bridge()}), FakeLink(), Tasks()
    publisher = VitalsPublisher("web-1", known, link, tasks)

    async def pass_by(seconds: int) -> None:
        for _ in range(seconds):
            clock.now += 1
            publisher.age(1.0)
            await publisher.publish()

    await pass_by(10)
    assert (known.looks, link.published) == (0, [])
    publisher.lease(Watcher("b1", "one"))
    await tasks.wait()
    ((subject, data),) = link.published
    assert subject == "rbkit.vitals.web-1"
    assert Vitals.parse(data, 10) == Vitals(1010.0, {"puma": FIGURES, "rbkit": FIGURES})  # type: ignore[dict-item]
    for _ in range(20):  # renewed, by two processes
        publisher.lease(Watcher("b1", "one"))
        publisher.lease(Watcher("b1", "two"))
        await tasks.wait()
        await pass_by(int(VITALS_INTERVAL))
    assert len(link.published) == 1 + 20
    await pass_by(int(LEASE_SECONDS) + 1)
    before, looks = len(link.published), known.looks
    assert before <= 21 + LEASE_SECONDS / VITALS_INTERVAL
    await pass_by(60)
    assert (len(link.published), known.looks) == (before, looks)
    assert publisher._ages == {}


async def test_an_agent_that_is_asked_again_and_again_sends_no_faster(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, link, tasks = Known({"puma": Bridge()}), FakeLink(), Tasks()
    publisher = VitalsPublisher("web-1", known, link, tasks)
    link.failure = LinkDownError("gone")  # which the link notices
    monkeypatch.setattr(vitals_publisher, "MAX_LEASES", 50)
    for number in range(500):
        publisher.lease(Watcher("b1", str(number)))
        await tasks.wait()
        await publisher.publish()
    assert known.looks == 1
    assert len(publisher._ages) == 50


# The bridge


class Hosts:
    """The targets of a fleet whose thread and server are left out, and the hosts that were asked for figures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.targets = FleetTargets(
            lambda endpoint, thread: Bridge(endpoint=endpoint, threaded=thread), lambda: None, "b1", path_name
        )
        self.asked: list[list[str]] = []
        loop = SimpleNamespace(add_callback=lambda function, hosts: self.asked.append(hosts))
        monkeypatch.setattr(type(self.targets._thread), "io_loop", loop, raising=False)
        monkeypatch.setattr(self.targets, "_on_thread", self._answer)
        self.answers: dict[str, Exception | None] = {}

    def hello(self, host: str, *names: str, **more: Any) -> None:
        listed = [{"name": name, **more} for name in names]
        facts = {"v": VERSION, "instance": host, "digest": str(names), "targets": listed}
        parsed = Hello.parse(msgpack.packb(facts))
        assert parsed is not None
        self.targets.on_hello(host, parsed)

    async def scan(self) -> None:
        self.targets.scan()
        await self.targets._asking.wait()

    async def _answer(self, ping: Any) -> None:
        host = ping.cr_frame.f_locals["host"]
        ping.close()
        answer = self.answers.get(host)
        if answer is not None:
            raise answer


@pytest.fixture
async def hosts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    return Hosts(monkeypatch)


async def test_hosts_are_asked_for_figures_only_while_somebody_looks(hosts: Hosts, clock: Clock) -> None:
    for _ in range(40):
        hosts.hello("web-1", "puma")
        await hosts.scan()
        clock.now += 0.25
    assert hosts.asked == []
    for _ in range(40):
        hosts.hello("web-1", "puma")
        hosts.targets.look()
        await hosts.scan()
        clock.now += 0.25
    assert hosts.asked == [["web-1"]] * 5, "once in two seconds"
    hosts.asked.clear()
    for _ in range(40):
        hosts.hello("web-1", "puma")
        await hosts.scan()
        clock.now += 0.25
    assert len(hosts.asked) <= LOOK_SECONDS / VITALS_INTERVAL


async def test_what_a_host_sends_is_shown_of_its_own_targets_while_somebody_looks(hosts: Hosts) -> None:
    hosts.hello("web-1", "puma", process="puma\x1b", pid=7, state="connected", viewers=3, recording=["cpu", 5, "x"])
    hosts.hello("web-2", "puma")
    vitals = Vitals(5.5, {"puma": dict(FIGURES), "other": dict(FIGURES)})
    hosts.targets.on_vitals("web-1", vitals)
    hosts.targets.on_vitals("stranger", vitals)
    assert hosts.targets.figures("web-1~puma") == {}, "nobody looks"
    overview(hosts.targets)
    hosts.targets.on_vitals("web-1", vitals)
    document = overview(hosts.targets)
    one, two = document["targets"]
    assert one == {
        "name": "web-1~puma",
        "host": "web-1",
        "process": "puma?",
        "pid": 7,
        "state": "connected",
        "trouble": None,
        "viewers": 3,
        "recording": ["cpu", "x"],
        "bytes_sent": 0,
        "rss": 12_345_678,
        "cpu_ms": 250,
        "at": 5.5,
    }
    assert (two["name"], two["state"], two["rss"]) == ("web-2~puma", "idle", None)
    assert [host["targets"] for host in document["hosts"]] == [1, 1]


async def test_no_host_is_gone_before_it_can_have_connected_to_a_restarted_server(hosts: Hosts, clock: Clock) -> None:
    hosts.hello("web-1", "puma")
    hosts.answers = {"web-1": NoRespondersError("nobody")}
    bridge = hosts.targets["web-1~puma"]
    clock.now += 60
    hosts.targets._control.link.is_up, hosts.targets._control.link.up_at = True, clock.now
    await hosts.scan()
    assert hosts.targets.hosts == {"web-1": "late"}
    clock.now += REJOIN_SECONDS
    await hosts.scan()
    assert hosts.targets["web-1~puma"] is bridge
    clock.now += 0.1
    await hosts.scan()
    assert hosts.targets.hosts == {"web-1": "gone"}


async def test_hosts_that_are_silent_are_shown_with_since_when(hosts: Hosts, clock: Clock) -> None:
    def shown() -> dict[str, tuple[str, float]]:
        return {host["name"]: (host["state"], host["seconds"]) for host in overview(hosts.targets)["hosts"]}

    for name in ("late", "frozen", "gone", "here"):
        hosts.hello(name, "puma")
    hosts.answers = {"frozen": LinkDownError("no reply"), "gone": NoRespondersError("nobody")}
    hosts.targets._control.link.is_up = True
    assert set(shown().values()) == {("here", 0.0)}
    clock.now += 2
    hosts.hello("here", "puma")
    await hosts.scan()
    assert shown() == {"late": ("late", 2.0), "frozen": ("frozen", 2.0), "gone": ("gone", 2.0), "here": ("here", 0.0)}
    assert "gone~puma" not in hosts.targets or hosts.targets._entries["gone~puma"].gives_up_at is not None
    clock.now += 100
    assert shown()["gone"] == ("gone", 102.0)
    hosts.hello("frozen", "puma")
    assert shown()["frozen"] == ("here", 0.0)
    clock.now += SHOW_GONE
    await hosts.scan()
    assert "gone" not in shown()


async def test_a_host_that_is_gone_makes_room_for_one_that_is_here(
    hosts: Hosts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "_MAX_HOSTS", 3)
    hosts.answers = {name: NoRespondersError("nobody") for name in "ab"}
    for name in "abc":
        hosts.hello(name, "puma")
    clock.now += 2
    hosts.hello("c", "puma")
    hosts.hello("a", "puma")
    await hosts.scan()  # b is gone
    clock.now += 2
    hosts.hello("c", "puma")
    await hosts.scan()  # and a
    hosts.hello("d", "puma")
    assert list(hosts.targets.hosts) == ["a", "c", "d"]
    hosts.hello("e", "puma")
    hosts.hello("f", "puma")
    assert list(hosts.targets.hosts) == ["c", "d", "e"]


def test_odd_subjects_of_figures_are_of_no_host() -> None:
    assert subjects.parse_host(subjects.vitals("web.1"), subjects.vitals) == "web.1"
    for odd in ("rbkit.vitals.", "rbkit.vitals.a.b", "rbkit.hello.a", "rbkit.vitals.%61", "x"):
        assert subjects.parse_host(odd, subjects.vitals) is None


# Together


async def test_the_page_of_a_bridge_has_the_figures_of_processes_of_another_host(
    machine: Machine, rbkit: FakeRbkit
) -> None:
    known = Known({"puma": Bridge(**rbkit.endpoints, idle_grace=0.2)})
    await machine.agent(known)
    fleet = await machine.bridge()
    server = await machine.served(fleet, "web-1~puma")

    def row() -> dict[str, Any]:
        (only,) = overview(fleet)["targets"]
        return only  # type: ignore[no-any-return]

    await asyncio.sleep(0)
    assert known.looks == 0, "nobody has looked"
    await until(lambda: row()["rss"] == FIGURES["process_rss"], "the figures have arrived")
    first = row()["at"]
    await until(lambda: row()["at"] > first, "they arrive again")
    assert (row()["process"], row()["pid"], row()["cpu_ms"]) == ("puma.py", 4711, 250)
    client = await server.connected()
    assert await ask(client, "start_cpu_profiling") == b"0ok"
    expected = {"state": "connected", "viewers": 1, "recording": ["cpu"]}
    await until(lambda: row().items() >= expected.items(), "what the agent knows is shown")
    here = [{"name": "web-1", "state": "here", "seconds": 0.0, "targets": 1}]
    await until(lambda: overview(fleet)["hosts"] == here, "the host is here")


async def test_messages_of_figures_are_decoded_on_the_thread_and_a_flood_is_not(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[Any] = []
    loop = SimpleNamespace(call_soon_threadsafe=lambda function, *arguments: handed.append(arguments))
    monkeypatch.setattr(hosts.targets, "_loop", loop, raising=False)
    vitals = Vitals(1.0, {"puma": dict(FIGURES)})
    for data in (b"junk", b"x" * (MAX_BYTES + 1), *[vitals.pack()] * 100):
        hosts.targets._on_vitals(Message(subjects.vitals("web-1"), data, ""))
    hosts.targets._on_vitals(Message("rbkit.vitals.a.b", vitals.pack(), ""))
    assert set(map(str, handed)) == {str(("web-1", vitals))}
    assert len(handed) == targets._MAX_HELLOS - 2
