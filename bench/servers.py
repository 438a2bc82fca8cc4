"""The measured processes: tornado_rbkit, the obvious handler, and the peers, with the same routes.

Each has a WebSocket at ``/ws`` and, where it is an HTTP server too, an unrelated handler at ``/neighbour``. Pings and
compression are off in all of them, except in the benchmark of compression.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import zmq
import zmq.asyncio
from measure import say

Options = dict[str, Any]


# tornado_rbkit, and Tornado as everybody writes it


async def project(options: Options) -> int:
    """The bridge, mounted as the README has it."""
    from tornado.web import Application

    from tornado_rbkit import Bridge, IOLoopThread, rbkit_routes

    feeds = options["feeds"]
    settings = {"ping_interval": 0, **options.get("bridge", {})}
    threaded: bool | IOLoopThread = options["threaded"]
    if len(feeds) > 1 and threaded:
        threaded = IOLoopThread()
        threaded.start()
    bridges = [Bridge(pub, req, threaded=threaded, **settings) for pub, req in feeds]
    names = {str(number): bridge for number, bridge in enumerate(bridges)}
    routes = rbkit_routes(bridges[0] if len(bridges) == 1 else names)
    return listen(Application([*routes, ("/neighbour", tornado_neighbour())]))


async def naive(options: Options) -> int:
    """``on_recv`` on the server's loop, ``write_message`` to each client; a command waits for its reply."""
    from tornado.web import Application
    from tornado.websocket import WebSocketHandler
    from zmq.eventloop.zmqstream import ZMQStream

    pub, req = options["feeds"][0]
    context = zmq.Context.instance()
    sub = context.socket(zmq.SUB)
    sub.subscribe(b"")
    sub.connect(pub)
    requests = context.socket(zmq.REQ)
    requests.connect(req)
    stream, commands = ZMQStream(sub), ZMQStream(requests)
    clients: set[WebSocketHandler] = set()
    asking: list[WebSocketHandler] = []

    class Handler(WebSocketHandler):
        def select_subprotocol(self, subprotocols: list[str]) -> str:
            return "rbkit"

        def get_compression_options(self) -> dict[str, Any] | None:
            return {"compression_level": options["compression"]} if "compression" in options else None

        def open(self) -> None:
            self.set_nodelay(True)
            clients.add(self)

        def on_message(self, message: str | bytes) -> None:
            asking.append(self)
            commands.send(message.encode() if isinstance(message, str) else message)

        def on_close(self) -> None:
            clients.discard(self)

    def publish(parts: list[bytes]) -> None:
        for client in clients:
            client.write_message(b"1" + parts[0], binary=True)

    def reply(parts: list[bytes]) -> None:
        asking.pop(0).write_message(b"0" + parts[0], binary=True)

    stream.on_recv(publish)
    commands.on_recv(reply)
    return listen(Application([("/ws", Handler), ("/neighbour", tornado_neighbour())]))


def tornado_neighbour() -> type:
    from tornado.web import RequestHandler

    class Neighbour(RequestHandler):
        def get(self) -> None:
            self.write("ok")

    return Neighbour


def listen(application: Any) -> int:
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_sockets

    sockets = bind_sockets(0, "127.0.0.1", backlog=2048)
    HTTPServer(application).add_sockets(sockets)
    port: int = sockets[0].getsockname()[1]
    return port


# The peers, with pyzmq's asyncio sockets


def received(options: Options, deliver: Callable[[bytes], Awaitable[None] | None]) -> None:
    """Pass each message to the peer when it arrives."""
    sub = zmq.asyncio.Context.instance().socket(zmq.SUB)
    sub.subscribe(b"")
    sub.connect(options["feeds"][0][0])

    async def run() -> None:
        while True:
            waiting = deliver(b"1" + await sub.recv())
            if waiting is not None:
                await waiting

    KEPT.append(asyncio.create_task(run()))


KEPT: list[Any] = []
"""What asyncio would let go of."""


async def picows(options: Options) -> int:
    from picows import WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

    clients: set[WSTransport] = set()

    class Listener(WSListener):  # type: ignore[misc]
        def on_ws_connected(self, transport: WSTransport) -> None:
            clients.add(transport)

        def on_ws_disconnected(self, transport: WSTransport) -> None:
            clients.discard(transport)

    def publish(message: bytes) -> None:
        for client in clients:
            client.send(WSMsgType.BINARY, message)

    def factory(request: WSUpgradeRequest) -> WSListener:
        return Listener()

    server = await ws_create_server(factory, "127.0.0.1", 0, backlog=2048)
    received(options, publish)
    KEPT.append(server)
    port: int = server.sockets[0].getsockname()[1]
    return port


async def websockets(options: Options) -> int:
    from websockets.asyncio.server import ServerConnection, broadcast, serve

    async def handler(connection: ServerConnection) -> None:
        await connection.wait_closed()

    server = await serve(
        handler, "127.0.0.1", 0, compression=None, ping_interval=None, subprotocols=["rbkit"], backlog=2048
    )
    received(options, lambda message: broadcast(server.connections, message))
    KEPT.append(server)
    port: int = next(iter(server.sockets)).getsockname()[1]
    return port


async def aiohttp(options: Options) -> int:
    from aiohttp import web

    clients: set[web.WebSocketResponse] = set()

    async def handler(request: web.Request) -> web.WebSocketResponse:
        client = web.WebSocketResponse(compress=False, protocols=["rbkit"])
        await client.prepare(request)
        clients.add(client)
        try:
            async for _ in client:
                pass
        finally:
            clients.discard(client)
        return client

    async def neighbour(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def publish(message: bytes) -> None:
        for client in tuple(clients):
            await client.send_bytes(message)

    application = web.Application()
    application.add_routes([web.get("/ws", handler), web.get("/neighbour", neighbour)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
    await site.start()
    received(options, publish)
    port: int = runner.addresses[0][1]
    return port


async def starlette(options: Options) -> int:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

    clients: set[WebSocket] = set()

    async def handler(client: WebSocket) -> None:
        await client.accept("rbkit")
        clients.add(client)
        try:
            while True:
                await client.receive_text()
        except WebSocketDisconnect:
            clients.discard(client)

    async def neighbour(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def publish(message: bytes) -> None:
        for client in tuple(clients):
            await client.send_bytes(message)

    application = Starlette(routes=[Route("/neighbour", neighbour), WebSocketRoute("/ws", handler)])
    config = uvicorn.Config(
        application,
        "127.0.0.1",
        0,
        log_level="error",
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        backlog=2048,
    )
    server = uvicorn.Server(config)
    KEPT.append(asyncio.create_task(server.serve()))
    while not server.started:
        await asyncio.sleep(0.01)
    received(options, publish)
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


# The limits: no server at all, one thread and plain sockets


def raw(options: Options) -> None:
    """Receive all that is ready, join it, ``sendall`` to each client: no loop, no bounds, no other work."""
    import clients as frames

    sub = subscribed(options)
    connections = accept_all(options["clients"])
    while True:
        batch = [sub.recv()]
        size = len(batch[0])
        while size < 1 << 18:
            try:
                batch.append(sub.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
            size += len(batch[-1])
        joined = b"".join(map(frames.frame, batch))
        for connection in connections:
            connection.sendall(joined)


def raw_recv(options: Options) -> None:
    """Receive everything, and deliver only messages that are not event collections."""
    import clients as frames

    sub = subscribed(options)
    connections = accept_all(options["clients"])
    while True:
        message = sub.recv()
        if len(message) < 16:
            for connection in connections:
                connection.sendall(frames.frame(message))


def raw_send(options: Options) -> None:
    """Send prepared data in pieces of 256 KB when ``GO`` arrives, and receive nothing after that."""
    import clients as frames
    import feed

    sub = subscribed(options)
    messages = feed.messages(options["kind"], options["count"])
    load = b"".join([*map(frames.frame, messages), frames.frame(feed.END)])
    connections = accept_all(options["clients"])
    while (message := sub.recv()) != feed.GO:
        for connection in connections:
            connection.sendall(frames.frame(message))
    sub.close(0)
    for connection in connections:
        connection.sendall(frames.frame(feed.GO))
    for at in range(0, len(load), 1 << 18):
        piece = memoryview(load)[at : at + (1 << 18)]
        for connection in connections:
            connection.sendall(piece)
    threading.Event().wait()


def subscribed(options: Options) -> zmq.Socket[bytes]:
    """Return a socket that is subscribed to the feed."""
    sub: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    sub.subscribe(b"")
    sub.connect(options["feeds"][0][0])
    return sub


def accept_all(count: int) -> list[Any]:
    """Report the port, and upgrade a number of clients."""
    import base64
    import hashlib
    import re
    import socket

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    say(port=listener.getsockname()[1])
    connections = []
    for _ in range(count):
        connection, _ = listener.accept()
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += connection.recv(4096)
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
        assert key
        accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections.append(connection)
    return connections


NODE = """
const {WebSocketServer} = require('ws'), zmq = require('zeromq'), http = require('http');
const options = JSON.parse(process.argv[1]);
const web = http.createServer((request, response) => response.end('ok'));
const server = new WebSocketServer({server: web, path: '/ws', perMessageDeflate: false});
web.listen(0, '127.0.0.1', 2048, async () => {
  console.log(JSON.stringify({port: web.address().port}));
  const sub = new zmq.Subscriber();
  sub.connect(options.feeds[0][0]);
  sub.subscribe();
  const channel = Buffer.from('1');
  for await (const [message] of sub) {
    const data = Buffer.concat([channel, message]);
    for (const client of server.clients) client.send(data);
  }
});
"""
"""The peer that is not Python, for ``node -e``."""


# The process


async def control() -> None:
    """Take orders beside the server's own work: measure the pauses of the loop."""
    loop = asyncio.get_running_loop()
    watching: asyncio.TimerHandle | None = None
    longest = last = 0.0

    def tick() -> None:
        nonlocal watching, longest, last
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        watching = loop.call_later(0.001, tick)

    def order() -> None:
        nonlocal longest, last
        line = os.read(0, 4096)
        if not line:
            os._exit(0)
        match json.loads(line)["do"]:
            case "watch":
                longest, last = 0.0, time.perf_counter()
                if watching is None:
                    tick()
                say(watching=True)
            case "longest":
                say(longest=longest)

    loop.add_reader(0, order)
    await asyncio.Event().wait()


LIMITS = {"raw": raw, "raw recv": raw_recv, "raw send": raw_send}
SERVERS = {
    "project": project,
    "naive": naive,
    "picows": picows,
    "websockets": websockets,
    "aiohttp": aiohttp,
    "starlette": starlette,
}


async def serve(kind: str, options: Options) -> None:
    say(port=await SERVERS[kind](options))
    await control()


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chosen, given = sys.argv[1], json.loads(sys.argv[2])
    if chosen in LIMITS:
        LIMITS[chosen](given)
    else:
        asyncio.run(serve(chosen, given))
