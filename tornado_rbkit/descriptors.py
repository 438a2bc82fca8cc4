"""Whether there are file descriptors left."""

from __future__ import annotations

import os
from typing import Final

_COUNT: Final = 24
"""Those of a ZMQ context, two sockets, their monitors, a thread's loop, the first that connect, and a few more."""


def require_descriptors() -> None:
    """Raise unless what two ZMQ sockets need can be had: libzmq ends the process where it cannot. Any thread.

    Raises:
        OSError: they cannot.
    """
    taken: list[int] = []
    try:
        for _ in range(_COUNT):
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise OSError(error.errno, "too few file descriptors are left (ulimit -n)") from error
    finally:
        for descriptor in taken:
            os.close(descriptor)
