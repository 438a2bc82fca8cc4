"""The Tornado handlers: who may connect, the WebSocket, the pages and the routes that mount them.

`routes.rbkit_routes` mounts everything. `access` has the rules that each handler asks, `guesses` slows down wrong
tokens, `websocket` connects a client to a bridge, `pages`, `metrics` and `dashboard` serve the rest. `discovered`
keeps one bridge for each profiled process of this machine.

Imports `bridge` and what that may import; `discovered` also imports `tornado_rbkit.profiler.discovery`.
"""
