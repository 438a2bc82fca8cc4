"""The commands, one module each. A new command is a module with a `COMMAND`, whose name is added to `NAMES`."""

from __future__ import annotations

import importlib
from typing import Final

from tornado_rbkit.cli.command import Command

NAMES: Final = ("serve", "demo", "run", "attach", "agent", "hub", "list", "send", "record", "replay", "export")
"""The commands in the order of the help text; each is in the module of the same name."""


def load(name: str) -> Command:
    """Import a command. Others are not imported with it: `run` needs no web server in the process of the program."""
    command = importlib.import_module(f"{__name__}.{name}").COMMAND
    assert isinstance(command, Command)
    return command
