"""The connection to a profiler over its life: made, made anew elsewhere, let go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from tornado.ioloop import IOLoop

from tornado_rbkit.frames import Form
from tornado_rbkit.log_throttle import Repeats, times
from tornado_rbkit.protocol import RbkitError
from tornado_rbkit.upstream.connection import Connection
from tornado_rbkit.upstream.options import UpstreamOptions
from tornado_rbkit.upstream.sockets import Reach, State, UpstreamListener, failure_reason

_log = logging.getLogger(__name__)

_NOWHERE: Final = Reach(frozenset(), {})


class Lifeline:
    """One connection at the most, beside those that are still being closed. Web loop only, but for the constructor.

    Attributes:
        pub: where the profiler publishes, now or the next time.
        req: where it takes commands.
        reach: what of it is connected; whoever listens to the connection keeps it.
    """

    def __init__(
        self, options: UpstreamOptions, listener: UpstreamListener, on_cancelled: Callable[[], Awaitable[None]]
    ) -> None:
        """Describe a connection.

        Args:
            options: see `Connection`; `pub` and `req` are the first ones.
            listener: see `Connection`.
            on_cancelled: called when the event loop ends, and with it a connection that was not let go.
        """
        self.pub = options.pub
        self.req = options.req
        self.reach = _NOWHERE
        self._options = options
        self._listener = listener
        self._on_cancelled = on_cancelled
        self._repeats = Repeats()
        self._loss_logged = False
        self._error: RuntimeError | None = None
        self._connection: Connection | None = None
        self._guards: dict[Connection, asyncio.Task[None]] = {}  # of each that is not closed yet

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, be its profiler there or not."""
        return self._connection is not None

    @property
    def missing(self) -> list[str]:
        """The endpoints that are not connected."""
        return [endpoint for endpoint in (self.pub, self.req) if endpoint not in self.reach.up]

    @property
    def trouble(self) -> str | None:
        """What is wrong with the connection, in words for an operator; None for nothing, or when there is none."""
        if not self.is_open:
            return None
        if self.reach.refusals:
            each = (f"{endpoint} ({count} times so far)" for endpoint, count in self.reach.refusals.items())
            return f"not an rbkit server, or one that sends more than max_message_bytes: {', '.join(each)}"
        if self.missing:
            return f"no rbkit server at {' and '.join(self.missing)}; it is tried again each second"
        return None

    def connect(self) -> None:
        """Begin to connect; there must be no connection. What prevents it later is told to the listener.

        Raises:
            RbkitError: what prevents it already, in words for the clients; there is no connection.
        """
        try:
            connection = Connection(IOLoop.current(), self._listener, self.pub, self.req, self._options)
        except Exception as error:  # whatever it is, the clients wait to be told
            raise RbkitError(failure_reason(error)) from error
        self._connection = connection
        self._guards[connection] = asyncio.create_task(self._guard(connection))

    def let_go(self) -> None:
        """Begin to close the connection, if there is one; another may be made at once."""
        connection, self._connection, self.reach = self._connection, None, _NOWHERE
        if connection is not None:
            connection.begin_closing()

    async def close(self) -> None:
        """Let go, and return when everything is closed, what was let go of before included.

        Raises:
            RuntimeError: the thread that was given has ended before, and the sockets with it.
        """
        self.let_go()
        await asyncio.gather(*(connection.wait_closed() for connection in self._guards))
        if self._error is not None:
            raise self._error

    def set_audience(self, forms: frozenset[Form], clients: int, generation: int) -> None:
        """See `Connection.set_audience`; nothing happens without a connection."""
        if self._connection is not None:
            self._connection.set_audience(forms, clients, generation)

    def request(self, command: str, timeout: float) -> None:
        """See `Connection.request`; there must be a connection."""
        assert self._connection is not None
        self._connection.request(command, timeout)

    def log(self, before: State, state: State) -> None:
        """Say that the profiler came, or went; the first of many times in short succession, the tenth, and so on."""
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
        """Say that there can be no connection; the first of many times in short succession, and so on."""
        count = self._repeats.add("cannot connect")
        if count:
            _log.warning("cannot connect to the rbkit server at %s: %s%s", self.req, reason, times(count))

    async def _guard(self, connection: Connection) -> None:
        """Close with the event loop: asyncio.run() cancels all tasks when it ends, and waits for them."""
        try:
            await connection.wait_closed()
        except asyncio.CancelledError:
            await self._on_cancelled()
            raise
        except RuntimeError as error:
            self._error = error  # for `close`, which may be called long after
        finally:
            del self._guards[connection]
