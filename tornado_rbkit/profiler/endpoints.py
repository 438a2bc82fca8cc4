"""Where a server binds: its endpoints, the errors of taking them, and giving them up in a forked child."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import zmq

from tornado_rbkit.protocol import DEFAULT_PUB_PORT, DEFAULT_REQ_PORT, RbkitError

PUB_VARIABLE: Final = "RBKIT_PUB_PORT"
REQ_VARIABLE: Final = "RBKIT_REQ_PORT"

HIGH_WATER_MARK: Final = 1000
"""Messages that wait for one subscriber, as rbkit's; a subscriber that has more waiting loses what follows."""


class BindError(RbkitError, OSError):
    """An endpoint that cannot be bound; `endpoint` is which, `errno` is why."""

    def __init__(self, number: int, text: str, endpoint: str) -> None:
        super().__init__(number, f"{text}: {endpoint}")
        self.endpoint = endpoint


def pub_endpoint(given: str | None) -> str:
    """Return the endpoint of the PUB socket: the one given, else RBKIT_PUB_PORT's, else 127.0.0.1:5555.

    Raises:
        BindError: RBKIT_PUB_PORT is not a port.
    """
    return given or _from_environment(PUB_VARIABLE, DEFAULT_PUB_PORT)


def req_endpoint(given: str | None) -> str:
    """Return the endpoint of the REP socket: the one given, else RBKIT_REQ_PORT's, else 127.0.0.1:5556.

    Raises:
        BindError: RBKIT_REQ_PORT is not a port.
    """
    return given or _from_environment(REQ_VARIABLE, DEFAULT_REQ_PORT)


def _from_environment(variable: str, default: int) -> str:
    port = os.environ.get(variable, "") or str(default)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise BindError(errno.EINVAL, f"{variable} must be a port, 1 to 65535", port)
    return f"tcp://127.0.0.1:{port}"


def bind(context: zmq.Context[Any], kind: int, endpoint: str) -> tuple[zmq.Socket[bytes], str]:
    """Return a bound socket and the endpoint it really has (a port for ``*``). The caller closes it.

    The socket file of an ``ipc://`` endpoint is made with the permissions 0600: the umask is set around the bind,
    for some microseconds, because a chmod afterwards would leave a moment in which others could connect.

    Raises:
        BindError: the endpoint is taken, malformed, or may not be bound.
    """
    port = endpoint.rpartition(":")[2]
    if endpoint.startswith("tcp://") and port.isdigit() and int(port) > 65535:  # libzmq takes it modulo 65536
        raise BindError(errno.EINVAL, "a port is at most 65535", endpoint)
    if endpoint.startswith("ipc://@"):
        raise BindError(errno.EINVAL, "an abstract socket has no permissions, give a path", endpoint)
    if endpoint.startswith("ipc://") and _answers(endpoint.removeprefix("ipc://")):
        raise BindError(errno.EADDRINUSE, "in use by another program", endpoint)  # libzmq would take it over
    sock: zmq.Socket[bytes] = context.socket(kind)
    sock.linger = 0
    sock.sndhwm = HIGH_WATER_MARK
    before = os.umask(0o177) if endpoint.startswith("ipc://") else None
    try:
        sock.bind(endpoint)
    except zmq.ZMQError as error:
        sock.close(0)
        why = "in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
        raise BindError(error.errno or errno.EINVAL, why, endpoint) from error
    finally:
        if before is not None:
            os.umask(before)
    return sock, sock.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def unlink(endpoint: str) -> None:
    """Remove the socket file of an ``ipc://`` endpoint that was closed; libzmq leaves it behind."""
    if endpoint.startswith("ipc://"):
        Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)


def _answers(path: str) -> bool:
    """Return True if a process accepts connections on this socket file."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return True  # a file of somebody's, which libzmq would remove
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def release_inherited(endpoints: list[str]) -> None:
    """Close what a forked child inherited of its parent's sockets, at these endpoints.

    Without it the port would stay taken, and clients would hang, for as long as a child outlives its parent. Only
    for the child, after the fork, where no ZMQ thread runs. Does nothing where descriptors cannot be listed.
    """
    for descriptor in _descriptors():
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as probe:
                address = probe.getsockname()
        except OSError:  # the listing's own descriptor, or a socket without an address
            continue
        if any(_is_at(address, endpoint) for endpoint in endpoints):
            os.close(descriptor)


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd") if name.isdigit()]
    except OSError:
        return []


def _is_at(address: Any, endpoint: str) -> bool:
    if endpoint.startswith("ipc://"):
        return bool(address == endpoint.removeprefix("ipc://"))
    parts = urlsplit(endpoint)
    if not isinstance(address, tuple) or address[1] != parts.port:
        return False
    return parts.hostname in ("0.0.0.0", "::") or address[0] == parts.hostname  # noqa: S104 - nothing is bound here
