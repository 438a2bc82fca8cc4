"""Sends commands to a profiler that has stopped answering, to notice when it answers again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tornado.ioloop import IOLoop

from tornado_rbkit.upstream.requester import Outcome

_INTERVALS: Final = (1.0, 60.0)  # seconds, doubling: each request to a dead command channel stays in its queue


class Probe:
    """Sends a command after each time-out, so that the status is updated without commands from clients.

    Web loop only.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        """Create an idle probe; `ask` must send a command whose outcome is passed to `on_outcome`."""
        self._ask = ask
        self._interval = _INTERVALS[0]
        self._timer: object | None = None

    def on_outcome(self, outcome: Outcome) -> None:
        """Start the timer if a command timed out; stop it after any other outcome."""
        self.stop()
        if outcome.answered:
            self._interval = _INTERVALS[0]
        elif outcome.error is not None and outcome.error.reason == "timeout":
            self._timer = IOLoop.current().call_later(self._interval, self._fire)
            self._interval = min(2 * self._interval, _INTERVALS[1])

    def stop(self) -> None:
        """Stop the timer, until the next time-out."""
        if self._timer is not None:
            IOLoop.current().remove_timeout(self._timer)
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._ask()
