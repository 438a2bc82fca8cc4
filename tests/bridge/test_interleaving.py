"""Control frames, replies and notices between data frames: no frame is ever cut, however much the kernel accepts."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tornado.concurrent import Future
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websockets_connect
from websockets.typing import Subprotocol

from tests.conftest import until
from tests.encoded import encode_data
from tests.fake_rbkit import FakeRbkit
from tests.patient import patient
from tornado_rbkit import Bridge, rbkit_routes
from tornado_rbkit.bridge.outbox import Outbox
from tornado_rbkit.frames import Buffer, Chunk, Encoding, encode_notice, encode_reply, escape

KIB = 1024
MIB = 1024 * 1024
CONTROLS = {"ping": b"\x89\x04ping", "pong": b"\x8a\x04pong", "long ping": b"\x89\x7d" + bytes(125)}
CLOSE = b"\x88\x02\x03\xe9"
ENCODINGS = {
    "binary": Encoding(),
    "escaped": Encoding(escaped=True),
    "compressed": Encoding(deflate=True),
    "escaped, compressed": Encoding(escaped=True, deflate=True),
}


class ShortSocket:
    """A socket whose kernel buffer has `room` for so many bytes."""

    def __init__(self) -> None:
        self.room = 0
        self.wire = bytearray()
        self.sent_past_the_stream: Callable[[Buffer], object]

    def send(self, data: Buffer) -> int:
        if not self.room:
            raise BlockingIOError
        taken = memoryview(data)[: self.room]
        self.wire += taken
        self.room -= len(taken)
        return len(taken)

    def sendmsg(self, buffers: Sequence[Buffer]) -> int:
        data = b"".join(buffers)
        count = self.send(data)
        self.sent_past_the_stream(data[:count])
        return count

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def getsockopt(self, level: int, option: int) -> int:
        return 0

    def close(self) -> None:
        self.room = 0


class ShortStream(IOStream):
    """Tornado's stream on a `ShortSocket`, which no loop polls: the test says when there is room.

    Attributes:
        committed: every byte in the kernel or in the stream's buffer, in the order in which they were given.
    """

    def __init__(self) -> None:
        self.kernel = ShortSocket()
        self.kernel.sent_past_the_stream = lambda data: self.committed.extend(data)
        self.committed = bytearray()
        super().__init__(self.kernel)  # type: ignore[arg-type]

    def _add_io_state(self, state: int) -> None:
        """Poll nothing."""

    def write(self, data: Buffer) -> Future[None]:
        self.committed += data
        return super().write(data)

    def make_room(self, room: int) -> None:
        self.kernel.room = room
        if self.writing():
            self._handle_write()


class StreamWithoutSendmsg(ShortStream):
    """The same as on Windows, where the outbox calls `write_to_fd`, as the stream does."""

    def __init__(self) -> None:
        super().__init__()
        self._flushing = False

    def _handle_write(self) -> None:
        self._flushing = True
        super()._handle_write()
        self._flushing = False

    def write_to_fd(self, data: memoryview) -> int:
        count = self.kernel.send(data)
        if not self._flushing:
            self.committed += data[:count]
        return count


def split(data: bytes) -> list[tuple[int, bytes]]:
    """Return each frame with its opcode, checked as a strict client does.

    Raises:
        AssertionError: the last frame is not whole, or a frame is not one that may come there.
    """
    frames: list[tuple[int, bytes]] = []
    at = 0
    in_message = False
    while at < len(data):
        opcode, fin, length = data[at] & 0x0F, data[at] & 0x80, data[at + 1]
        assert opcode in (0, 1, 2, 8, 9, 10), f"frame {len(frames)} begins with {data[at : at + 14].hex()}"
        assert not data[at] & 0x30
        body = at + 2
        if length >= 126:
            body += 2 if length == 126 else 8
            length = int.from_bytes(data[at + 2 : body], "big")
        assert body + length <= len(data), (
            f"frame {len(frames)} is cut: {len(data) - body} of {length} bytes are there"
        )
        if opcode < 8:
            assert (opcode == 0) == in_message, "a message between the fragments of another"
            in_message = not fin
        frames.append((opcode, data[at : body + length]))
        at = body + length
    return frames


def join(frames: list[tuple[int, bytes]]) -> list[bytes]:
    """Return the data messages that are whole, each with the headers of its frames."""
    messages: list[bytes] = []
    begun = b""
    for opcode, frame in frames:
        if opcode < 8:
            begun += frame
            if frame[0] & 0x80:
                messages.append(begun)
                begun = b""
    return messages


class Run:
    """An outbox on a short stream, and everything that was sent through it."""

    def __init__(
        self, encoding: Encoding, make_stream: Callable[[], ShortStream] = ShortStream, **options: Any
    ) -> None:
        self.stream = make_stream()
        self.encoding = encoding
        self.outbox = Outbox(
            self.stream,
            stall_timeout=3600,
            on_stalled=lambda: None,
            on_caught_up=lambda count: None,
            **{"max_backlog_bytes": 64 * MIB, **options},
        )
        self.data: list[bytes] = []
        self.replies: list[bytes] = []
        self._source = random.Random(1)
        self._count = 0
        self._checked = 0

    def send_data(self, *sizes: int) -> None:
        payloads = [self._payload(size) for size in sizes]
        chunks = encode_data(payloads, self.encoding)
        self.data += _messages(chunks)
        self.outbox.send_data(chunks)

    def send_reply(self, size: int) -> None:
        self._reply(encode_reply(self._payload(size), self.encoding))

    def send_notice(self) -> None:
        self._reply(encode_notice(b"client_count:%d" % len(self.replies), self.encoding))

    def check_that_no_frame_is_cut(self) -> None:
        frames = split(bytes(self.stream.committed[self._checked :]))
        for at in range(len(frames), 0, -1):
            if frames[at - 1][0] < 8 and frames[at - 1][1][0] & 0x80:
                self._checked += sum(len(frame) for _, frame in frames[:at])  # a message ends here
                break

    async def finish(self) -> None:
        """Let the outbox write everything, and compare it."""
        while self.outbox.data_bytes or self.outbox.reply_bytes or self.stream.writing():
            self.stream.make_room(MIB)
            await asyncio.sleep(0)
        self.compare()
        assert sorted(self.replies + self.data) == sorted(join(split(bytes(self.stream.kernel.wire))))

    def compare(self) -> None:
        """Check that the bytes in the kernel are a prefix of everything sent, in order."""
        wire = bytes(self.stream.kernel.wire)
        assert bytes(self.stream.committed[: len(wire)]) == wire, "the order of two writers"
        sent = join(split(bytes(self.stream.committed)))
        replies = set(self.replies)
        assert [message for message in sent if message in replies] == self.replies[: len(replies & set(sent))]
        data = [message for message in sent if message not in replies]
        assert data == self.data[: len(data)]

    def _reply(self, chunk: Chunk) -> None:
        self.replies += _messages([chunk])
        self.outbox.send_reply(chunk)

    def _payload(self, size: int) -> bytes:
        self._count += 1
        return (
            b"%08d" % self._count + self._source.randbytes(max(0, size - 8) // 2).hex().encode()
        )  # which compresses by half


def _messages(chunks: Sequence[Chunk]) -> list[bytes]:
    return [
        message
        for chunk in chunks
        for message in join(split(b"".join(bytes(b) for unit in chunk.units for b in unit)))
    ]


@pytest.mark.parametrize("stream", [ShortStream, StreamWithoutSendmsg])
@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
async def test_a_control_frame_never_lands_inside_a_frame_wherever_the_kernel_cuts_it(
    encoding: Encoding, stream: Callable[[], ShortStream]
) -> None:
    whole = Run(encoding, stream)
    whole.send_data(40, 90, 130)
    for room in range(len(whole.stream.committed) + 1):
        run = Run(encoding, stream)
        run.stream.make_room(room)
        run.send_data(40, 90, 130)
        run.check_that_no_frame_is_cut()
        for control in CONTROLS.values():
            run.stream.write(control)
        run.send_reply(20)
        run.check_that_no_frame_is_cut()
        await run.finish()


@pytest.mark.parametrize("size", [8, KIB, 60 * KIB, 100 * KIB, 255 * KIB, 600 * KIB, 2 * MIB])
@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
async def test_a_control_frame_never_lands_inside_a_frame_of_any_size(encoding: Encoding, size: int) -> None:
    source = random.Random(size)
    for _ in range(10):
        run = Run(encoding)
        run.stream.make_room(source.randint(0, size + 20))
        run.send_data(size, size)
        run.stream.write(CONTROLS["pong"])
        run.check_that_no_frame_is_cut()
        run.send_reply(20)
        for _ in range(8):
            run.stream.make_room(source.choice([1, 1000, 100_000]))
            await asyncio.sleep(0)
            run.stream.write(CONTROLS["ping"])
            run.check_that_no_frame_is_cut()
        await run.finish()


sizes = st.sampled_from([8, 100, 5 * KIB, 60 * KIB, 70 * KIB, 255 * KIB, 600 * KIB])
steps = st.one_of(
    st.tuples(st.just("data"), st.lists(sizes, min_size=1, max_size=4)),
    st.tuples(st.just("reply"), sizes),
    st.tuples(st.just("notice"), st.none()),
    st.tuples(st.just("control"), st.sampled_from(sorted(CONTROLS))),
    st.tuples(st.just("room"), st.one_of(st.integers(0, 300), st.integers(0, 2 * MIB))),
    st.tuples(st.just("turn"), st.none()),
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    encoding=st.sampled_from(sorted(ENCODINGS)),
    windows=st.booleans(),
    steps=st.lists(steps, max_size=40),
    ends=st.booleans(),
)
def test_nothing_is_cut_or_out_of_order_in_any_sequence_of_writers(
    encoding: str, windows: bool, steps: list[tuple[str, Any]], ends: bool
) -> None:
    async def play() -> None:
        run = Run(ENCODINGS[encoding], StreamWithoutSendmsg if windows else ShortStream)
        for name, argument in steps:
            if name == "data":
                run.send_data(*argument)
            elif name == "reply":
                run.send_reply(argument)
            elif name == "notice":
                run.send_notice()
            elif name == "control":
                run.stream.write(CONTROLS[argument])
            elif name == "room":
                run.stream.make_room(argument)
            else:
                await asyncio.sleep(0)
            run.check_that_no_frame_is_cut()
        if ends:
            run.outbox.close()
            run.stream.write(CLOSE)
            run.check_that_no_frame_is_cut()
            assert run.stream.committed.endswith(CLOSE)
            end = len(run.stream.committed)
            run.send_data(100)
            run.send_reply(100)
            await asyncio.sleep(0)
            assert len(run.stream.committed) == end, "nothing follows a close frame"
            run.compare()
        else:
            await run.finish()

    asyncio.run(play())


async def test_a_stream_that_refuses_the_rest_of_a_frame_is_closed() -> None:
    run = Run(Encoding())
    run.stream.max_write_buffer_size = 1000
    run.stream.make_room(100)
    run.send_data(5 * KIB)
    assert run.stream.closed(), "or a ping would land inside the frame"
    assert (run.outbox.data_bytes, run.outbox.messages_dropped) == (0, 1)


# Real sockets


class Watcher:
    """A client that pings all the time, on an event loop of its own, and compares every published message."""

    def __init__(self, url: str, encoding: Encoding, sent: list[bytes], **options: Any) -> None:
        self.received = 0
        self._sent = sent
        self._encoding = encoding
        self._url = f"{url}?encoding={'escaped' if encoding.escaped else 'binary'}"
        self._options = {"compression": "deflate" if encoding.deflate else None, "max_size": None, **options}
        self.task = asyncio.create_task(asyncio.to_thread(asyncio.run, self._watch()))

    async def _watch(self) -> None:
        async with websockets_connect(
            self._url, subprotocols=[Subprotocol("rbkit")], ping_interval=None, **self._options
        ) as connection:
            pinging = asyncio.create_task(self._ping(connection))
            async for message in connection:
                if message[0] in (ord("1"), "1"):
                    self._compare(message)
            pinging.cancel()
            assert connection.close_code == 1001, f"{connection.close_code} {connection.close_reason}"

    async def _ping(self, connection: ClientConnection) -> None:
        while True:
            await connection.ping()
            await asyncio.sleep(0.0005)

    def _compare(self, message: str | bytes) -> None:
        expected = self._sent[self.received]
        assert message == (("1" + escape(expected).decode()) if self._encoding.escaped else b"1" + expected)
        self.received += 1


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("buffers", [4 * KIB, None], ids=["small buffers", "default buffers"])
async def test_every_byte_arrives_while_both_sides_ping(
    rbkit: FakeRbkit, threaded: bool, secure: bool, buffers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornado_rbkit.bridge.bridge._CLOSE_GRACE", 60.0)  # for the watchers' threads
    authority = trustme.CA()
    server_side, client_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    authority.configure_trust(client_side)
    bridge = patient(Bridge(**rbkit.endpoints, threaded=threaded, ping_interval=0.005, compression_level=1))
    bridge.ping_timeout = 60  # nobody is closed for a late pong here
    http = HTTPServer(Application(rbkit_routes(bridge)), ssl_options=server_side if secure else None)
    listeners = bind_sockets(0, "127.0.0.1")
    if buffers:
        for listener in listeners:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    http.add_sockets(listeners)
    address = listeners[0].getsockname()
    sent: list[bytes] = []
    watchers: list[Watcher] = []

    def up_to_date() -> bool:
        return all(watcher.received == len(sent) or watcher.task.done() for watcher in watchers)

    for encoding in ENCODINGS.values():
        near = socket.socket()
        if buffers:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        near.connect(address)
        url = f"{'wss' if secure else 'ws'}://127.0.0.1:{address[1]}/rbkit/ws"
        tls = {"ssl": client_side, "server_hostname": "127.0.0.1"} if secure else {}
        watchers.append(Watcher(url, encoding, sent, sock=near, **tls))
    await until(lambda: len(bridge.stats()["clients"]) == 4 and bridge.stats()["handshake"], "all are there")
    for size in [2000, 2000, 60_000, 2000, 100_000, 10, 255 * KIB, 2000, 10, 700_000] * 3:
        sent += [rbkit.publish_collection(size) for _ in range(1 + 60_000 // (size + 100))]
        await until(
            up_to_date, "all is there", 60
        )  # the kernel's buffers are empty, and the next burst overfills them
    http.stop()
    await bridge.close()
    await asyncio.gather(*(watcher.task for watcher in watchers))
    assert [watcher.received for watcher in watchers] == [len(sent)] * 4
    await http.close_all_connections()
