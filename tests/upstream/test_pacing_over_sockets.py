"""The pacing over real sockets, from a burst to the clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
import zmq
from tornado.ioloop import IOLoop
from websockets.asyncio.client import connect as websockets_connect
from websockets.typing import Subprotocol

from tests.conftest import Serve, receive, receive_data, until
from tests.fake_rbkit import FakeRbkit
from tests.upstream.pacing import (
    messages,
)
from tornado_rbkit import Bridge, frames
from tornado_rbkit.frames import Buffer
from tornado_rbkit.upstream import encoder, upstream
from tornado_rbkit.upstream.iothread import IOLoopThread


class TestOverSockets:
    @pytest.mark.parametrize(
        ("count", "size"),
        [(800, 200), (12, 150_000), (60, 20_000), (2, 700_000), (1, 1_500_000)],
        ids=lambda number: f"{number}",
    )
    async def test_a_burst_before_silence_arrives_whole_in_every_encoding(
        self, serve: Serve, threaded: bool, count: int, size: int
    ) -> None:
        thread = IOLoopThread()
        if threaded:
            thread.start()
        with FakeRbkit(hwm=0) as rbkit, zmq.Context() as context, context.socket(zmq.SUB) as witness:
            witness.linger = witness.rcvhwm = 0
            witness.subscribe(b"")
            witness.connect(rbkit.pub)
            while not witness.poll(10):
                rbkit.publish(b"the witness is connected")
            rbkit.publish(b"begin")
            while witness.recv() != b"begin":  # so that the bridge gets none of them
                pass
            io_loop = thread.io_loop if threaded else IOLoop.current()
            bridge = Bridge(
                **rbkit.endpoints, threaded=thread if threaded else False, compression_level=1, rcvhwm=10_000
            )
            server = await serve(bridge)
            plain = await server.connected()
            escaped = await server.connected("?encoding=escaped")
            async with websockets_connect(
                server.ws, subprotocols=[Subprotocol("rbkit")], compression="deflate", max_size=None
            ) as compressed:
                await until(lambda: len(bridge.stats()["clients"]) == 3, "all have joined")
                for at in range(0, 3 * count, count):
                    sent = messages(count, size, start=at)

                    def burst(sent: list[bytes] = sent) -> None:
                        """Publish, and keep the I/O loop from looking until all has arrived somewhere else."""
                        for payload in sent:
                            rbkit.publish(payload)
                        while witness.recv() != sent[-1]:
                            pass

                    io_loop.add_callback(burst)
                    for expected in sent:
                        assert await receive_data(plain) == expected
                    for expected in sent:
                        assert unquote_to_bytes(await published(partial(receive, escaped))) == expected
                    for expected in sent:
                        assert await published(compressed.recv) == expected
            stats = bridge.stats()
            assert (stats["messages_missed"], stats["bytes_pending"]) == (0, 0)
            await server.close()
        if threaded:
            thread.stop()

    @pytest.mark.parametrize("step", [3600.0, -3600.0], ids=["forward", "back"])
    async def test_a_step_of_the_system_clock_delays_nothing(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, step: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, offset = time.time, 0.0

        def encode_and_step(*arguments: Any, **options: Any) -> Any:
            nonlocal offset
            offset += step
            return encode(*arguments, **options)

        encode = frames.encode_in_slices
        monkeypatch.setattr(encoder, "encode_in_slices", encode_and_step)
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded))
        connection = await server.connected()
        await until(lambda: server.bridge.stats()["handshake"], "the handshake is known")
        monkeypatch.setattr(time, "time", lambda: real() + offset)
        sent = [rbkit.publish_collection(20_000) for _ in range(400)]
        for expected in sent:
            assert await receive_data(connection) == expected

    @pytest.mark.parametrize("encoding", ["escaped", "compressed"])
    async def test_close_does_not_wait_until_a_large_message_is_encoded(
        self, serve: Serve, rbkit: FakeRbkit, threaded: bool, encoding: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size = 64 * 1024 * 1024
        done = 0
        closing = threading.Event()

        def count(payload: Buffer) -> Iterator[memoryview]:
            nonlocal done
            for piece in slices(payload):
                if threaded and done > size // 4:
                    closing.wait()  # this thread may be given a processor while the one that closes waits for one
                yield piece
                done += len(piece)

        def begin_closing(connection: upstream._Connection) -> None:
            begin(connection)
            closing.set()

        slices, begin = frames._slices, upstream._Connection.begin_closing
        monkeypatch.setattr(frames, "_slices", count)
        monkeypatch.setattr(upstream._Connection, "begin_closing", begin_closing)
        server = await serve(Bridge(**rbkit.endpoints, threaded=threaded, compression_level=9))
        async with websockets_connect(
            server.ws + ("?encoding=escaped" if encoding == "escaped" else ""),
            subprotocols=[Subprotocol("rbkit")],
            compression="deflate" if encoding == "compressed" else None,
        ):
            await until(lambda: server.bridge.stats()["handshake"], "the handshake is known")
            rbkit.publish_collection(size)
            await until(lambda: done, "it is being encoded")
            await server.bridge.close()
            assert done < size // 2


async def published(read: Callable[[], Awaitable[str | bytes]]) -> bytes:
    """Return the payload of the next published message, past replies and notices."""
    while True:
        received = await read()
        data = received.encode() if isinstance(received, str) else received
        if data.startswith(b"1"):
            return data[1:]
