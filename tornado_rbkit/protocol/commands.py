"""The commands of rbkit, and the check of a client's command before it is sent on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal

from tornado_rbkit.errors import CommandError

TRACING_COMMANDS: Final = frozenset({"start_allocation_tracing", "stop_allocation_tracing"})
"""The Python profiler's own commands: switch tracemalloc, by which a snapshot says where objects were created.

A bridge sends them only to a profiler whose handshake has `allocation_tracing_enabled`: rbkit would reply ``ok``.
"""

COMMANDS: Final = TRACING_COMMANDS | frozenset(
    {
        "start_memory_profile",
        "stop_memory_profile",
        "trigger_gc",
        "objectspace_snapshot",
        "handshake",
        "use_cpu_time",
        "use_wall_time",
        "start_cpu_profiling",
        "stop_cpu_profiling",
    }
)
"""The nine commands of protocol 2.1, and `TRACING_COMMANDS`."""

VIEW_COMMAND: Final = "handshake"
"""The command that stands for viewing: `authorize` is called for it at open, and `read_only` allows no other."""

MAX_COMMAND_LENGTH: Final = 256
"""Bytes; the longest of `COMMANDS` has 24."""


def parse_command(message: str | bytes, allowed: Collection[str] | Literal["any"] = COMMANDS) -> str:
    """Return the command in a client's message, checked to be safe to send to rbkit.

    An empty request, or one that begins with NUL, kills rbkit's command channel for every client until the profiled
    process restarts. No setting allows such a request.

    Args:
        message: the client's message, text or binary.
        allowed: the commands that may be sent, or ``"any"``.

    Raises:
        CommandError: ``invalid-command`` if no rbkit accepts the command, ``unknown-command`` if it is not allowed.
    """
    raw = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message
    if not raw:
        raise CommandError("invalid-command", "the command is empty; allowed: " + _describe(allowed))
    if len(raw) > MAX_COMMAND_LENGTH:
        raise CommandError(
            "invalid-command", f"the command has {len(raw)} bytes; allowed: at most {MAX_COMMAND_LENGTH}"
        )
    if not all(0x20 <= byte <= 0x7E for byte in raw):
        raise CommandError("invalid-command", f"{raw[:40]!r} is not one line of printable ASCII")
    command = raw.decode("ascii")
    if allowed != "any" and command not in allowed:
        raise CommandError(
            "unknown-command", f"{command!r} is not one of: {_describe(allowed)} (the setting `commands`)"
        )
    return command


def _describe(allowed: Collection[str] | Literal["any"]) -> str:
    return "any one line of ASCII" if allowed == "any" else ", ".join(sorted(allowed))
