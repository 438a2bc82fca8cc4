"""The help texts: every option has its unit and its default, and every command an example."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tornado_rbkit.cli.commands import NAMES, load
from tornado_rbkit.cli.main import command_parser, main, parse


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every parser of the command line, by the name of its command."""
    top = command_parser()
    yield "", top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


OPTIONS = [
    pytest.param(action, id=f"{name} {action.option_strings or action.dest}")
    for name, parser in parsers()
    for action in parser._actions
    if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    and action.help is not argparse.SUPPRESS
]
UNITS = {
    "pid": "pid",
    "port": "port",
    "seconds": "seconds",
    "idle_grace": "seconds",
    "max_clients": "number of clients",
    "compression_level": "level",
    "speed": "factor",
    "targets": "by name",
    "url": "URL",
}
"""The unit that the help text of an option names, for each option whose value is converted."""


@pytest.mark.parametrize("action", OPTIONS)
def test_every_option_has_a_help_text_with_its_unit_and_default(action: argparse.Action) -> None:
    text = action.help
    assert text
    if action.type is not None:
        assert UNITS[action.dest] in text
    needs_a_default = action.option_strings and not action.required and action.dest != "version"
    assert ("default: " in text) == bool(needs_a_default), text
    if needs_a_default and action.default not in (None, False, True, [], "-") and action.nargs != 0:
        assert "(default: %(default)s)" in text, "the text has the default of the code"


def test_every_option_that_is_converted_has_a_unit() -> None:
    options = [action for _, parser in parsers() for action in parser._actions if action.help is not argparse.SUPPRESS]
    assert {action.dest for action in options if action.type is not None} == UNITS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_every_command_ends_with_an_example_that_parses(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    title, _, example = capsys.readouterr().out.rpartition("\nexample:\n")
    assert "usage: " in title
    lines = example.splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line.partition("|")[0], comments=True)
        assert words[:2] == ["tornado-rbkit", name]
        assert parse(words[1:]).subcommand is load(name)


def test_every_module_of_a_command_is_on_the_command_line() -> None:
    import tornado_rbkit.cli.commands as package

    modules = {path.stem for path in Path(package.__path__[0]).glob("*.py")} - {"__init__"}
    assert set(NAMES) == {load(name).name for name in NAMES} == modules


def test_version_prints_the_version_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"tornado-rbkit {version('tornado_rbkit')}\n"


@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("tornado-rbkit re", {"record", "replay"}),
        ("tornado-rbkit record --s", {"--seconds", "--snapshot"}),
        ("tornado-rbkit export --format col", {"collapsed"}),
    ],
)
def test_a_shell_is_answered_with_the_commands_and_options(tmp_path: Path, line: str, completions: set[str]) -> None:
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "-m", "tornado_rbkit"], env=environment, check=True, timeout=60)
    assert set(re.split(r"[\x0b\s]+", answer.read_text().strip())) == completions


@pytest.mark.parametrize("option", [["--cpu-engine", "auto"], ["--cpu-engine=auto"]])
def test_the_options_of_run_end_at_the_program(option: list[str]) -> None:
    options = parse(["run", "--cpu", *option, "-mshop", "--cpu-engine", "its own"])
    assert (options.cpu_engine, options.module) == ("auto", ["shop", "--cpu-engine", "its own"])
