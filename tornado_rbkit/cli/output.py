"""A file that is written aside, and takes its name only when it is whole."""

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
    """Open a file for writing, and give it its name at the end of the block; an exception leaves what was there.

    It is UTF-8 with plain newlines. A symbolic link is followed, and the permissions of a file that is replaced are
    kept. What is not a regular file, as a pipe or a terminal, is written as it is.

    Raises:
        OSError: the file cannot be written.
    """
    is_there = os.path.exists(path)
    if is_there and not os.path.isfile(path):
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            yield file
        return
    path = os.path.realpath(path)
    if is_there and not os.access(path, os.W_OK):  # which would not keep it from being replaced
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
