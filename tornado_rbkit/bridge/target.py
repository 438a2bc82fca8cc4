"""Facts about the profiled process, learned from the replies to all commands."""

from __future__ import annotations

import enum
from collections import deque
from typing import Any, Final

from tornado_rbkit.protocol import DecodeError, Handshake, decode_handshake
from tornado_rbkit.upstream.requester import Outcome

_STOPS: Final = {"start_memory_profile": "stop_memory_profile", "start_cpu_profiling": "stop_cpu_profiling"}
_REMEMBERED: Final = 32


class Trouble(enum.Enum):
    """A fault of a process that is connected."""

    SILENT = "silent"  # it does not answer commands
    FOREIGN = "foreign"  # it answers, but not as rbkit does


class Target:
    """The last handshake, the last commands, and the profiling that was started from here. Web loop only.

    Attributes:
        handshake: the last handshake, None before the first.
        answers: whether the last command was answered, None before the first.
    """

    def __init__(self) -> None:
        self.handshake: Handshake | None = None
        self.answers: bool | None = None
        self._unanswered = 0
        self._foreign = False
        self._recording: set[str] = set()  # the commands that stop what is being recorded
        self._started_here: set[str] = set()
        self._last: deque[tuple[str, Outcome]] = deque(maxlen=_REMEMBERED)

    def note(self, command: str, outcome: Outcome) -> bool:
        """Record the outcome of a command; return True if it shows that the process is another one than before."""
        self._last.append((command, outcome))
        reason = outcome.error.reason if outcome.error else None
        self.answers = outcome.answered
        if outcome.answered:
            self._unanswered = 0
        elif reason == "timeout":
            self._unanswered += 1
        if command in _STOPS:  # even without a reply it may have been carried out
            stop = _STOPS[command]
            if stop not in self._recording:
                self._started_here.add(stop)
            self._recording.add(stop)
        elif command in _STOPS.values() and reason is None:
            self._recording.discard(command)
            self._started_here.discard(command)
        elif command == "handshake" and outcome.answered:
            return self._learn(outcome.reply)
        return False

    def restarted(self) -> None:
        """Forget the profiling that was started: the process is another one."""
        self._recording.clear()
        self._started_here.clear()

    @property
    def trouble(self) -> Trouble | None:
        """The fault of the process, None if there is none."""
        if self._unanswered:
            return Trouble.SILENT
        return Trouble.FOREIGN if self._foreign else None

    def describe_trouble(self) -> str | None:
        """Return the fault of the process, as text for an operator; None if there is none."""
        if self._unanswered:
            return (
                f"does not answer commands (no reply to {self._unanswered} so far): the process is stopped or very "
                "busy, or somebody's empty request has killed its command channel, which only a restart mends"
            )
        if self._foreign:
            return "is not rbkit, or speaks another protocol: its reply to handshake is none"
        return None

    def to_stop(self) -> list[str]:
        """Return the commands that stop the profiling started from here."""
        return sorted(self._started_here)

    def stats(self) -> dict[str, Any]:
        """Return the facts, ready for JSON; latencies are in seconds."""
        return {
            "handshake": self.handshake._asdict() if self.handshake else None,
            "answers": self.answers,
            "last_commands": [
                {
                    "command": command,
                    "outcome": outcome.error.reason if outcome.error else "ok",
                    "seconds": round(outcome.seconds, 6),
                }
                for command, outcome in self._last
            ],
        }

    def _learn(self, reply: bytes) -> bool:
        try:
            message = decode_handshake(reply)
        except DecodeError:
            self._foreign = True
            return False
        self._foreign = False
        other = self.handshake is not None and self.handshake.pid != message.pid
        if other:
            self.restarted()
        self.handshake = message
        self._recording = {
            stop
            for stop, enabled in (
                ("stop_memory_profile", message.object_trace_enabled),
                ("stop_cpu_profiling", message.cpu_profiling_enabled),
            )
            if enabled
        }
        self._started_here &= self._recording
        return other
