"""A client that checks every byte it receives, and records whether each message arrived or was reported as lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from types import TracebackType

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.conftest import until
from tests.faults.steady import SNAPSHOT, message
from tornado_rbkit.protocol import message_counter, parse_notice


class Witness:
    """One client of a steady profiler.

    Attributes:
        messages: number of published messages that arrived, unchanged and in order.
        told: number of messages that were reported as missing.
        missing: number of messages that are missing according to the profiler's message_counter.
        foreign: number of messages that are not the profiler's, if such messages are allowed.
        notices: how often each notice about the profiler arrived.
    """

    def __init__(self, url: str, *, foreign: bool = False) -> None:
        self.messages = self.told = self.missing = self.foreign = 0
        self._foreign_expected = foreign
        self.notices: Counter[str] = Counter()
        self.replies: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed: tuple[int, str] | None = None
        self._url = url
        self._next: int | None = None
        self._beginnings = 0
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Witness:
        self.connection: ClientConnection = await connect(
            self._url,
            subprotocols=[Subprotocol("rbkit")],
            max_size=None,
            compression=None,
            open_timeout=60,
            ping_interval=None,  # a server that is late is not gone
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.connection.close()
        assert self._reading is not None
        await self._reading  # raises the errors it found

    async def ask(self, command: str, timeout: float = 60.0) -> bytes:
        """Send a command and return its reply."""
        await self.connection.send(command)
        return await asyncio.wait_for(self.replies.get(), timeout)

    async def goes_on(self, count: int = 20, timeout: float = 60.0) -> None:
        """Return when `count` more messages have arrived."""
        enough = self.messages + count
        await until(lambda: self._open() and self.messages >= enough, f"{count} messages more", timeout)

    async def until_told(self, notice: str, count: int = 1, timeout: float = 60.0) -> None:
        """Return when a notice about the profiler has arrived `count` times."""
        await until(lambda: self._open() and self.notices[notice] >= count, f"{count} times {notice}", timeout)

    async def until_accounted(self, timeout: float = 60.0) -> None:
        """Return when each missing message is reported: a client that was too slow learns it once it has caught up."""
        await until(lambda: self._open() and self.missing <= self.told, "each loss is told", timeout)

    def _open(self) -> bool:
        assert self._reading is not None
        if self._reading.done():
            self._reading.result()
            raise AssertionError(f"closed with {self.closed}")
        return True

    async def _read(self) -> None:
        try:
            async for received in self.connection:
                assert isinstance(received, bytes)
                self._take(received[:1], received[1:])
        except ConnectionClosed:
            pass
        self.closed = (self.connection.close_code or 0, self.connection.close_reason or "")

    def _take(self, channel: bytes, payload: bytes) -> None:
        if channel == b"1":
            self._take_data(payload)
            return
        assert channel == b"0", channel
        notice = parse_notice(payload)
        if notice is None:
            self.replies.put_nowait(payload)
        elif notice.name == "dropped":
            self.told += int(notice.value)
        elif notice.name == "server":
            self.notices[notice.value] += 1
            if notice.value != "restarted":
                self._next = None  # the messages published meanwhile are unknown

    def _take_data(self, payload: bytes) -> None:
        counter = message_counter(payload)
        if counter is None and self._foreign_expected:
            self.foreign += 1
            return
        assert counter is not None, payload[:40]
        assert payload == message(counter, len(payload) > SNAPSHOT), f"message {counter} is not as it was published"
        if self._next is not None:
            if counter < self._next:  # the first message of another process: a notice overtakes queued data
                self._beginnings += 1
                assert self._beginnings <= self.notices["disconnected"], f"message {counter} after {self._next - 1}"
            else:
                self.missing += counter - self._next
        self._next = counter + 1
        self.messages += 1


@contextlib.asynccontextmanager
async def witnesses(url: str, count: int) -> AsyncIterator[list[Witness]]:
    """Run `count` clients."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Witness(url)) for _ in range(count)]
