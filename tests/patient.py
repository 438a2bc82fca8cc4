"""Time limits for a busy machine in place of the defaults, which are for people.

``python PATH_OF_THIS_FILE COMMAND...`` runs a command of tornado-rbkit with them.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tornado_rbkit import Bridge

PATIENT = [__file__]
"""The arguments of Python that run tornado-rbkit with these limits."""

PATIENCE = 60.0
"""Seconds that a bridge waits for its profiler, and a program for its web server, unless a test sets a time."""


def patient(bridge: Bridge) -> Bridge:
    """Raise the default time limits of a bridge, and return it."""
    from tornado_rbkit.bridge.settings import BridgeSettings
    from tornado_rbkit.protocol import COMMANDS

    if bridge._settings.connect_timeout == BridgeSettings.connect_timeout:
        object.__setattr__(bridge._settings, "connect_timeout", PATIENCE)
    bridge._commands._timeouts = {**dict.fromkeys(COMMANDS, PATIENCE), **bridge._commands._timeouts}
    return bridge


def raise_defaults_of_a_server() -> None:
    """Raise the default time limits of all bridges, of the fleet and of attachments of this process."""
    from tornado_rbkit import Bridge
    from tornado_rbkit.bridge import commands
    from tornado_rbkit.fleet import targets
    from tornado_rbkit.fleet.link import Link
    from tornado_rbkit.profiler import injection
    from tornado_rbkit.profiler.external import child

    for function, limit in ((Bridge.__init__, "connect_timeout"), (Link.__init__, "patience")):
        assert function.__kwdefaults__ is not None
        function.__kwdefaults__[limit] = PATIENCE
    vars(commands)["DEFAULT_COMMAND_TIMEOUT"] = PATIENCE
    vars(targets)["FORGET_AFTER"] = PATIENCE
    vars(injection)["_STOP_SECONDS"] = vars(child)["_PATIENCE"] = PATIENCE


def _raise_defaults_of_a_program() -> None:
    """Raise the time limits of a program's end, and give its web server these limits too."""
    from tornado_rbkit.cli import program
    from tornado_rbkit.profiler import lifecycle

    module = "runpy.run_module('tornado_rbkit', run_name='__main__', alter_sys=True)"
    assert module in program._DETACHED
    server = program._DETACHED.replace(module, f"runpy.run_path({__file__!r}, run_name='__main__')")
    vars(program).update(_PATIENCE=PATIENCE, _DETACHED=server)
    vars(lifecycle)["_EXIT_SECONDS"] = PATIENCE


if __name__ == "__main__":
    from tornado_rbkit.cli.main import main

    sys.path[0] = os.getcwd()  # as with python -m, and not the folder of the tests
    _raise_defaults_of_a_program()
    if "run" not in sys.argv:  # its program must not have a web server's modules
        raise_defaults_of_a_server()
    sys.exit(main())
