"""The magics ``%rbkit`` and ``%%rbkit``, which profile a kernel from its notebook."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn, Protocol

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.display import display

from tornado_rbkit.jupyter.cell_memory import CellMemory, MemoryTracer, TracingError
from tornado_rbkit.jupyter.cell_profile import CellProfile
from tornado_rbkit.profiler import ArgumentError, Server, current_server, start_server, stop_server
from tornado_rbkit.profiler.clocks import HAS_CPU_CLOCK
from tornado_rbkit.profiler.frames import SamplingError
from tornado_rbkit.profiler.stacks import sampled_stacks
from tornado_rbkit.protocol import CPUSample
from tornado_rbkit.web.discovered import path_name


@magics_class
class RbkitMagics(Magics):
    """The magics of one kernel."""

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._profiled: _ProfiledCell | None = None
        if profile_in_place not in shell.input_transformers_cleanup:  # after %reload_ext it is
            shell.input_transformers_cleanup.append(profile_in_place)

    @line_cell_magic
    def rbkit(self, line: str, cell: str | None = None) -> None:
        """Profile this kernel, or one cell.

        %rbkit start      start the profiler in this kernel, and show a link to its dashboard
        %rbkit stop       stop it
        %rbkit status     show its state
        %rbkit snapshot   take a heap snapshot, and send it to the connected viewers
        %rbkit memory [-o NAME] [-q], %%rbkit memory [-o NAME] [-q]
                          show what the rest of the cell, or the cell, allocates, frees and keeps, by line and class
        %%rbkit [-i INTERVAL] [-c wall|cpu] [-o NAME] [-q]
                          run the cell, and show the time of its lines and functions, and a flame graph

        -i: the time between two samples, as 1ms or 0.001 (seconds); -c: the clock, cpu for threads that compute;
        -o: the variable for the profile, whose method speedscope(path) writes a file (of memory: csv(path));
        -q: show nothing.
        """
        actions: dict[str, Callable[[], None]] = {
            "start": self._start,
            "stop": stop_server,
            "status": self._status,
            "snapshot": self._snapshot,
        }
        asked = line.strip()
        if cell is not None:
            self._profile_magic(asked, cell)
        elif asked.split()[:1] == [_THIS_CELL]:
            self._profile_this_cell(asked.removeprefix(_THIS_CELL).strip())
        elif asked.split()[:1] == [_MEMORY]:
            self._profile_this_cell(asked)
        elif asked in actions:
            actions[asked]()
        else:
            raise UsageError(f"%rbkit {asked}: unknown; allowed: {', '.join([*actions, _MEMORY])}")

    def _profile_this_cell(self, options: str) -> None:
        """Measure until the end of the cell that calls this, usually in its first line."""
        measurement: _Measurement
        if options.split()[:1] == [_MEMORY]:
            parsed = _parse(options.split()[1:], f"%rbkit {_MEMORY}")
            measurement = _Memory(self.shell)
        else:
            parsed = _parse(options.split(), "%%rbkit", cpu=True)
            measurement = _Samples(self.shell, parsed.interval, parsed.clock)
        if self._profiled is None or self._profiled.is_over:
            self._profiled = _ProfiledCell(self.shell, measurement, parsed.name, parsed.quiet)
            self._profiled.start()

    def _profile_magic(self, options: str, cell: str) -> None:
        """Profile a cell that is not Python code (another magic's), or that a program runs."""
        self._profile_this_cell(options)
        result = self.shell.run_cell(cell, store_history=False)  # type: ignore[no-untyped-call]
        result.raise_error()

    def _start(self) -> None:
        try:
            server = start_server()
            server.announce()
        except OSError as error:
            raise UsageError(f"%rbkit start: {error}") from error
        display(Dashboard(server))  # type: ignore[no-untyped-call]

    def _status(self) -> None:
        server = current_server()
        if server is None:
            print("no profiler runs in this kernel; %rbkit start starts it")
            return
        status = server.status()
        memory, cpu = status["memory"], status["cpu"]
        print(f"{server.name}: pid {status['pid']}, pub {server.pub}, req {server.req}")
        print(f"memory profiling: {'on' if memory['enabled'] else 'off'}")
        print(
            f"CPU sampling: {'on' if cpu['enabled'] else 'off'}, {cpu['samples']:,} samples ({cpu['clock_type']} time)"
        )
        print(f"messages: {status['messages']:,} published")

    def _snapshot(self) -> None:
        server = current_server()
        if server is None:
            raise UsageError("no profiler runs in this kernel; %rbkit start starts it")
        server.call(lambda profile: profile.objectspace_snapshot())
        print(f"{server.status()['snapshot_objects']:,} objects, sent to the connected viewers")


class _Measurement(Protocol):
    """Measures the cell that runs."""

    def start(self) -> None:
        """Begin; leave nothing behind if it fails or is interrupted."""

    def stop(self) -> object:
        """End, and return the object to display; leave nothing behind however it ends."""


class _Samples:
    """Samples of the stacks."""

    def __init__(self, shell: InteractiveShell, interval: float | None, clock: str) -> None:
        frame = _frame_of_cell(shell)
        self._file = None if frame is None else frame.f_code.co_filename
        self._block = sampled_stacks(interval, clock)
        self._began = time.perf_counter()

    def start(self) -> None:
        try:
            self._stacks = self._block.__enter__()
        except (SamplingError, ArgumentError) as error:
            raise UsageError(f"%%rbkit: {error}") from error

    def stop(self) -> CellProfile:
        seconds = time.perf_counter() - self._began
        self._block.__exit__(None, None, None)
        own = ((_of_the_cell(sample), count) for sample, count in self._stacks.samples())
        return CellProfile(((sample, count) for sample, count in own if sample is not None), seconds, self._file)


class _Memory:
    """The memory by line and class."""

    def __init__(self, shell: InteractiveShell) -> None:
        frame = _frame_of_cell(shell)
        if frame is None:
            raise UsageError(f"%rbkit {_MEMORY}: there is no cell that runs; allowed: in a cell")
        self._tracer = MemoryTracer(frame)

    def start(self) -> None:
        try:
            self._tracer.start()
        except TracingError as error:
            raise UsageError(f"%rbkit {_MEMORY}: {error}") from error

    def stop(self) -> CellMemory:
        return self._tracer.stop()


class _ProfiledCell:
    """Measures from `start` to the end of the outermost cell that runs, and shows the result.

    IPython calls `_leave` however the cell ends. If an interrupt prevents that, the end of the next cell does it.
    """

    def __init__(self, shell: InteractiveShell, measurement: _Measurement, name: str | None, quiet: bool) -> None:
        self.is_over = False
        self._shell = shell
        self._measurement = measurement
        self._name = name
        self._quiet = quiet
        self._inner = 0

    def start(self) -> None:
        self._shell.events.register("pre_execute", self._enter)
        self._shell.events.register("post_execute", self._leave)
        try:
            self._measurement.start()
        except BaseException:
            self._end()
            raise

    def _enter(self) -> None:
        self._inner += 1

    def _leave(self) -> None:
        if self._inner:
            self._inner -= 1
            return
        try:
            result = self._measurement.stop()
        finally:
            self._end()
        if self._name:
            self._shell.user_ns[self._name] = result
        if not self._quiet:
            display(result)  # type: ignore[no-untyped-call]

    def _end(self) -> None:
        self.is_over = True
        self._shell.events.unregister("pre_execute", self._enter)
        self._shell.events.unregister("post_execute", self._leave)


def profile_in_place(lines: list[str]) -> list[str]:
    """Replace the line ``%%rbkit`` by a statement, for IPython's list of input transformers.

    The rest of the cell is then run as any cell: it may await, its errors and line numbers are its own, and a trailing
    semicolon keeps its result quiet. A cell of another magic is left to the cell magic.
    """
    match = re.fullmatch(r"%%rbkit(\s.*)?", lines[0].rstrip("\n")) if lines else None
    body = [line for line in lines[1:] if line.strip()]
    if match is None or not body or body[0].startswith("%%"):
        return lines
    options = (match[1] or "").strip()
    if options.split()[:1] != [_MEMORY]:
        options = f"{_THIS_CELL} {options}".strip()
    return [f"get_ipython().run_line_magic('rbkit', {options!r})\n", *lines[1:]]


class _Parser(argparse.ArgumentParser):
    """Reports wrong options in a line."""

    def error(self, message: str) -> NoReturn:
        usage = self.format_usage().removeprefix("usage: ").removeprefix(self.prog).strip()
        raise UsageError(f"{self.prog}: {message}; allowed: {' '.join(usage.split())}")


def _parse(options: list[str], magic: str, *, cpu: bool = False) -> argparse.Namespace:
    """Return the options of a cell.

    Raises:
        UsageError: an option is unknown or malformed.
    """
    parser = _Parser(magic, add_help=False)
    if cpu:
        clocks = ["wall", "cpu"] if HAS_CPU_CLOCK else ["wall"]
        parser.add_argument("-i", dest="interval", metavar="INTERVAL", type=_seconds)
        parser.add_argument("-c", dest="clock", metavar="|".join(["wall", "cpu"]), choices=clocks, default="wall")
    parser.add_argument("-o", dest="name", metavar="NAME")
    parser.add_argument("-q", dest="quiet", action="store_true")
    parsed = parser.parse_args(options)
    if parsed.name is not None and not parsed.name.isidentifier():
        parser.error(f"-o {parsed.name}: not the name of a variable")
    return parsed


def _seconds(text: str) -> float:
    return float(text.removesuffix("ms")) / 1000 if text.endswith("ms") else float(text.removesuffix("s"))


def _frame_of_cell(shell: InteractiveShell) -> FrameType | None:
    """Return the frame of the cell that runs, None if no cell is running."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals is not shell.user_ns:
        frame = frame.f_back
    return frame


class Dashboard:
    """The link to the dashboard of a profiler, in the Jupyter server that started this kernel.

    There is no link if that server cannot find the profiler, because the runtime folder cannot be used.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._base_url = None if server.file is None else server_base_url()

    def __repr__(self) -> str:
        server = self._server
        if self._base_url is None:
            endpoints = f" --pub {server.pub} --req {server.req}" if server.file is None else ""
            where = f"pub {server.pub}, req {server.req}; `tornado-rbkit serve{endpoints}` shows it"
        else:
            where = f"{self._url} on this Jupyter server"
        return f"rbkit profiles {path_name(server.name)}: {where}"

    def _repr_html_(self) -> str | None:
        if self._base_url is None:
            return None
        name = escape(path_name(self._server.name))
        return f'rbkit profiles {name}: <a href="{escape(self._url)}" target="_blank">open the dashboard</a>'

    @property
    def _url(self) -> str:
        return f"{self._base_url}rbkit/?target={path_name(self._server.name)}"


def server_base_url() -> str | None:
    """Return the base path of the Jupyter server that started this process; None if there is no server.

    None also for a kernel that a gateway started for another server: only the other server's notebook has a name.
    """
    from jupyter_core.paths import jupyter_runtime_dir

    if not os.environ.get("JPY_SESSION_NAME"):
        return None
    # On Windows, JPY_PARENT_PID is a handle.
    parent = os.getppid() if os.name == "nt" else os.environ.get("JPY_PARENT_PID")
    try:
        facts = json.loads(Path(jupyter_runtime_dir(), f"jpserver-{parent}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(facts["base_url"])


def _of_the_cell(sample: CPUSample) -> CPUSample | None:
    """Return the sample without the frames of the kernel, which runs the cell or its tasks and shows its result.

    Return None for the kernel's own work.
    """
    frames, labels = sample.frames, [frame.label for frame in sample.frames]
    if any(label.startswith(f"{__name__}.") for label in labels):
        return None
    if frames[0].thread_id == threading.main_thread().ident:
        runner = next((runner for runner in _RUNNERS if runner in labels), None)
        if runner is not None:
            outermost = len(labels) - 1 - labels[::-1].index(runner)
            frames = frames[:outermost] or frames[:1]
    outer = next((label for label in reversed(labels[: len(frames)]) if not _RUNS_A_THREAD.match(label)), "")
    if outer.startswith(_KERNEL):
        return None
    return sample._replace(frames=[frame for frame in frames if not frame.label.startswith(_SHELL)])


_THIS_CELL: Final = "this-cell"
_MEMORY: Final = "memory"
_SHELL: Final = ("ipykernel.", "IPython.")
_KERNEL: Final = (*_SHELL, "zmq.")
_RUNS_A_THREAD: Final = re.compile(r"threading\.|ipykernel\.ipkernel\.(.*\.)?run_closure$")
"""The outer functions of a thread; ipykernel 6 replaces `threading.Thread.run` by a closure that calls it."""

_RUNNERS: Final = (
    "IPython.core.interactiveshell.InteractiveShell.run_code",
    "asyncio.events.Handle._run",
    "asyncio.base_events.BaseEventLoop._run_once",
)
"""The functions in the kernel's main thread that run a cell, or a task while the cell awaits; the first one counts."""
