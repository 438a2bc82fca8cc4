"""The runtime folder, which holds the files and the Unix sockets of this user's servers.

It is RBKIT_RUNTIME_DIR, else ``rbkit`` in XDG_RUNTIME_DIR, unless that belongs to another user (as after ``su``), else
``rbkit-UID`` in the folder for temporary files. It is used only if it belongs to the user and nobody else may write to
it, because its files decide where clients connect.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from tornado_rbkit.errors import RbkitError
from tornado_rbkit.profiler.threads import internal_logger

_log = internal_logger(__name__)

DIRECTORY_VARIABLE: Final = "RBKIT_RUNTIME_DIR"


class RuntimeFolderError(RbkitError, OSError):
    """The runtime folder cannot be used; the message says why."""

    exit_status = 2


def runtime_folder() -> Path:
    """Return the absolute path of the runtime folder, which may not exist yet. Any thread.

    Raises:
        RuntimeFolderError: there is no folder for temporary files, and neither variable names a folder.
    """
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    session = os.environ.get("XDG_RUNTIME_DIR")
    try:
        if chosen:
            return Path(chosen).absolute()
        if session and not _is_foreign(session):
            return Path(session, "rbkit").absolute()
        return temporary_folder(tempfile.gettempdir())
    except OSError as error:
        raise RuntimeFolderError(f"there is no runtime folder ({error.strerror}); set {DIRECTORY_VARIABLE}") from error


def _is_foreign(folder: str) -> bool:
    """Return True if a folder belongs to another user, who may not be able to use or remove a folder created there."""
    try:
        return hasattr(os, "getuid") and os.stat(folder).st_uid != os.getuid()
    except PermissionError:
        return True
    except OSError:
        return False


def temporary_folder(parent: str) -> Path:
    """Return the path of this user's runtime folder within a folder for temporary files."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(parent, f"rbkit-{user}").absolute()


def check_chosen_folder() -> None:
    """Check that the folder in RBKIT_RUNTIME_DIR, if set, can be used; create it if it does not exist.

    Raises:
        RuntimeFolderError: the folder cannot be used.
    """
    if os.environ.get(DIRECTORY_VARIABLE):
        prepare_folder(runtime_folder())


def prepare_folder(folder: Path, setting: str = DIRECTORY_VARIABLE) -> None:
    """Create the folder and its missing parents with the mode 0700.

    Args:
        folder: the runtime folder, or another one that only its user may write to.
        setting: what chooses the folder, for the errors.

    Raises:
        RuntimeFolderError: the folder cannot be used.
    """
    try:
        for missing in reversed([each for each in (folder, *folder.parents) if not os.path.lexists(each)]):
            missing.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        pass  # verify_folder reports what is there
    except OSError as error:
        text = f"{folder} cannot be made ({error.strerror}); set {setting}"
        raise RuntimeFolderError(text) from error
    verify_folder(folder, setting)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise RuntimeFolderError(f"{folder} cannot be written to; chmod it 700")


def verify_folder(folder: Path, setting: str = DIRECTORY_VARIABLE) -> None:
    """Check that the folder belongs to this user and that nobody else may write to it.

    Raises:
        RuntimeFolderError: the check failed.
        OSError: the folder does not exist, or its status cannot be read.
    """
    if not hasattr(os, "getuid"):
        return
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise RuntimeFolderError(f"{folder} is not a folder (a link is not followed); set {setting}")
    if status.st_uid != os.getuid():
        raise RuntimeFolderError(f"{folder} belongs to user {status.st_uid}; set {setting}")
    if status.st_mode & 0o022:
        raise RuntimeFolderError(f"{folder} may be written by others (mode {status.st_mode & 0o777:o}); chmod it 700")


def remove_file(path: Path) -> None:
    """Remove a file if it is there; log a warning if it cannot be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s cannot be removed: %s", path, error.strerror)
