"""A progress line on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

INTERVAL: Final = 1.0
"""Seconds between two updates; a task that takes less time shows nothing."""


class Progress:
    """Shows a text on standard error once a second, if that is a terminal, and clears it at the end.

    A closed terminal does not end the task.
    """

    def __init__(self, text: Callable[[], str]) -> None:
        """Show the return value of `text`, which is called at each update."""
        self._text = text
        self._started = self._shown_at = time.monotonic()
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._width:
            self._print("\r" + " " * self._width + "\r")

    def step(self) -> None:
        """Show the text if the last update was at least `INTERVAL` seconds ago."""
        now = time.monotonic()
        if now - self._shown_at >= INTERVAL and sys.stderr is not None and sys.stderr.isatty():
            self._shown_at = now
            line = f"{self._text()}, {now - self._started:.0f} s"
            self._print("\r" + line.ljust(self._width))
            self._width = max(self._width, len(line))

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(text, end="", file=sys.stderr, flush=True)

    async def until(self, *tasks: asyncio.Task[Any], timeout: float | None = None) -> None:
        """Wait until one of the tasks is done, for at most `timeout` seconds, and show the text meanwhile."""
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        while not any(task.done() for task in tasks) and (left := end - time.monotonic()) > 0:
            await asyncio.wait(tasks, timeout=min(INTERVAL, left), return_when=asyncio.FIRST_COMPLETED)
            self.step()
