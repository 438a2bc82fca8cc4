"""One profiler, many clients: fan-out in one direction, commands in the other. Web loop only.

`bridge.Bridge` holds the `clients`; on a WebSocket each has a `session`, with its commands and replies, and an
`outbox`, its send queue, whose `backlog` is bounded; `keepalive` decides about its pings. `fanout` paces deliveries to
all clients, `commands` is the queue in front of the profiler, `own_commands` are the bridge's own, `profiler_state`
records the facts about the profiler, `summary` describes it in a list of many, and `settings` has every option. `pool`
has the thread that many bridges share.

Imports `upstream` and the modules that `upstream` may import. The web handlers are described by protocols
(`session.CommandRules`).
"""
