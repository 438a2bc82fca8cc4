"""Binds a server's endpoints, checks whether they accept connections, and releases them in a forked child."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import zmq

from tornado_rbkit.endpoints import MAX_IPC_PATH, server_socket
from tornado_rbkit.errors import RbkitError
from tornado_rbkit.profiler.folder import prepare_folder, remove_file, runtime_folder, temporary_folder
from tornado_rbkit.profiler.threads import internal_logger

_DEFAULTS: Final = {zmq.XPUB: ("RBKIT_PUB_PORT", "pub"), zmq.REP: ("RBKIT_REQ_PORT", "req")}
"""By kind of socket: the environment variable for its port, and the suffix of its socket file."""

_UNIX_SOCKETS: Final = os.name != "nt" and hasattr(socket, "AF_UNIX")
_FOLDERS: Final[tuple[Callable[[], Path], ...]] = (
    runtime_folder,
    lambda: temporary_folder(tempfile.gettempdir()),
    lambda: temporary_folder("/tmp"),  # noqa: S108 - the user's own folder in it, which is checked
)

HIGH_WATER_MARK: Final = 1000
"""Messages that may wait for one subscriber, as in rbkit; a subscriber with a full queue loses further messages."""

_BACKLOG: Final = 100
"""Connections that may wait to be accepted, as in libzmq (ZMQ_BACKLOG)."""

_PROBE_SECONDS: Final = 0.05
"""How long connecting on this machine may take; beyond that, the connection waits in the backlog of a busy process."""

_log = internal_logger(__name__)


class BindError(RbkitError, OSError):
    """An endpoint cannot be bound; `endpoint` names it, `errno` and `reason` say why."""

    exit_status = 2

    def __init__(self, number: int, reason: str, endpoint: str) -> None:
        super().__init__(number, reason)
        self.reason = reason
        self.endpoint = endpoint

    def __str__(self) -> str:
        """Return the text without the number, which says less than `reason`."""
        return f"{self.reason}: {self.endpoint}"


def bind_chosen(
    context: zmq.Context[Any], kind: zmq.SocketType, given: str | None, key: str
) -> tuple[zmq.Socket[bytes], str]:
    """Return a socket bound to the given endpoint, to the port in the environment, or to a default endpoint.

    If the port in the environment is in use, as in the second worker process of a web server, this is logged and the
    default is used. The default is a Unix socket in the runtime folder or, if that cannot be used or its path is too
    long, in the user's folder for temporary files. If neither can be used, it is a free port on 127.0.0.1, which is
    logged, since other users can connect to it. See `bind` for the rest.

    Args:
        context: the context of the server's sockets.
        kind: PUB or REP.
        given: an endpoint; if None, the port in RBKIT_PUB_PORT or RBKIT_REQ_PORT is used, if that is set.
        key: the name of the default endpoint's file, from `unique_key`.

    Raises:
        BindError: the given endpoint is in use, or it or the variable's port is malformed or may not be bound.
    """
    if given:
        return bind(context, kind, given)
    variable, suffix = _DEFAULTS[kind]
    port = os.environ.get(variable)
    if port:
        try:
            return _bind_to_port(context, kind, variable, port)
        except BindError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _log.warning("the profiler takes another socket, which `tornado-rbkit list` shows: %s", error)
    reasons = []
    for find_folder in _FOLDERS if _UNIX_SOCKETS else ():
        try:
            path = find_folder() / f"{key}.{suffix}"
            if not str(path).isprintable():
                raise BindError(errno.EINVAL, "the path of a socket must be printable", repr(str(path)))
            prepare_folder(path.parent)
            return bind(context, kind, f"ipc://{path}")
        except OSError as error:
            reasons.append(str(error))
    sock, endpoint = bind(context, kind, "tcp://127.0.0.1:*")
    if reasons and kind == zmq.REP:
        _log.warning("every user of this machine can command the profiler at %s: %s", endpoint, "; ".join(reasons))
    return sock, endpoint


def _bind_to_port(
    context: zmq.Context[Any], kind: zmq.SocketType, variable: str, port: str
) -> tuple[zmq.Socket[bytes], str]:
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise BindError(errno.EINVAL, f"{variable} must be a port, 1 to 65535", port)
    try:
        return bind(context, kind, f"tcp://127.0.0.1:{port}")
    except BindError as error:
        raise BindError(error.errno or errno.EINVAL, f"{variable}: {error.reason}", error.endpoint) from error


def bind(context: zmq.Context[Any], kind: int, endpoint: str) -> tuple[zmq.Socket[bytes], str]:
    """Return a bound socket and its actual endpoint (with a port for ``*``). The caller closes the socket.

    A ZMQ socket belongs to one thread (zmq_socket(3)), so call this on the thread that will use it.

    Raises:
        BindError: the endpoint is in use, malformed, or may not be bound.
    """
    port = endpoint.rpartition(":")[2]
    if endpoint.startswith("tcp://") and port.isdigit() and int(port) > 65535:  # libzmq takes it modulo 65536
        raise BindError(errno.EINVAL, "a port is at most 65535", endpoint)
    if endpoint.startswith("ipc://@"):
        raise BindError(errno.EINVAL, "an abstract socket has no permissions, give a path", endpoint)
    sock = server_socket(context, kind)
    try:
        sock.linger = 0
        sock.sndhwm = HIGH_WATER_MARK
        if endpoint.startswith("ipc://") and endpoint != "ipc://*" and _UNIX_SOCKETS:
            _bind_to_file(sock, endpoint)
        else:  # for "ipc://*" libzmq makes a folder that only its owner can access
            sock.bind(endpoint)
    except BindError:
        sock.close(0)
        raise
    except (zmq.ZMQError, OSError) as error:
        sock.close(0)
        why = "in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
        raise BindError(error.errno or errno.EINVAL, why, endpoint) from error
    return sock, sock.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def same_endpoint(given: str, bound: str) -> bool:
    """Return True if binding to `given` could have given `bound`, an endpoint that `bind` returned.

    Names of interfaces, and of hosts other than localhost, are not resolved.
    """
    if given.endswith("*"):  # any endpoint of its kind matches
        return given.partition(":")[0] == bound.partition(":")[0]
    if given.startswith("ipc://") and bound.startswith("ipc://"):
        return os.path.realpath(given.removeprefix("ipc://")) == os.path.realpath(bound.removeprefix("ipc://"))
    return _tcp_address(given) == _tcp_address(bound)


def _tcp_address(endpoint: str) -> tuple[str, str]:
    host, _, port = endpoint.lower().rpartition(":")
    host = host.removeprefix("tcp://").strip("[]")
    host = {"localhost": "127.0.0.1", "*": "0.0.0.0"}.get(host, host)  # noqa: S104 - nothing is bound here
    with contextlib.suppress(ValueError):
        host = ipaddress.ip_address(host).compressed
    return host, port.lstrip("0")


def _bind_to_file(sock: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind to a socket file with the permissions 0600, which are set before anybody can connect.

    Nobody can connect between bind and listen, so both are called here, and the socket is passed to libzmq
    (ZMQ_USE_FD). A umask around libzmq's bind would apply to every thread.
    """
    path = endpoint.removeprefix("ipc://")
    if len(os.fsencode(path)) > MAX_IPC_PATH:
        raise BindError(errno.ENAMETOOLONG, f"a socket's path is at most {MAX_IPC_PATH} bytes", endpoint)
    if _answers(path):
        raise BindError(errno.EADDRINUSE, "in use by another program", endpoint)  # libzmq would replace its file
    with socket.socket(socket.AF_UNIX) as listener:
        Path(path).unlink(missing_ok=True)  # left over from a killed process
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        sock.setsockopt(zmq.USE_FD, listener.fileno())
        sock.bind(endpoint)
        listener.detach()  # libzmq closes it from now on


def hidden_file(endpoint: str) -> Path:
    """Return the name of a socket's file while no client can connect; see `listeners`."""
    return Path(f"{endpoint.removeprefix('ipc://')}.hidden")


def remove_files(endpoint: str) -> None:
    """Remove the file of a Unix socket, by either name; libzmq leaves it behind."""
    remove_file(Path(endpoint.removeprefix("ipc://")))
    if os.path.lexists(hidden_file(endpoint)):
        remove_file(hidden_file(endpoint))


def restore(sock: zmq.Socket[bytes], endpoint: str) -> None:
    """Listen again at an endpoint of `bind_chosen` if its file or folder was removed; connections stay open.

    Raises:
        OSError: the folder cannot be used, or the endpoint cannot be bound; the call can be repeated.
    """
    path = Path(endpoint.removeprefix("ipc://"))
    if os.path.lexists(path):
        return
    prepare_folder(path.parent)
    with contextlib.suppress(zmq.ZMQError):  # an earlier call has unbound it
        sock.unbind(endpoint)
    try:
        _bind_to_file(sock, endpoint)
    except zmq.ZMQError as error:
        raise BindError(error.errno or errno.EINVAL, f"cannot be bound ({error.strerror})", endpoint) from error


def _answers(path: str) -> bool:
    """Return True if a process accepts connections on this socket file."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return True  # another kind of file, which libzmq would remove
    except OSError:
        return False
    return _connects(socket.AF_UNIX, path)


def accepts(endpoint: str) -> bool:
    """Return whether a process accepts connections at an endpoint. Any thread; takes at most `_PROBE_SECONDS`.

    The result is also True for an address that is neither a Unix socket nor loopback, which is not probed.

    Raises:
        OSError: there are too few file descriptors.
    """
    if endpoint.startswith("ipc://"):
        return not _UNIX_SOCKETS or _connects(socket.AF_UNIX, endpoint.removeprefix("ipc://"))
    try:
        parts = urlsplit(endpoint)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname or "", parts.hostname or "")  # noqa: S104
        address = ipaddress.ip_address(host)
        port = parts.port
    except ValueError:
        return True
    if parts.scheme != "tcp" or not port or not address.is_loopback:
        return True
    return _connects(socket.AF_INET if address.version == 4 else socket.AF_INET6, (host, port))


def _connects(family: int, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(address)
        except (TimeoutError, BlockingIOError):
            return os.name != "nt"  # the backlog is full: the process is stopped or busy. Windows refuses this slowly
        except OSError:
            return False
    return True


def release_inherited(endpoints: list[str]) -> None:
    """Close the sockets at these endpoints that a forked child inherited from its parent.

    Otherwise the port would stay in use, and clients would hang, for as long as a child outlives its parent. Call it
    only in the child, after the fork, where no ZMQ thread runs. Does nothing if descriptors cannot be listed.
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
