"""Many hosts, one page: agents on the hosts and bridges behind a NATS server. Needs the extra ``fleet``.

An agent serves the profilers of its host to bridges: it is a `Bridge` per profiler whose clients are bridges. A bridge
is a `Bridge` whose profiler is an agent. `subjects` has the names on the wire, `framing` the frames of a stream with
its credit and losses, both without I/O. `link` is the connection to NATS, and the only module that uses nats-py.
`agent` and `lease` are the host's end, `transport` and `targets` the bridge's; `nats` checks the address and the
credentials, `local` runs a server for one machine, and `hub` keeps the keys and the configuration of a server.

Imports `bridge`, `upstream` and what they may import, and the runtime folder of `profiler`.
"""
