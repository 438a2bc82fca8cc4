"""Deliveries to all clients of a bridge, paced so that the web loop's other work gets every second turn."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from tornado_rbkit.bridge.clients import Client, Clients
from tornado_rbkit.protocol import CLIENT_COUNT, Notice
from tornado_rbkit.upstream.encoder import MAX_DELIVERED

CLIENT_COUNT_INTERVAL: Final = 0.1
"""Seconds between two ``client_count`` notices."""

_CLIENT_COST: Final = 16 * 1024  # bytes that take as long to copy as one client's system call and Python code


@dataclass(slots=True)
class _Delivery:
    """One delivery to many clients.

    Attributes:
        clients: the clients that are still to be served.
        deliver: delivers to one client.
        cost: cost of one client, as a fraction of a turn.
        done: called at the end with the seconds of work.
        seconds: seconds of work so far.
    """

    clients: deque[Client]
    deliver: Callable[[Client], None]
    cost: float
    done: Callable[[float], None]
    seconds: float = 0.0


class FanOut:
    """Delivers to clients in turns of about a millisecond, and leaves the loop to other work for as long after each.

    Deliveries, both notices and data, are finished in the order in which they were begun, so that no client gets the
    data of a restarted process before the notice. Web loop only.
    """

    def __init__(self) -> None:
        self._deliveries: dict[object, _Delivery] = {}
        self._is_scheduled = False

    def begin(
        self,
        clients: Iterable[Client],
        deliver: Callable[[Client], None],
        *,
        key: object = None,
        size: int = 0,
        done: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """Deliver something to clients. Starts immediately if no older delivery is in progress.

        Args:
            clients: the clients.
            deliver: called with each client; must do nothing for a client that has left meanwhile.
            key: replaces an older delivery with the same key, for the clients that it has not served yet.
            size: bytes that each client gets.
            done: called at the end with the seconds of work, unless the delivery was replaced.
        """
        key = object() if key is None else key
        self._deliveries.pop(key, None)
        self._deliveries[key] = _Delivery(deque(clients), deliver, (size + _CLIENT_COST) / MAX_DELIVERED, done)
        if not self._is_scheduled:
            self._turn()

    def notify(self, clients: Iterable[Client], notice: Notice) -> None:
        """Send clients a notice. It replaces an older notice of its kind where that has not been delivered yet."""
        self.begin(clients, lambda client: client.notify(notice), key=notice.kind)

    def _turn(self) -> None:
        self._is_scheduled = True  # also while `deliver` runs, which may begin another delivery
        started = time.perf_counter()
        left = 1.0
        try:
            while self._deliveries and left > 0:
                left = self._advance(left)
        finally:
            if self._deliveries:
                asyncio.get_running_loop().call_later(time.perf_counter() - started, self._turn)
            else:
                self._is_scheduled = False

    def _advance(self, left: float) -> float:
        """Continue the oldest delivery; return the remaining fraction of the turn."""
        key, delivery = next(iter(self._deliveries.items()))
        started = time.perf_counter()
        try:
            while delivery.clients and left > 0:
                left -= delivery.cost
                delivery.deliver(delivery.clients.popleft())
        finally:
            delivery.seconds += time.perf_counter() - started
            if not delivery.clients and self._deliveries.get(key) is delivery:
                del self._deliveries[key]
                delivery.done(delivery.seconds)
        return left


class ClientCount:
    """Reports the number of clients to the earlier clients whenever one joins, here or elsewhere. Web loop only.

    The first report is immediate. Later reports are at least `CLIENT_COUNT_INTERVAL` apart, with the newest number, so
    that 1,000 clients connecting at once do not cause half a million notices.
    """

    def __init__(self, clients: Clients, fan_out: FanOut) -> None:
        self._clients = clients
        self._fan_out = fan_out
        self._reported = 0  # the generation last reported
        self._elsewhere = 0
        self._has_grown = False  # `_elsewhere`, since the last report
        self._rests = False

    def set_elsewhere(self, clients: int) -> None:
        """Set the number of clients at other bridges, which counts too; report it if it has grown."""
        self._has_grown |= clients > self._elsewhere
        self._elsewhere = clients
        self.update()

    def update(self) -> None:
        """Report a new client, now or at the end of the interval."""
        generation = self._clients.generation
        if self._rests or (self._reported == generation and not self._has_grown):
            return
        earlier = list(self._clients.joined_by(generation if self._has_grown else generation - 1))
        if not earlier:
            return
        self._rests = True
        self._reported, self._has_grown = generation, False
        notice = Notice(CLIENT_COUNT, str(len(self._clients) + self._elsewhere))
        self._fan_out.begin(earlier, lambda client: client.notify(notice), done=self._rest)

    def _rest(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(CLIENT_COUNT_INTERVAL, self._end_rest)

    def _end_rest(self) -> None:
        self._rests = False
        self.update()
