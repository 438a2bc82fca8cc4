"""The value types of an upstream, and the protocols between an upstream and the bridge. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tornado_rbkit.frames import Chunk, Encoding
from tornado_rbkit.protocol import CommandError


@dataclass(slots=True)
class Batch:
    """Encoded messages for the clients. Nothing changes after delivery to the web loop, except by `acknowledge`.

    Attributes:
        chunks: the encoded messages, for each encoding in use.
        generation: of the clients when encoding began; a client that joined later does not get the batch.
        messages: number of messages, before any client drops some.
        size: bytes of payload.
        encoded: bytes that a client gets, in the largest encoding.
        pending: bytes of payload that wait behind this batch.
        missed: messages lost before they arrived here, by the profiler's counter.
        restarted: whether the counter began again.
        foreign: messages without rbkit's counter.
        delivery_time: seconds that the receiver spent on the batch; None until it calls `acknowledge`. The subscriber
            reads it at its next turn; a callback would wake its thread once more for each batch.
    """

    chunks: dict[Encoding, list[Chunk]]
    generation: int
    messages: int = 0
    size: int = 0
    encoded: int = 0
    pending: int = 0
    missed: int = 0
    restarted: bool = False
    foreign: int = 0
    delivery_time: float | None = None

    def acknowledge(self, seconds: float) -> None:
        """Release the chunks and set `delivery_time`. For the receiver, on its own thread."""
        self.chunks = {}
        self.delivery_time = seconds


class CommandResult(NamedTuple):
    """The result of a command: the reply bytes, the error that they represent (if any), and the time in seconds."""

    reply: bytes
    error: CommandError | None
    seconds: float

    @property
    def answered(self) -> bool:
        """Whether the profiler replied, even if the reply was invalid."""
        return self.error is None or self.error.reason == "invalid-reply"


class ConnectionState(NamedTuple):
    """The endpoints that are not connected, and the number of consecutive refused connections by endpoint."""

    missing: tuple[str, ...] = ()
    refusals: Mapping[str, int] = {}


class UpstreamListener(Protocol):
    """Receives data and state changes from an upstream, on the web loop."""

    def on_batch(self, batch: Batch) -> None:
        """Deliver a batch to the clients; call `Batch.acknowledge` when that is done."""

    def on_connection(self, connection: ConnectionState) -> None:
        """Record a change of the connection."""

    def on_failure(self, reason: str) -> None:
        """Disconnect: the upstream has failed. `reason` is meant for the clients."""


class Upstream(Protocol):
    """Connects a bridge to a profiler, over any transport. Web loop only.

    Nothing is reported to the listener once `disconnect` has returned. Each request is answered exactly once.
    """

    def connect(self, pub: str, req: str) -> None:
        """Begin to connect to a profiler; the upstream must not be connected. Later failures go to the listener.

        Raises:
            RbkitError: no connection can be created; the message is meant for the clients.
        """

    def set_encodings(self, encodings: frozenset[Encoding], clients: int, generation: int) -> None:
        """Set the encodings in use, the number of clients, and the number that have joined so far (`generation`).

        Does nothing without a connection.
        """

    def request(self, command: str, timeout: float, on_result: Callable[[CommandResult], None]) -> None:
        """Send a command, which fails after `timeout` seconds. There must be a connection and no command in flight."""

    def disconnect(self) -> None:
        """Begin to close the connection, if there is one; `connect` may be called immediately."""

    async def close(self) -> None:
        """Close the connection, and wait until it and all earlier connections are closed.

        Raises:
            RuntimeError: the thread in the option `threaded` had already ended and closed the connection.
        """
