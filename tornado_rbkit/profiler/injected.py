"""Runs the profiler of a process into which `injection` has put it, until the commands that wanted it have ended.

A command holds a connection to the process. Its end, even by SIGKILL, is the end of the connection.
"""

from __future__ import annotations

import _socket
import json
import os
from functools import partial
from typing import Any, Final

from tornado_rbkit.profiler.follow import SAMPLING_INTERVAL
from tornado_rbkit.profiler.lifecycle import current_server, start_server, stop_server
from tornado_rbkit.profiler.server import Server
from tornado_rbkit.profiler.threads import InternalThread, original

_lock: Any = original("allocate_lock")()
_commands: Final[dict[Server, int]] = {}
"""The number of commands for each server that was started here."""

_connections: Final[set[_socket.socket]] = set()
_hooked = False


def serve(connection: _socket.socket) -> None:
    """Start the profiler, unless it runs already, and stop it at the end of the last connection. Any thread.

    Returns immediately. The connection receives one line of JSON: the server, or why there is none.
    """
    global _hooked
    if not _hooked:
        _hooked = True
        os.register_at_fork(after_in_child=_after_fork_in_child)
    InternalThread(partial(_serve, connection), "rbkit-injected")


def _serve(connection: _socket.socket) -> None:
    if _has_ended(connection):
        connection.close()
        return
    _connections.add(connection)
    try:
        server = _enter()
    except Exception as error:  # noqa: BLE001 - the command reports it
        _send(connection, {"refused": f"its profiler did not start: {type(error).__name__}: {error}"})
    else:
        facts = {"name": server.name, "pub": server.pub, "req": server.req, "family": server.family}
        file, is_new = server.file, server in _commands
        _send(connection, {**facts, "folder": "" if file is None else str(file.parent), "is_new": is_new})
        _wait_for_end(connection)
        _leave(server)
    finally:
        _connections.discard(connection)
        connection.close()


def _enter() -> Server:
    with _lock:
        server = current_server()
        if server is None:
            server = start_server()
            server.call(lambda profile: setattr(profile.cpu, "interval", SAMPLING_INTERVAL))
            _commands[server] = 0
        if server in _commands:
            _commands[server] += 1
        return server


def _leave(server: Server) -> None:
    with _lock:
        if server not in _commands:
            return
        _commands[server] -= 1
        if not _commands[server]:
            del _commands[server]
            if current_server() is server:
                stop_server()


def _send(connection: _socket.socket, facts: dict[str, object]) -> None:
    try:
        connection.sendall(json.dumps(facts).encode() + b"\n")
    except OSError:  # the command has ended
        return


def _has_ended(connection: _socket.socket) -> bool:
    try:
        return not connection.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:  # reset
        return True


def _wait_for_end(connection: _socket.socket) -> None:
    try:
        while connection.recv(1):
            pass
    except OSError:  # reset
        return


def _after_fork_in_child() -> None:
    global _lock
    _lock = original("allocate_lock")()
    _commands.clear()
    for connection in _connections:
        connection.close()
    _connections.clear()
