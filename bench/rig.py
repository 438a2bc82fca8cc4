"""A feed, a server and its clients, set up for one run."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from measure import Child, Meter, UnavailableError, child
from servers import NODE

THREADED: Final = "threaded"
UNTHREADED: Final = "unthreaded"
NAIVE: Final = "naive"
PYTHON_PEERS: Final = ("picows", "websockets", "aiohttp", "starlette")
NODE_PEER: Final = "node"
LIMITS: Final = ("raw", "raw recv", "raw send")


class Rig(NamedTuple):
    """The measured process, and the processes around it."""

    server: Child
    port: int
    feed: Child
    clients: Child
    replies: str
    """Endpoint of the REP."""


@cache
def node_modules() -> str:
    """Return a folder with ws and zeromq in it, which ends with this process."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise UnavailableError("there is no node and npm")
    folder = tempfile.mkdtemp(prefix="bench-node-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    done = subprocess.run(
        ["npm", "install", "--silent", "--prefix", folder, "ws", "zeromq"], capture_output=True, text=True, timeout=300
    )
    check = subprocess.run(
        ["node", "-e", "require('zeromq')"], cwd=folder, env=os.environ | {"NODE_PATH": f"{folder}/node_modules"}
    )
    if done.returncode or check.returncode:
        raise UnavailableError(f"npm could not install ws and zeromq: {(done.stderr or done.stdout)[-200:]}")
    return f"{folder}/node_modules"


@contextlib.contextmanager
def server(name: str, options: dict[str, Any]) -> Iterator[Child]:
    """Start a measured process."""
    if name == NODE_PEER:
        started = Child(["node", "-e", NODE, json.dumps(options)], {"NODE_PATH": node_modules()})
    else:
        kind = "project" if name in (THREADED, UNTHREADED) else name
        if kind in PYTHON_PEERS and importlib.util.find_spec(kind) is None:
            raise UnavailableError("not installed")
        script = str(Path(__file__).with_name("servers.py"))
        options = {"threaded": name == THREADED, **options}
        started = Child([sys.executable, script, kind, json.dumps(options)])
    try:
        yield started
    finally:
        started.end()


@contextlib.contextmanager
def rig(name: str, clients: int, *, deflate: bool = False, **options: Any) -> Iterator[Rig]:
    """Set up everything, with a number of connected clients; tear it down at the end."""
    with (
        child("feed.py", "publish") as feed,
        child("feed.py", "reply") as replies,
        child("clients.py") as viewers,
    ):
        feeds = [[feed.hear()["endpoint"], replies.hear()["endpoint"]]]
        with server(name, {"feeds": feeds, "clients": clients, **options}) as measured:
            port = measured.hear()["port"]
            viewers.ask(do="connect", port=port, clients=clients, deflate=deflate)
            feed.tell(do="sync")
            viewers.ask(do="sync")
            yield Rig(measured, port, feed, viewers, feeds[0][1])


def deliver(
    running: Rig,
    kind: str,
    count: int,
    *,
    rate: float | None = None,
    expected: int | None = None,
    whole: bool = False,
    deflated: bool = False,
    stalled: int = 0,
    patience: float = 120.0,
    on_start: Callable[[], object] | None = None,
    beside: Mapping[str, int] | None = None,
    lossy: bool = False,
) -> dict[str, Any]:
    """Publish, receive and compare everything; return the server's cost.

    Args:
        running: where.
        kind: bytes of a message, or ``recorded``.
        count: messages.
        rate: messages per second; None for as fast as possible.
        expected: messages that clients must get, by default all.
        whole: messages may come in fragments.
        deflated: messages are compressed.
        stalled: clients that stop reading.
        patience: seconds within which every other client must receive something.
        on_start: called when everything is prepared.
        beside: processes by name, whose costs are returned too.
        lossy: return the number of missing messages, instead of failing (only if `whole`).
    """
    published = running.feed.ask(do="load", kind=kind, count=count)["bytes"]
    running.clients.ask(do="expect", kind=kind, count=count if expected is None else expected)
    time.sleep(0.25)  # until `client_count` has been sent, at most 0.1 s after the last client joined
    if on_start is not None:
        on_start()
    meter = Meter({"": running.server.pid, **(beside or {})})
    how = "receive deflated" if deflated else "receive whole" if whole else "receive"
    running.clients.tell(do=how, stalled=stalled, patience=patience)
    running.feed.tell(do="go", rate=rate)
    received = running.clients.hear()
    assert lossy or not received.get("missing"), f"{received['missing']} messages are missing"
    cpu = meter.cpu()
    running.feed.hear()
    peak = meter.peak()
    return {
        **received,
        "cpu": cpu[""],
        "cpus": cpu,
        "messages": count,
        "bytes": published,
        "memory": meter.memory[""],
        "memories": meter.memory,
        "peak": peak[""],
        "peaks": peak,
    }
