"""A deadline for a client or the profiler that does not expire because this process was paused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

_GRACE: Final = 0.1
"""Seconds the loop must run after a pause of the process before everything that arrived meanwhile has been handled."""

_MAX_STARTS: Final = 10
"""A loop that is late this many times in a row was not paused: its turns are long."""


async def done_within(seconds: float, *futures: asyncio.Future[Any]) -> bool:
    """Wait until all futures are done, but not longer than a `Deadline`; return whether they are."""
    waiting = asyncio.ensure_future(asyncio.wait(futures))
    is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    deadline = Deadline(seconds, partial(is_over.set_result, None))
    try:
        await asyncio.wait([waiting, is_over], return_when=asyncio.FIRST_COMPLETED)
        return all(future.done() for future in futures)
    finally:
        deadline.cancel()
        waiting.cancel()


class Deadline:
    """Calls back after a number of seconds; starts over if the event loop was late (up to `_MAX_STARTS` starts).

    A timer that fires late means that the process was stopped (SIGSTOP, a debugger) or that its loop was blocked.
    Timers run before the loop has read the data that arrived meanwhile, so the other end may not be at fault.
    For the same reason the last part of the time is a separate timer, during which the loop runs.

    The clock is the event loop's, which is monotonic; `tornado.ioloop.IOLoop.time` is the system clock, which steps.
    Event loop's thread only.
    """

    def __init__(self, seconds: float, callback: Callable[[], object]) -> None:
        """Start the timer.

        Args:
            seconds: from now on.
            callback: called once, unless `cancel` was called before.
        """
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._grace = min(_GRACE, max(seconds / 4, _GRACE / 10))
        self._callback = callback
        self._starts = 0
        self._start()

    def cancel(self) -> None:
        """Do not call back. May be called twice, and after the callback."""
        self._timer.cancel()

    def _start(self) -> None:
        self._starts += 1
        self._wait(max(0.0, self._seconds - self._grace), lambda: self._wait(self._grace, self._callback))

    def _wait(self, seconds: float, then: Callable[[], object]) -> None:
        due = self._loop.time() + seconds
        self._timer = self._loop.call_at(due, lambda: self._on_time(due, then))

    def _on_time(self, due: float, then: Callable[[], object]) -> None:
        if self._loop.time() - due > self._grace and self._starts < _MAX_STARTS:
            self._start()
        else:
            then()
