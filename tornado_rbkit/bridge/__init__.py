"""One profiler, many clients: fan-out in one direction, commands in the other. Web loop only.

`bridge.Bridge` holds the `clients`; each has a `session`, with its commands and replies, and an `outbox`, its bounded
way onto the WebSocket. `fanout` paces deliveries to all of them, `commands` is the queue in front of the profiler,
`target` and `probe` know the profiler's state, and `settings` has every option.

Imports `upstream` and what that may import. What it needs of the web handlers are protocols (`session.CommandRules`).
"""
