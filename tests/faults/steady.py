"""A profiler process whose messages are known in advance, so that tests can check every byte a client receives."""

from __future__ import annotations

import argparse
import functools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import zmq

from tests.fake_rbkit import FakeRbkit

ROOT = Path(__file__).parents[2]


SNAPSHOT = 5_000_000


@functools.lru_cache(maxsize=200)
def message(counter: int, snapshot: bool = False) -> bytes:
    """Return the published message with this counter: most are small, some exceed every limit of the framing."""
    size = (
        SNAPSHOT
        if snapshot
        else 300_000
        if counter % 500 == 499
        else 70_000
        if counter % 50 == 49
        else counter * 7 % 240
    )
    noise = random.Random(counter).randbytes(size)
    packed: bytes = msgpack.packb(
        {0: 7, 1: 1795388438444.0, 9: counter, 2: [{0: 0, 1: 1.0, 2: {3: counter, 4: noise}}]}
    )
    return packed


class SteadyRbkit(FakeRbkit):
    """The server in the process; it records each snapshot for the thread that counts the messages."""

    snapshot_is_due = False

    def _run_command(self, command: bytes) -> bytes:
        if command == b"objectspace_snapshot":
            self.snapshot_is_due = True
            return b"ok"
        return super()._run_command(command)

    def _command(self, rep: zmq.Socket[bytes]) -> None:
        super()._command(rep)
        if self.dead:
            print("wedged", flush=True)


class SteadyProcess:
    """The process, which publishes at a fixed rate. It is forked from a process that has imported all modules."""

    def __init__(self, pub: str, req: str, rate: float = 500.0) -> None:
        self.pub, self.req = pub, req
        self.pid = 0
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.steady", pub, req, str(rate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    @property
    def endpoints(self) -> dict[str, Any]:
        return {"pub": self.pub, "req": self.req}

    def start(self) -> None:
        """Start the process, and return when its sockets are bound."""
        assert self._parent.stdin is not None
        self._parent.stdin.write("start\n")
        self._parent.stdin.flush()
        self.pid = int(self._read())

    def kill(self) -> None:
        """Kill the process as the kernel does when it runs out of memory, and return when it has ended."""
        if self.pid:
            self.send_signal(signal.SIGKILL)
            assert self._read() == "gone\n"
            self.pid = 0

    def freeze(self) -> None:
        """Stop the process without ending it, and return once it has stopped."""
        self.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)

    def wait_until_wedged(self) -> None:
        """Return when the process has received an empty request, after which it answers no other."""
        assert self._read() == "wedged\n"

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def close(self) -> None:
        self.kill()
        self._parent.communicate()

    def _read(self) -> str:
        assert self._parent.stdout is not None
        return self._parent.stdout.readline()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pub")
    parser.add_argument("req")
    parser.add_argument("rate", type=float)
    arguments = parser.parse_args()
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _publish(arguments.pub, arguments.req, arguments.rate)
        os.waitpid(pid, 0)
        print("gone", flush=True)


def _publish(pub: str, req: str, rate: float) -> None:
    server = SteadyRbkit(pub, req)
    with server:
        print(os.getpid(), flush=True)
        begun = time.monotonic()
        while True:
            due = int((time.monotonic() - begun) * rate)
            while server.counter < due:
                large, server.snapshot_is_due = server.snapshot_is_due, False
                server.publish(message(server.counter, large))
                server.counter += 1
            time.sleep(0.005)


if __name__ == "__main__":
    _main()
