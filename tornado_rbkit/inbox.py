"""The bounded queue between the WebSocket of `RbkitClient` and the loop that reads its events. No I/O."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple, TypeAlias

from tornado_rbkit.protocol import DROPPED, Notice, message_counter

_ENTRY_COST: Final = 256
"""Bytes of overhead counted for each queued message and notice, so that the number of small ones is bounded."""


class Gap(NamedTuple):
    """Messages that did not arrive; `missing` is their number, None if unknown, for example after a reconnection."""

    missing: int | None


Item: TypeAlias = bytes | Gap | Notice
"""A published message, a gap of unknown length, or a notice of the bridge."""


class Inbox:
    """Received items in order. Past its bound the oldest messages are dropped. For use on one thread."""

    def __init__(self, max_bytes: int) -> None:
        """Create an empty queue; `max_bytes` may wait behind the next message, whatever the size of that message."""
        self._max_bytes = max_bytes
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._counter: int | None = None  # the message_counter expected next

    def __bool__(self) -> bool:
        """Return whether an item waits."""
        return bool(self._items)

    def put(self, item: Item) -> None:
        """Add an item."""
        self._items.append(item)
        self._bytes += _cost(item)
        if self._bytes > self._max_bytes:
            self._drop_oldest()

    def take(self) -> list[Item]:
        """Remove the next item and return it, after a `Gap` if messages are missing before it by their counters."""
        item = self._items.popleft()
        self._bytes -= _cost(item)
        if isinstance(item, bytes):
            missing = self._missing(item)
            return [Gap(missing), item] if missing else [item]
        if item == Gap(None) or item == Notice("server", "restarted"):
            self._counter = None
        return [item]

    def _missing(self, message: bytes) -> int:
        """Return how many messages were lost before this one."""
        counter = message_counter(message)
        expected, self._counter = self._counter, None if counter is None else counter + 1
        if counter is None or expected is None:
            return 0
        return max(0, counter - expected)  # a lower counter is another process's

    def _drop_oldest(self) -> None:
        """Drop the oldest messages until the rest is within the bound.

        The counter of the next message shows how many are missing. The newest notice of each kind before it is kept.
        """
        kept: dict[object, Gap | Notice] = {}
        while self._items:
            item = self._items.popleft()
            self._bytes -= _cost(item)
            if not isinstance(item, bytes):
                kind = item.kind if isinstance(item, Notice) else Gap
                older = kept.pop(kind, None)
                if kind == DROPPED and isinstance(older, Notice) and isinstance(item, Notice):
                    item = _sum(older, item)
                kept[kind] = item
            elif self._bytes <= self._max_bytes:
                self._put_back(item)
                break
            elif self._counter is None:
                self._counter = message_counter(item)
        for item in reversed(kept.values()):
            self._put_back(item)

    def _put_back(self, item: Item) -> None:
        self._items.appendleft(item)
        self._bytes += _cost(item)


def _cost(item: Item) -> int:
    return _ENTRY_COST + (len(item) if isinstance(item, bytes) else 0)


def _sum(older: Notice, newer: Notice) -> Notice:
    """Return the sum of two ``dropped`` notices, or the newer notice if one has no number."""
    if older.value.isdecimal() and newer.value.isdecimal():
        return Notice(DROPPED, str(int(older.value) + int(newer.value)))
    return newer
