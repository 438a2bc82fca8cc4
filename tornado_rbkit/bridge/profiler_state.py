"""The state of one profiler, from its connection, its replies and its messages. No I/O."""

from __future__ import annotations

import enum
import logging
from collections import Counter, deque
from typing import Any, Final

from tornado_rbkit.log_throttle import LogThrottle, times
from tornado_rbkit.protocol import RESTARTED, TRACING_COMMANDS, DecodeError, Handshake, Notice, decode_handshake
from tornado_rbkit.upstream.types import Batch, CommandResult, ConnectionState, Endpoint

_log = logging.getLogger(__name__)

_STOPS: Final = {
    "start_memory_profile": "stop_memory_profile",
    "start_cpu_profiling": "stop_cpu_profiling",
    "start_allocation_tracing": "stop_allocation_tracing",
}
_RECORDED: Final = {
    "stop_memory_profile": "memory",
    "stop_cpu_profiling": "cpu",
    "stop_allocation_tracing": "allocations",
}
_REMEMBERED: Final = 32
_PROBE_DELAYS: Final = (1.0, 60.0)  # seconds, doubling: each request to a dead command channel stays in its queue

_NO_REPLY: Final = (
    "does not answer commands (no reply to {} so far): the process is stopped or very busy, or an empty request has "
    "disabled its command socket until the process is restarted"
)
_NOT_RBKIT: Final = "is not rbkit, or uses another protocol: its reply to handshake is not a handshake"


class State(enum.Enum):
    """The state of a bridge's connection to its profiler."""

    IDLE = "idle"  # there are no clients, so there are no sockets
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"  # it was connected before


class Fault(enum.Enum):
    """A fault of a profiler that is connected."""

    SILENT = "silent"  # it does not answer commands
    FOREIGN = "foreign"  # it answers, but not as rbkit does


class ProfilerState:
    """Records and logs everything that a bridge learns about its profiler. Web loop only.

    Methods that record an event return the notices to send to the clients, in order.

    Attributes:
        endpoint: the address of the profiler.
        state: the state of the connection.
        handshake: the last handshake, None before the first.
        answers: whether the last command was answered, None before the first.
        probe_delay: seconds after which to send a command, so that a profiler that stopped answering is noticed when
            it answers again; None if there is no need, or no connection.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        """Begin in the state `IDLE`."""
        self.endpoint = endpoint
        self.state = State.IDLE
        self.handshake: Handshake | None = None
        self.answers: bool | None = None
        self.probe_delay: float | None = None
        self._connection = ConnectionState()
        self._is_another = False  # the process is not the previous one, by `retarget` or by its counter
        self._restart_notified = False
        self._unanswered = 0
        self._foreign = False
        self._recording: set[str] = set()  # the commands that stop the active profiling
        self._started_here: set[str] = set()
        self._last_results: deque[tuple[str, CommandResult]] = deque(maxlen=_REMEMBERED)
        self._next_probe_delay = _PROBE_DELAYS[0]
        self._throttle = LogThrottle()
        self._loss_logged = self._fault_logged = False
        self._pending = 0
        self._totals = Counter(messages_in=0, bytes_in=0, messages_missed=0, messages_foreign=0, disconnects=0)

    # The connection

    def retarget(self, endpoint: Endpoint) -> None:
        """Record that a connection to another process, at another endpoint, is being opened instead of this one."""
        self.endpoint = endpoint
        self._is_another = True
        self.probe_delay = None
        self._pending = 0
        self._connection = ConnectionState(endpoint.parts)

    def on_connecting(self) -> None:
        """Record that a connection is being opened."""
        self.state = State.CONNECTING
        self._connection = ConnectionState(self.endpoint.parts)

    def on_connection(self, connection: ConnectionState) -> list[Notice]:
        """Record and log a change of the connection."""
        before, self._connection = self.state, connection
        if connection.missing:
            return self._on_disconnected() if before is State.CONNECTED else []
        self.state = State.CONNECTED
        return self._on_connected(before) if before is not State.CONNECTED else []

    def on_idle(self) -> None:
        """Record that the connection is being closed."""
        self.state = State.IDLE
        self.probe_delay = None
        self._pending = 0

    def on_failure(self, reason: str) -> None:
        """Log that no connection can be opened, throttled to the 1st, 10th, 100th time."""
        text = "cannot connect to the rbkit server at %s: %s"
        self._throttle.warn(_log, "cannot connect", text, self.endpoint.label, reason)

    @property
    def first_missing(self) -> str:
        """The address to name in an error: the label, unless only another part of the endpoint is not connected."""
        return self._connection.missing[-1] if self._connection.missing else self.endpoint.label

    def _on_connected(self, before: State) -> list[Notice]:
        if self._loss_logged:
            _log.warning("reconnected to the rbkit server at %s", self.endpoint.label)
        elif before is not State.DISCONNECTED:
            _log.info("connected to the rbkit server at %s", self.endpoint.label)
        self._loss_logged = self._restart_notified = False
        notices = [Notice("server", "connected")] if before is State.DISCONNECTED else []
        return notices + (self._on_restarted() if self._is_another else [])

    def _on_disconnected(self) -> list[Notice]:
        self.state = State.DISCONNECTED
        self.probe_delay = None
        self._totals["disconnects"] += 1
        count = self._throttle.add("lost")
        self._loss_logged = count > 0
        if count:
            _log.warning("lost the connection to the rbkit server at %s%s", self.endpoint.label, times(count))
        return [Notice("server", "disconnected")]

    # Messages

    def on_batch(self, batch: Batch) -> list[Notice]:
        """Count a batch; notice a restart by the message counter."""
        self._pending = batch.pending
        self._totals["messages_in"] += batch.messages
        self._totals["bytes_in"] += batch.size
        self._totals["messages_missed"] += batch.missed
        if batch.foreign and not self._totals["messages_foreign"]:
            text = "%s publishes messages that are not rbkit's; they are forwarded, and counted as messages_foreign"
            _log.warning(text, self.endpoint.parts[0])
        self._totals["messages_foreign"] += batch.foreign
        self._is_another |= batch.restarted
        # Before both sockets are connected, `on_connection` reports it.
        return self._on_restarted() if batch.restarted and self.state is State.CONNECTED else []

    def _on_restarted(self) -> list[Notice]:
        """Report, once per connection, that the process was replaced: its pid or its message counter changed."""
        self._is_another = False
        if self._restart_notified:
            return []
        self._restart_notified = True
        _log.info("the process at %s has been replaced by another one", self.endpoint.label)
        self._forget_profiling()
        return [RESTARTED]

    # Commands

    def on_result(self, command: str, result: CommandResult) -> list[Notice]:
        """Record the result of a command that was sent."""
        self._last_results.append((command, result))
        reason = result.error.reason if result.error else None
        fault = self.fault
        self.answers = result.answered
        self.probe_delay = None
        if result.answered:
            self._unanswered = 0
            self._next_probe_delay = _PROBE_DELAYS[0]
        elif reason == "timeout":
            self._unanswered += 1
            if self.state is State.CONNECTED:  # otherwise the connection was lost or closed meanwhile
                self.probe_delay = self._next_probe_delay
                self._next_probe_delay = min(2 * self.probe_delay, _PROBE_DELAYS[1])
        notices: list[Notice] = []
        if command in _STOPS:  # even without a reply it may have been carried out
            stop = _STOPS[command]
            if stop not in self._recording:
                self._started_here.add(stop)
            self._recording.add(stop)
        elif command in _STOPS.values() and reason is None:
            self._recording.discard(command)
            self._started_here.discard(command)
        elif command == "handshake" and result.answered:
            notices = self._on_handshake(result.reply)
        if self.fault is not fault:
            self._log_fault()
        return notices

    def unknown_command(self, command: str) -> str | None:
        """Return why the profiler does not know a command, None if it may know it.

        Call it when the command is sent: a new connection begins with a handshake.
        """
        if command not in TRACING_COMMANDS:
            return None
        if self.handshake is not None and self.handshake.allocation_tracing_enabled is not None:
            return None
        return "this profiler does not know it; allowed: one whose handshake has allocation_tracing_enabled (Python)"

    def to_stop(self) -> list[str]:
        """Return the commands that stop the profiling started through this bridge."""
        return sorted(self._started_here)

    def _on_handshake(self, reply: bytes) -> list[Notice]:
        try:
            message = decode_handshake(reply)
        except DecodeError:
            self._foreign = True
            return []
        self._foreign = False
        notices: list[Notice] = []
        if self.handshake is not None and self.handshake.pid != message.pid:
            self._forget_profiling()
            notices = self._on_restarted()
        self.handshake = message
        enabled = {
            "stop_memory_profile": message.object_trace_enabled,
            "stop_cpu_profiling": message.cpu_profiling_enabled,
            "stop_allocation_tracing": message.allocation_tracing_enabled,
        }
        self._recording = {stop for stop in enabled if enabled[stop]}
        self._started_here &= self._recording
        return notices

    def _forget_profiling(self) -> None:
        """Forget the profiling that was started: the process is another one."""
        self._recording.clear()
        self._started_here.clear()

    # Faults

    @property
    def fault(self) -> Fault | None:
        """The fault of the process, None if there is none."""
        if self._unanswered:
            return Fault.SILENT
        return Fault.FOREIGN if self._foreign else None

    @property
    def trouble(self) -> str | None:
        """What is wrong with the connection or the profiler, as text for an operator; None if nothing is."""
        if self.state is State.IDLE:
            return None
        if self._connection.refusals:
            each = (
                f"{endpoint} ({count} refused connections)" for endpoint, count in self._connection.refusals.items()
            )
            return f"not an rbkit server, or it sends messages longer than max_message_bytes: {', '.join(each)}"
        if self._connection.missing:
            return f"no rbkit server at {' and '.join(self._connection.missing)}; reconnecting every second"
        return f"the rbkit server at {self.endpoint.label} {self._describe_fault()}" if self.fault else None

    def _describe_fault(self) -> str:
        return _NO_REPLY.format(self._unanswered) if self._unanswered else _NOT_RBKIT

    def _log_fault(self) -> None:
        """Log that a fault has begun or ended. Call it only when the fault changes."""
        if self.fault is None:
            if self._fault_logged:
                _log.warning("the rbkit server at %s answers again", self.endpoint.label)
            self._fault_logged = False
            return
        # Silence is found once per time-out, but foreign replies arrive as fast as clients send commands.
        count = 1 if self.fault is Fault.SILENT else self._throttle.add(self.fault)
        self._fault_logged |= count > 0
        if count:
            _log.warning("the rbkit server at %s %s%s", self.endpoint.label, self._describe_fault(), times(count))

    def summary(self) -> dict[str, Any]:
        """Return the facts for `Bridge.summary`; ``recording`` is known while the profiler is connected."""
        recording = self._recording if self.state is State.CONNECTED else ()
        return {
            "state": self.state.value,
            "trouble": self.trouble,
            "process": self.handshake.process_name if self.handshake else None,
            "pid": self.handshake.pid if self.handshake else None,
            "recording": sorted(_RECORDED[stop] for stop in recording),
        }

    def stats(self) -> dict[str, Any]:
        """Return the facts, ready for JSON; sizes are in bytes, latencies in seconds."""
        return {
            "pub": self.endpoint.parts[0],
            "req": self.endpoint.label,
            "state": self.state.value,
            "trouble": self.trouble,
            "handshake": self.handshake._asdict() if self.handshake else None,
            "answers": self.answers,
            "last_commands": [
                {
                    "command": command,
                    "outcome": result.error.reason if result.error else "ok",
                    "seconds": round(result.seconds, 6),
                }
                for command, result in self._last_results
            ],
            "bytes_pending": self._pending,
            **self._totals,
        }
