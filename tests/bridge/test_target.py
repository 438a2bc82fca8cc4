"""What is known of the process that answers, and what of it is logged."""

from __future__ import annotations

import time

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Serve, ask, until
from tests.fake_rbkit import FakeRbkit
from tornado_rbkit import Bridge
from tornado_rbkit.bridge.target import Target, Trouble
from tornado_rbkit.protocol import MAX_HANDSHAKE_BYTES, CommandError, DecodeError, decode_handshake
from tornado_rbkit.upstream.requester import Outcome

FACTS = {
    "rbkit_server_version": "0.1.10",
    "rbkit_protocol_version": "2.1",
    "process_name": "fake",
    "pwd": "/srv",
    "pid": 1,
    "object_trace_enabled": 0,
    "cpu_profiling_enabled": 0,
    "clock_type": "wall",
    "cpu_profiling_mode": "sampling",
}


def handshake(**facts: object) -> bytes:
    packed: bytes = msgpack.packb({0: 8, 1: 1.0, 2: {**FACTS, **facts}})
    return packed


def lists(count: int) -> bytes:
    """Return a message that is a handshake by its head, and `count` lists, of a byte each, by the rest."""
    return b"\x83\x00\x08\x01\xcb" + bytes(8) + b"\x02\xdd" + count.to_bytes(4, "big") + b"\x90" * count


def answered(reply: bytes) -> Outcome:
    return Outcome(reply, None, 0.01)


TIMEOUT = Outcome(b"", CommandError("timeout", "none"), 5.0)
UNAVAILABLE = Outcome(b"", CommandError("unavailable", "none"), 5.0)


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
        target = Target()
        target.note("handshake", answered(reply))
        assert (target.trouble is Trouble.FOREIGN) == (target.handshake is None)

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


class TestTrouble:
    def test_changes_at_the_edges_only(self) -> None:
        target = Target()
        seen = []
        for command, outcome in [
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
            target.note(command, outcome)
            seen.append(target.trouble)
        silent, foreign = Trouble.SILENT, Trouble.FOREIGN
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
