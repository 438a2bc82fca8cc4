"""The profiler is killed, stopped, slow, or blocked by other clients, under load and with many clients."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import zmq

from tests.faults.conftest import Launch
from tests.faults.steady import SteadyProcess
from tests.faults.witness import witnesses

SHORT = {"command_timeouts": {"use_cpu_time": 0.5, "handshake": 20.0}}
"""For a command that is sent only while there can be no reply; it may wait behind a handshake of the bridge."""


async def test_killed_and_restarted_many_times_under_load_loses_no_viewer_and_no_byte(
    launch: Launch, profiler: SteadyProcess, soak: float
) -> None:
    server = launch(**profiler.endpoints)
    ends = time.monotonic() + soak
    rounds = 0
    async with witnesses(server.ws, 20) as viewers:
        await viewers[0].goes_on()
        while rounds < 25 or time.monotonic() < ends:
            rounds += 1
            profiler.kill()
            for viewer in viewers:
                await viewer.until_told("disconnected", rounds)
            await asyncio.to_thread(profiler.start)
            for viewer in viewers:
                await viewer.until_told("connected", rounds)
                await viewer.goes_on(1)
            assert await viewers[rounds % 20].ask("trigger_gc") == b"ok"
            if rounds == 10:
                before = server.memory, server.descriptors, server.threads
    for viewer in viewers:
        assert viewer.notices["disconnected"] == viewer.notices["connected"] == viewer.notices["restarted"] == rounds
    memory, descriptors, threads = before
    assert server.memory < memory + 16e6
    assert server.descriptors <= descriptors
    assert server.threads == threads


async def test_stopped_and_continued_is_reported_and_continues(launch: Launch, profiler: SteadyProcess) -> None:
    server = launch(**profiler.endpoints, **SHORT)
    async with witnesses(server.ws, 5) as viewers:
        assert await viewers[0].ask("trigger_gc") == b"ok"
        for _ in range(2):
            await asyncio.to_thread(profiler.freeze)
            assert (await viewers[0].ask("use_cpu_time")).startswith(b"error:timeout")
            trouble = (await asyncio.to_thread(lambda: server.status))["trouble"]
            assert "does not answer" in trouble
            profiler.send_signal(signal.SIGCONT)
            for viewer in viewers:
                await viewer.goes_on()
            await status_of(
                server, lambda status: status["trouble"] is None, "it answers again, and nobody had to ask"
            )
        assert await viewers[1].ask("trigger_gc") == b"ok"
        assert all(not viewer.notices for viewer in viewers), "it never went away"
    assert server.log.count("does not answer") == server.log.count("answers again") == 2


async def test_slow_to_answer_keeps_the_replies_and_the_stream(
    launch: Launch, profiler: SteadyProcess, soak: float
) -> None:
    """Slow for a moment, or for a minute with --soak."""
    server = launch(**profiler.endpoints, command_timeouts={"trigger_gc": 90})
    async with witnesses(server.ws, 5) as viewers:
        assert await viewers[0].ask("trigger_gc") == b"ok"
        profiler.freeze()
        asking = [
            asyncio.create_task(viewer.ask(command, 90)) for viewer in viewers for command in ("trigger_gc",) * 4
        ]
        await status_of(server, lambda status: status["commands_waiting"] == 20, "all wait for the first")
        await asyncio.sleep(min(soak, 60))
        profiler.send_signal(signal.SIGCONT)
        assert await asyncio.gather(*asking) == [b"ok"] * 20
        for viewer in viewers:
            await viewer.goes_on()
            await viewer.until_accounted()


async def test_wedged_by_somebody_else_s_empty_request_is_reported_once_in_plain_words_and_mended_by_a_restart(
    launch: Launch, profiler: SteadyProcess
) -> None:
    server = launch(**profiler.endpoints, **SHORT)
    async with witnesses(server.ws, 5) as viewers:
        assert await viewers[0].ask("trigger_gc") == b"ok"
        with zmq.Context() as context, context.socket(zmq.REQ) as somebody:
            somebody.linger = 0
            somebody.connect(profiler.req)
            somebody.send(b"")
            await asyncio.to_thread(profiler.wait_until_wedged)
            assert not somebody.poll(0)
        for _ in range(2):
            assert (await viewers[0].ask("use_cpu_time")).startswith(b"error:timeout")
        trouble = (await asyncio.to_thread(lambda: server.status))["trouble"]
        assert "does not answer" in trouble
        assert "restart" in trouble
        assert "empty request" in trouble
        for viewer in viewers:
            await viewer.goes_on()
        assert server.log.count("empty request") == 1
        profiler.kill()
        await asyncio.to_thread(profiler.start)
        await viewers[0].until_told("restarted")
        assert await viewers[0].ask("trigger_gc") == b"ok"
        status = await status_of(server, lambda status: status["answers"], "it answers")
        assert status["trouble"] is None
    assert server.log.count("answers again") == 1


async def status_of(server: Any, condition: Any, what: str) -> dict[str, Any]:
    return await asyncio.to_thread(server.until, condition, what)
