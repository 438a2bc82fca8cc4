"""``export``: a recording in the format of another tool."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tornado_rbkit.cli.command import Command
from tornado_rbkit.cli.output import text_output
from tornado_rbkit.cli.progress import Progress
from tornado_rbkit.errors import RecordingError
from tornado_rbkit.protocol import Event
from tornado_rbkit.recording.export import collapsed, json_lines, speedscope
from tornado_rbkit.recording.recording import events, read

_FORMATS: Final[dict[str, Callable[[Iterable[Event], str], Iterator[str]]]] = {
    "speedscope": speedscope,
    "collapsed": collapsed,
    "json": json_lines,
}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="recording of `record`, or of Save session in the dashboard")
    parser.add_argument(
        "--format", choices=sorted(_FORMATS), default="speedscope", help="output format (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="file to write (default: standard output)")


def _run(options: argparse.Namespace) -> int:
    problems: list[str] = []
    exported = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(options.file, "rb"))
        output = stack.enter_context(text_output(options.output, file))
        progress = stack.enter_context(Progress(lambda: f"{exported:,} events"))

        def whole() -> Iterator[Event]:
            nonlocal exported
            for event in events(read(file), problems):
                exported += 1
                progress.step()
                yield event

        for line in _FORMATS[options.format](whole(), options.file):
            if exported or not problems:
                print(line, file=output)
        failure = RecordingError(f"{options.file}: {'; '.join(problems)}") if problems else None
        if failure and not exported:  # the exception keeps an existing file unchanged
            raise failure
    if failure:
        raise failure
    return 0


COMMAND = Command(
    name="export",
    help="convert a recording for other tools",
    example="tornado-rbkit export session.rbkit --format collapsed -o - | flamegraph.pl > flame.svg",
    add_options=_add_options,
    run=_run,
)
