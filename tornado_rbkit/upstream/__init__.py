"""The connection to one profiler, on a thread of its own or on the web server's loop.

`monitored_socket` connects a socket, `requester` sends commands, `source` takes messages from the SUB socket, `losses`
counts gaps between them, `encoder` encodes them, and `subscriber` paces them; `sockets` owns both sockets, and has the
endpoint from which they are made. `upstream` opens and closes connections for a bridge, over any transport, and is the
only module in which calls cross threads. The bridge uses `upstream`, `options`, `iothread`, `sockets.ZmqEndpoint`, and
`types`: the protocols that another transport implements, and their values.

From the rest of the package, imports only `protocol`, `frames`, `endpoints`, `deadline` and `log_throttle`.
"""
