"""What happens again and again, logged a few times and counted."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

_QUIET: Final = 60.0  # seconds without, after which it is news again
_MOST: Final = 1000  # things in mind; a stranger may make up as many as it likes


class Repeats:
    """Says which of many equal events to log: the first, the tenth, the hundredth, and so on."""

    def __init__(self) -> None:
        self._counts: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()

    def add(self, key: Hashable) -> int:
        """Count an event; return how many there were in short succession if this one is to be logged, else 0."""
        now = time.monotonic()
        count, last = self._counts.pop(key, (0, now))
        count = 1 if now - last > _QUIET else count + 1
        self._counts[key] = count, now
        if len(self._counts) > _MOST:
            self._counts.popitem(last=False)
        return count if str(count).strip("0") == "1" else 0


def times(count: int) -> str:
    """Return what a log line says at its end of an event that is not the first."""
    return "" if count == 1 else f" ({count} times in short succession)"


class RepeatsFilter(logging.Filter):
    """Lets the first, the tenth, the hundredth of many equal warnings through; for a handler.

    Two are equal that have the same logger, the same text and the same first argument, which is what it is about: of
    Tornado's lines for refused requests the status, of those for malformed ones the client's address.
    """

    def __init__(self) -> None:
        super().__init__()
        self._repeats = Repeats()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log it; say in it how many there were."""
        if record.levelno < logging.WARNING:
            return True
        about = repr(record.args[:1]) if isinstance(record.args, tuple) else ""
        count = self._repeats.add((record.name, record.levelno, str(record.msg), about))
        if count > 1:
            record.msg, record.args = record.getMessage() + times(count), None
        return count > 0
