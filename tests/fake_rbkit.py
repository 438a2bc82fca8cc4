"""A fake rbkit server for tests that behaves like a real one, in a thread or in a separate process.

One loop polls the REP socket, runs one command, and sends the queued messages. It answers ``ok`` to unknown commands,
and its command channel is dead for all clients after an empty request or a request that starts with NUL. Unlike a real
one it holds what is published until it has a subscriber, as a connection that is up may not have subscribed yet, and
loses nothing if the subscriber is late, unless a test asks for a high-water mark.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack
import zmq

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> list[tuple[float, int, str | None, bytes]]:
    """Return recorded records of real traffic: seconds, channel (0 reply, 1 publish), command, bytes."""
    with (DATA / f"{name}.msgpack").open("rb") as file:
        return [tuple(record) for record in msgpack.Unpacker(file, max_buffer_size=0)]


def collection(counter: int, events: list[Any] | None = None, padding: int = 0) -> bytes:
    """Return an event_collection in rbkit's encoding."""
    events = [{0: 4, 1: 1.0}] if events is None else events
    if padding:
        events = [*events, {0: 0, 1: 1.0, 2: {3: 1, 4: os.urandom(padding // 2).hex()}}]
    packed: bytes = msgpack.packb({0: 7, 1: 1795388438444.0, 9: counter, 2: events})
    return packed


FACTS = {
    "rbkit_server_version": "0.1.10",
    "rbkit_protocol_version": "2.1",
    "process_name": "fake",
    "pwd": "/srv",
    "pid": 1,
    "object_trace_enabled": 0,
    "cpu_profiling_enabled": 0,
    "clock_type": "wall",
    "cpu_profiling_mode": "sampling",
}


class FakeRbkit:
    """The server, which runs in a thread while in the context."""

    def __init__(
        self,
        pub: str = "tcp://127.0.0.1:*",
        req: str = "tcp://127.0.0.1:*",
        *,
        hwm: int = 0,
        tagged: bool = False,
        flush_interval: float = 0.0,
    ) -> None:
        """Describe a server.

        Args:
            pub, req: its endpoints.
            hwm: the high-water mark of its PUB socket: 0 for none, 1,000 in rbkit.
            tagged: whether it is rbkit v0.1.10 as tagged in 2015: it replies before it carries a command out, its
                handshake has four fields, a snapshot is one event without numbers, strings are raw, and CPU commands
                do nothing.
            flush_interval: seconds for which messages are queued before they are sent; one second in rbkit.
        """
        self.tagged = tagged
        self.flush_interval = flush_interval
        self._last_flush = time.monotonic()
        self.received: list[bytes] = []
        self.enabled: set[str] = set()
        self.clock_type = "wall"
        self.pid = os.getpid()
        self.snapshot: bytes = collection(0, [{0: 5, 1: 1.0, 10: 1, 11: 0, 2: []}])
        self.reply: dict[bytes, bytes] = {}
        self.answering = threading.Event()
        self.answering.set()
        self.dead = False
        self.counter = 0
        self.sent = 0
        self.hwm = hwm
        self._queue: deque[tuple[tuple[bytes, ...], bool]] = deque()
        self._subscriptions = 0
        self._pub, self._req = pub, req
        self._stopped = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeRbkit:
        self._thread.start()
        self._bound.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        self.answering.set()
        self._thread.join()

    @property
    def endpoints(self) -> dict[str, Any]:
        return {"pub": self.pub, "req": self.req}

    def publish(self, *parts: bytes, to_nobody: bool = False) -> None:
        """Queue a message unchanged; it is sent once there is a subscriber, or at once if `to_nobody`."""
        self._queue.append((parts, to_nobody))

    def publish_collection(self, padding: int = 0, *, to_nobody: bool = False) -> bytes:
        """Queue the next event_collection, and return it."""
        message = collection(self.counter, padding=padding)
        self.counter += 1
        self.publish(message, to_nobody=to_nobody)
        return message

    def handshake(self) -> bytes:
        facts = {
            **FACTS,
            "pid": self.pid,
            "object_trace_enabled": int("memory_profile" in self.enabled),
            "cpu_profiling_enabled": int("cpu_profiling" in self.enabled),
            "clock_type": self.clock_type,
        }
        if self.tagged:
            facts = {name: facts[name] for name in ("process_name", "pwd", "pid", "object_trace_enabled")}
        packed: bytes = msgpack.packb({0: 8, 1: 1795388434784.0, 2: facts}, use_bin_type=not self.tagged)
        return packed

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.XPUB) as pub, context.socket(zmq.REP) as rep:
            pub.linger = rep.linger = 0
            pub.sndhwm = self.hwm
            pub.setsockopt(zmq.XPUB_VERBOSER, 1)
            pub.bind(self._pub)
            rep.bind(self._req)
            self.pub = pub.getsockopt_string(zmq.LAST_ENDPOINT)
            self.req = rep.getsockopt_string(zmq.LAST_ENDPOINT)
            self._bound.set()
            while not self._stopped.is_set():
                if self.dead:
                    self._stopped.wait(0.002)
                elif rep.poll(2):
                    self._command(rep)
                while pub.poll(0):
                    self._subscriptions += {b"\0": -1, b"\1": 1}.get(pub.recv()[:1], 0)
                if time.monotonic() - self._last_flush < self.flush_interval:
                    continue
                self._last_flush = time.monotonic()
                while self._queue and (self._subscriptions or self._queue[0][1]):
                    pub.send_multipart(self._queue.popleft()[0])
                    self.sent += 1

    def _command(self, rep: zmq.Socket[bytes]) -> None:
        for request in rep.recv_multipart():
            self.received.append(request)
            if not request or request.startswith(b"\0"):
                self.dead = True  # the REP socket waits for a send that never happens
                return
            self.answering.wait()
            if self._stopped.is_set():
                return
            if self.tagged and request != b"handshake":
                rep.send(b"ok")
                self._run_command(request)
                return
            reply = self._run_command(request.partition(b"\0")[0])
        rep.send(reply)

    def _run_command(self, command: bytes) -> bytes:
        verb, _, what = command.decode(errors="replace").partition("_")
        if command == b"handshake":
            return self.handshake()
        if self.tagged and what == "cpu_profiling":
            return b"ok"
        if verb == "start":
            self.enabled.add(what)
        elif verb == "stop":
            self.enabled.discard(what)
        elif verb == "use":
            self.clock_type = what.removesuffix("_time")
        elif command == b"objectspace_snapshot":
            self.publish(self.snapshot)
        return self.reply.get(command, b"ok")


class FakeRbkitProcess:
    """The server in a process, which can be killed and stopped; it publishes while memory profiling is on."""

    def __init__(self, pub: str, req: str) -> None:
        self.pub, self.req = pub, req
        self._process: subprocess.Popen[str] | None = None

    @property
    def endpoints(self) -> dict[str, Any]:
        return {"pub": self.pub, "req": self.req}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, self.pub, self.req], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop the process without ending it, and return once it has stopped."""
        self.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@contextlib.contextmanager
def rbkit_process(*, started: bool = True) -> Iterator[FakeRbkitProcess]:
    """Run a server process on ports that were free a moment ago; kill it at the end."""
    process = FakeRbkitProcess(f"tcp://127.0.0.1:{free_port()}", f"tcp://127.0.0.1:{free_port()}")
    try:
        if started:
            process.start()
        yield process
    finally:
        process.kill()


_given: set[int] = set()


def free_port() -> int:
    """Return a port below the range of ephemeral ports on which nothing listens, and that no other worker gets."""
    import random
    import socket

    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(10_000 + worker, 32_000, workers)
    while True:
        port = random.choice(ports)
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pub")
    parser.add_argument("req")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with FakeRbkit(arguments.pub, arguments.req) as server:
        print("ready", flush=True)
        while True:
            if "memory_profile" in server.enabled:
                server.publish_collection()
            time.sleep(0.01)


if __name__ == "__main__":
    _main()
