"""The value types of an upstream, and the protocols between an upstream and the bridge. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from tornado_rbkit.frames import Chunk, Encoding
from tornado_rbkit.protocol import CommandError

if TYPE_CHECKING:
    import zmq
    from tornado.ioloop import IOLoop

    from tornado_rbkit.upstream.options import UpstreamOptions


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
    """The state of a connection to a profiler.

    Attributes:
        missing: the endpoints that are not connected.
        refusals: the number of consecutive refused connections by endpoint.
        elsewhere: number of the profiler's clients at other bridges of a fleet.
    """

    missing: tuple[str, ...] = ()
    refusals: Mapping[str, int] = {}
    elsewhere: int = 0


class UpstreamListener(Protocol):
    """Receives data and state changes from an upstream, on the web loop."""

    def on_batch(self, batch: Batch) -> None:
        """Deliver a batch to the clients; call `Batch.acknowledge` when that is done."""

    def on_connection(self, connection: ConnectionState) -> None:
        """Record a change of the connection."""

    def on_failure(self, reason: str) -> None:
        """Disconnect: the upstream has failed. `reason` is meant for the clients."""


class TransportListener(NamedTuple):
    """Functions that a transport calls on its loop; they must not block, raise or call back.

    Attributes:
        on_batch: passes a batch to the clients.
        on_result: called once for each request.
        on_connection: called with the new state after each change of the connection.
        on_failure: called with the reason if `Transport.open` fails; the owner must then call `stop` and `close`.
    """

    on_batch: Callable[[Batch], None]
    on_result: Callable[[CommandResult], None]
    on_connection: Callable[[ConnectionState], None]
    on_failure: Callable[[str], None]


class Transport(Protocol):
    """One connection to a profiler, from `open` to `close`. On its loop's thread only."""

    def open(self) -> None:
        """Begin to connect; failures are reported to the listener."""

    def set_encodings(self, encodings: frozenset[Encoding], clients: int, generation: int) -> None:
        """Set the encodings in use, the number of clients, and the number that have joined so far (`generation`)."""

    def request(self, command: str, timeout: float) -> None:
        """Send a command, which fails after `timeout` seconds. There must be no command in flight."""

    def stop(self) -> None:
        """Stop receiving, and fail the command in flight."""

    def close(self) -> None:
        """Release everything. Called a turn of the loop after `stop`."""


@runtime_checkable
class Endpoint(Protocol):
    """A profiler's address, which creates connections to it. Immutable, so any thread may use it."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The addresses that must all be connected: where the profiler publishes, ..., where it takes commands."""

    @property
    def label(self) -> str:
        """The name of the profiler in logs and errors."""

    def transport(
        self,
        io_loop: IOLoop,
        listener: TransportListener,
        options: UpstreamOptions,
        *,
        on_thread: bool,
        context: Callable[[], zmq.Context[zmq.Socket[bytes]]],
    ) -> Transport:
        """Return a new connection, which is not open yet. May be called on any thread.

        Args:
            io_loop: the loop of the connection.
            listener: receives data and state changes, on that loop.
            options: the bridge's options.
            on_thread: whether `io_loop` is not the clients' loop.
            context: returns the ZMQ context for sockets, which outlives them; to be called on the loop's thread.
        """
