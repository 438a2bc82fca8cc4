"""The threads of a process, as the system knows them."""

from __future__ import annotations

import os
import time

_SECONDS = 0.1  # between two looks at all threads


class Tasks:
    """The identifiers of the threads of a process.

    A process in a container has a PID namespace of its own: its threads have other identifiers there than here.
    """

    def __init__(self, pid: int) -> None:
        self._folder = f"/proc/{pid}/task"
        self._is_nested = len(_identifiers(f"/proc/{pid}/status")) > 1
        self._found: dict[int, int] = {}
        self._due = 0.0

    def identifier(self, own: int) -> int | None:
        """Return the identifier of a thread in this PID namespace, from the one in its own; None if it has ended."""
        if not self._is_nested:
            return own
        if own not in self._found and time.monotonic() >= self._due:
            self._due = time.monotonic() + _SECONDS
            self._found = {}
            for name in os.listdir(self._folder):
                identifiers = _identifiers(f"{self._folder}/{name}/status")
                if identifiers:
                    self._found[identifiers[-1]] = int(name)
        return self._found.get(own)

    def has(self, own: int) -> bool:
        """Return whether there is a thread with an identifier of the process's own PID namespace."""
        identifier = self.identifier(own)
        return identifier is not None and os.path.exists(f"{self._folder}/{identifier}")


def _identifiers(path: str) -> list[int]:
    """Return the identifiers of a thread in its PID namespaces, outermost first; none if it has ended."""
    try:
        with open(path, "rb") as file:
            return [int(each) for line in file if line.startswith(b"NSpid:") for each in line.split()[1:]]
    except (FileNotFoundError, ProcessLookupError):
        return []
