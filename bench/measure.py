"""Tools for the benchmarks: controlled processes, CPU time, rounds, ratios, tables, and facts about the machine.

CPU time is the kernel's count of what every thread of a process has run (``/proc/PID/task/*/schedstat``), which does
not depend on who else uses the machine as much as the clock on the wall does. What is compared runs in turn within a
round, in an order that moves on from round to round, and a ratio is the median of the ratios within the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

PATIENCE_SECONDS: Final = 600.0
_PACKAGES: Final = ("tornado_rbkit", "tornado", "pyzmq", "picows", "websockets", "aiohttp", "starlette", "uvicorn")


class UnavailableError(Exception):
    """Something cannot be measured here; the text says why."""


def find_austin() -> str:
    """Return the path of the sampler austin, a peer to compare with, beside this interpreter.

    Raises:
        UnavailableError: it is not there, or does not know this Python.
    """
    path = shutil.which("austin", path=os.path.join(sys.prefix, "bin"))
    if path is None or sys.version_info >= (3, 14):
        raise UnavailableError(
            "austin is not installed (extra bench), or this is not CPython up to 3.13, which it reads"
        )
    return path


# In a child


def say(**facts: Any) -> None:
    """Send an answer to the parent."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def orders() -> Iterator[dict[str, Any]]:
    """Yield the orders of the parent."""
    with open(0, "rb", buffering=0, closefd=False) as unbuffered:  # `order_waits` has to see what was not read yet
        for line in unbuffered:
            yield json.loads(line)


def order_waits(seconds: float = 0.0) -> bool:
    """Return whether an order of the parent arrives within a number of seconds."""
    return bool(select.select([0], [], [], seconds)[0])


# In the parent


class Child:
    """A process that takes orders and answers each with a line, both JSON."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `end`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=None if env is None else os.environ | env,
        )
        self._timer = threading.Timer(PATIENCE_SECONDS, self._process.kill)
        self._timer.daemon = True
        self._timer.start()
        self.pid = self._process.pid

    def tell(self, **order: Any) -> None:
        """Send an order."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # `hear` tells why
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def line(self) -> str:
        """Return the next line of its output."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise RuntimeError(f"{self._process.args!r} ended early:\n{self.errors()}")
        return line

    def hear(self) -> dict[str, Any]:
        """Return the next answer."""
        facts: dict[str, Any] = json.loads(self.line())
        if "failed" in facts:
            raise RuntimeError(facts["failed"])
        return facts

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and return the answer."""
        self.tell(**order)
        return self.hear()

    def errors(self) -> str:
        """Return its standard error output."""
        self._stderr.seek(0)
        return self._stderr.read()

    def finish(self) -> None:
        """Wait until it ends; it must exit with status 0."""
        code = self._process.wait()
        if code or self.errors():
            raise RuntimeError(f"{self._process.args!r} ended with {code}:\n{self.errors()}")

    def end(self) -> None:
        """Kill it."""
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def child(script: str, *arguments: str) -> Iterator[Child]:
    """Run one of the scripts beside this one."""
    started = Child([sys.executable, str(Path(__file__).with_name(script)), *arguments])
    try:
        yield started
    finally:
        started.end()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process's threads, without threads that have ended."""
    total = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # ended just now
            total += int(file.read_text().split()[0])
    return total / 1e9


def memory_bytes(pid: int, key: str = "VmRSS") -> int:
    """Return ``VmRSS``, or the peak since `reset_peak` with ``VmHWM``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def reset_peak(pid: int) -> None:
    """Reset ``VmHWM``."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


class Meter:
    """What processes use from now on: CPU time in seconds, and the peak of their memory in bytes.

    Attributes:
        memory: their memory at the beginning, in bytes.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        for pid in pids.values():
            reset_peak(pid)
        self.memory = {name: memory_bytes(pid) for name, pid in pids.items()}
        self._before = {name: cpu_seconds(pid) for name, pid in pids.items()}

    def cpu(self) -> dict[str, float]:
        """Return the CPU time that each process has used."""
        return {name: cpu_seconds(pid) - self._before[name] for name, pid in self._pids.items()}

    def peak(self) -> dict[str, int]:
        """Return the peak of each process."""
        return {name: memory_bytes(pid, "VmHWM") for name, pid in self._pids.items()}


Runs = dict[str, list[dict[str, Any]]]


def rounds(what: str, names: Sequence[str], count: int, run: Callable[[str], dict[str, Any]]) -> tuple[Runs, Runs]:
    """Run every name once in each round; return the results, and the reasons why some could not run."""
    results: Runs = {name: [] for name in names}
    missing: Runs = {}
    for number in range(count):
        turn = number * 3 % len(names)
        for name in (*names[turn:], *names[:turn]):
            if name in missing:
                continue
            note(f"{what}, round {number + 1} of {count}: {name}")
            try:
                results[name].append(run(name))
            except UnavailableError as error:
                missing[name] = [{"reason": str(error)}]
    for name in missing:
        del results[name]
    return results, missing


def note(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)


def median(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return the median of a figure over the runs."""
    return statistics.median(run[key] for run in runs)


def ratio(runs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], key: str) -> float:
    """Return the median of the ratios within the rounds."""
    return statistics.median(run[key] / other[key] for run, other in zip(runs, others, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose source is readable too."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join((line(heads), line(["-" * width for width in widths]), *map(line, rows)))


def short(value: float) -> str:
    """Return a ratio or a small figure with two significant digits."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Describe the machine and the versions."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.lower().startswith(("model name", "hardware"))
    ]
    versions = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_before": os.getloadavg()[0],
        "versions": versions,
    }


def options(description: str, default_rounds: int = 5) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=default_rounds, help=f"(default: {default_rounds})")
    parser.add_argument("--quick", action="store_true", help="little work, to see that it runs; the figures are noise")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything that was measured")
    return parser


class Report:
    """The output of one benchmark."""

    def __init__(self, arguments: argparse.Namespace, packages: Sequence[str] = _PACKAGES) -> None:
        if not sys.platform.startswith("linux"):
            raise SystemExit("this needs Linux")
        self._arguments = arguments
        self._machine = machine(packages)
        self._parts: dict[str, Any] = {}
        self._began = time.time()

    def add(self, name: str, part: Any) -> None:
        """Add results to the JSON file."""
        self._parts[name] = part

    def head(self) -> None:
        """Print the machine and the versions."""
        host = self._machine
        versions = ", ".join(f"{name} {number}" for name, number in host["versions"].items())
        print(
            f"{host['cpu']}, {host['cores']} cores, {host['memory_gb']} GB, {host['system']}, {host['python']}, "
            f"load {host['load_before']:.2f} before the run\n{versions}\n{self._arguments.rounds} rounds; medians"
        )

    def missing(self, missing: Runs) -> None:
        """Print the names that could not be measured, with the reasons."""
        for name, [facts] in missing.items():
            print(f"{name} is left out: {facts['reason']}")

    def write(self) -> None:
        """Write the JSON file, if one was requested."""
        if self._arguments.json:
            facts = {
                "command": " ".join(sys.argv),
                "machine": self._machine,
                "rounds": self._arguments.rounds,
                "seconds": round(time.time() - self._began, 1),
                **self._parts,
            }
            self._arguments.json.write_text(json.dumps(facts, indent=1) + "\n")
