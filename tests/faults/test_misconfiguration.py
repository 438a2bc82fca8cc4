"""Every wrong option of every command: one line that says what to do, exit status 2, no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.here import run_here

COMMAND = [sys.executable, "-m", "tornado_rbkit"]

SERVER_OPTIONS = [  # of serve, demo and replay, which share what reads them
    (["--port", "70000"], "0 to 65535"),
    (["--port", "nan"], "--port"),
    (["--host", "no.such.host.invalid"], "--host"),
    (["--host", ""], "--host"),
    (["--host", "x" * 300], "--host"),
    (["--max-clients", "0"], "max_clients"),
    (["--max-clients", "1.5"], "--max-clients"),
    (["--compression-level", "99"], "0 (off) to 9"),
    (["--encoding", "utf-8"], "binary"),
    (["--token", ""], "token"),
    (["--token", "a\nb"], "token"),
    (["--token", os.fsdecode(b"\xff")], "token"),
    (["--allow-origin", "tools.example"], "https://"),
    (["--allow-host", "http://tools.example"], "--allow-host"),
    (["--prefix", "/a b"], "--prefix"),
    (["--prefix", "/a?b"], "--prefix"),
    (["--unknown"], "--unknown"),
]
CLIENT_OPTIONS = [
    (["--url", "nonsense"], "ws://"),
    (["--url", "ftp://127.0.0.1:1/"], "ws://"),
    (["--url", "ws://"], "ws://"),
    (["--url", "ws://127.0.0.1:x/"], "url="),
    (["--url", "ws://[::1/"], "url="),
]
IN_A_PROCESS = [  # what only a process of its own shows; the others are run by the same function in this one
    ([], "COMMAND"),
    # Tornado leaves a socket open that cannot be bound
    (["serve", "--port", "USED"], "--port"),
    (["replay", "RECORDING", "--port", "USED"], "--port"),
    (["serve", "--host", "203.0.113.1"], "--host"),
    (["demo", "--host", "203.0.113.1"], "--host"),
    (["run", "--port", "USED", "SCRIPT"], "--port"),
]
WRONG = [
    (["-v", "-q", "list"], "not allowed with"),
    (["bogus"], "bogus"),
    *((["serve", *options], text) for options, text in SERVER_OPTIONS),
    (["serve", "--pub", "tcp://*:5555"], "tcp://HOST:PORT"),
    (["serve", "--pub", "127.0.0.1:5555"], "tcp://HOST:PORT"),
    (["serve", "--req", "ipc://"], "ipc://PATH"),
    (["serve", "--req", "tcp://127.0.0.1:0"], "tcp://HOST:PORT"),
    (["serve", "--idle-grace", "nan"], "idle_grace"),
    (["serve", "--idle-grace", "-1"], "idle_grace"),
    (["serve", "--idle-grace", "soon"], "--idle-grace"),
    *((["demo", *options], text) for options, text in SERVER_OPTIONS[::4]),
    (["run"], "a script"),
    (["run", "MISSING"], "no script"),
    (["run", "FOLDER"], "no script"),
    (["run", "--port", "70000", "SCRIPT"], "0 to 65535"),
    *((["send", "handshake", *options], text) for options, text in CLIENT_OPTIONS),
    (["send"], "COMMAND"),
    *((["record", "-o", "NEW", *options], text) for options, text in CLIENT_OPTIONS),
    (["record"], "--output"),
    (["record", "-o", "FOLDER"], "--output"),
    (["record", "-o", "MISSING/file"], "--output"),
    (["record", "-o", "NEW", "--seconds", "nan"], "--seconds"),
    (["record", "-o", "NEW", "--seconds", "-1"], "--seconds"),
    *((["replay", "RECORDING", *options], text) for options, text in SERVER_OPTIONS[1::4]),
    (["replay", "MISSING"], "MISSING"),
    (["replay", "FOLDER"], "FOLDER"),
    (["replay", "SCRIPT"], "recording"),
    (["replay", "RECORDING", "--speed", "0"], "speed"),
    (["replay", "RECORDING", "--speed", "nan"], "speed"),
    (["replay", "RECORDING", "--speed", "inf"], "speed"),
    (["export", "MISSING"], "MISSING"),
    (["export", "FOLDER"], "FOLDER"),
    (["export", "RECORDING", "-o", "FOLDER"], "--output"),
    (["export", "RECORDING", "-o", "MISSING/file"], "--output"),
    (["export", "RECORDING", "--format", "svg"], "speedscope"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the names in capitals stand for."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "script.py").write_text("print('ran')\n")
    (folder / "recording").write_bytes(b"\x94\xcb" + bytes(8) + b"\x01\xc0\xc4\x00")
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        yield {
            "MISSING": str(folder / "missing"),
            "FOLDER": str(folder),
            "SCRIPT": str(folder / "script.py"),
            "NEW": str(folder / "new"),
            "RECORDING": str(folder / "recording"),
            "USED": str(used.getsockname()[1]),
        }


def names(wrong: list[tuple[list[str], str]]) -> list[str]:
    return [" ".join(arguments)[:60] for arguments, _ in wrong]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process the environment of `run`."""
    for name in [name for name in os.environ if name.startswith("RBKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", str(tmp_path / "runtime"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("arguments", "text"), WRONG, ids=names(WRONG))
def test_one_line_says_what_to_do(arguments: list[str], text: str, places: dict[str, str]) -> None:
    assert_one_line(run_here(*(part.replace(*capital(part, places)) for part in arguments)), text, places)


@pytest.mark.parametrize(("arguments", "text"), IN_A_PROCESS, ids=names(IN_A_PROCESS))
def test_a_process_ends_with_the_line_and_status_2(
    arguments: list[str], text: str, places: dict[str, str], tmp_path: Path
) -> None:
    assert_one_line(run([part.replace(*capital(part, places)) for part in arguments], tmp_path), text, places)


def assert_one_line(finished: subprocess.CompletedProcess[str], text: str, places: dict[str, str]) -> None:
    lines = [line for line in finished.stderr.splitlines() if not line.startswith(("usage:", " "))]
    assert "Traceback" not in finished.stderr
    assert finished.returncode == 2, finished.stderr
    assert len(lines) == 1, finished.stderr
    assert text.replace(*capital(text, places)) in lines[0]
    assert finished.stdout == ""


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("variable", ["RBKIT_PUB_PORT", "RBKIT_REQ_PORT"])
def test_a_wrong_port_in_the_environment_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "7e3")
    finished = run_here("serve", "--port", "0")
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    assert variable in finished.stderr


@pytest.mark.parametrize("variable", ["RBKIT_PUB_PORT", "RBKIT_REQ_PORT"])
def test_a_wrong_port_in_the_environment_is_named_by_a_profiler(
    variable: str, places: dict[str, str], tmp_path: Path
) -> None:
    line = f"tornado-rbkit: {variable} must be a port, 1 to 65535: 7e3\n"
    finished = run(["run", places["SCRIPT"]], tmp_path, **{variable: "7e3"})
    assert (finished.returncode, finished.stdout, finished.stderr) == (2, "", line)
    finished = run(["demo", "--port", "0"], tmp_path, **{variable: "7e3"})
    assert finished.stderr == line + "tornado-rbkit: the process of the demo did not start\n"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", [["list"], ["serve", "--port", "0"], ["demo", "--port", "0"], ["run", "SCRIPT"]])
@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("file", "is not a folder (a link is not followed); set RBKIT_RUNTIME_DIR"),
        ("file/below", "cannot be made (Not a directory); set RBKIT_RUNTIME_DIR"),
        ("open", "may be written by others (mode 777); chmod it 700"),
    ],
)
def test_a_runtime_folder_that_cannot_be_used_is_refused_by_every_command(
    command: list[str],
    folder: str,
    text: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    chosen = str(tmp_path / folder)
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", chosen)
    finished = run_here(*(part.replace(*capital(part, places)) for part in command))
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr == f"tornado-rbkit: {chosen} {text}\n"
    assert finished.stdout == ""


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_folder_of_a_hub_that_cannot_be_used_is_refused_with_its_option(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finished = run_here("hub", "--dir", str(tmp_path / folder), "add-host", "web-1")
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"tornado-rbkit: {tmp_path / folder} ")
    assert finished.stderr.endswith("; set --dir\n")


def test_a_program_that_starts_the_profiler_itself_is_told_of_the_folder_and_continues(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = "from tornado_rbkit import profiler; print(profiler.start_server('ipc://*', 'ipc://*').running)"
    environment = os.environ | {"RBKIT_RUNTIME_DIR": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}  # for libzmq
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert finished.stdout == "True\n", finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert "is not a folder" in finished.stderr


def test_jupyter_without_its_extra_says_what_to_install() -> None:
    code = "import sys; sys.modules['jupyter_server'] = None; from tornado_rbkit.jupyter import main; main()"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 2, finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert "pip install 'tornado_rbkit[jupyter]'" in finished.stderr


def capital(text: str, places: dict[str, str]) -> tuple[str, str]:
    """Return what in a text is to be replaced by what."""
    return next(((name, place) for name, place in places.items() if name in text), ("\0", ""))


def run(arguments: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RBKIT_")}
    environment = {**plain, "RBKIT_RUNTIME_DIR": str(folder / "runtime"), **variables}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=environment)
