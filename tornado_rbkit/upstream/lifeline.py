"""Opens, replaces and closes the connection to a profiler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from tornado.ioloop import IOLoop

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.frames import Form
from tornado_rbkit.log_throttle import LogThrottle, times
from tornado_rbkit.upstream.connection import Connection
from tornado_rbkit.upstream.options import UpstreamOptions
from tornado_rbkit.upstream.sockets import Reach, State, UpstreamListener, failure_reason

_log = logging.getLogger(__name__)

_NOWHERE: Final = Reach(frozenset(), {})


class Lifeline:
    """At most one open connection, and earlier ones that are still closing. Web loop only, except the constructor.

    Attributes:
        pub: the endpoint where the profiler publishes, for the current or the next connection.
        req: the endpoint where it takes commands.
        reach: which endpoints are connected; set by the connection's listener.
    """

    def __init__(
        self, options: UpstreamOptions, listener: UpstreamListener, on_cancelled: Callable[[], Awaitable[None]]
    ) -> None:
        """Describe a connection.

        Args:
            options: see `Connection`; `pub` and `req` are the initial endpoints.
            listener: see `Connection`.
            on_cancelled: called if the event loop ends before a connection is closed.
        """
        self.pub = options.pub
        self.req = options.req
        self.reach = _NOWHERE
        self._options = options
        self._listener = listener
        self._on_cancelled = on_cancelled
        self._repeats = LogThrottle()
        self._loss_logged = False
        self._error: RuntimeError | None = None
        self._connection: Connection | None = None
        self._guards: dict[Connection, asyncio.Task[None]] = {}  # one for each connection that is not closed

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, even if the profiler is not reachable."""
        return self._connection is not None

    @property
    def missing(self) -> list[str]:
        """The endpoints that are not connected."""
        return [endpoint for endpoint in (self.pub, self.req) if endpoint not in self.reach.up]

    @property
    def trouble(self) -> str | None:
        """What is wrong with the connection, as text for an operator; None if it works or there is no connection."""
        if not self.is_open:
            return None
        if self.reach.refusals:
            each = (f"{endpoint} ({count} times so far)" for endpoint, count in self.reach.refusals.items())
            return f"not an rbkit server, or one that sends more than max_message_bytes: {', '.join(each)}"
        if self.missing:
            return f"no rbkit server at {' and '.join(self.missing)}; it is tried again each second"
        return None

    def connect(self) -> None:
        """Begin to connect; there must be no connection. Later failures are reported to the listener.

        Raises:
            RbkitError: no connection can be created; the message is meant for the clients.
        """
        try:
            connection = Connection(IOLoop.current(), self._listener, self.pub, self.req, self._options)
        except Exception as error:  # whatever it is, the clients must get the reason
            raise RbkitError(failure_reason(error)) from error
        self._connection = connection
        self._guards[connection] = asyncio.create_task(self._guard(connection))

    def let_go(self) -> None:
        """Begin to close the connection, if there is one; another may be opened immediately."""
        connection, self._connection, self.reach = self._connection, None, _NOWHERE
        if connection is not None:
            connection.begin_closing()

    async def close(self) -> None:
        """Close the connection, and wait until it and all earlier connections are closed.

        Raises:
            RuntimeError: the thread in `options.threaded` had already ended and closed the sockets.
        """
        self.let_go()
        await asyncio.gather(*(connection.wait_closed() for connection in self._guards))
        if self._error is not None:
            raise self._error

    def set_encodings(self, forms: frozenset[Form], clients: int, generation: int) -> None:
        """See `Connection.set_encodings`. Does nothing without a connection."""
        if self._connection is not None:
            self._connection.set_encodings(forms, clients, generation)

    def request(self, command: str, timeout: float) -> None:
        """See `Connection.request`; there must be a connection."""
        assert self._connection is not None
        self._connection.request(command, timeout)

    def log(self, before: State, state: State) -> None:
        """Log that the profiler connected or disconnected; repeated losses are throttled to the 1st, 10th, 100th."""
        if state is not State.CONNECTED:
            count = self._repeats.add("went away")
            self._loss_logged = count > 0
            if count:
                _log.warning("the rbkit server at %s went away%s", self.req, times(count))
            return
        if self._loss_logged:
            _log.warning("the rbkit server at %s is back", self.req)
        elif before is not State.DISCONNECTED:
            _log.info("connected to the rbkit server at %s", self.req)
        self._loss_logged = False

    def log_failure(self, reason: str) -> None:
        """Log that no connection can be opened, throttled to the 1st, 10th, 100th time."""
        count = self._repeats.add("cannot connect")
        if count:
            _log.warning("cannot connect to the rbkit server at %s: %s%s", self.req, reason, times(count))

    async def _guard(self, connection: Connection) -> None:
        """Close the connection if the event loop ends: asyncio.run() then cancels all tasks and waits for them."""
        try:
            await connection.wait_closed()
        except asyncio.CancelledError:
            await self._on_cancelled()
            raise
        except RuntimeError as error:
            self._error = error  # raised by `close`, which may be called much later
        finally:
            del self._guards[connection]
