"""Tasks that run until they are cancelled, and whose failure is reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class Tasks:
    """The background tasks of one owner. On one event loop only.

    A task that fails is logged and reported at once: nobody awaits it, so its exception would otherwise be noticed
    when it is collected, if at all.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        """Return whether a task runs."""
        return bool(self._running)

    def start(
        self, coroutine: Coroutine[Any, Any, None], what: str, on_failure: Callable[[str], None] = lambda reason: None
    ) -> asyncio.Task[None]:
        """Run a coroutine.

        Args:
            coroutine: the coroutine.
            what: what it does, for the log.
            on_failure: called with the reason if it raises an exception.
        """

        def on_done(task: asyncio.Task[None]) -> None:
            self._running.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                _log.error("%s failed", what, exc_info=error)
                on_failure(f"{what} failed: {error!r}"[:200])

        task = asyncio.get_running_loop().create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(on_done)
        return task

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until all tasks have ended, at most `timeout` seconds."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout)

    async def cancel(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        for task in self._running:
            task.cancel()
        await self.wait()
