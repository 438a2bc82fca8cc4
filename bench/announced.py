"""Profilers that only announce themselves: files in the runtime folder, and a socket each that accepts."""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import threading
import time
from pathlib import Path

from measure import orders, say


def main(count: int, folder: Path) -> None:
    """Write and remove the files on request."""
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(count)]
    threading.Thread(target=accept, args=(listeners,), daemon=True).start()
    folder.mkdir(mode=0o700, exist_ok=True)
    say(ready=True)
    for order in orders():
        for number, listener in enumerate(listeners):
            path = folder / f"{number}.json"
            if order["do"] == "come":
                path.with_suffix(".part").write_text(json.dumps(announcement(number, listener)))
                path.with_suffix(".part").rename(path)
            else:
                path.unlink()
        say(at=time.monotonic())


def announcement(number: int, listener: socket.socket) -> dict[str, object]:
    """Return what a program writes about itself."""
    endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    facts = {"name": f"p{number}", "pid": os.getpid(), "started": time.time()}
    return {**facts, "pub": endpoint, "req": endpoint}


def accept(listeners: list[socket.socket]) -> None:
    """Accept connections and close them."""
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                key.fileobj.accept()[0].close()  # type: ignore[union-attr]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
