"""Writes a file under a temporary name, and renames it when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import TextIO


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
