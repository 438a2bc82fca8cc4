"""The magics ``%rbkit`` and ``%%rbkit``, which profile a kernel from its notebook."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Final

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.display import display

from tornado_rbkit.jupyter.flamegraph import flame_graph
from tornado_rbkit.profiler import Server, current_server, start_server, stop_server
from tornado_rbkit.profiler.stacks import StackCounter, sampled_stacks
from tornado_rbkit.protocol import CPUSample
from tornado_rbkit.recording.export import folded
from tornado_rbkit.web.discovered import path_name


class CellFailed(Exception):
    """The code of a profiled cell has failed, and its error has been shown; raised so that later cells do not run."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows for this exception."""
        return ["the profiled code failed, see above"]


@magics_class
class RbkitMagics(Magics):
    """The magics of one kernel."""

    shell: InteractiveShell

    @line_cell_magic
    def rbkit(self, line: str, cell: str | None = None) -> None:
        """Profile this kernel, or one cell.

        %rbkit start      start the profiler in this kernel, and show a link to its dashboard
        %rbkit stop       stop it
        %rbkit status     show its state
        %rbkit snapshot   take a heap snapshot, and send it to the connected viewers
        %%rbkit           run the cell, and show a flame graph of its time
        """
        actions: dict[str, Callable[[], None]] = {
            "start": self._start,
            "stop": stop_server,
            "status": self._status,
            "snapshot": self._snapshot,
        }
        asked = line.strip()
        if cell is not None:
            if asked:
                raise UsageError(f"%%rbkit takes no arguments, not {asked!r}")
            self._profile(cell)
        elif asked in actions:
            actions[asked]()
        else:
            raise UsageError(f"%rbkit {asked}: unknown; allowed: {', '.join(actions)}")

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
        print(f"{server.status()['snapshot_objects']:,} objects, sent to whoever watches")

    def _profile(self, cell: str) -> None:
        if self.shell.should_run_async(cell, transformed_cell=self.shell.transform_cell(cell)):  # type: ignore[no-untyped-call]
            raise UsageError("%%rbkit cannot run a cell that awaits: a magic is no coroutine; await inside a function")
        began = time.perf_counter()
        with sampled_stacks() as stacks:
            result = self.shell.run_cell(cell, store_history=False)  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - began
        display(FlameGraph(stacks, seconds))  # type: ignore[no-untyped-call]
        if not result.success:
            raise CellFailed from result.error_in_exec or result.error_before_exec


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


class FlameGraph:
    """The flame graph of a profiled cell."""

    def __init__(self, stacks: StackCounter, seconds: float) -> None:
        self._stacks: Counter[tuple[str, ...]] = Counter()
        for sample, count in stacks.samples():
            self._stacks[folded(_without_ipython(sample))] += count
        total = self._stacks.total()
        self._title = f"{seconds:.2f} s, {total:,} samples"

    def __repr__(self) -> str:
        own: Counter[str] = Counter()
        for stack, count in self._stacks.items():
            own[stack[-1]] += count
        total = max(1, own.total())
        return "\n".join([self._title, *(f"{100 * n / total:5.1f} %  {label}" for label, n in own.most_common(5))])

    def _repr_svg_(self) -> str:
        return flame_graph(self._stacks, self._title)


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


def _without_ipython(sample: CPUSample) -> CPUSample:
    """Return the sample without the frames outside the cell."""
    for index in range(len(sample.frames) - 1, -1, -1):
        frame = sample.frames[index]
        if frame.method_name == _MARK[0] and frame.file == _MARK[1]:
            inner = sample.frames[:index]
            runs = [i for i, frame in enumerate(inner) if frame.method_name == "run_code"]
            return sample._replace(frames=inner[: runs[-1]] if runs and runs[-1] else sample.frames[index : index + 1])
    return sample


_MARK: Final = (RbkitMagics._profile.__code__.co_name, RbkitMagics._profile.__code__.co_filename)
