"""The bridge's own commands: handshakes, and the commands that stop profiling without clients."""

from __future__ import annotations

import asyncio
import logging
import os

from tornado.process import task_id

from tornado_rbkit.bridge.commands import CommandQueue
from tornado_rbkit.bridge.profiler_state import ProfilerState, State
from tornado_rbkit.deadline import done_within
from tornado_rbkit.upstream.types import CommandResult

_log = logging.getLogger(__name__)


class OwnCommands:
    """Submits a bridge's own commands, ahead of all waiting commands of the clients. Web loop only.

    A process forked from the one that created the bridge, or by `tornado.process.fork_processes`, never stops
    profiling: it cannot know whether its siblings have clients.
    """

    def __init__(self, commands: CommandQueue, profiler: ProfilerState) -> None:
        self._commands = commands
        self._profiler = profiler
        self._pid = os.getpid()
        self._probe_timer: asyncio.TimerHandle | None = None

    def send_handshake(self) -> None:
        """Submit a handshake, whose result `ProfilerState.on_result` records."""
        self._commands.submit("handshake", lambda result: None, self, first=True)

    def schedule_probe(self) -> None:
        """Start, restart or stop the timer of `ProfilerState.probe_delay`."""
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        if self._profiler.probe_delay is not None:
            self._probe_timer = asyncio.get_running_loop().call_later(self._profiler.probe_delay, self._probe)

    async def stop_profiling(self, timeout: float | None = None) -> None:
        """Stop profiling that was started through this bridge; wait for the results, at most `timeout` seconds."""
        to_stop = self._profiler.to_stop() if self._profiler.state is State.CONNECTED else []
        if to_stop and (os.getpid() != self._pid or task_id() is not None):
            text = "not stopping the profiling of %s: this process was forked, and other processes may have clients"
            _log.info(text, self._profiler.endpoint.label)
            return
        stopped: list[asyncio.Future[CommandResult]] = []
        for command in to_stop:
            stopped.append(asyncio.get_running_loop().create_future())
            self._commands.submit(command, stopped[-1].set_result, self, first=True)
        if stopped:
            await (asyncio.wait(stopped) if timeout is None else done_within(timeout, *stopped))

    def _probe(self) -> None:
        if not self._commands:
            self.send_handshake()
