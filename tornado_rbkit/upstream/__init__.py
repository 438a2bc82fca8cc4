"""The connection to one profiler: its ZMQ sockets, on a thread of their own or on the web server's loop.

`monitored_socket` connects a socket, `subscriber` receives, paces and encodes published messages, and `requester`
sends commands; `sockets` combines the three. `connection` is the only module in which calls cross threads. `lifeline`
opens, replaces and closes connections for a bridge. The bridge uses `lifeline`, `options`, `iothread`, and the value
types `State`, `Reach`, `Batch` and `Outcome`.

From the rest of the package, imports only `protocol`, `frames`, `endpoints`, `deadline` and `log_throttle`.
"""
