"""Those who watch a profiler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Final

from tornado_rbkit.bridge.session import Session
from tornado_rbkit.frames import Form
from tornado_rbkit.log_throttle import Repeats, times

_log = logging.getLogger(__name__)

_TOTALS: Final = ("messages_sent", "messages_dropped", "bytes_sent")  # of each one's outbox


class Audience:
    """The sessions of one bridge, in the order in which they came. Web loop only.

    Attributes:
        generation: how many clients have joined so far.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._sessions: dict[Session, int] = {}  # with the generation that each began
        self._forms: Counter[Form] = Counter()
        self._departed = Counter(dict.fromkeys(_TOTALS, 0))
        self._empty = asyncio.Event()
        self._repeats = Repeats()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions)

    def __contains__(self, session: Session) -> bool:
        return session in self._sessions

    @property
    def forms(self) -> frozenset[Form]:
        """The forms in which they take their messages."""
        return frozenset(self._forms)

    def add(self, session: Session) -> None:
        """A viewer has come."""
        self.generation += 1
        self._sessions[session] = self.generation
        self._forms[session.form] += 1
        self._empty.clear()

    def remove(self, session: Session) -> None:
        """A viewer has left; what it was sent stays in the totals."""
        del self._sessions[session]
        self._forms -= Counter([session.form])
        self._count(session, self._departed)
        if not self._sessions:
            self._empty.set()

    def joined_by(self, generation: int) -> Iterator[Session]:
        """Yield the sessions that had joined by that generation.

        A client gets only batches that were encoded when its encoding was already asked for. It might otherwise get
        one that was encoded for a client that has left, and miss the next one, encoded before it was asked for again.
        """
        return (session for session, joined in self._sessions.items() if joined <= generation)

    def log_closing(self, remote: str | None, reason: str) -> None:
        """Say that a viewer was closed for what it did; of many in short succession the first, the tenth, ...."""
        count = self._repeats.add(reason)
        if count:
            _log.warning("the viewer at %s was closed: %s%s", remote, reason, times(count))

    def totals(self) -> Counter[str]:
        """Return what was sent to all, those that have left included; sizes are in bytes."""
        totals = Counter(self._departed)
        for session in self._sessions:
            self._count(session, totals)
        return totals

    async def wait_until_empty(self, timeout: float) -> None:
        """Return when all have left, or after so many seconds."""
        if self._sessions:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout)

    def _count(self, session: Session, totals: Counter[str]) -> None:
        totals.update({name: getattr(session.outbox, name) for name in _TOTALS})
