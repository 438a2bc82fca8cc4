"""Publishes where the suspended asyncio tasks wait, in groups of tasks that wait at the same place.

The server's thread looks at the tasks, whatever samples the stacks of the threads. If there are many tasks, each look
reads a part of them, beginning at a random one. A look stands for the time since the one before, but for no more than
twice the time that was intended: in a longer time the machine was paused, or the server's thread was busy.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Final

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.await_chains import MAX_CHAIN, SuspendedTask
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.event_loops import FIND_SECONDS
from tornado_rbkit.profiler.frame_cache import FrameCache
from tornado_rbkit.profiler.frames import SamplingError
from tornado_rbkit.profiler.packing import TaskGroup, pack_frame, pack_suspended_tasks
from tornado_rbkit.profiler.suspended import MAX_TASKS, Look, TaskReader
from tornado_rbkit.profiler.threads import internal_logger

LOOK_SECONDS: Final = 0.1
"""The time between two looks."""

SHARE: Final = 0.02
"""The largest share of one processor that the looks may take; they become less frequent if they would take more."""

MAX_GROUPS: Final = 50
"""The most groups of a look that are published; the groups with the fewest tasks are left out."""

MAX_NAMES: Final = 3
"""The most names of tasks that are published of a group."""

_UNNAMED: Final = re.compile(r"Task-\d+")
_log = internal_logger(__name__)
_random: Final = random.Random()  # noqa: S311 - not the host's generator, which it may have seeded


class TaskWaits:
    """Looks at the tasks while that is wanted. For use by the server's thread.

    Args:
        batcher: receives the looks.
    """

    def __init__(self, batcher: EventBatcher) -> None:
        self._batcher = batcher
        self._failure: str | None = None
        self._begin()

    def _begin(self) -> None:
        self._reader = TaskReader()
        self._frames = FrameCache()
        self._total = 0
        self._looked_at: float | None = None
        self._due = self._loops_due = 0.0

    @property
    def trouble(self) -> str | None:
        """Why some or all tasks are not read; None if all are read. Any thread."""
        return self._failure or self._reader.trouble

    def work(self, *, is_wanted: bool) -> float | None:
        """Look at the tasks if that is due; return the seconds until the next look, None if there is no task.

        Never raises; after an error it does nothing until it was not wanted.
        """
        if not is_wanted:
            if self._looked_at is not None or self._failure is not None:
                self._failure = None
                self._begin()
            return None
        now = real_time.monotonic()
        if now >= self._due and self._failure is None:
            self._look_safely(now)
        return max(0.0, self._due - now) if self._total and self._failure is None else None

    def _look_safely(self, now: float) -> None:
        began = real_time.thread_time()
        try:
            self._look(now)
        except SamplingError as error:
            self._failure = f"the tasks cannot be read: {error}"
            _log.warning("%s; they are left out of the CPU profile", self._failure)
        except Exception:  # noqa: BLE001 - must not affect the host, nor the instruments
            _log.exception("the asyncio tasks cannot be read; they are left out of the CPU profile")
            self._failure = "the tasks cannot be read; the log has the reason"
        self._due = now + max(LOOK_SECONDS, (real_time.thread_time() - began) / SHARE)

    def _look(self, now: float) -> None:
        if now >= self._loops_due:
            self._loops_due = now + FIND_SECONDS
            self._reader.loops.find()
        step = max(1, -(-self._total // MAX_TASKS))
        look = self._reader.look(_random.randrange(step), step)
        began = now - LOOK_SECONDS if self._looked_at is None else self._looked_at
        seconds = min(now - began, 2 * max(LOOK_SECONDS, self._due - began))
        self._looked_at = now
        if look is None or not (look.total or self._total):
            return
        self._total = look.total
        groups = sorted(self._groups(look), key=lambda group: -group.tasks)[:MAX_GROUPS]
        self._batcher.add(pack_suspended_tasks(real_time.time(), look.total, look.read, 1000 * seconds, groups))

    def _groups(self, look: Look) -> Iterator[TaskGroup]:
        tasks = {task.number: task for task in look.suspended}
        own = {task.number: self._stack(task) for task in look.suspended}
        groups: dict[tuple[str | None, tuple[bytes, ...]], list[str]] = {}
        for task in look.suspended:
            stack = tuple(frame for number in _with_awaiters(task, tasks) for frame in own[number])
            groups.setdefault((task.awaits, stack), []).append(task.name)
        for (awaits, stack), names in groups.items():
            given = sorted({name for name in names if not _UNNAMED.fullmatch(name)})
            yield TaskGroup(len(names), given[:MAX_NAMES], awaits, stack)

    def _stack(self, task: SuspendedTask) -> list[bytes]:
        """Return the packed frames of a task, innermost first."""
        stack: list[bytes] = []
        for place in reversed(task.chain):
            if isinstance(place, str):
                stack.append(pack_frame(place, place, "", 0, singleton=False))
            else:
                stack += self._frames.stack([place])
        return stack


def _with_awaiters(task: SuspendedTask, tasks: dict[int, SuspendedTask]) -> list[int]:
    """Return the numbers of a task, of the task that waits for it, and so on; of several tasks, the first one."""
    numbers = [task.number]
    while len(numbers) < MAX_CHAIN:
        awaiter = next((number for number in task.awaited_by if number in tasks and number not in numbers), None)
        if awaiter is None:
            break
        numbers.append(awaiter)
        task = tasks[awaiter]
    return numbers
