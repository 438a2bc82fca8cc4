"""ZMQ endpoints: which a socket can connect to, rbkit's defaults, sockets to bind, and the descriptors they need."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, Final

import zmq

from tornado_rbkit.protocol import RbkitError

MAX_IPC_PATH: Final = 107 if sys.platform.startswith("linux") else 103
"""Bytes, of sockaddr_un's sun_path."""

MAX_REQUEST_BYTES: Final = 1 << 20
"""Bytes in one part of a request, or one subscription; a longer one ends its connection (ZMQ_MAXMSGSIZE)."""

_TCP: Final = re.compile(r"tcp://(\[[0-9A-Fa-f:.]+(%\w+)?\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})", re.ASCII)

_COUNT: Final = 24
"""More than enough: a ZMQ context has 5, two connected sockets with their monitors 8, a thread's loop 3."""


class EndpointError(RbkitError, ValueError):
    """An endpoint that no socket can connect to."""


def check_endpoint(endpoint: str, setting: str) -> str:
    """Return `endpoint` if a socket can connect to it.

    Args:
        endpoint: a ZMQ endpoint.
        setting: what the user calls it, for the message.

    Raises:
        EndpointError: it is neither ``tcp://HOST:PORT`` nor ``ipc://PATH``.
    """
    if isinstance(endpoint, str) and (_is_tcp(endpoint) or _is_ipc(endpoint)):
        return endpoint
    text = f"{setting}={endpoint!r} is not an endpoint; allowed: tcp://HOST:PORT or ipc://PATH"
    raise EndpointError(text + f", the path at most {MAX_IPC_PATH} bytes" * str(endpoint).startswith("ipc:"))


def _is_tcp(endpoint: str) -> bool:
    match = _TCP.fullmatch(endpoint)
    return match is not None and 0 < int(match["port"]) < 65536


def _is_ipc(endpoint: str) -> bool:
    """Return whether libzmq, to which pyzmq gives UTF-8 that ends at a NUL, sees the path that was meant."""
    path = endpoint.removeprefix("ipc://")
    try:
        return path != endpoint and "\0" not in path and 0 < len(path.encode()) <= MAX_IPC_PATH
    except UnicodeEncodeError:
        return False


def default_endpoint(variable: str, port: int) -> str:
    """Return the endpoint on 127.0.0.1 whose port an environment variable has, or else `port`.

    Raises:
        EndpointError: the variable is not a port.
    """
    given = os.environ.get(variable) or str(port)
    if not re.fullmatch(r"[0-9]{1,5}", given) or not 0 < int(given) < 65536:
        raise EndpointError(f"{variable}={given!r} is not a port; allowed: 1 to 65535")
    return f"tcp://127.0.0.1:{given}"


def server_socket(context: zmq.Context[Any], kind: int) -> zmq.Socket[bytes]:
    """Return a socket to bind, to which only peers that speak ZMTP 3 can connect. Every server here uses it.

    libzmq takes a connection that does not begin with 0xFF for ZMTP 1, and would run a command in the body of a POST
    from any web page. With a ZAP domain (ZMQ_ZAP_DOMAIN) it refuses peers that cannot authenticate, as those of
    ZMTP 1 and 2 cannot; without a ZAP handler it accepts all others.
    """
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.setsockopt(zmq.ZAP_DOMAIN, b"rbkit")
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
    return socket


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
