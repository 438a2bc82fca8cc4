"""The entry point: parses the command line, carries out the command, and turns errors into messages and statuses."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Coroutine, Iterable, Sequence
from typing import Final

from tornado_rbkit import __version__
from tornado_rbkit.cli.commands import NAMES, load
from tornado_rbkit.cli.output import FULL, discard_stdout, say
from tornado_rbkit.errors import RbkitError
from tornado_rbkit.log_throttle import LogThrottleFilter

_LOG_FORMAT: Final = "%(levelname)s %(message)s"
_BEFORE_THE_COMMAND: Final = ("-v", "--verbose", "-q", "--quiet")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0 for success, 1 for a failure, 2 for wrong arguments."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if not options.subcommand.is_program and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may contain any characters
    try:
        result = options.subcommand.run(options)
        if isinstance(result, Coroutine):
            import asyncio  # here, so that a program of `run` does not have it

            _log_to_stderr(options)
            result = asyncio.run(result)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130  # as for a process that SIGINT ended
    except BrokenPipeError:  # the reader of the output has closed it
        discard_stdout()
        return 1
    except (RbkitError, ValueError, OSError) as error:
        return _report(error)
    if callable(result):  # runs a program, whose errors are not caught
        result = result()
    return result or 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; `subcommand` of the result is the `Command`. Wrong arguments exit as argparse does."""
    at = next((at for at, argument in enumerate(arguments) if argument not in _BEFORE_THE_COMMAND), len(arguments))
    name = next(iter(arguments[at:]), "")
    if name not in NAMES:  # the help, an error, or a shell that asks for completions
        parser = command_parser()
        _complete(parser)
        return parser.parse_args(arguments)
    rest = load(name).normalize(list(arguments[at + 1 :]))
    return command_parser([name]).parse_args([*arguments[: at + 1], *rest])


def command_parser(names: Iterable[str] = NAMES) -> argparse.ArgumentParser:
    """Return the parser of the command line, with the commands of these names."""
    parser = argparse.ArgumentParser(
        prog="tornado-rbkit",
        description="A live rbkit profiler on a WebSocket.",
        epilog="Completion in bash and zsh, with the extra `completion` installed: "
        'eval "$(register-python-argcomplete tornado-rbkit)"',
    )
    version = f"%(prog)s {__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version and exit")
    level = parser.add_mutually_exclusive_group()
    level.add_argument("-v", "--verbose", action="store_true", help="also log connections (default: warnings, errors)")
    level.add_argument("-q", "--quiet", action="store_true", help="log errors only (default: warnings, errors)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in names:
        load(name).add_to(commands)
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions, with the extra `completion`, and exit."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(parser)


def _log_to_stderr(options: argparse.Namespace) -> None:
    level = logging.INFO if options.verbose else logging.ERROR if options.quiet else logging.WARNING
    handler = logging.StreamHandler()
    handler.addFilter(LogThrottleFilter())
    logging.basicConfig(level=level, format=_LOG_FORMAT, handlers=[handler])


def _report(error: Exception) -> int:
    """Print an error as one line, and return the exit status: the error's own, 1 for a full disk, else 2."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    say(text)
    if isinstance(error, RbkitError):
        return error.exit_status
    if isinstance(error, OSError) and error.errno in FULL:
        discard_stdout()
        return 1
    return 2  # an option, a file or an address that cannot be used
