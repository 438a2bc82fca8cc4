"""Asking again a profiler that has ceased to answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tornado.ioloop import IOLoop

from tornado_rbkit.upstream.requester import Outcome

_INTERVALS: Final = (1.0, 60.0)  # seconds, doubling: each request to a dead command channel stays in its queue


class Probe:
    """After a time-out asks again, so that the status says when the profiler goes on, though no client asks.

    Web loop only.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        """Begin with nothing to ask; `ask` sends a command whose outcome comes to `on_outcome`."""
        self._ask = ask
        self._interval = _INTERVALS[0]
        self._timer: object | None = None

    def on_outcome(self, outcome: Outcome) -> None:
        """A command has come to its end, whoever asked."""
        self.stop()
        if outcome.answered:
            self._interval = _INTERVALS[0]
        elif outcome.error is not None and outcome.error.reason == "timeout":
            self._timer = IOLoop.current().call_later(self._interval, self._fire)
            self._interval = min(2 * self._interval, _INTERVALS[1])

    def stop(self) -> None:
        """Ask no more, until the next time-out."""
        if self._timer is not None:
            IOLoop.current().remove_timeout(self._timer)
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._ask()
