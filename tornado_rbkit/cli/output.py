"""The output of commands: text for terminals, files that are replaced only when complete, and standard output."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO, Final, TextIO

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""The errors of a file that has no space left."""


def one_line(text: object) -> str:
    """Return untrusted text as one line of at most 1000 printable characters."""
    return "".join(character if character.isprintable() else " " for character in str(text)[:1000])


def say(text: object) -> None:
    """Print a message of the command on standard error, as one line."""
    print(f"tornado-rbkit: {one_line(text)}", file=sys.stderr, flush=True)


def discard_stdout() -> None:
    """Discard the output that could not be written, because Python flushes it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_stdout(path: str) -> bool:
    """Return whether a path means standard output: it is ``-``, or leads to the same file."""
    stdout = _stat_of_stdout()
    return path == "-" or (stdout is not None and os.path.exists(path) and os.path.samestat(os.stat(path), stdout))


def check_output(path: str) -> None:
    """Check that a file can be written at a path, without changing an existing one.

    Raises:
        OSError: it cannot be written.
    """
    if path == "-" or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)):
        return  # standard output, a pipe, a terminal
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise OSError(f"cannot write {path}: it is a folder, or is in a folder that cannot be written to (--output)")


def binary_output(path: str) -> BinaryIO:
    """Open a file, or standard output for ``-``, for writing bytes; closing it leaves standard output open.

    Raises:
        OSError: it cannot be written, or there is no standard output.
    """
    if path != "-":
        return open(path, "wb")
    if sys.stdout is None:
        raise OSError("there is no standard output; name a file (--output)")
    return open(sys.stdout.fileno(), "wb", closefd=False)


@contextlib.contextmanager
def text_output(path: str, source: BinaryIO) -> Iterator[TextIO]:
    """Open the output of a conversion: UTF-8 in any locale, and never the file that is converted.

    Raises:
        ValueError: the output is `source`.
        OSError: it cannot be written.
    """
    check_output(path)
    to_stdout = is_stdout(path)
    overwritten = _stat_of_stdout() if to_stdout else os.stat(path) if os.path.exists(path) else None
    original = os.fstat(source.fileno())
    if overwritten is not None and stat.S_ISREG(original.st_mode) and os.path.samestat(original, overwritten):
        name = "standard output" if path == "-" else path
        raise ValueError(f"{name} is the recording itself; name another file (--output)")
    if not to_stdout:
        with replacing(path) as file:
            yield file
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    yield sys.stdout


def _stat_of_stdout() -> os.stat_result | None:
    try:
        return os.fstat(sys.stdout.fileno())
    except (AttributeError, OSError):  # there is no standard output, or it is not a file
        return None


@contextlib.contextmanager
def replacing(path: str) -> Iterator[TextIO]:
    """Open a file for writing that replaces `path` at the end of the block; an exception leaves `path` unchanged.

    The file is UTF-8 with plain newlines. A symbolic link is followed, and the permissions of a replaced file are
    kept. A pipe, a terminal or another special file is written directly.

    Raises:
        OSError: the file cannot be written.
    """
    is_there = os.path.exists(path)
    if is_there and not os.path.isfile(path):
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            yield file
        return
    path = os.path.realpath(path)
    if is_there and not os.access(path, os.W_OK):  # os.replace would succeed nevertheless
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    aside = f"{path}.{secrets.token_hex(4)}.part"
    try:
        with open(aside, "x", encoding="utf-8", newline="\n") as file:
            yield file
        if is_there:
            shutil.copymode(path, aside)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise
