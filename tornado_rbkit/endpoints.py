"""ZMQ endpoints: validation, rbkit's defaults, sockets to bind, and the file descriptors that sockets need."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from typing import Any, Final

import zmq

from tornado_rbkit.errors import EndpointError

MAX_IPC_PATH: Final = 107 if sys.platform.startswith("linux") else 103
"""Bytes that fit into sun_path of sockaddr_un."""

MAX_REQUEST_BYTES: Final = 1 << 20
"""Bytes in one part of a request, or one subscription; a longer one ends its connection (ZMQ_MAXMSGSIZE)."""

_TCP: Final = re.compile(r"tcp://(?:\[(?P<ipv6>[^\]]+)\]|(?P<name>[^:\[\]]+)):(?P<port>\d{1,5})", re.ASCII)
_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
_MAX_NAME: Final = 253
"""Characters of a host name (RFC 1035, section 2.3.4: 255 bytes on the wire)."""

_COUNT: Final = 24
"""File descriptors, more than needed: a ZMQ context takes 5, two sockets with their monitors 8, a thread's loop 3."""


def check_endpoint(endpoint: str, setting: str) -> str:
    """Return `endpoint` if a socket can connect to it.

    Args:
        endpoint: a ZMQ endpoint.
        setting: the name of the setting, for the error message.

    Raises:
        EndpointError: `endpoint` is neither ``tcp://HOST:PORT`` nor ``ipc://PATH``, or the path is too long.
    """
    if isinstance(endpoint, str) and (_is_tcp(endpoint) or _is_ipc(endpoint)):
        return endpoint
    text = f"{setting}={endpoint!r} is not an endpoint; allowed: tcp://HOST:PORT or ipc://PATH"
    raise EndpointError(text + f", the path at most {MAX_IPC_PATH} bytes" * str(endpoint).startswith("ipc:"))


def _is_tcp(endpoint: str) -> bool:
    match = _TCP.fullmatch(endpoint)
    if match is None or not 0 < int(match["port"]) < 65536:
        return False
    return _is_ipv6(match["ipv6"]) if match["ipv6"] else _is_name(match["name"])


def _is_ipv6(address: str) -> bool:
    """Return whether this is an IPv6 address; only a link-local one can have a zone ("%eth0")."""
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return parsed.is_link_local or parsed.scope_id is None


def _is_name(host: str) -> bool:
    """Return whether this is a host name or an IPv4 address; a text that ends in a number must be an address."""
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdecimal():
        try:
            return str(ipaddress.IPv4Address(host)) == host
        except ValueError:
            return False
    return len(host) <= _MAX_NAME and all(map(_LABEL.fullmatch, labels))


def _is_ipc(endpoint: str) -> bool:
    """Return whether the path reaches libzmq unchanged: pyzmq passes it as NUL-terminated UTF-8."""
    path = endpoint.removeprefix("ipc://")
    try:
        return path != endpoint and "\0" not in path and 0 < len(path.encode()) <= MAX_IPC_PATH
    except UnicodeEncodeError:
        return False


def default_endpoint(variable: str, port: int) -> str:
    """Return the endpoint on 127.0.0.1 with the port from an environment variable, by default `port`.

    Raises:
        EndpointError: the value of the variable is not a port.
    """
    given = os.environ.get(variable) or str(port)
    if not re.fullmatch(r"[0-9]{1,5}", given) or not 0 < int(given) < 65536:
        raise EndpointError(f"{variable}={given!r} is not a port; allowed: 1 to 65535")
    return f"tcp://127.0.0.1:{given}"


def server_socket(context: zmq.Context[Any], kind: int) -> zmq.Socket[bytes]:
    """Return a socket to bind that only accepts ZMTP 3 peers. All servers in this package use it.

    libzmq treats a connection that does not begin with 0xFF as ZMTP 1, so the body of a POST request from any web page
    could carry a command. With a ZAP domain (ZMQ_ZAP_DOMAIN) libzmq refuses peers that cannot authenticate, which
    includes ZMTP 1 and 2 peers; without a ZAP handler it accepts all other peers.
    """
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.setsockopt(zmq.ZAP_DOMAIN, b"rbkit")
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES)
    return socket


def require_descriptors() -> None:
    """Check that enough file descriptors are left for two ZMQ sockets; libzmq would abort the process. Any thread.

    Raises:
        OSError: too few file descriptors are left.
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
