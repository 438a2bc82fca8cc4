"""The dashboard's page and its sources; no Python.

The folders of ``src`` follow a message: ``connection`` (the WebSocket, MessagePack and rbkit's wire format),
``worker`` (the Web Worker's thread: the session, its recording, the requests it answers), ``model`` (counts, charts,
call trees and snapshots; no browser needed), ``views`` (the page; ``widgets`` has the parts that views share).

The scripts are bundled into ``static`` when the package is built (setup.py). `tornado_rbkit.web.dashboard` has the
handlers that serve them. The page talks to the WebSocket beside it, and to no other server.
"""
