"""The sources of a token: an option, a file, the environment."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from tests.cli.here import run_here
from tests.fake_rbkit import FakeRbkit
from tests.faults.serving import serving
from tests.patient import PATIENT
from tornado_rbkit.cli.main import parse
from tornado_rbkit.cli.options import token_of

CLIENT = ["send", "handshake"]
COMMANDS = [["serve"], ["demo"], ["replay", "a.rbkit"], CLIENT, ["record", "-o", "a.rbkit"]]


def token(*arguments: str) -> str | None:
    return token_of(parse(arguments))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file with a token, which only its owner can read; RBKIT_TOKEN is not set."""
    monkeypatch.delenv("RBKIT_TOKEN", raising=False)
    path = tmp_path / "token"
    path.write_text("of the file\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
class TestPrecedence:
    def test_without_any_there_is_none(self, command: list[str], file: Path) -> None:
        assert token(*command) is None

    def test_the_environment_is_used_where_no_option_is_given(
        self, command: list[str], file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RBKIT_TOKEN", "of the environment")
        assert token(*command) == "of the environment"
        assert token(*command, "--token", "of the option") == "of the option"
        assert token(*command, "--token-file", str(file)) == "of the file"

    def test_both_options_are_refused(
        self, command: list[str], file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            token(*command, "--token", "a", "--token-file", str(file))
        assert "not allowed with" in capsys.readouterr().err

    def test_help_names_all_three(self, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            token(command[0], "--help")
        text = capsys.readouterr().out
        assert all(name in text for name in ("--token ", "--token-file", "RBKIT_TOKEN"))


def test_a_token_in_the_url_comes_before_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBKIT_TOKEN", "of the environment")
    assert token(*CLIENT, "--url", "ws://127.0.0.1:1/rbkit/ws?a=b&token=c") is None
    assert token(*CLIENT, "--url", "ws://127.0.0.1:1/rbkit/ws?a=b") == "of the environment"


@pytest.mark.parametrize("content", [b"s3cret", b"s3cret\r\n", b"  s3cret \n\n", b"\xef\xbb\xbfs3cret\r\n"])
def test_a_file_may_end_its_line(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert token("serve", "--token-file", str(file)) == "s3cret"


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xff\xfe", "s3cret".encode("utf-16"), b"x" * 4097])
def test_a_file_without_one_token_is_refused_by_its_name(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match="allowed: ") as refused:
        token("serve", "--token-file", str(file))
    assert f"--token-file {file}" in str(refused.value)


@pytest.mark.parametrize("value", ["", " ", "a\nb", " a", "a\x00b"])
def test_a_token_that_cannot_be_sent_is_refused_with_the_setting(
    file: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"\(--token\)"):
        token("serve", "--token", value)
    if "\x00" not in value:
        monkeypatch.setenv("RBKIT_TOKEN", value)
        with pytest.raises(ValueError, match=r"\(RBKIT_TOKEN\)"):
            token(*CLIENT)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, False), (0o604, True), (0o444, True)])
def test_a_file_that_everybody_can_read_is_warned_about(
    file: Path, mode: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file.chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert token("serve", "--token-file", str(file)) == "of the file"
    assert (f"chmod o-r {file}" in caplog.text) is warns


@pytest.mark.parametrize("arguments", [["serve", "--port", "0"], CLIENT], ids=["serve", "send"])
@pytest.mark.parametrize("missing", ["MISSING", "."])
def test_a_file_that_cannot_be_read_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], missing: str
) -> None:
    monkeypatch.setenv("RBKIT_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.chdir(tmp_path)
    ended = run_here(*arguments, "--token-file", missing)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert missing in ended.stderr


def test_the_environment_opens_what_the_environment_closes(
    rbkit: FakeRbkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`serve` and `send` that share RBKIT_TOKEN, and a `send` without it."""
    monkeypatch.setenv("RBKIT_TOKEN", "s3cret")
    command = [sys.executable, *PATIENT, "serve", "--pub", rbkit.pub, "--req", rbkit.req, "--port", "0"]
    with serving(tmp_path / "log", command) as server:
        assert run_here("send", "trigger_gc", "--url", server.ws).stdout == "ok\n"
        monkeypatch.delenv("RBKIT_TOKEN")
        refused = run_here("send", "trigger_gc", "--url", server.ws)
    assert (refused.returncode, "401" in refused.stderr) == (1, True)
