"""The commands that wait for a profiler: one in flight, the rest in order, bounded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tornado_rbkit.protocol import CommandError
from tornado_rbkit.upstream.requester import Outcome

MAX_WAITING: Final = 256
"""Commands of all clients together."""

COMMAND_TIMEOUTS: Final[Mapping[str, float]] = {"objectspace_snapshot": 300.0}
"""Seconds; a snapshot is answered after the heap was walked, up to a second per million objects and more when busy."""

DEFAULT_COMMAND_TIMEOUT: Final = 5.0
"""Seconds. rbkit answers within 135 ms under hard load."""

_WORTH_SENDING: Final = 0.1  # of the time-out has to be left


@dataclass(slots=True)
class Command:
    """One command, whose it is, and who is told what became of it."""

    name: str
    owner: object
    answer: Callable[[Outcome], None]
    timeout: float
    since: float


class CommandQueue:
    """Holds commands back until the profiler can take them. Web loop only.

    Each submitted command is answered exactly once and never sent twice. It waits only for those before it: its
    time-out runs from the moment it is sent. But when that passes for one, the profiler has stopped, and the clocks
    of those behind it count from when they were asked, so that nobody sits through the time-outs of others.
    """

    def __init__(
        self,
        send: Callable[[str, float], None],
        timeouts: Mapping[str, float],
        on_settled: Callable[[str, Outcome], None],
    ) -> None:
        """Begin with nothing to do.

        Args:
            send: takes a command upstream, with its time-out in seconds; its end is told by `on_outcome`.
            timeouts: seconds by command, over `COMMAND_TIMEOUTS`.
            on_settled: told of each command that was sent and what became of it, before its sender is.
        """
        self._send = send
        self._on_settled = on_settled
        self._timeouts = {**COMMAND_TIMEOUTS, **timeouts}
        self._waiting: deque[Command] = deque()
        self._in_flight: Command | None = None
        self._open = False
        self._away: str | None = None

    def __len__(self) -> int:
        return len(self._waiting) + (self._in_flight is not None)

    def submit(self, name: str, answer: Callable[[Outcome], None], owner: object, *, first: bool = False) -> None:
        """Queue a command, or refuse it at once.

        Args:
            name: the command.
            answer: told the outcome, perhaps before this returns.
            owner: for `forget`.
            first: before all others, whatever the bound, and kept while the profiler is away.
        """
        command = Command(name, owner, answer, self._timeouts.get(name, DEFAULT_COMMAND_TIMEOUT), time.monotonic())
        if self._away is not None and not first:
            _refuse(command, "unavailable", self._away)
        elif len(self._waiting) >= MAX_WAITING and not first:
            _refuse(command, "busy", f"{MAX_WAITING} commands are waiting, the most for all clients together")
        else:
            self._waiting.insert(0 if first else len(self._waiting), command)
            self._next()

    def forget(self, owner: object) -> None:
        """Let go of what waits for an owner that has left; it is not sent, and not answered."""
        self._waiting = deque(command for command in self._waiting if command.owner is not owner)

    def hold(self) -> None:
        """The profiler may come: keep what waits, and what comes."""
        self._open, self._away = False, None

    def open(self) -> None:
        """The profiler is there: send what waits, and what comes."""
        self._open, self._away = True, None
        self._next()

    def close(self, text: str) -> None:
        """The profiler is away: refuse what waits, and what comes. What is in flight is the requester's to end."""
        self._open, self._away = False, text
        waiting, self._waiting = self._waiting, deque()
        for command in waiting:
            _refuse(command, "unavailable", text)

    def on_outcome(self, outcome: Outcome) -> None:
        """The command in flight has come to its end."""
        command, self._in_flight = self._in_flight, None
        assert command is not None
        self._on_settled(command.name, outcome)
        command.answer(outcome)
        if outcome.error is not None and outcome.error.reason == "timeout":
            self._shorten_the_wait()
        self._next()

    def _next(self) -> None:
        if self._open and self._in_flight is None and self._waiting:
            self._in_flight = self._waiting.popleft()
            self._send(self._in_flight.name, self._in_flight.timeout)

    def _shorten_the_wait(self) -> None:
        now = time.monotonic()
        waiting, self._waiting = self._waiting, deque()
        for command in waiting:
            remaining = command.since + command.timeout - now
            if remaining > command.timeout * _WORTH_SENDING:
                command.timeout = remaining
                self._waiting.append(command)
            else:
                _refuse(command, "timeout", "the rbkit server does not reply; it was not sent (`command_timeouts`)")


def _refuse(command: Command, reason: str, text: str) -> None:
    error = CommandError(reason, f"{command.name}: {text}")
    command.answer(Outcome(error.to_reply(), error, time.monotonic() - command.since))
