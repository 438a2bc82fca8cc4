"""A command of ``tornado-rbkit``: its name, its help, its options, and the function that carries it out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

Result: TypeAlias = "int | Coroutine[Any, Any, int] | Callable[[], object]"
"""The exit status; or a coroutine that returns it, run with a log on standard error; or, for a command that turns this
process into another program, a function that runs that program, whose errors are the program's own."""


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Attributes:
        name: the word that selects the command.
        help: what it does, in one sentence without a capital letter and a full stop.
        example: one or more command lines, shown at the end of the command's help.
        add_options: adds the options to the command's parser, each with a help text that has its unit and default.
        run: carries the command out. Raises RbkitError, ValueError or OSError, whose text is shown to the user.
        normalize: returns the arguments after the name of the command in the form that argparse requires.
        usage: the usage line, if argparse cannot write it.
        notes: further paragraphs of the command's help, shown before the example.
        is_program: whether `run` returns a function, so that standard output belongs to another program.
    """

    name: str
    help: str
    example: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Result]
    normalize: Callable[[list[str]], list[str]] = list
    usage: str | None = None
    notes: str = ""
    is_program: bool = False

    def add_to(self, commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Add the parser of the command."""
        parser = commands.add_parser(
            self.name,
            help=self.help,
            description=f"{self.help[0].upper()}{self.help[1:]}.",
            epilog=self.notes + "example:\n" + "".join(f"  {line}\n" for line in self.example.splitlines()),
            usage=self.usage,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_options(parser)
        parser.set_defaults(subcommand=self)
