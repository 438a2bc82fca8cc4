"""The commands, one module each. A new command is a module with a `COMMAND`, added to `COMMANDS`."""

from __future__ import annotations

from typing import Final

from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.commands import agent, attach, demo, export, hub, listing, record, replay, run, send, serve

COMMANDS: Final[tuple[Command, ...]] = (
    serve.COMMAND,
    demo.COMMAND,
    run.COMMAND,
    attach.COMMAND,
    agent.COMMAND,
    hub.COMMAND,
    listing.COMMAND,
    send.COMMAND,
    record.COMMAND,
    replay.COMMAND,
    export.COMMAND,
)
"""In the order of the help text."""
