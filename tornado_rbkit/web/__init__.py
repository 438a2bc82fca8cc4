"""The Tornado handlers: the WebSocket, the pages, their access rules and the routes that mount them.

`routes.rbkit_routes` mounts everything. `access` has the rules that each handler checks, `guesses` delays the answers
to wrong tokens, `websocket` connects a client to a bridge, `pages`, `metrics` and `dashboard` serve the rest, of which
`overview` makes the document of all targets. `discovered` keeps one bridge for each profiled process on this machine.

Imports `bridge` and the packages that it may import, and `discovery`, `endpoints` and `vitals` of
`tornado_rbkit.profiler`.
"""
