"""A bridge in a separate process, whose memory, file descriptors, threads and log can be inspected from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from tests.patient import patient
from tornado_rbkit import Bridge, rbkit_routes

ROOT = Path(__file__).parents[2]


class Serving:
    """The process. `log` is the text it has written to stderr so far."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ready "):
                self.url = line.split()[1].rstrip("/")
                break
        else:
            pytest.fail(f"it never said ready: {self.log}")
        self.port = int(self.url.split(":")[2].split("/")[0])
        self.ws = f"ws://127.0.0.1:{self.port}/rbkit/ws"

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @property
    def status(self) -> dict[str, Any]:
        return self.get("/rbkit/status")  # type: ignore[no-any-return]

    def get(self, path: str) -> Any:
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
            return json.load(response)

    def answers(self, path: str, **headers: str) -> int:
        """Return the HTTP status of a path."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
                return int(response.status)
        except HTTPError as error:
            return error.code

    @property
    def memory(self) -> int:
        """Return the resident memory of the process, in bytes."""
        return self._figure("VmRSS") * 1024

    @property
    def memory_peak(self) -> int:
        return self._figure("VmHWM") * 1024

    def forget_peak(self) -> None:
        """Let `memory_peak` begin with the present memory (proc(5), clear_refs)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @property
    def threads(self) -> int:
        return self._figure("Threads")

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def until(self, condition: Callable[[dict[str, Any]], object], what: str, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until the status fulfils a condition, and return the status."""
        deadline = time.monotonic() + timeout
        while not condition(status := self.status):
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}; it is {status}\n{self.log}"
            time.sleep(0.02)
        return status

    def end(self) -> None:
        """End the process with SIGTERM; it must exit with status 0, and must not have logged an error."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log
        assert "Traceback" not in self.log, self.log
        assert "ERROR" not in self.log, self.log

    def _figure(self, name: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
        raise AssertionError(f"/proc has no {name}")


@contextlib.contextmanager
def serving(log: Path, command: list[str]) -> Iterator[Serving]:
    """Run a server that prints `ready URL`; at the end of the block, end it and check its log."""
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT) as process,
    ):
        try:
            server = Serving(process, log)
            yield server
            server.end()
        finally:
            process.kill()


def bridge_command(**options: Any) -> list[str]:
    """Return the command that serves a bridge with these options, as an application does."""
    return [sys.executable, "-X", "dev", "-W", "error", "-m", "tests.faults.serving", json.dumps(options)]


async def _main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("tornado.access").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # with -X dev it reports slow callbacks
    options = json.loads(sys.argv[1])
    host = options.pop("host", "127.0.0.1")
    send_buffer, certificate = options.pop("send_buffer", None), options.pop("certificate", None)
    # On a busy machine a client that loses nothing may be late.
    bridge = patient(Bridge(**{"max_backlog_bytes": 512 << 20, **options}))
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
    server = HTTPServer(Application(rbkit_routes(bridge)), ssl_options=tls)
    sockets = bind_sockets(0, host, backlog=2048)
    if send_buffer is not None:  # accepted connections inherit it
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server.add_sockets(sockets)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(f"ready http://127.0.0.1:{sockets[0].getsockname()[1]}/rbkit/", flush=True)
    await stopped.wait()
    server.stop()
    await bridge.close()
    await server.close_all_connections()


if __name__ == "__main__":
    asyncio.run(_main())
