"""The targets that agents announce, without a server."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornado_rbkit import Bridge
from tornado_rbkit.fleet import subjects, targets
from tornado_rbkit.fleet.hello import MAX_TARGETS, VERSION, Hello
from tornado_rbkit.fleet.link import Message
from tornado_rbkit.fleet.targets import FleetTargets
from tornado_rbkit.web.discovered import path_name

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=6,
)


def facts(*names: str, **more: Any) -> dict[str, Any]:
    listed = [{"name": name, **more} for name in names]
    return {"v": VERSION, "instance": "one", "digest": str(hash(names)), "targets": listed}


def hello(*names: str, **more: Any) -> Hello:
    parsed = Hello.parse(msgpack.packb(facts(*names) | more))
    assert parsed is not None
    return parsed


@pytest.fixture
async def fleet() -> FleetTargets:
    return FleetTargets(
        lambda endpoint, thread: Bridge(endpoint=endpoint, threaded=thread), lambda: None, "b1", path_name
    )


@given(st.binary(max_size=300) | ANYTHING.map(msgpack.packb))
@settings(max_examples=100, deadline=None)
def test_no_bytes_of_a_stranger_are_a_hello(data: bytes) -> None:
    parsed = Hello.parse(data)
    assert parsed is None or type(parsed.version) is int


@given(
    st.fixed_dictionaries(
        {"v": st.sampled_from([VERSION, 2, True]), "instance": st.text(), "digest": st.text()},
        optional={"targets": st.lists(st.fixed_dictionaries({"name": ANYTHING, "pid": ANYTHING, "junk": ANYTHING}))},
    )
)
@settings(max_examples=40, deadline=None)
def test_of_a_hello_only_what_is_known_is_kept(data: dict[str, Any]) -> None:
    parsed = Hello.parse(msgpack.packb(data))
    if parsed is not None and parsed.targets:
        assert parsed.version == VERSION
        for name, known in parsed.targets.items():
            assert subjects.check_fleet_name(name, "the target") == name
            assert known.keys() <= {"process", "pid", "state", "trouble", "viewers", "recording"}


def test_what_a_hello_becomes_is_bounded_too() -> None:
    listed = facts(*map(str, range(3 * MAX_TARGETS)), process="p" * 1000, junk=[{}] * 10)
    parsed = Hello.parse(msgpack.packb(listed))
    assert parsed is not None
    assert parsed.targets is not None
    assert len(parsed.targets) == MAX_TARGETS
    assert parsed.targets["0"] == {"process": "p" * 256}
    assert Hello.parse(msgpack.packb(facts() | {"instance": "i" * 100_000})) is None


async def test_targets_whose_names_are_the_same_in_a_path_stay_apart(fleet: FleetTargets) -> None:
    for host, target in (("a~b", "c"), ("a", "b~c"), ("web 1", "puma"), ("web-1", "puma"), ("web/1", "puma")):
        fleet.on_hello(host, hello(target))
    assert sorted(fleet) == ["1~puma", "a~b~c", "a~b~c-2", "web-1~puma", "web-1~puma-2"]
    assert fleet["a~b~c-2"].req == "a~b~c"
    assert fleet["web-1~puma"].req == "web 1~puma"
    assert fleet["web-1~puma-2"].req == "web-1~puma"
    fleet.on_hello("web 1", hello(digest="other"))
    assert fleet._entries["web-1~puma"].gives_up_at is not None
    assert fleet._entries["web-1~puma-2"].gives_up_at is None, "it is another host's"
    fleet.on_hello("web-1", hello("puma"))
    assert len(fleet) == 5, "a target keeps its name"


async def test_of_two_agents_with_one_name_the_first_is_kept(
    fleet: FleetTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(100.0, 0.5)
    monkeypatch.setattr("tornado_rbkit.fleet.targets.time.monotonic", lambda: next(clock))
    for _ in range(5):
        fleet.on_hello("web-1", hello("puma", instance="one"))
        fleet.on_hello("web-1", hello("other", instance="two", digest="b"))
    assert list(fleet) == ["web-1~puma"]
    assert fleet._entries["web-1~puma"].gives_up_at is None
    for _ in range(6):
        fleet.on_hello("web-1", hello("other", instance="two", digest="b"))
    assert fleet._hosts["web-1"].instance == "two", "the first one has ended"


async def test_an_agent_of_another_version_shows_no_targets(
    fleet: FleetTargets, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.on_hello("web-1", hello("puma", v=VERSION + 1))
    assert list(fleet) == []
    assert fleet.hosts == {"web-1": "here"}
    assert "the agent of web-1 speaks another version of the protocol" in caplog.text


async def test_hosts_and_targets_are_bounded(
    fleet: FleetTargets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(targets, "_MAX_HOSTS", 3)
    monkeypatch.setattr(targets, "_MAX_TARGETS", 4)
    for number in range(5):
        fleet.on_hello(f"web-{number}", hello("a", "b"))
    assert list(fleet.hosts) == ["web-0", "web-1", "web-2"]
    assert len(fleet) == 4
    assert "there are more than 3 hosts" in caplog.text
    assert "there are more than 4 targets" in caplog.text
    monkeypatch.setattr(targets, "_MAX_TARGETS", 9)
    fleet.on_hello("web-2", hello("a", "b", targets=None, digest=str(hash(("a", "b")))))
    assert "web-2~b" in fleet, "there is room by now"


async def test_a_host_that_floods_is_heard_a_few_times_a_second(
    fleet: FleetTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over: list[Any] = []

    class Loop:
        def call_soon_threadsafe(self, function: Callable[..., None], host: str, said: Hello) -> None:
            handed_over.append(host)

    monkeypatch.setattr(fleet, "_loop", Loop(), raising=False)
    monkeypatch.setattr("tornado_rbkit.fleet.targets.time.monotonic", lambda: 100.0)
    for number in range(1000):
        fleet._on_message(Message(subjects.hello("loud"), msgpack.packb(facts("puma")), ""))
        fleet._on_message(Message(subjects.hello(f"host-{number}"), msgpack.packb(facts("puma")), ""))
    assert handed_over.count("loud") == targets._MAX_HELLOS
    assert len(handed_over) == 1000 + targets._MAX_HELLOS
    for number in range(5000):
        fleet._is_flood(f"made-up-{number}")
    assert len(fleet._hellos) <= 2 * targets._MAX_HOSTS


async def test_a_host_that_announces_other_targets_all_the_time_gets_few_bridges_at_a_time(
    fleet: FleetTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("tornado_rbkit.fleet.targets.time.monotonic", lambda: now)
    made = Mock(wraps=fleet._make_bridge)
    monkeypatch.setattr(fleet, "_make_bridge", made)
    for number in range(20):
        fleet.on_hello("loud", hello(*(f"{number}-{at}" for at in range(MAX_TARGETS))))
        fleet.on_hello("quiet", hello("puma"))
    assert made.call_count == targets._NEW_AT_ONCE + 1
    assert "quiet~puma" in fleet
    for _ in range(MAX_TARGETS // targets._NEW_AT_ONCE):
        now += targets._CHECK_INTERVAL
        for host in fleet._hosts.values():
            host.heard = now
        fleet.scan()
    assert {name for name in fleet if name.startswith("loud")} == {f"loud~19-{at}" for at in range(MAX_TARGETS)}
