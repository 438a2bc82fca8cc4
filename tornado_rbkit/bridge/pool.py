"""Bridges that share an I/O thread, and that come and go while it runs."""

from __future__ import annotations

from collections.abc import Iterable

from tornado_rbkit.bridge.bridge import Bridge
from tornado_rbkit.errors import DiscoveryError
from tornado_rbkit.tasks import Tasks
from tornado_rbkit.upstream.iothread import IOLoopThread


class BridgePool:
    """The thread of some bridges, and the bridges that are being closed. Web loop only.

    Attributes:
        thread: the I/O thread, for `Bridge(threaded=...)`; whoever started the pool stops it.
    """

    def __init__(self) -> None:
        self.thread = IOLoopThread()
        self._closing = Tasks()

    def start(self) -> None:
        """Start the thread.

        Raises:
            DiscoveryError: there are too few descriptors or threads.
        """
        try:
            self.thread.start()
        except (OSError, RuntimeError) as error:
            raise DiscoveryError(f"the I/O thread of the profilers' connections did not start: {error}") from error

    def let_go(self, bridge: Bridge) -> None:
        """Close a bridge in the background; a failure is logged."""
        self._closing.start(bridge.close(), f"closing the connection to {bridge.pub}")

    async def close(self, bridges: Iterable[Bridge]) -> None:
        """Close bridges, and wait until these and the bridges given to `let_go` are closed."""
        for bridge in bridges:
            self.let_go(bridge)
        await self._closing.wait()
