"""Log throttles, which report a repeated condition a few times and count the rest."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

_QUIET: Final = 60.0  # seconds without an event, after which its count starts over
_MAX_KEYS: Final = 1000  # number of keys kept; clients may cause any number of them


class LogThrottle:
    """Decides which of many equal events to log: the 1st, 10th, 100th, and so on."""

    def __init__(self) -> None:
        self._counts: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()

    def add(self, key: Hashable) -> int:
        """Count an event; return the count if the event should be logged, else 0."""
        now = time.monotonic()
        count, last = self._counts.pop(key, (0, now))
        count = 1 if now - last > _QUIET else count + 1
        self._counts[key] = count, now
        if len(self._counts) > _MAX_KEYS:
            self._counts.popitem(last=False)
        return count if str(count).strip("0") == "1" else 0

    def warn(self, log: logging.Logger, key: Hashable, text: str, *arguments: object) -> None:
        """Count an event, and log a warning with the count if it should be logged."""
        count = self.add(key)
        if count:
            log.warning(text + "%s", *arguments, times(count))


def times(count: int) -> str:
    """Return the end of a log line for a repeated event; empty for the first event."""
    return "" if count == 1 else f" ({count} times in short succession)"


class LogThrottleFilter(logging.Filter):
    """Passes only the 1st, 10th, 100th of many equal warnings; for a logging handler.

    Warnings are equal if their logger, level, message template and first argument are equal. The first argument is the
    status in warnings about refused requests, and the client's address in warnings about malformed requests.
    """

    def __init__(self) -> None:
        super().__init__()
        self._throttle = LogThrottle()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record; append the count to a repeated warning."""
        if record.levelno < logging.WARNING:
            return True
        about = repr(record.args[:1]) if isinstance(record.args, tuple) else ""
        count = self._throttle.add((record.name, record.levelno, str(record.msg), about))
        if count > 1:
            record.msg, record.args = record.getMessage() + times(count), None
        return count > 0
