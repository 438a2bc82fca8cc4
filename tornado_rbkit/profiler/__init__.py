"""An rbkit 2.1 server inside a Python process, for any rbkit client.

    from tornado_rbkit import profiler

    profiler.start_server()

Nothing is measured until a client or `start_profiling` asks for it.
"""

from tornado_rbkit.profiler.arguments import ArgumentError
from tornado_rbkit.profiler.discovery import RunningServer, list_servers
from tornado_rbkit.profiler.endpoints import BindError
from tornado_rbkit.profiler.folder import RuntimeFolderError
from tornado_rbkit.profiler.frames import SamplingError
from tornado_rbkit.profiler.lifecycle import (
    AlreadyRunningError,
    current_server,
    start_profiling,
    start_server,
    stop_server,
)
from tornado_rbkit.profiler.server import Server

__all__ = [
    "AlreadyRunningError",
    "ArgumentError",
    "BindError",
    "RunningServer",
    "RuntimeFolderError",
    "SamplingError",
    "Server",
    "current_server",
    "list_servers",
    "start_profiling",
    "start_server",
    "stop_server",
]
