"""The bounded queue of commands for a profiler, of which one is in flight."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tornado_rbkit.protocol import CommandError
from tornado_rbkit.upstream.types import CommandResult

MAX_WAITING: Final = 256
"""Waiting commands of all clients together."""

COMMAND_TIMEOUTS: Final[Mapping[str, float]] = {"objectspace_snapshot": 300.0}
"""Seconds. A snapshot is answered after the heap walk: up to a second per million objects, longer when busy."""

DEFAULT_COMMAND_TIMEOUT: Final = 5.0
"""Seconds. rbkit answers within 135 ms under hard load."""

_WORTH_SENDING: Final = 0.1  # share of the time-out that must be left

_MAY_RUN: Final = "it may still be carried out (`command_timeouts`)"


@dataclass(slots=True)
class Command:
    """A command, its owner, and the callback for its result.

    `timeout` is the configured time-out in seconds, and `limit` the time-out from the moment it is sent, which is less
    if the command has waited behind one that timed out. `since` is when it was submitted, in monotonic seconds; after
    `expires` it is not sent any more.
    """

    name: str
    owner: object
    answer: Callable[[CommandResult], None]
    timeout: float
    limit: float
    since: float
    expires: float


class CommandQueue:
    """Holds commands back until the profiler can take them. Web loop only.

    Each submitted command is answered exactly once and never sent twice. Its time-out starts when it is sent. Once a
    command times out, the profiler is assumed stuck, and queued commands expire by the time they were submitted, so
    time-outs do not add up.
    """

    def __init__(
        self,
        request: Callable[[str, float, Callable[[CommandResult], None]], None],
        timeouts: Mapping[str, float],
        record: Callable[[str, CommandResult], None],
        unknown: Callable[[str], str | None] = lambda name: None,
    ) -> None:
        """Create an empty queue.

        Args:
            request: `Upstream.request`.
            timeouts: seconds by command, overriding `COMMAND_TIMEOUTS`.
            record: called with each command that was sent and its result, before the command's own callback.
            unknown: returns why the profiler does not know a command that is about to be sent, None if it may.
        """
        self._request = request
        self._record = record
        self._unknown = unknown
        self._timeouts = {**COMMAND_TIMEOUTS, **timeouts}
        self._waiting: deque[Command] = deque()
        self._in_flight: Command | None = None
        self._paused = True
        self._unavailable: str | None = None  # the reason why new commands fail

    def __len__(self) -> int:
        return len(self._waiting) + (self._in_flight is not None)

    def submit(
        self,
        name: str,
        answer: Callable[[CommandResult], None],
        owner: object,
        *,
        first: bool = False,
        expires: float = math.inf,
    ) -> None:
        """Queue a command, or refuse it at once.

        Args:
            name: the command.
            answer: called with the result, possibly before this method returns.
            owner: for `forget`.
            expires: when it must no longer be sent, in monotonic seconds.
            first: put it before all others, regardless of the bound, and keep it even after `fail_all`.
        """
        timeout = self._timeouts.get(name, DEFAULT_COMMAND_TIMEOUT)
        command = Command(name, owner, answer, timeout, timeout, time.monotonic(), expires)
        if self._unavailable is not None and not first:
            _refuse(command, "unavailable", self._unavailable)
        elif len(self._waiting) >= MAX_WAITING and not first:
            _refuse(
                command, "busy", f"{MAX_WAITING} commands are waiting; allowed: {MAX_WAITING} of all clients together"
            )
        else:
            self._waiting.insert(0 if first else len(self._waiting), command)
            self._send_next()

    def forget(self, owner: object) -> None:
        """Remove the waiting commands of an owner that has left; they are neither sent nor answered."""
        self._waiting = deque(command for command in self._waiting if command.owner is not owner)

    def pause(self) -> None:
        """Keep waiting and new commands until `resume` is called."""
        self._paused, self._unavailable = True, None

    def resume(self) -> None:
        """Send waiting and new commands."""
        self._paused, self._unavailable = False, None
        self._send_next()

    def fail_all(self, text: str) -> None:
        """Fail waiting and new commands with ``unavailable``. The upstream answers the command in flight."""
        self._paused, self._unavailable = True, text
        waiting, self._waiting = self._waiting, deque()
        for command in waiting:
            _refuse(command, "unavailable", text)

    def _on_result(self, result: CommandResult) -> None:
        """Answer the command in flight, and send the next one."""
        command, self._in_flight = self._in_flight, None
        assert command is not None
        self._record(command.name, result)
        has_timed_out = result.error is not None and result.error.reason == "timeout"
        if has_timed_out and command.limit < command.timeout:
            _refuse(command, "timeout", f"no reply within {command.timeout:g} s; {_MAY_RUN}")
        else:
            command.answer(result)
        if has_timed_out:
            self._expire_waiting()
        self._send_next()

    def _send_next(self) -> None:
        while not self._paused and self._in_flight is None and self._waiting:
            command = self._waiting.popleft()
            if time.monotonic() > command.expires:
                _refuse(command, "timeout", "not sent before its deadline, because other commands were waiting")
                continue
            reason = self._unknown(command.name)
            if reason is not None:
                _refuse(command, "unknown-command", reason)
                continue
            self._in_flight = command
            self._request(command.name, command.limit, self._on_result)

    def _expire_waiting(self) -> None:
        now = time.monotonic()
        waiting, self._waiting = self._waiting, deque()
        for command in waiting:
            remaining = command.since + command.timeout - now
            if remaining > command.timeout * _WORTH_SENDING:
                command.limit = min(remaining, command.timeout)
                self._waiting.append(command)
            else:
                text = f"not sent within {command.timeout:g} s, because the rbkit server does not reply"
                _refuse(command, "timeout", f"{text} (`command_timeouts`)")


def _refuse(command: Command, reason: str, text: str) -> None:
    error = CommandError(reason, f"{command.name}: {text}")
    command.answer(CommandResult(error.to_reply(), error, time.monotonic() - command.since))
