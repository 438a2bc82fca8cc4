"""The rbkit server, in this process, of a process that was not prepared and is sampled from outside."""

from __future__ import annotations

from types import TracebackType
from typing import Final

from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.external.child import ChildEngine, check
from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.process import RunningProcess
from tornado_rbkit.profiler.external.program import Program
from tornado_rbkit.profiler.external.sampler import ExternalSampler
from tornado_rbkit.profiler.profile import WATCH_SECONDS, Outlet, Profile
from tornado_rbkit.profiler.server import Server
from tornado_rbkit.profiler.vitals import Figures, MappedMemory, process_figures, with_all_keys

_OK: Final = b"ok"


class ExternalProfile(Profile):
    """The commands, for a process that is sampled from outside. For use by the server's thread.

    The stacks and the vitals are all that can be read; the collector's figures are unknown. Commands about objects and
    the collector are answered with the reason why they are not carried out.
    """

    cpu: ExternalSampler

    def __init__(self, process: RunningProcess, name: str, batcher: EventBatcher, outlet: Outlet) -> None:
        super().__init__(name, batcher, outlet)
        self.pid = process.pid
        self.cpu = ExternalSampler(
            batcher,
            process,
            lambda: ChildEngine(process, Program()),
            lambda: check(process, Program()),
        )
        self._process = process
        self._mapped = MappedMemory(process.pid)

    def working_folder(self) -> str:
        return self._process.working_folder()

    def work(self) -> float | None:
        vitals_due = self.publish_vitals()
        if not self.cpu.enabled:
            return vitals_due
        return WATCH_SECONDS if vitals_due is None else min(WATCH_SECONDS, vitals_due)

    def read_vitals(self) -> Figures:
        if not self._process.is_alive():
            return with_all_keys({}, {})
        return with_all_keys({}, process_figures(self.pid) | self._mapped.read())

    def start_memory_profile(self) -> bytes:
        return self._refuse("memory profiling")

    def stop_memory_profile(self) -> bytes:
        return _OK

    def trigger_gc(self) -> bytes:
        return self._refuse("triggering a collection")

    def objectspace_snapshot(self) -> bytes:
        return self._refuse("a snapshot")

    def tracing_facts(self) -> dict[str, int]:
        return {}

    def start_allocation_tracing(self) -> bytes:
        return self._refuse("allocation tracing")

    def stop_allocation_tracing(self) -> bytes:
        return _OK

    def use_cpu_time(self) -> bytes:
        self.cpu.clock_type = "cpu"
        return _OK

    def _refuse(self, what: str) -> bytes:
        instead = "use `attach --inject` (CPython 3.14 and newer), or start it with `tornado-rbkit run`"
        return f"{what} is not possible from outside a process; {instead}".encode()


class Attachment:
    """A sampled process, and the server in this process that publishes its samples. Created by `attach`.

    Attributes:
        process: the sampled process.
        server: the server.
    """

    def __init__(self, process: RunningProcess) -> None:
        self.process = process

        def make_profile(name: str, batcher: EventBatcher, outlet: Outlet) -> ExternalProfile:
            self._profile = ExternalProfile(process, name, batcher, outlet)
            return self._profile

        self.server = Server(None, None, process.name, make_profile=make_profile)

    @property
    def failure(self) -> EngineError | None:
        """Why sampling has ended without `stop`. Any thread."""
        return self._profile.cpu.failure

    @property
    def trouble(self) -> str | None:
        """Why sampling has ended without `stop`, or why the samples may be misleading. Any thread."""
        return self._profile.cpu.trouble

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.server.stop()


def attach(pid: int) -> Attachment:
    """Start to sample a running process, and a server that is announced as the process's. Linux.

    The caller leaves the returned context at the end. Sampling is on, with the wall clock, and ends with the process.

    Raises:
        ProcessError: there is no such process, or it may not be read; the message says what to change.
        EngineError: the stacks of the process cannot be read.
        BindError: the ports in RBKIT_PUB_PORT and RBKIT_REQ_PORT cannot be used.
    """
    process = RunningProcess(pid)
    try:
        check(process, Program())
    except EngineError as error:
        children = process.describe_children()
        if not children:
            raise
        raise EngineError(f"{error}; {children}") from error
    attachment = Attachment(process)
    attachment.server.call(lambda profile: profile.start_cpu_profiling())
    return attachment
