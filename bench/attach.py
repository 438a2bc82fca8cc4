"""Measures the cost of sampling from outside, in the sampled process and in the others.

    pip install -e '.[bench]'
    python bench/attach.py [--rounds N] [--quick] [--json FILE]

Pairs, as in profiler.py: each round runs every setting once, and a cost is the median of the ratios to the plain run
of the same round. ``attach`` is the server and its sampler in this process with a subscriber, and what it executes
as its child; ``austin alone`` writes to a file; ``own engine`` is a server in the measured process. Linux.
"""

from __future__ import annotations

import resource
import subprocess
import tempfile
import time
from collections import Counter
from typing import Any, Final

from measure import Report, UnavailableError, find_austin, options
from profiler import Setting, calibrate, compute_table, measure, summary
from runs import Subscriber, process, run_served

from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.process import ProcessError
from tornado_rbkit.profiler.external.profile import attach


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def run_attached(work: str, amount: int, tool: dict[str, Any]) -> dict[str, Any]:
    """Run while `attach` samples the process."""
    with process(work, amount, tool) as run:
        pid = run.hear()["pid"]
        try:
            attachment = attach(pid)
        except (EngineError, ProcessError) as error:
            raise UnavailableError(str(error)) from error
        with attachment:
            subscriber = Subscriber(attachment.server.pub)
            attachment.server.call(lambda profile: getattr(profile, tool["clock"])())
            before = cpu_seconds()
            facts = run.ask(do="go")
            facts["rate"] = attachment.server.status()["cpu"]["achieved_rate"]
            attachment.server.call(lambda profile: profile.stop_cpu_profiling())
            facts["cpu_outside"] = cpu_seconds() - before
        run.finish()
        expected = attachment.server.status()["messages"]
        deadline = time.monotonic() + 10
        while not (found := split(subscriber))["messages"] and time.monotonic() < deadline:
            time.sleep(0.1)
        subscriber.stop()
    assert 0 < found["messages"] <= expected
    facts["messages"], facts["samples"] = found["messages"], found["samples"]
    facts["split"] = found["heavy"] / found["light"] if found["light"] else None
    return facts


def split(subscriber: Subscriber) -> Counter[str]:
    """Count the received messages, their samples, and the samples in the two functions of the work."""
    found = Counter({"messages": len(subscriber.messages)})
    for event in subscriber.events():
        if event[0] == 9:
            found["samples"] += 1
            found.update({frame[12] for frame in event[2]} & {"heavy", "light"})
    return found


def run_austin(work: str, amount: int, tool: dict[str, Any]) -> dict[str, Any]:
    """Run while austin samples the process into a file."""
    austin_path = find_austin()
    with process(work, amount, tool) as run, tempfile.NamedTemporaryFile() as file:
        command = [austin_path, "-Pb", "-i1000", "-o", file.name, f"-p{run.hear()['pid']}"]
        before = cpu_seconds()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as austin:
            time.sleep(0.5)
            facts = run.ask(do="go")
            austin.terminate()
        facts["cpu_outside"] = cpu_seconds() - before
        run.finish()
    return facts


ATTACHED: Final = (
    Setting("plain", {"kind": "plain"}),
    Setting("plain again", {"kind": "plain"}),
    Setting("attach, wall clock, 1 ms", {"kind": "plain", "clock": "use_wall_time"}, run_attached),
    Setting("attach, cpu clock, 1 ms", {"kind": "plain", "clock": "use_cpu_time"}, run_attached),
    Setting("austin alone, 1 ms", {"kind": "plain"}, run_austin),
    Setting("own engine, external, 1 ms", {"kind": "cpu", "interval": 0.001, "engine": "external"}, run_served),
    Setting("own engine, external, 10 ms", {"kind": "cpu", "interval": 0.01, "engine": "external"}, run_served),
    Setting("own engine, in-process, 1 ms", {"kind": "cpu", "interval": 0.001}, run_served),
    Setting("own engine, in-process, 10 ms", {"kind": "cpu", "interval": 0.01}, run_served),
)


def main() -> None:
    """Measure and print."""
    arguments = options("Measure what sampling from outside costs.", default_rounds=8).parse_args()
    report = Report(arguments, ("tornado_rbkit", "austin-dist"))
    units = calibrate("compute", 0.3 if arguments.quick else 2.0, 100)
    computed, missing = measure("compute", units, ATTACHED, arguments.rounds)
    results = summary(computed, ATTACHED)
    report.head()
    print("Percentages: the median of the rounds (the least … the most)\n")
    print(compute_table(results))
    report.missing(missing)
    report.add("compute", {"units": units, "summary": results, "runs": computed})
    report.write()


if __name__ == "__main__":
    main()
