"""Measures the cost of sampling from outside, in the sampled process and in the others.

    pip install -e '.[bench]'
    python bench/attach.py [--rounds N] [--quick] [--json FILE]

Each tool is switched on and off while one process works, see pairs.py. ``attach`` is the server and its sampler in
this process with a subscriber, and what it executes as its child; ``austin alone`` writes to a file. Linux.
"""

from __future__ import annotations

import resource
import subprocess
import tempfile
import time
from typing import Any, Final

from measure import Report, UnavailableError, find_austin, options
from pairs import Setting
from profiler import measure_pairs
from runs import Subscriber, Target, count_events

from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.process import ProcessError
from tornado_rbkit.profiler.external.profile import attach


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Outside(Target):
    """A sampler that is another process, or this one."""

    def __init__(self, work: str, tool: dict[str, Any]) -> None:
        super().__init__(work, tool)
        self._on = False
        self._before = self._used = 0.0

    def switch(self, on: bool) -> None:
        if on == self._on:
            return
        self._on = on
        if on:
            self._before = cpu_seconds()
            self.start()
        else:
            self.stop()
            self._used += cpu_seconds() - self._before

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def finish(self) -> dict[str, Any]:
        return super().finish() | {"cpu_outside": self._used}


class Attached(Outside):
    """`attach` samples the process."""

    def __init__(self, work: str, tool: dict[str, Any]) -> None:
        super().__init__(work, tool)
        try:
            self._attachment = self.resources.enter_context(attach(self.run.pid))
        except (EngineError, ProcessError) as error:
            raise UnavailableError(str(error)) from error
        self._server = self._attachment.server
        self._server.call(lambda profile: profile.stop_cpu_profiling())
        self._subscriber = Subscriber(self._server.pub)
        self.resources.callback(self._subscriber.stop)

    def start(self) -> None:
        self._server.call(lambda profile: getattr(profile, self.tool["clock"])())
        self._server.call(lambda profile: profile.start_cpu_profiling())
        while not self._server.status()["cpu"]["achieved_rate"]:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.call(lambda profile: profile.stop_cpu_profiling())

    def work(self, units: int) -> dict[str, Any]:
        facts = super().work(units)
        return facts | ({"rate": self._server.status()["cpu"]["achieved_rate"]} if self._on else {})

    def finish(self) -> dict[str, Any]:
        facts = super().finish()
        self._subscriber.close(self._server.status()["messages"])
        kinds, found = count_events(self._subscriber)
        assert found["heavy"], "no samples arrived"
        return facts | {"samples": kinds[9], "heavy": found["heavy"], "light": found["light"]}


class Austin(Outside):
    """austin samples the process into a file."""

    def __init__(self, work: str, tool: dict[str, Any]) -> None:
        self._path = find_austin()
        super().__init__(work, tool)
        file = self.resources.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115 - closed by the stack
        self._command = [self._path, "-Pb", "-i1000", "-o", file.name, f"-p{self.run.pid}"]

    def start(self) -> None:
        self._austin = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.resources.push(self._austin)
        time.sleep(0.5)

    def stop(self) -> None:
        self._austin.terminate()
        self._austin.wait()


ATTACHED: Final = (
    Setting("plain again", {"kind": "plain"}),
    Setting("attach, wall clock, 1 ms", {"kind": "plain", "clock": "use_wall_time"}, Attached),
    Setting("attach, cpu clock, 1 ms", {"kind": "plain", "clock": "use_cpu_time"}, Attached),
    Setting("austin alone, 1 ms", {"kind": "plain"}, Austin),
)


def main() -> None:
    """Measure and print."""
    arguments = options("Measure what sampling from outside costs.", default_rounds=8).parse_args()
    report = Report(arguments, ("tornado_rbkit", "austin-dist"))
    report.missing(measure_pairs(report, arguments, ATTACHED))
    report.write()


if __name__ == "__main__":
    main()
