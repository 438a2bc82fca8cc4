"""Taking messages from a SUB socket."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import zmq
from tornado.ioloop import IOLoop

from tests.conftest import until
from tornado_rbkit.frames import Buffer
from tornado_rbkit.upstream.source import SocketSource


class TestSocketSource:
    @pytest.fixture
    def sockets(self) -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
        with zmq.Context() as context, context.socket(zmq.PUB) as pub, context.socket(zmq.SUB) as sub:
            pub.linger = sub.linger = 0
            sub.subscribe(b"")
            port = pub.bind_to_random_port("tcp://127.0.0.1")
            sub.connect(f"tcp://127.0.0.1:{port}")
            while not sub.poll(10):
                pub.send(b"are you there")
            pub.send(b"begin")
            while sub.recv() != b"begin":
                pass
            yield pub, sub

    @staticmethod
    def take(source: SocketSource, sub: zmq.Socket[bytes], *bounds: int) -> tuple[list[bytes], bool]:
        assert sub.poll(60_000)
        payloads, emptied = source.take(*bounds)
        return [bytes(payload) for payload in payloads], emptied

    async def test_discards_a_message_whose_parts_are_too_long_together(
        self, sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]], caplog: pytest.LogCaptureFixture
    ) -> None:
        pub, sub = sockets
        source = SocketSource(sub, IOLoop.current(), max_message_bytes=100_000)
        pub.send_multipart([bytes(30_000)] * 3)
        assert self.take(source, sub, 1_000_000, 1) == ([bytes(90_000)], False)
        pub.send_multipart([bytes(30_000)] * 7)
        assert self.take(source, sub, 1_000_000, 100) == ([], False)
        pub.send_multipart([b"ne", b"xt"])
        assert self.take(source, sub, 1_000_000, 100) == ([b"next"], True)
        assert "parts of 210000 bytes; allowed: at most 100000 (max_message_bytes)" in caplog.text

    async def test_takes_what_is_ready_within_its_bounds(
        self, sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
    ) -> None:
        pub, sub = sockets
        source = SocketSource(sub, IOLoop.current(), max_message_bytes=100_000)
        assert source.take(100, 100) == ([], True)
        pub.send_multipart([b"one", b"two", b"", b"three"])
        assert self.take(source, sub, 100, 1) == ([b"onetwothree"], False), "several parts are joined"
        pub.send(bytes(20_000))
        assert self.take(source, sub, 1, 100) == ([bytes(20_000)], False), "the last one may pass the bound"
        pub.send(b"four")
        assert sub.poll(60_000)
        assert source.take(0, 100) == ([], False), "it was not looked at"
        assert self.take(source, sub, 100, 100) == ([b"four"], True)

    async def test_signals_messages_while_it_is_watched(
        self, sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
    ) -> None:
        pub, sub = sockets
        source = SocketSource(sub, IOLoop.current(), max_message_bytes=100_000)
        signals: list[list[Buffer]] = []
        assert source.take(100, 100) == ([], True)
        for number in (b"1", b"2"):
            source.watch(lambda: signals.append(source.take(100, 100)[0]))
            pub.send(number)
            await until(partial(signals.__contains__, [number]), "the message is taken")
            source.unwatch()
