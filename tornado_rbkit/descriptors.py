"""Whether there are file descriptors left."""

from __future__ import annotations

import os
from typing import Final

_COUNT: Final = 24
"""More than enough: a ZMQ context has 5, two connected sockets with their monitors 8, a thread's loop 3."""


def require_descriptors() -> None:
    """Raise unless what two ZMQ sockets need can be had: libzmq ends the process where it cannot. Any thread.

    Raises:
        OSError: they cannot.
    """
    taken: list[int] = []
    try:
        taken.append(os.open(os.devnull, os.O_RDONLY))
        while len(taken) < _COUNT:
            taken.append(os.dup(taken[0]))
    except OSError as error:
        raise OSError(error.errno, "too few file descriptors are left (ulimit -n)") from error
    finally:
        for descriptor in taken:
            os.close(descriptor)
