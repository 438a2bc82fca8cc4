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

from tornado_rbkit.endpoints import MAX_IPC_PATH
from tornado_rbkit.protocol import DEFAULT_PUB_PORT, DEFAULT_REQ_PORT, RbkitError

PUB_VARIABLE: Final = "RBKIT_PUB_PORT"
REQ_VARIABLE: Final = "RBKIT_REQ_PORT"

HIGH_WATER_MARK: Final = 1000
"""Messages that wait for one subscriber, as rbkit's; a subscriber that has more waiting loses what follows."""

_BACKLOG: Final = 100
"""Connections that wait to be accepted, as libzmq has it (ZMQ_BACKLOG)."""


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

    The socket is its thread's from now on (zmq_socket(3)), so this is for the thread that will use it.

    Raises:
        BindError: the endpoint is taken, malformed, or may not be bound.
    """
    port = endpoint.rpartition(":")[2]
    if endpoint.startswith("tcp://") and port.isdigit() and int(port) > 65535:  # libzmq takes it modulo 65536
        raise BindError(errno.EINVAL, "a port is at most 65535", endpoint)
    if endpoint.startswith("ipc://@"):
        raise BindError(errno.EINVAL, "an abstract socket has no permissions, give a path", endpoint)
    sock: zmq.Socket[bytes] = context.socket(kind)
    try:
        sock.linger = 0
        sock.sndhwm = HIGH_WATER_MARK
        if endpoint.startswith("ipc://") and endpoint != "ipc://*" and hasattr(socket, "AF_UNIX"):
            _bind_to_file(sock, endpoint)
        else:  # for "ipc://*" libzmq makes a folder that is its owner's alone
            sock.bind(endpoint)
    except BindError:
        sock.close(0)
        raise
    except (zmq.ZMQError, OSError) as error:
        sock.close(0)
        why = "in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
        raise BindError(error.errno or errno.EINVAL, why, endpoint) from error
    return sock, sock.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _bind_to_file(sock: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind to a file with the permissions 0600, which nobody can connect to before it has them.

    Between bind and listen nobody can connect, so both are done here, and the socket is given to libzmq
    (ZMQ_USE_FD). A umask around libzmq's bind would be every thread's.
    """
    path = endpoint.removeprefix("ipc://")
    if len(os.fsencode(path)) > MAX_IPC_PATH:
        raise BindError(errno.ENAMETOOLONG, f"a socket's path is at most {MAX_IPC_PATH} bytes", endpoint)
    if _answers(path):
        raise BindError(errno.EADDRINUSE, "in use by another program", endpoint)  # libzmq would take it over
    with socket.socket(socket.AF_UNIX) as listener:
        unlink(endpoint)  # of a process that was killed
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        sock.setsockopt(zmq.USE_FD, listener.fileno())
        sock.bind(endpoint)
        listener.detach()  # it is libzmq's now


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
