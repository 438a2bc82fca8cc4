"""The clients connected to one bridge."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Final

from tornado_rbkit.bridge.session import Session
from tornado_rbkit.frames import Encoding
from tornado_rbkit.log_throttle import LogThrottle, times

_log = logging.getLogger(__name__)

_TOTALS: Final = ("messages_sent", "messages_dropped", "bytes_sent")  # attributes of `Outbox`


class Clients:
    """The sessions of one bridge, in the order in which they joined. Web loop only.

    Attributes:
        generation: number of clients that have joined so far.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._sessions: dict[Session, int] = {}  # with the generation in which each joined
        self._encodings: Counter[Encoding] = Counter()
        self._departed = Counter(dict.fromkeys(_TOTALS, 0))
        self._empty = asyncio.Event()
        self._throttle = LogThrottle()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions)

    def __contains__(self, session: Session) -> bool:
        return session in self._sessions

    @property
    def encodings(self) -> frozenset[Encoding]:
        """The encodings in use."""
        return frozenset(self._encodings)

    def add(self, session: Session) -> None:
        """Add a client."""
        self.generation += 1
        self._sessions[session] = self.generation
        self._encodings[session.encoding] += 1
        self._empty.clear()

    def remove(self, session: Session) -> None:
        """Remove a client; its figures stay in the totals."""
        del self._sessions[session]
        self._encodings -= Counter([session.encoding])
        self._count(session, self._departed)
        if not self._sessions:
            self._empty.set()

    def joined_by(self, generation: int) -> Iterator[Session]:
        """Yield the sessions that had joined by `generation`.

        A client gets only batches whose encoding began after it joined. It could otherwise get a batch that was
        encoded for a client that has left, and miss the next one, which was begun while nobody used its encoding.
        """
        return (session for session, joined in self._sessions.items() if joined <= generation)

    def on_profiler_connected(self) -> None:
        """Tell each session that the profiler is connected."""
        for session in self._sessions:
            session.on_profiler_connected()

    def log_closing(self, remote: str | None, reason: str) -> None:
        """Log that a client was closed for its behaviour, throttled to the 1st, 10th, 100th time."""
        count = self._throttle.add(reason)
        if count:
            _log.warning("closed the client at %s: %s%s", remote, reason, times(count))

    def totals(self) -> Counter[str]:
        """Return the totals of all clients, including clients that have left; sizes are in bytes."""
        totals = Counter(self._departed)
        for session in self._sessions:
            self._count(session, totals)
        return totals

    async def wait_until_empty(self, timeout: float) -> None:
        """Wait until all clients have left, but at most `timeout` seconds."""
        if self._sessions:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout)

    def _count(self, session: Session, totals: Counter[str]) -> None:
        totals.update({name: getattr(session.outbox, name) for name in _TOTALS})
