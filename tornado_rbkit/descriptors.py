"""Whether there are file descriptors left."""

from __future__ import annotations

import os


def require_descriptors(count: int) -> None:
    """Raise unless so many descriptors can be had: libzmq ends the process where an epoll_create fails. Any thread.

    Raises:
        OSError: they cannot.
    """
    taken: list[int] = []
    try:
        for _ in range(count):
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise OSError(error.errno, "too few file descriptors are left (ulimit -n)") from error
    finally:
        for descriptor in taken:
            os.close(descriptor)
