"""The facts about a profiler: its state, its faults, and the notices and log lines about them."""

from __future__ import annotations

import logging
import time
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Serve, ask, until
from tests.fake_rbkit import FACTS, FakeRbkit
from tornado_rbkit import Bridge
from tornado_rbkit.bridge.profiler_state import Fault, ProfilerState, State
from tornado_rbkit.protocol import (
    MAX_HANDSHAKE_BYTES,
    TRACING_COMMANDS,
    CommandError,
    DecodeError,
    Notice,
    decode_handshake,
)
from tornado_rbkit.upstream.sockets import ZmqEndpoint
from tornado_rbkit.upstream.types import Batch, CommandResult, ConnectionState


def handshake(**facts: object) -> bytes:
    packed: bytes = msgpack.packb({0: 8, 1: 1.0, 2: {**FACTS, **facts}})
    return packed


def lists(count: int) -> bytes:
    """Return a message that is a handshake by its head, and `count` lists, of a byte each, by the rest."""
    return b"\x83\x00\x08\x01\xcb" + bytes(8) + b"\x02\xdd" + count.to_bytes(4, "big") + b"\x90" * count


def answered(reply: bytes) -> CommandResult:
    return CommandResult(reply, None, 0.01)


TIMEOUT = CommandResult(b"", CommandError("timeout", "none"), 5.0)
UNAVAILABLE = CommandResult(b"", CommandError("unavailable", "none"), 5.0)


PUB, REQ = "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556"
ENDPOINT = ZmqEndpoint(PUB, REQ)
UP = ConnectionState()
DOWN = ConnectionState((REQ,))
RESTART = Batch({}, 0, restarted=True)


def connected() -> ProfilerState:
    profiler = ProfilerState(ENDPOINT)
    profiler.on_connecting()
    profiler.on_connection(UP)
    return profiler


class TestEvents:
    """Each event, and the notices that the clients are sent for it."""

    @staticmethod
    def notices(profiler: ProfilerState, events: list[Any]) -> list[str]:
        sent: list[Notice] = []
        for event in events:
            if event == "retarget":
                sent += profiler.on_connection(ConnectionState((PUB, REQ)))
                profiler.retarget(ENDPOINT)
            elif isinstance(event, ConnectionState):
                sent += profiler.on_connection(event)
            elif isinstance(event, Batch):
                sent += profiler.on_batch(event)
            else:
                sent += profiler.on_result("handshake", answered(handshake(pid=event)))
        return [notice.to_bytes().decode().removeprefix("server:") for notice in sent]

    @pytest.mark.parametrize(
        ("events", "notices", "state"),
        [
            ([], [], State.CONNECTING),
            ([DOWN, ConnectionState((PUB, REQ), {REQ: 1})], [], State.CONNECTING),
            ([UP], [], State.CONNECTED),
            ([UP, UP, UP], [], State.CONNECTED),
            ([UP, DOWN, DOWN], ["disconnected"], State.DISCONNECTED),
            ([UP, DOWN, UP], ["disconnected", "connected"], State.CONNECTED),
            ([UP, 1, DOWN, UP, 1], ["disconnected", "connected"], State.CONNECTED),
            ([UP, 1, DOWN, UP, 2, 2], ["disconnected", "connected", "restarted"], State.CONNECTED),
            ([UP, 1, 2, 3], ["restarted"], State.CONNECTED),
            ([UP, RESTART, RESTART], ["restarted"], State.CONNECTED),
            ([UP, 1, RESTART, 2], ["restarted"], State.CONNECTED),
            ([RESTART, UP], ["restarted"], State.CONNECTED),
            ([UP, DOWN, RESTART, UP, 2], ["disconnected", "connected", "restarted"], State.CONNECTED),
            ([UP, "retarget"], ["disconnected"], State.DISCONNECTED),
            ([UP, "retarget", DOWN, UP], ["disconnected", "connected", "restarted"], State.CONNECTED),
            (["retarget", DOWN, UP], ["restarted"], State.CONNECTED),
        ],
    )
    def test_notices_and_state(self, events: list[Any], notices: list[str], state: State) -> None:
        profiler = ProfilerState(ENDPOINT)
        profiler.on_connecting()
        assert self.notices(profiler, events) == notices
        assert profiler.state is state
        assert profiler.stats()["disconnects"] == notices.count("disconnected")
        profiler.on_idle()
        assert profiler.state is State.IDLE

    def test_batches_are_counted_and_foreign_messages_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        profiler = connected()
        profiler.on_batch(Batch({}, 0, messages=1, size=10))
        assert not caplog.records
        profiler.on_batch(Batch({}, 0, messages=2, size=30, pending=7, missed=1, foreign=1))
        profiler.on_batch(Batch({}, 0, messages=1, size=10, pending=5, foreign=1))
        expected = {"messages_in": 4, "bytes_in": 50, "messages_missed": 1, "messages_foreign": 2, "bytes_pending": 5}
        assert expected.items() <= profiler.stats().items()
        [record] = caplog.records
        assert "publishes messages that are not rbkit's" in record.getMessage()


class TestTrouble:
    @pytest.mark.parametrize(
        ("connection", "result", "trouble"),
        [
            (UP, None, None),
            (DOWN, None, f"no rbkit server at {REQ}; reconnecting every second"),
            (DOWN, "timeout", f"no rbkit server at {REQ}; reconnecting every second"),
            (ConnectionState((PUB, REQ)), None, f"no rbkit server at {PUB} and {REQ}; reconnecting every second"),
            (
                ConnectionState((PUB,), {PUB: 3}),
                None,
                "not an rbkit server, or it sends messages longer than max_message_bytes: "
                f"{PUB} (3 refused connections)",
            ),
            (UP, "timeout", f"the rbkit server at {REQ} does not answer commands (no reply to 1 so far)"),
            (UP, "foreign", f"the rbkit server at {REQ} is not rbkit"),
            (UP, "unavailable", None),
        ],
    )
    def test_names_the_connection_first(
        self, connection: ConnectionState, result: str | None, trouble: str | None
    ) -> None:
        profiler = connected()
        results = {"timeout": TIMEOUT, "unavailable": UNAVAILABLE, "foreign": answered(b"hello")}
        if result is not None:
            profiler.on_result("handshake", results[result])
        profiler.on_connection(connection)
        assert (profiler.trouble or "")[: len(trouble or "")] == (trouble or "")
        assert (profiler.trouble is None) == (trouble is None)
        profiler.on_idle()
        assert profiler.trouble is None

    @pytest.mark.parametrize(
        ("missing", "named"), [((PUB, REQ), REQ), ((REQ,), REQ), ((PUB,), PUB), ((), REQ)], ids=str
    )
    def test_first_missing_is_the_command_endpoint_unless_that_is_connected(
        self, missing: tuple[str, ...], named: str
    ) -> None:
        profiler = connected()
        profiler.on_connection(ConnectionState(missing))
        assert profiler.first_missing == named


def test_only_what_was_wrong_before_is_reported_as_right_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        connected().on_result("trigger_gc", answered(b"ok"))
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [
        ("INFO", f"connected to the rbkit server at {REQ}")
    ]


class TestProbeDelay:
    def test_doubles_up_to_a_minute_and_starts_over_after_an_answer(self) -> None:
        profiler = connected()
        delays = []
        for result in [TIMEOUT] * 8 + [answered(b"ok"), TIMEOUT, UNAVAILABLE, TIMEOUT]:
            profiler.on_result("trigger_gc", result)
            delays.append(profiler.probe_delay)
        assert delays == [1, 2, 4, 8, 16, 32, 60, 60, None, 1, None, 2]

    @pytest.mark.parametrize("end", ["lost", "idle", "retarget"])
    def test_ends_with_the_connection(self, end: str) -> None:
        profiler = connected()
        profiler.on_result("trigger_gc", TIMEOUT)
        if end == "lost":
            profiler.on_connection(DOWN)
        elif end == "idle":
            profiler.on_idle()
        else:
            profiler.retarget(ENDPOINT)
        assert profiler.probe_delay is None

    @pytest.mark.parametrize("end", ["lost", "idle"])
    def test_does_not_begin_by_a_time_out_that_is_reported_after_the_end_of_the_connection(self, end: str) -> None:
        profiler = connected()
        profiler.on_connection(DOWN) if end == "lost" else profiler.on_idle()
        profiler.on_result("trigger_gc", TIMEOUT)
        assert profiler.probe_delay is None


MEMORY, CPU = "stop_memory_profile", "stop_cpu_profiling"


class TestProfilingStartedHere:
    @pytest.mark.parametrize(
        ("results", "to_stop"),
        [
            ([], []),
            ([("trigger_gc", answered(b"ok"))], []),
            ([("start_memory_profile", answered(b"ok"))], [MEMORY]),
            ([("start_memory_profile", TIMEOUT)], [MEMORY]),
            ([("start_memory_profile", answered(b"ok")), ("start_cpu_profiling", answered(b"ok"))], [CPU, MEMORY]),
            ([("start_memory_profile", answered(b"ok")), (MEMORY, answered(b"ok"))], []),
            ([("start_memory_profile", answered(b"ok")), (MEMORY, TIMEOUT)], [MEMORY]),
            ([("handshake", answered(handshake(object_trace_enabled=1)))], []),
            (
                [
                    ("handshake", answered(handshake(object_trace_enabled=1))),
                    ("start_memory_profile", answered(b"ok")),
                ],
                [],
            ),
            ([("start_cpu_profiling", answered(b"ok")), ("handshake", answered(handshake()))], []),
            (
                [
                    ("start_cpu_profiling", answered(b"ok")),
                    ("handshake", answered(handshake(cpu_profiling_enabled=1))),
                ],
                [CPU],
            ),
            (
                [
                    ("handshake", answered(handshake())),
                    ("start_cpu_profiling", answered(b"ok")),
                    ("handshake", answered(handshake(pid=2, cpu_profiling_enabled=1))),
                    ("start_cpu_profiling", answered(b"ok")),  # of a process that somebody else profiles already
                ],
                [],
            ),
        ],
    )
    def test_is_what_is_to_be_stopped(self, results: list[tuple[str, CommandResult]], to_stop: list[str]) -> None:
        profiler = connected()
        for command, result in results:
            profiler.on_result(command, result)
        assert profiler.to_stop() == to_stop


class TestHandshake:
    def test_of_a_long_path_is_one(self) -> None:
        assert decode_handshake(handshake(pwd="/" + "x" * 4095, process_name="y" * 4096)).pid == 1

    def test_longer_than_the_bound_is_refused_before_it_is_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unpack(*arguments: object, **options: object) -> object:
            raise AssertionError("it was decoded")

        monkeypatch.setattr("msgpack.unpackb", unpack)
        with pytest.raises(DecodeError, match="of 20000 bytes; allowed: at most 16384"):
            decode_handshake(handshake().ljust(20_000))

    @given(st.binary(max_size=MAX_HANDSHAKE_BYTES) | st.integers(0, MAX_HANDSHAKE_BYTES).map(lists))
    def test_of_any_bytes_is_foreign_or_one(self, reply: bytes) -> None:
        profiler = connected()
        profiler.on_result("handshake", answered(reply))
        assert (profiler.fault is Fault.FOREIGN) == (profiler.handshake is None)

    async def test_of_16_mb_does_not_stop_the_web_loop(self, serve: Serve, rbkit: FakeRbkit, threaded: bool) -> None:
        reply = lists(16 * 1024 * 1024 - 20)
        rbkit.handshake = lambda: reply  # type: ignore[method-assign]
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
        connection = await server.connected()
        started = time.thread_time()
        await until(lambda: server.bridge.stats()["trouble"], "it is known that the profiler is none")
        assert "is not rbkit" in server.bridge.stats()["trouble"]
        assert len(await ask(connection, "handshake")) == 1 + len(reply), "it is passed on as it came"
        # Decoding takes 6 s of the processor; moving 16 MB twice takes 0.1 s.
        assert time.thread_time() - started < 2.0


class TestFault:
    def test_changes_at_the_edges_only(self) -> None:
        profiler = connected()
        seen = []
        for command, result in [
            ("trigger_gc", answered(b"ok")),
            ("trigger_gc", TIMEOUT),
            ("handshake", TIMEOUT),
            ("trigger_gc", UNAVAILABLE),  # which tells nothing of whether it answers
            ("handshake", answered(b"hello")),
            ("trigger_gc", answered(b"ok")),
            ("trigger_gc", TIMEOUT),
            ("trigger_gc", answered(b"ok")),
            ("handshake", answered(handshake())),
        ]:
            profiler.on_result(command, result)
            seen.append(profiler.fault)
        silent, foreign = Fault.SILENT, Fault.FOREIGN
        assert seen == [None, silent, silent, silent, foreign, foreign, silent, foreign, None]

    async def test_that_lasts_is_logged_once_and_its_end_when_it_ends(
        self, serve: Serve, rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture
    ) -> None:
        right = rbkit.handshake
        rbkit.handshake = lambda: b"hello"  # type: ignore[method-assign]
        server = await serve(Bridge(**rbkit.endpoints))
        connection = await server.connected()
        for _ in range(50):
            await ask(connection, "trigger_gc")
            await ask(connection, "handshake")
        assert caplog.text.count("is not rbkit") == 1
        assert "answers again" not in caplog.text
        rbkit.handshake = right  # type: ignore[method-assign]
        await ask(connection, "handshake")
        assert caplog.text.count("answers again") == 1
        assert server.bridge.stats()["trouble"] is None

    async def test_that_comes_and_goes_is_logged_now_and_then(
        self, serve: Serve, rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture
    ) -> None:
        right = rbkit.handshake
        server = await serve(Bridge(**rbkit.endpoints))
        connection = await server.connected()
        for _ in range(30):
            rbkit.handshake = lambda: b"hello"  # type: ignore[method-assign]
            await ask(connection, "handshake")
            rbkit.handshake = right  # type: ignore[method-assign]
            await ask(connection, "handshake")
        assert caplog.text.count("is not rbkit") == caplog.text.count("answers again") == 2, "the first and the tenth"


class TestAllocationTracing:
    """Only the profiler for Python knows its commands, as its handshake says."""

    def test_is_unknown_without_the_fact_in_the_handshake(self) -> None:
        profiler = connected()
        assert profiler.unknown_command("trigger_gc") is None
        for facts in ({}, {"allocation_tracing_enabled": 0}, {"allocation_tracing_enabled": 1}, {}):
            profiler.on_result("handshake", answered(handshake(**facts)))
            for command in TRACING_COMMANDS:
                assert (profiler.unknown_command(command) is None) is bool(facts)

    def test_that_was_started_here_is_stopped(self) -> None:
        profiler = connected()
        profiler.on_result("handshake", answered(handshake(allocation_tracing_enabled=0)))
        profiler.on_result("start_allocation_tracing", answered(b"ok"))
        assert profiler.to_stop() == ["stop_allocation_tracing"]
        profiler.on_result("handshake", answered(handshake(allocation_tracing_enabled=0)))
        assert profiler.to_stop() == []

    def test_that_the_program_started_is_left_on(self) -> None:
        profiler = connected()
        profiler.on_result("handshake", answered(handshake(allocation_tracing_enabled=1)))
        profiler.on_result("start_allocation_tracing", answered(b"ok"))
        assert profiler.to_stop() == []

    async def test_commands_never_reach_rbkit(self, serve: Serve, rbkit: FakeRbkit) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        connection = await server.connected()
        for command in sorted(TRACING_COMMANDS):
            reply = await ask(connection, command)
            assert reply.startswith(b"0error:unknown-command " + command.encode())
            assert b"allocation_tracing_enabled" in reply
        assert await ask(connection, "trigger_gc") == b"0ok"
        assert not {command.decode() for command in rbkit.received} & TRACING_COMMANDS
