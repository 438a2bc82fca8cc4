"""The connection to one profiler: its ZMQ sockets, on a thread of their own or on the web server's loop.

`monitored_socket` connects a socket, `requester` sends commands, `source` takes messages off the SUB socket, `losses`
counts gaps between them, `encoder` encodes them, and `subscriber` paces them; `sockets` owns both sockets.
`zmq_upstream` opens and closes them for a bridge, and is the only module in which calls cross threads. The bridge uses
`zmq_upstream`, `options`, `iothread`, and `types`: the protocol that any transport implements, and its values.

From the rest of the package, imports only `protocol`, `frames`, `endpoints`, `deadline` and `log_throttle`.
"""
