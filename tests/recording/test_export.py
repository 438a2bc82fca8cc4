"""`tornado-rbkit export`: the output is valid for any recording, and no existing file is lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.cli.here import run_here
from tests.fake_rbkit import collection
from tests.odd_values import EVENTS, FRAME, messages, nested

COMMAND = [sys.executable, "-X", "dev", "-W", "error", "-m", "tornado_rbkit", "export"]
GOOD = msgpack.packb([0.0, 1, None, collection(0, [EVENTS[-1]])])


def refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def parsed(text: str) -> Any:
    return json.loads(text, parse_constant=refused)


def unicode_of(value: Any) -> None:
    """Fail if a text in a JSON document has a lone surrogate, which many parsers refuse."""
    json.dumps(value, ensure_ascii=False).encode()


def export(recording: bytes, form: str) -> tuple[int, str, str]:
    """Run the command in this process; return its exit status, output and errors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "session.rbkit")
        path.write_bytes(recording)
        ended = run_here("export", "--format", form, str(path))
    return ended.returncode, ended.stdout, ended.stderr


def packed(message: bytes) -> bytes:
    return msgpack.packb([0.5, 1, None, message])  # type: ignore[no-any-return]


def unknown(payload: object) -> bytes:
    return packed(msgpack.packb({0: 7, 1: 1.0, 9: 0, 2: [{0: 77, 1: 1.0, 2: payload}]}))


@pytest.mark.parametrize("value", [b"\xff", msgpack.Timestamp(1, 2), msgpack.ExtType(5, b"x")], ids=repr)
def test_values_that_json_lacks_are_exported_as_text(value: object) -> None:
    status, text, _ = export(unknown({"new": value}), "json")
    assert (status, parsed(text)["payload"]) == (0, {"new": repr(value)})


@given(recording=st.lists(messages().map(packed), min_size=1, max_size=3).map(b"".join))
@example(recording=unknown(float("nan")))
@example(recording=unknown({1: "a", "1": "b"}))
@example(recording=unknown(nested(400)))
def test_every_format_is_valid_for_every_recording(recording: bytes) -> None:
    statuses = set()
    for form in ("speedscope", "collapsed", "json"):
        status, text, errors = export(recording, form)
        statuses.add(status)
        assert bool(status) == bool(errors), "what is left out is told, and nothing else"
        assert errors.count("\n") == bool(errors)
        assert errors.rstrip("\n").isprintable()
        text.encode()
        if form == "speedscope" and text:
            document = parsed(text)
            unicode_of(document)
            for frame in document["shared"]["frames"]:
                assert [type(frame[name]) for name in ("name", "file", "line")] == [str, str, int]
        for line in text.splitlines() if form == "json" else []:
            unicode_of(parsed(line))
        for line in text.split("\n")[:-1] if form == "collapsed" else []:
            assert line.isprintable()
            assert re.fullmatch(r"thread -?\d+(;[^;]+)+ \d+", line)
    assert len(statuses) == 1
    assert statuses < {0, 2}


@given(content=st.binary(max_size=200) | st.lists(st.binary(max_size=9)).map(lambda items: msgpack.packb(items)))
def test_a_file_of_anything_else_is_one_line_and_no_output(content: bytes) -> None:
    for form in ("speedscope", "collapsed", "json"):
        status, text, errors = export(content, form)
        if content:
            assert (status, text, errors.count("\n")) == (2, "", 1)
        else:
            assert (status, errors) == (0, "")


def test_an_array_that_claims_four_billion_items_takes_no_memory() -> None:
    assert export(b"\xdd\xff\xff\xff\xff", "json")[0] == 2
    assert export(b"\xdf\xff\xff\xff\xff", "json")[0] == 2


# What it writes to


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], stdin=subprocess.DEVNULL, timeout=60, **options)


@pytest.fixture
def session(tmp_path: Path) -> Path:
    path = tmp_path / "session.rbkit"
    path.write_bytes(GOOD)
    return path


@pytest.mark.parametrize("how", ["itself", "another spelling", "a hard link", "a symbolic link", "standard output"])
def test_the_recording_is_never_written_over(session: Path, how: str) -> None:
    output: str | Path = session
    link = session.with_name("link")
    if how == "another spelling":
        output = f"{session.parent}/./{session.parent.name}/../{session.name}"
        (session.parent / session.parent.name).mkdir()
    elif how == "a hard link":
        os.link(session, link)
        output = link
    elif how == "a symbolic link":
        link.symlink_to(session)
        output = link
    if how == "standard output":
        with session.open("ab") as stdout:
            ended = run(session, stdout=stdout, stderr=subprocess.PIPE)
        status, errors = ended.returncode, ended.stderr.decode()
    else:
        finished = run_here("export", str(session), "-o", str(output))
        status, errors = finished.returncode, finished.stderr
    assert status == 2
    assert "the recording itself" in errors
    assert errors.count("\n") == 1
    assert session.read_bytes() == GOOD


@pytest.mark.parametrize("content", [b"notes", b"\x1f\x8b\x08\0\0\0\0\0", GOOD[:-1], packed(b"hello")])
def test_a_recording_with_nothing_whole_leaves_an_earlier_file_as_it_is(session: Path, content: bytes) -> None:
    session.write_bytes(content)
    output = session.with_name("good.json")
    output.write_text("earlier")
    finished = run_here("export", str(session), "-o", str(output))
    assert (finished.returncode, finished.stderr.count("\n")) == (2, 1)
    assert output.read_text() == "earlier"
    assert sorted(path.name for path in session.parent.iterdir()) == ["good.json", "session.rbkit"]


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limit there")
def test_a_full_disk_leaves_an_earlier_file_as_it_is(session: Path) -> None:
    import resource

    session.write_bytes(packed(collection(0, [EVENTS[-1]] * 2000)))
    output = session.with_name("good.json")
    output.write_text("earlier")
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.RLIM_INFINITY}));"
        "from tornado_rbkit.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, "export", "--format", "json", session, "-o", output],
        capture_output=True,
        timeout=60,
    )
    assert (finished.returncode, finished.stderr.count(b"\n")) == (1, 1)
    assert b"File too large" in finished.stderr
    assert output.read_text() == "earlier"
    assert sorted(path.name for path in session.parent.iterdir()) == ["good.json", "session.rbkit"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_file_that_is_replaced_keeps_its_permissions_and_its_link(session: Path) -> None:
    output, link = session.with_name("real.json"), session.with_name("link.json")
    output.write_text("earlier")
    output.chmod(0o640)
    link.symlink_to(output)
    assert run(session, "-o", link).returncode == 0
    assert link.is_symlink()
    assert parsed(output.read_text())["profiles"]
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    new = session.with_name("new.json")
    assert run(session, "-o", new, umask=0o027).returncode == 0
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


def test_a_dash_is_standard_output(session: Path) -> None:
    default = run(session, capture_output=True)
    assert parsed(default.stdout.decode())["profiles"]
    assert run(session, "-o", "-", capture_output=True, cwd=session.parent).stdout == default.stdout
    assert [path.name for path in session.parent.iterdir()] == [session.name]


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="there is none")
def test_standard_output_by_its_name_is_standard_output(session: Path) -> None:
    piped = run(session, "-o", "/dev/stdout", capture_output=True)
    assert (piped.returncode, piped.stderr) == (0, b"")
    assert parsed(piped.stdout.decode())["profiles"]
    output = session.with_name("out")
    with output.open("wb") as stdout:
        stdout.write(b"before\n")
        stdout.flush()
        assert run(session, "-o", "/dev/stdout", stdout=stdout).returncode == 0
    assert output.read_bytes() == b"before\n" + piped.stdout
    assert run(session, "-o", "/dev/null").returncode == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_written_as_it_is(session: Path) -> None:
    pipe = session.with_name("pipe")
    os.mkfifo(pipe)
    with subprocess.Popen([*COMMAND, session, "-o", pipe]) as process:
        assert parsed(pipe.read_text())["profiles"]
        assert process.wait(60) == 0
    assert pipe.is_fifo()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16"])
def test_what_is_exported_is_utf_8_whatever_the_locale(session: Path, encoding: str) -> None:
    session.write_bytes(packed(collection(0, [{0: 9, 1: 1.0, 2: [{**FRAME, 13: "mod.größe_計算"}]}])))
    finished = run(
        session, "--format", "collapsed", capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout.decode() == "thread 1;mod.größe_計算 1\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to other processes")
def test_export_ends_at_once_when_it_is_interrupted_and_leaves_an_earlier_file_as_it_is(session: Path) -> None:
    import signal

    output = session.with_name("good.json")
    output.write_text("earlier")
    recording = session.with_name("pipe")
    os.mkfifo(recording)
    with (
        subprocess.Popen([*COMMAND, recording, "-o", output], stderr=subprocess.PIPE) as process,
        recording.open("wb") as pipe,
    ):
        pipe.write(GOOD)
        pipe.flush()
        while not list(session.parent.glob("good.json.*.part")):  # it has begun
            assert process.poll() is None
        while process.poll() is None:  # one just before it reads is not noticed until the next
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        assert process.returncode == 130
    assert output.read_text() == "earlier"
    assert not list(session.parent.glob("good.json.*.part"))


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="there is none")
def test_a_recording_may_come_from_a_pipe() -> None:
    finished = subprocess.run([*COMMAND, "/dev/stdin"], input=GOOD, capture_output=True, timeout=60)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert parsed(finished.stdout.decode())["profiles"]
