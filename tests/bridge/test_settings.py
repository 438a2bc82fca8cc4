"""Options that cannot work are refused by the constructor; with all others the connection opens."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge, EndpointError, IOLoopThread
from tornado_rbkit.bridge.commands import CommandQueue
from tornado_rbkit.bridge.settings import BridgeSettings
from tornado_rbkit.upstream.types import Batch, CommandResult, ConnectionState
from tornado_rbkit.upstream.upstream import Upstream

DEFAULTS = {field.name: field for field in dataclasses.fields(BridgeSettings)}
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**400, -1, 0, 1, 9, 10, 1e9, 0.5, 1e300]),
    st.sampled_from([Fraction(1, 3), Decimal(1), 1j, math.inf, -math.inf, math.nan]),
)
ODD = st.one_of(
    NUMBERS, st.none(), st.booleans(), st.text(max_size=9), st.binary(max_size=9), st.just([]), st.just({})
)
ENDPOINTS = st.one_of(
    st.from_regex(r"(tcp|ipc|inproc|http)://[\w.:%\[\]\0@/-]{0,20}(:\d{1,6})?", fullmatch=True),
    st.text(max_size=200).map("ipc://{}".format),
)
TIMEOUTS = st.dictionaries(st.one_of(ODD.filter(lambda value: not isinstance(value, list | dict)), st.just("a")), ODD)


@pytest.fixture(scope="module")
def profiler() -> Iterator[FakeRbkit]:
    with FakeRbkit() as server:
        yield server


class Listener:
    """Records how a connection ends: its failure, or the result of the first command."""

    def __init__(self) -> None:
        self.result: asyncio.Future[str | CommandResult] = asyncio.get_running_loop().create_future()
        self.upstream: Upstream | None = None
        self.timeouts: dict[str, float] = {}

    def on_batch(self, batch: Batch) -> None:
        batch.acknowledge(0.0)

    def on_failure(self, reason: str) -> None:
        self.result.set_result(reason)

    def on_connection(self, connection: ConnectionState) -> None:
        if not connection.missing:
            assert self.upstream is not None
            queue = CommandQueue(self.upstream.request, self.timeouts, lambda name, result: None)
            queue.submit("trigger_gc", self.result.set_result, self)
            queue.resume()


def opened(chosen: BridgeSettings, listener: Listener) -> Upstream:
    upstream = Upstream(chosen, listener, lambda: upstream.close())
    assert chosen.endpoint is not None
    upstream.connect(chosen.endpoint)
    return upstream


async def first_result(chosen: BridgeSettings) -> str | CommandResult:
    listener = Listener()
    listener.timeouts = {name: max(5.0, seconds) for name, seconds in chosen.command_timeouts.items()}
    listener.upstream = opened(chosen, listener)
    try:
        return await asyncio.wait_for(listener.result, 60)
    finally:
        await listener.upstream.close()


async def opens(chosen: BridgeSettings) -> None:
    """Fail if the sockets cannot be created; an endpoint without a server is not a failure."""
    listener = Listener()
    await opened(chosen, listener).close()
    assert not listener.result.done(), listener.result


@pytest.mark.parametrize("option", [name for name in DEFAULTS if name not in ("pub", "req")])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_odd_value_is_refused_in_clear_words_or_a_command_is_answered(
    profiler: FakeRbkit, option: str, data: st.DataObject
) -> None:
    value = data.draw(st.one_of(ODD, TIMEOUTS) if option == "command_timeouts" else ODD)
    chosen = made({**profiler.endpoints, "threaded": False, option: value})
    if isinstance(chosen, BridgeSettings):
        result = asyncio.run(first_result(chosen))
        assert isinstance(result, CommandResult), result
        assert result.reply == b"ok"
    else:
        assert str(chosen).startswith(option)
        assert "; allowed: " in str(chosen)


def made(options: dict[str, Any]) -> BridgeSettings | ValueError:
    try:
        return BridgeSettings(**options)
    except ValueError as error:
        return error


@pytest.mark.parametrize("option", ["pub", "req"])
@settings(max_examples=100)
@given(value=st.one_of(ODD, ENDPOINTS))
@example(value="ipc:///a\0b")
@example(value="tcp://127.0.0.1:٥٥٥٥")
@example(value="ipc://\udcff")
def test_an_odd_endpoint_is_refused_in_clear_words_or_the_sockets_are_made(option: str, value: Any) -> None:
    chosen = made({"pub": "tcp://127.0.0.1:1", "req": "tcp://127.0.0.1:1", "threaded": False, option: value})
    if isinstance(chosen, BridgeSettings):
        asyncio.run(opens(chosen))
    else:
        assert isinstance(chosen, EndpointError)
        assert str(chosen).startswith(f"{option}={value!r} is not an endpoint; allowed: tcp://HOST:PORT or ipc://PATH")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rcvhwm": 1.5}, "rcvhwm=1.5 is out of range; allowed: 1 to 2147483647 (a whole number)"),
        ({"rcvhwm": 2**31}, "rcvhwm=2147483648 is out of range"),
        (
            {"max_message_bytes": 1e9},
            "max_message_bytes=1000000000.0 is out of range; allowed: 1024 to 922",
        ),
        ({"max_clients": True}, "max_clients=True is out of range; allowed: 1 or more (a whole number)"),
        ({"threaded": "yes"}, "threaded='yes' is out of range; allowed: True, False, or an IOLoopThread"),
        ({"stop_when_idle": 1}, "stop_when_idle=1 is out of range; allowed: True or False"),
        ({"ping_interval": True}, "ping_interval=True is out of range; allowed: 0 or more, finite (seconds)"),
        ({"idle_grace": math.inf}, "idle_grace=inf is out of range; allowed: 0 or more, finite (seconds)"),
        ({"flush_interval": 61}, "flush_interval=61 is out of range; allowed: 0 or more, at most 60 (seconds)"),
        (
            {"command_timeouts": {"trigger_gc": "5"}},
            "command_timeouts['trigger_gc']='5' is out of range; allowed: ",
        ),
        ({"max_clients": -3}, "max_clients=-3 is out of range"),
        ({"stall_timeout": 0}, "stall_timeout=0 is out of range; allowed: more than 0"),
        ({"compression_level": 10}, "compression_level=10 is out of range; allowed: 0 (off) to 9"),
        ({"default_encoding": "base64"}, "default_encoding='base64' is unknown; allowed: binary, escaped"),
        ({"req": "tcp://127.0.0.1"}, "req='tcp://127.0.0.1' is not an endpoint; allowed: tcp://HOST:PORT"),
        ({"command_timeouts": {"": 5}}, "command_timeouts key '' is out of range; allowed: one line"),
        ({"command_timeouts": [1]}, "command_timeouts=[1] is out of range; allowed: a mapping"),
    ],
)
def test_the_refusal_names_option_value_and_what_is_allowed(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as refused:
        Bridge(**options)
    assert text in str(refused.value)


def test_are_those_of_the_bridge_with_the_same_defaults() -> None:
    parameters = inspect.signature(Bridge).parameters
    assert parameters.keys() == DEFAULTS.keys()
    own = {name: field.default for name, field in DEFAULTS.items() if field.default is not dataclasses.MISSING}
    assert own == {name: parameters[name].default for name in own}


def test_a_thread_and_a_mapping_of_timeouts_are_taken() -> None:
    thread, timeouts = IOLoopThread(), {"trigger_gc": 1}
    chosen = BridgeSettings(threaded=thread, command_timeouts=timeouts)
    timeouts.clear()
    assert chosen.threaded is thread
    assert chosen.command_timeouts == {"trigger_gc": 1.0}, "it is the caller's to change"
