"""The runtime folder: where the files and the Unix sockets of this user's servers are.

It is RBKIT_RUNTIME_DIR, else ``rbkit`` in XDG_RUNTIME_DIR, else ``rbkit-UID`` in the folder for temporary files. It is
used only if it belongs to the user and nobody else may write to it: whoever writes there says where clients connect.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from tornado_rbkit.protocol import RbkitError

DIRECTORY_VARIABLE: Final = "RBKIT_RUNTIME_DIR"


class RuntimeFolderError(RbkitError, OSError):
    """The runtime folder cannot be used; the message says why."""


def runtime_folder() -> Path:
    """Return the absolute path of the folder where the files are, or would be. Any thread.

    Raises:
        RuntimeFolderError: there is no folder for temporary files, and neither variable names another.
    """
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    session = os.environ.get("XDG_RUNTIME_DIR")
    try:
        if chosen:
            return Path(chosen).absolute()
        return Path(session, "rbkit").absolute() if session else temporary_folder(tempfile.gettempdir())
    except OSError as error:
        raise RuntimeFolderError(f"there is no runtime folder ({error.strerror}); set {DIRECTORY_VARIABLE}") from error


def temporary_folder(parent: str) -> Path:
    """Return the path of this user's folder in a folder for temporary files."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(parent, f"rbkit-{user}").absolute()


def check_chosen_folder() -> None:
    """See whether the folder that RBKIT_RUNTIME_DIR names can be used, and make it if it is not there.

    Raises:
        RuntimeFolderError: it cannot be used.
    """
    if os.environ.get(DIRECTORY_VARIABLE):
        prepare_folder(runtime_folder())


def prepare_folder(folder: Path) -> None:
    """Make the folder, and those above it, with the mode 0700 unless they are there.

    Raises:
        RuntimeFolderError: it cannot be used.
    """
    try:
        for missing in reversed([each for each in (folder, *folder.parents) if not os.path.lexists(each)]):
            missing.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        pass  # and verify_folder says what it is
    except OSError as error:
        text = f"{folder} cannot be made ({error.strerror}); set {DIRECTORY_VARIABLE}"
        raise RuntimeFolderError(text) from error
    verify_folder(folder)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise RuntimeFolderError(f"{folder} cannot be written to; chmod it 700")


def verify_folder(folder: Path) -> None:
    """Raise if the folder is not this user's alone to write to.

    Raises:
        RuntimeFolderError: it is not.
        OSError: it cannot be looked at.
    """
    if not hasattr(os, "getuid"):
        return
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise RuntimeFolderError(f"{folder} is not a folder (a link is not followed); set {DIRECTORY_VARIABLE}")
    if status.st_uid != os.getuid():
        raise RuntimeFolderError(f"{folder} belongs to user {status.st_uid}; set {DIRECTORY_VARIABLE}")
    if status.st_mode & 0o022:
        raise RuntimeFolderError(f"{folder} may be written by others (mode {status.st_mode & 0o777:o}); chmod it 700")
