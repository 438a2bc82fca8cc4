"""The process that is tortured: ``python -m tests.profiler.torture.host SEED SECONDS [BEHAVIOUR...]``.

It prints the endpoints of its profiler, does what it is to do, and ends with status 0 if everything was as it should
be. After ``stop`` on the standard input it ends early.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import tracemalloc
import warnings
from typing import Any

from tests.profiler.torture import behaviours, system
from tests.profiler.torture.behaviours import ACTIVE, BEHAVIOURS, ENDPOINTS, HOST_SWITCH_INTERVAL
from tornado_rbkit import profiler
from tornado_rbkit.profiler.threads import internal_threads

WITHOUT_INTERPRETERS = ("forks", "workers", "tracing")
"""Up to Python 3.11 a child that is forked beside interpreters deadlocks (_PyInterpreterState_DeleteExceptMain), and
tracemalloc crashes or deadlocks any process that has interpreters."""

ONLY_BY_NAME = ("descriptors",)
"""If they are used up within a tenth of a second, libzmq aborts the process."""

ENGINES = ("in-process", "in-process", "auto")


class Interrupt(Exception):
    """What the handler of a signal raises, as KeyboardInterrupt would be."""


class Host:
    """One run of the process. Its main thread."""

    def __init__(self, seed: int, seconds: float, names: list[str]) -> None:
        self.chance = random.Random(seed)
        self.names = names or self.choose()
        self.engine = self.chance.choice(ENGINES)
        self.seconds = seconds
        self.ended = threading.Event()
        self.failures: list[str] = []
        self.is_armed = False
        self.lost = self.raised = self.caught = 0

    def choose(self) -> list[str]:
        names = self.chance.sample(sorted({*BEHAVIOURS, "interrupts"}.difference(ONLY_BY_NAME)), 4)
        return [name for name in names if "interpreters" not in names or name not in WITHOUT_INTERPRETERS]

    def run(self) -> int:
        # Not around each fork: on Python 3.14, not 3.15, a child hangs that leaves `warnings.catch_warnings` and was
        # forked while another thread held the lock of `warnings`, which stays locked in the child.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        if "interpreters" in self.names:
            # So that the profiler knows that there are some. Up to Python 3.12 it ends with the last reference.
            self.interpreter = system.interpreters_module().create()
        sys.unraisablehook = self.on_unraisable
        ACTIVE.update(self.names)
        before = self.state()
        folder = tempfile.mkdtemp()
        ENDPOINTS.extend(f"ipc://{folder}/{kind}" for kind in ("pub", "req"))
        os.environ["RBKIT_CPU_ENGINE"] = self.engine
        server = profiler.start_server(*ENDPOINTS)
        print(server.pub, server.req, flush=True)
        print(f"{' '.join(self.names)} ({self.engine})", file=sys.stderr, flush=True)
        threads = [
            threading.Thread(target=self.do, args=(name, random.Random(self.chance.random())), name=name)
            for name in self.names
            if name != "interrupts"
        ]
        for thread in threads:
            thread.start()
        try:
            self.wait(time.monotonic() + self.seconds)
        finally:
            self.ended.set()  # otherwise the threads, and so the process, would never end
        for thread in threads:
            thread.join()
        if profiler.current_server() is None:
            self.failures.append("the profiler's server has ended")
        profiler.stop_server()
        os.rmdir(folder)
        before["switch interval"] = round(HOST_SWITCH_INTERVAL[0], 6)
        if self.state() != before:
            self.failures.append(f"left behind: {self.state()} instead of {before}")
        if self.raised != self.caught + self.lost:
            self.failures.append(f"{self.raised} interrupts were raised, {self.caught} caught and {self.lost} lost")
        for failure in self.failures:
            print(failure, file=sys.stderr)
        return min(1, len(self.failures))

    def state(self) -> dict[str, Any]:
        """Return what must be as before when the profiler was stopped."""
        return {
            "switch interval": round(sys.getswitchinterval(), 6),
            "collector": gc.isenabled(),
            "threads": internal_threads(),
            "callbacks": len(gc.callbacks),
            "signals": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            "recursion": sys.getrecursionlimit(),
            "tracemalloc": tracemalloc.is_tracing(),
            "trace": (sys.gettrace(), sys.getprofile()),
            "timers": signal.getitimer(signal.ITIMER_REAL),
            "folder": os.getcwd(),
        }

    def do(self, name: str, chance: random.Random) -> None:
        try:
            BEHAVIOURS[name](lambda: not self.ended.is_set(), chance)
        except BaseException:  # noqa: BLE001 - it is reported
            self.failures.append(f"{name}: {traceback.format_exc()}")

    def wait(self, end: float) -> None:
        """Pass the time until the end, with interrupts a thousand times a second if they are wanted."""
        if "interrupts" not in self.names:
            while time.monotonic() < end:
                time.sleep(0.01)
            return
        signal.signal(signal.SIGALRM, self.on_signal)
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, self.chance.uniform(0.0002, 0.002))
                self.allocate(end)
            except Interrupt:
                self.caught += 1
        signal.setitimer(signal.ITIMER_REAL, 0)

    def allocate(self, end: float) -> None:
        """Allocate until the end, or an interrupt. Not within the ``try``: see `Server._wait_until_bound`."""
        self.is_armed = True
        while time.monotonic() < end:
            [behaviours.Node() for _ in range(100)]
        self.is_armed = False

    def on_signal(self, *_: object) -> None:
        if self.is_armed:
            self.is_armed = False
            self.raised += 1
            raise Interrupt

    def on_unraisable(self, unraisable: Any) -> None:
        trace = traceback.extract_tb(unraisable.exc_traceback)
        ours = [f"{line.filename}:{line.lineno}" for line in trace if "/tornado_rbkit/" in line.filename]
        if unraisable.exc_type is Interrupt and not ours:
            self.lost += 1  # in a finalizer of the host
        else:
            self.failures.append(
                f"unraisable: {unraisable.exc_type} {unraisable.exc_value} {unraisable.object} {trace}"
            )


if __name__ == "__main__":
    faulthandler.enable()
    host = Host(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
    status = host.run()
    sys.exit(status)
