"""Runs the profiler of a process into which `injection` has put it, until the commands that wanted it have ended.

A command holds a connection to the process. Its end, even by SIGKILL, is the end of the connection. The commands also
receive the log messages of the profiler, which the process does not log.
"""

from __future__ import annotations

import _socket
import glob  # noqa: F401 - now, because pathlib of Python 3.15 imports it later, when the finders would be asked
import json
import logging
import os
from functools import partial
from typing import Any, Final

from tornado_rbkit.profiler.lifecycle import current_server, start_run_server, stop_server
from tornado_rbkit.profiler.server import Server
from tornado_rbkit.profiler.threads import InternalThread, original

_lock: Any = original("allocate_lock")()
_commands: Final[dict[Server, int]] = {}
"""The number of commands for each server that was started here."""

_connections: Final[set[_socket.socket]] = set()
_hooked = False


class _Reports(logging.Handler):
    """Sends the profiler's log messages to the commands."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Send a message. In contrast to other handlers it takes no lock, which gevent or eventlet may have made."""
        error = record.exc_info and record.exc_info[1]
        text = record.getMessage() + (f" ({type(error).__name__}: {error})" if error else "")
        data = _line({"log": text})
        for connection in list(_connections):
            try:
                connection.send(data, _socket.MSG_DONTWAIT)
            except OSError:  # the command has ended, or does not receive
                continue
        return True


_logger: Final = logging.getLogger("tornado_rbkit")
_reports: Final = _Reports(logging.WARNING)


def serve(connection: _socket.socket) -> None:
    """Start the profiler, unless it runs already, and stop it at the end of the last connection. Any thread.

    Returns immediately. The connection receives one line of JSON: the server, or why there is none.
    """
    global _hooked
    if not _hooked:
        _hooked = True
        os.register_at_fork(after_in_child=_after_fork_in_child)
    InternalThread(partial(_serve, connection), "rbkit-injected", controls=True)


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
            _logger.addHandler(_reports)
            _logger.propagate = False
            try:
                server = start_run_server()
            except BaseException:
                _end_reports()
                raise
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
            _end_reports()


def _end_reports() -> None:
    _logger.removeHandler(_reports)
    _logger.propagate = True


def _line(facts: dict[str, object]) -> bytes:
    return json.dumps(facts).encode() + b"\n"


def _send(connection: _socket.socket, facts: dict[str, object]) -> None:
    try:
        connection.sendall(_line(facts))
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
    _end_reports()
    for connection in _connections:
        connection.close()
    _connections.clear()
