"""The dashboard's page and its sources; no Python.

The scripts in ``src`` are bundled into ``static`` when the package is built (setup.py). `tornado_rbkit.web.dashboard`
has the handlers that serve them. The page talks to the WebSocket beside it, and to no other server.
"""
