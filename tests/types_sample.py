"""A user's application, for the type checkers: what is right passes, and what is misspelt is an error.

It is checked with the rest of the tests: a line that is marked and has no error fails too, as do errors that are not
marked. Nothing of it runs.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Any

from tornado.web import Application, RequestHandler

from tornado_rbkit import (
    Access,
    Bridge,
    IndexHandler,
    RbkitClient,
    RbkitWebSocketHandler,
    StatusHandler,
    rbkit_routes,
)


async def may(handler: RequestHandler, command: str) -> bool:
    return command == "handshake" or handler.get_current_user() is not None


def may_at_once(handler: RequestHandler, command: str) -> bool:
    return True


class Socket(RbkitWebSocketHandler):
    async def open(self, *args: str, **kwargs: str) -> None:
        opening = super().open(*args, **kwargs)
        if opening is not None:
            await opening

    def check_origin(self, origin: str) -> bool:
        return super().check_origin(origin)

    def on_close(self) -> None:
        super().on_close()

    async def on_message(self, message: str | bytes) -> None:
        pending = super().on_message(message)
        if pending is not None:
            await pending


class SocketAtOnce(RbkitWebSocketHandler):
    def open(self, *args: str, **kwargs: str) -> None:
        super().open(*args, **kwargs)


class Status(StatusHandler):
    async def get(self) -> None:
        await super().get()

    def set_default_headers(self) -> None:
        super().set_default_headers()


class Page(IndexHandler):
    async def check_request(self) -> None:
        await super().check_request()


def application(bridge: Bridge, **settings: Any) -> Application:
    several = {"web-1": bridge, "web-2": Bridge("tcp://10.0.0.1:5555", "tcp://10.0.0.1:5556")}
    return Application(
        [
            *rbkit_routes(bridge),
            *rbkit_routes(several, "/tools/rbkit", anywhere=False, authorize=may, read_only=True, token=None),
            *rbkit_routes(authorize=may_at_once, commands="any", allowed_origins=["*"], allowed_hosts=("a", "b")),
            (r"/ws", Socket, {"bridge": bridge, "access": Access(commands={"trigger_gc"}, frame_ancestors=None)}),
            (r"/status", Status, {"bridge": bridge}),
            (r"/", Page, {"bridge": bridge}),
        ],
        **settings,
    )


async def watch(rbkit: RbkitClient, command: str) -> str:
    print((await rbkit.command("handshake")).process_name)
    reply = await rbkit.command(command)
    return reply if isinstance(reply, str) else reply.process_name


def mistakes(bridge: Bridge) -> None:
    rbkit_routes(bridge, raed_only=True)  # type: ignore[call-arg]
    rbkit_routes(bridge, authorize=1)  # type: ignore[arg-type]
    rbkit_routes(bridge, token=b"s3cret")  # type: ignore[arg-type]
    rbkit_routes(bridge, allowed_hosts=5)  # type: ignore[arg-type]
    rbkit_routes(bridge, "/rbkit", False)  # type: ignore[call-arg]
    Access(raed_only=True)  # type: ignore[call-arg]
