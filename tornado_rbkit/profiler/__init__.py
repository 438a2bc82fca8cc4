"""An rbkit 2.1 server inside a Python process, for any rbkit client.

    from tornado_rbkit import profiler

    profiler.start_server()

Nothing is measured until a client or `start_profiling` asks for it.

`lifecycle` starts the one `server` of the process, whose `profile` answers the commands with the instruments: `cpu`,
`memory`, `heap` for snapshots, and `vitals`. Each packs its events with `packing` into the `batcher`.

- Stacks: `frames` reads them and `frame_cache` names them; `clocks` and `run_state` find the threads that compute,
  `tasks` the asyncio tasks that run, and `collection_times` the collections of the garbage collector. `task_waits`
  publishes where the suspended tasks wait, which `suspended` reads with `task_classes`, `await_chains` and
  `event_loops`.
- Objects: `tracked` lists them, `objects` and `sizes` inspect them, `references`, `attributes` and `variables` name
  what they hold, all without running the host's code (`uninterrupted`); `comparison` compares two lists, by their
  `alignment` and within a `budget`, and `changes` has the objects created between them.
- Reachability: `endpoints` binds the sockets and `listeners` keeps them open, `folder` is where `discovery` finds
  servers, and `follow`, with the package `startup`, starts a server in child processes. `arguments` checks arguments,
  `threads` has the profiler's own threads, `real_time` the clocks, and `running_time` measures without pauses.
- `injection` puts the profiler into a running process, where `injected` runs it; `script_request` tells whether the
  process has taken the script for that.
- `stacks` samples a block of code without a server, `external` another process; `demo` runs the `workload`.

Of this package, `web` may use `discovery`, `endpoints` and `vitals`, `fleet` may use `folder`, and `cli` and `jupyter`
everything. It imports only `tornado_rbkit.protocol`, `endpoints` and `errors`, besides pyzmq and msgpack, because a
profiled process should load nothing more.
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
