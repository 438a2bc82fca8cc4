"""The clients connected to one bridge."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, TypeVar

from tornado_rbkit.deadline import done_within
from tornado_rbkit.frames import Encoding
from tornado_rbkit.log_throttle import LogThrottle
from tornado_rbkit.protocol import Notice
from tornado_rbkit.upstream.types import Batch

_log = logging.getLogger(__name__)

_TOTALS: Final = ("messages_sent", "messages_dropped", "bytes_sent")  # attributes of `SentTotals`


class SentTotals(Protocol):
    """A client's figures, from its send queue; sizes are in bytes."""

    @property
    def messages_sent(self) -> int: ...
    @property
    def messages_dropped(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...


class Client(Protocol):
    """The interface of a client to its bridge; `tornado_rbkit.bridge.session.Session` implements it. Web loop only."""

    @property
    def encoding(self) -> Encoding:
        """The encoding of the batches that it is sent."""

    @property
    def outbox(self) -> SentTotals:
        """Its send queue."""

    def deliver(self, batch: Batch) -> None:
        """Send a batch; do nothing once the client has left."""

    def notify(self, notice: Notice) -> None:
        """Send a notice; do nothing once the client has left."""

    def await_profiler(self, timeout: float, give_up: Callable[[], None]) -> None:
        """Call `give_up` after `timeout` seconds, unless `on_profiler_connected` is called before."""

    def on_profiler_connected(self) -> None:
        """Stop waiting for the profiler."""

    def close(self, code: int, reason: str) -> None:
        """Disconnect the client, with a code and a reason of RFC 6455; `Bridge.leave` must follow."""

    def abort(self) -> None:
        """Disconnect without waiting for the client."""

    def leave(self) -> None:
        """Discard everything that waits. May be called twice."""

    def stats(self) -> dict[str, Any]:
        """Return figures about the client, ready for JSON."""


ClientT = TypeVar("ClientT", bound=Client)


class Clients:
    """The clients of one bridge, in the order in which they joined. Web loop only.

    Attributes:
        generation: number of clients that have joined so far.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._clients: dict[Client, int] = {}  # with the generation in which each joined
        self._encodings: Counter[Encoding] = Counter()
        self._departed = Counter(dict.fromkeys(_TOTALS, 0))
        self._empty = asyncio.Event()
        self._throttle = LogThrottle()

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[Client]:
        return iter(self._clients)

    def __contains__(self, client: Client) -> bool:
        return client in self._clients

    @property
    def encodings(self) -> frozenset[Encoding]:
        """The encodings in use."""
        return frozenset(self._encodings)

    def add(self, client: Client) -> None:
        """Add a client."""
        self.generation += 1
        self._clients[client] = self.generation
        self._encodings[client.encoding] += 1
        self._empty.clear()

    def remove(self, client: Client) -> None:
        """Remove a client; its figures stay in the totals."""
        del self._clients[client]
        self._encodings -= Counter([client.encoding])
        self._count(client, self._departed)
        if not self._clients:
            self._empty.set()

    def joined_by(self, generation: int) -> Iterator[Client]:
        """Yield the clients that had joined by `generation`.

        A client gets only batches whose encoding began after it joined. It could otherwise get a batch that was
        encoded for a client that has left, and miss the next one, which was begun while nobody used its encoding.
        """
        return (client for client, joined in self._clients.items() if joined <= generation)

    def on_profiler_connected(self) -> None:
        """Notify each client that the profiler is connected."""
        for client in self._clients:
            client.on_profiler_connected()

    def log_closing(self, remote: str | None, reason: str) -> None:
        """Log that a client was closed for its behaviour, throttled to the 1st, 10th, 100th time."""
        self._throttle.warn(_log, reason, "closed the client at %s: %s", remote, reason)

    def totals(self) -> Counter[str]:
        """Return the totals of all clients, including clients that have left; sizes are in bytes."""
        totals = Counter(self._departed)
        for client in self._clients:
            self._count(client, totals)
        return totals

    async def wait_until_empty(self, timeout: float) -> None:
        """Wait until all clients have left, but at most `timeout` seconds."""
        if self._clients:
            emptying = asyncio.create_task(self._empty.wait())
            await done_within(timeout, emptying)
            emptying.cancel()

    def _count(self, client: Client, totals: Counter[str]) -> None:
        totals.update({name: getattr(client.outbox, name) for name in _TOTALS})
