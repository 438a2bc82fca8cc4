"""The connection to one profiler: its ZMQ sockets, on a thread of their own or on the web server's loop.

Published messages come from `monitored_socket` through `subscriber`, which paces and encodes them, and commands go
through `requester`; `sockets` has both. `connection` is the one place where threads meet, and `lifeline` opens,
replaces and closes connections for a bridge. The bridge uses `lifeline`, `options`, `iothread`, and the value types
`State`, `Batch` and `Outcome`.

Imports nothing of this package but `protocol`, `frames`, `endpoints`, `deadline` and `log_throttle`.
"""
