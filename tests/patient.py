"""Bridges that are patient with a busy machine: their default time limits are for people.

``python PATH_OF_THIS_FILE COMMAND...`` runs a command of tornado-rbkit whose bridges are patient.
"""

from __future__ import annotations

import sys

from tornado_rbkit import Bridge
from tornado_rbkit.bridge import commands
from tornado_rbkit.bridge.settings import BridgeSettings
from tornado_rbkit.fleet.link import Link
from tornado_rbkit.protocol import COMMANDS

PATIENT = [__file__]
"""The arguments of Python that run tornado-rbkit with patient bridges."""

PATIENCE = 60.0
"""Seconds that a bridge waits for its profiler, unless a test sets a time."""


def patient(bridge: Bridge) -> Bridge:
    """Raise the default time limits of a bridge, and return it."""
    if bridge._settings.connect_timeout == BridgeSettings.connect_timeout:
        object.__setattr__(bridge._settings, "connect_timeout", PATIENCE)
    bridge._commands._timeouts = {**dict.fromkeys(COMMANDS, PATIENCE), **bridge._commands._timeouts}
    return bridge


def raise_defaults() -> None:
    """Raise the default time limits of all bridges, and of all connections to NATS, of this process."""
    for function, limit in ((Bridge.__init__, "connect_timeout"), (Link.__init__, "patience")):
        assert function.__kwdefaults__ is not None
        function.__kwdefaults__[limit] = PATIENCE
    vars(commands)["DEFAULT_COMMAND_TIMEOUT"] = PATIENCE


if __name__ == "__main__":
    from tornado_rbkit.cli.main import main

    del sys.path[0]  # the folder of the tests
    raise_defaults()
    sys.exit(main())
