"""A web service of which `AUDIT` keeps a closure for each request, and so the whole request."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import Callable
from typing import Any

import tornado.httpclient
import tornado.httpserver
import tornado.netutil
import tornado.web

AUDIT: dict[str, Callable[[str], dict[str, Any]]] = {}
"""The leak: nothing removes an entry."""

LATEST: dict[str, str] = {}
"""The latest request of each user."""

USERS = 50
REQUESTS_PER_SECOND = 40


class Basket:
    def __init__(self, user: str, items: list[int]) -> None:
        self.user, self.items = user, items


class OrderContext:
    def __init__(self, basket: Basket, body: bytes) -> None:
        self.request_id, self.basket, self.body, self.started = uuid.uuid4().hex, basket, body, time.monotonic()


def remember(context: OrderContext) -> Callable[[str], dict[str, Any]]:
    def finish(status: str) -> dict[str, Any]:
        return {"user": context.basket.user, "status": status, "seconds": time.monotonic() - context.started}

    AUDIT[context.request_id] = finish
    return finish


class OrderHandler(tornado.web.RequestHandler):
    def post(self, user: str) -> None:
        basket = Basket(user, json.loads(self.request.body)["items"])
        context = OrderContext(basket, self.request.body)
        finish = remember(context)
        LATEST[user] = context.request_id
        self.write(finish("ok"))


async def order(url: str) -> None:
    body = json.dumps({"items": [random.randrange(2000) for _ in range(8)], "note": "x" * 1500})
    await tornado.httpclient.AsyncHTTPClient().fetch(f"{url}/user{random.randrange(USERS)}", method="POST", body=body)


async def main(seconds: float) -> None:
    server = tornado.httpserver.HTTPServer(tornado.web.Application([(r"/order/(\w+)", OrderHandler)]))
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/order"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.gather(order(url), asyncio.sleep(1 / REQUESTS_PER_SECOND))


if __name__ == "__main__":
    asyncio.run(main(600))
