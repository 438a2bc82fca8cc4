"""Checks for commands that some versions of rbkit ignore, although they reply ``ok``, or that crash the program."""

from __future__ import annotations

import logging
from typing import Final

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.protocol import Handshake

_log = logging.getLogger(__name__)

SNAPSHOT: Final = "objectspace_snapshot"
_CPU_COMMANDS: Final = frozenset({"start_cpu_profiling", "stop_cpu_profiling", "use_cpu_time", "use_wall_time"})
CHECKED_COMMANDS: Final = _CPU_COMMANDS | {SNAPSHOT}
"""The commands for which `check_command` needs a handshake."""

_CRASHING: Final = (None, "0.1.10")  # the tagged version sends no version in its handshake, later commits do


def check_command(command: str, handshake: Handshake) -> None:
    """Log a warning if a command may crash the profiled program.

    Raises:
        RbkitError: the profiler does not know the command, and would nevertheless reply ``ok``.
    """
    if command in _CPU_COMMANDS and handshake.cpu_profiling_enabled is None:
        raise RbkitError(f"{command}: this rbkit cannot profile CPU use; allowed: rbkit with protocol 2.1 or newer")
    if command == SNAPSHOT and handshake.rbkit_server_version in _CRASHING:
        _log.warning(
            "rbkit 0.1.10 without patches crashes programs on Ruby 3.1 and newer when it takes a heap snapshot; "
            "process %d does not send its version of Ruby",
            handshake.pid,
        )
