"""Many hosts, one page: agents on the hosts and bridges behind a NATS server. Needs the extra ``fleet``.

An agent serves the profilers of its host to other machines: it has a `Bridge` for each profiler, whose clients are the
bridges there. Such a bridge is a `Bridge` whose profiler is an agent. `subjects` has the names on the wire, `framing`
the frames of a stream with its credit and losses, `hello` the announcement of an agent and `vitals` the figures of
processes, all without I/O. `link` is the connection to NATS, and the only module that uses nats-py. `agent` is the
host's end; its parts are `announcer`, `leases` with each `lease`, and `vitals_publisher`. `control`, `transport` and
`targets` are the bridge's end. `nats` checks the address and the credentials, `server` runs a server for one machine,
and `hub` keeps the keys and the configuration of a server.

Imports `bridge`, `upstream` and what they may import, and the runtime folder of `profiler`.
"""
