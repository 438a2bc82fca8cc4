"""The figures of one kernel: its memory and CPU time, and what its profiler records."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from typing import Any, Final

import psutil
import zmq
import zmq.asyncio

from tornado_rbkit.endpoints import require_descriptors
from tornado_rbkit.protocol import DecodeError, Handshake, decode_handshake

_REPLY_MS: Final = 1000
_MAX_REPLY_BYTES: Final = 64 * 1024  # a handshake has a few hundred
_asking: Final[dict[str, asyncio.Task[Handshake | None]]] = {}  # by endpoint


def find_target(kernel_id: str, names: Iterable[str]) -> str | None:
    """Return the name of the kernel's profiler among targets, None if it has none.

    The name ends with the first digits of the kernel's id, and if that name was taken, a pid (see `_default_name` in
    `profiler.lifecycle` and `DiscoveredTargets`).
    """
    pattern = re.compile(rf".+-{re.escape(kernel_id.partition('-')[0])}(-\d+)*")
    return next((name for name in names if pattern.fullmatch(name)), None)


async def kernel_figures(pid: int | None, req: str | None) -> dict[str, Any]:
    """Return the figures, ready for JSON; those that cannot be read are None.

    Args:
        pid: the pid of the kernel, None if it does not run on this machine.
        req: the endpoint where the kernel's profiler takes commands, None if it has no profiler.
    """
    handshake = None if req is None else await _ask_once(req)
    if handshake is not None:
        pid = handshake.pid  # on Windows, the process that the server started is the launcher of a virtual environment
    memory, cpu_seconds = _read_process(pid)
    return {
        "pid": pid,
        "time": time.monotonic(),
        "memory_bytes": memory,
        "cpu_seconds": cpu_seconds,
        "records_memory": None if handshake is None else handshake.object_trace_enabled,
        "records_cpu": None if handshake is None else handshake.cpu_profiling_enabled,
    }


async def _ask_once(req: str) -> Handshake | None:
    """Ask a profiler; requests at the same time await one reply, so that they do not take all descriptors."""
    asking = _asking.get(req)
    if asking is None:
        asking = _asking[req] = asyncio.create_task(_ask(req))
        asking.add_done_callback(lambda _: _asking.pop(req))
    return await asyncio.shield(asking)


async def _ask(req: str) -> Handshake | None:
    """Return the handshake of a profiler, None if it does not answer.

    Not by the profiler's bridge: this would be a client of it, so that profiling never stopped for want of clients.
    """
    try:
        require_descriptors()
        with zmq.asyncio.Context.instance().socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.maxmsgsize = _MAX_REPLY_BYTES
            socket.connect(req)
            await socket.send(b"handshake")
            return decode_handshake(await socket.recv()) if await socket.poll(_REPLY_MS) else None
    except (DecodeError, OSError, zmq.ZMQError):
        return None


def _read_process(pid: int | None) -> tuple[int | None, float | None]:
    """Return the resident memory of a process in bytes and its CPU time in seconds, user and system."""
    if pid is None:
        return None, None
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return process.memory_info().rss, times.user + times.system
    except (psutil.Error, ValueError):  # psutil raises ValueError for a pid below zero, which a handshake may contain
        return None, None
