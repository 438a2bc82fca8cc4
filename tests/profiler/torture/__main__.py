"""Starts tortured processes, and commands their profilers at random.

Each process receives every command, and texts that are no commands, while subscribers connect and disconnect. A
process fails if it ends with another status than 0, or still runs a minute after its time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import zmq

COMMANDS = (
    *(b"handshake", b"start_memory_profile", b"stop_memory_profile", b"trigger_gc", b"objectspace_snapshot"),
    *(b"use_cpu_time", b"use_wall_time", b"start_cpu_profiling", b"start_cpu_profiling", b"stop_cpu_profiling"),
    *(b"start_allocation_tracing", b"stop_allocation_tracing", b"", b"unknown", b"\xff\0\1", b"x" * 100_000),
)
STARTING = (b"start_cpu_profiling", b"start_memory_profile", b"handshake")
PATIENCE = 60.0
"""Seconds after its time in which a process must end."""

RESEND_SECONDS = 1.0

REPOSITORY = Path(__file__).parents[3]


class Commander:
    """Commands one profiler. For use by one thread."""

    def __init__(self, pub: str, req: str, chance: random.Random) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub, self._req, self._chance = pub, req, chance
        self._subscribers: list[zmq.Socket[bytes]] = []
        self._request: zmq.Socket[bytes] = self._context.socket(zmq.REQ)
        self._request.setsockopt(zmq.REQ_RELAXED, 1)
        self._request.setsockopt(zmq.REQ_CORRELATE, 1)
        self._request.connect(req)
        self.asked = self.answered = self.received = 0
        self._is_waiting = False
        self._sent = 0.0
        self._waiting = list(STARTING)

    def step(self) -> None:
        """Send a command if the previous one was answered, add or close a subscriber, and read the events."""
        if self._is_waiting and self._request.poll(10) and self._receive(self._request):
            self.answered += 1
            self._is_waiting = False
        elif self._is_waiting and time.monotonic() > self._sent + RESEND_SECONDS:  # by then it may have been restarted
            self._is_waiting = False
        if not self._is_waiting:
            command = self._waiting.pop() if self._waiting else self._chance.choice(COMMANDS)
            with contextlib.suppress(zmq.Again):  # nobody is there, while it is restarted
                self._request.send_multipart([command] * self._chance.choice([1, 1, 1, 2, 20]), zmq.NOBLOCK)
                self.asked += 1
            self._is_waiting = True
            self._sent = time.monotonic()
        if self._chance.random() < 0.1:
            self._subscribers.append(self._context.socket(zmq.SUB))
            self._subscribers[-1].subscribe(b"")
            self._subscribers[-1].connect(self._pub)
        if self._chance.random() < 0.1 and self._subscribers:
            self._subscribers.pop().close(0)
        for each in self._subscribers:
            for _ in range(100):
                if not (message := self._receive(each)):
                    break
                self.received += len(message)

    @staticmethod
    def _receive(sock: zmq.Socket[bytes]) -> bytes:
        """Return a message; nothing if there is none, also where poll() has seen the reply to an earlier request."""
        try:
            return sock.recv(zmq.NOBLOCK)
        except zmq.Again:
            return b""

    def close(self) -> None:
        self._context.destroy(0)


def torture(seed: int, seconds: float, python: Sequence[str], names: Sequence[str] = ()) -> tuple[bool, str]:
    """Run one process; return whether it survived, and what it printed.

    Args:
        seed: determines what it does, and the commands.
        seconds: how long it runs.
        python: the interpreter and its options.
        names: what it does, instead of a random choice.
    """
    command = [*python, "-m", "tests.profiler.torture.host", str(seed), str(seconds), *names]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=REPOSITORY,
        start_new_session=True,  # with the children that it forks
    )
    assert process.stdout is not None
    endpoints = process.stdout.readline().split()
    commander = Commander(endpoints[0], endpoints[1], random.Random(seed)) if endpoints else None
    deadline = time.monotonic() + seconds
    while commander is not None and time.monotonic() < deadline and process.poll() is None:
        commander.step()
    try:
        printed = process.communicate(timeout=PATIENCE)[1]
    except subprocess.TimeoutExpired:
        waits = "\n".join(system_calls(process.pid))
        process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children have copies of the pipes
        printed = f"it hangs\n{waits}\n{process.communicate()[1]}"
    if commander is not None:
        printed += f"{commander.answered} of {commander.asked} commands answered, {commander.received} bytes"
        commander.close()
    return process.returncode == 0, f"{process.returncode}: {printed}"


def system_calls(pid: int) -> Iterator[str]:
    """Give the system call in which each thread of a process, and of the children that it forked, is. Linux."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            yield " ".join((task / name).read_text().strip() for name in ("comm", "wchan", "syscall"))
            for child in (task / "children").read_text().split():
                yield f"child {child}"
                yield from system_calls(int(child))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.profiler.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each process runs (default: %(default)g)")
    parser.add_argument("--seed", type=int, help="run this process only (default: random ones)")
    parser.add_argument("--python", action="append", help="an interpreter, with its options (repeatable)")
    parser.add_argument("behaviours", nargs="*", help="what each process does (default: two to five at random)")
    options = parser.parse_args()
    pythons = [each.split() for each in options.python or [sys.executable]]
    end = time.monotonic() + 60 * options.minutes
    runs = failed = 0
    while runs < 1 or (options.seed is None and time.monotonic() < end):
        seed = random.randrange(1 << 31) if options.seed is None else options.seed
        for python in pythons:
            survived, printed = torture(seed, options.seconds, python, options.behaviours)
            runs += 1
            if not survived:
                failed += 1
            verdict = "survived" if survived else "FAILED"
            print(f"{' '.join(python)} --seed {seed} {verdict}{'' if survived else ': ' + printed}", flush=True)
    print(f"{runs} processes, {failed} failed")
    return min(1, failed)


if __name__ == "__main__":
    sys.exit(main())
