"""Recording a live profiler: the last messages, restarts of the process, and rbkit as it was tagged in 2015."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Serve, Server, until
from tests.fake_rbkit import FakeRbkit, collection, rbkit_process
from tests.test_deadline import Clock, clock
from tornado_rbkit import Bridge, RbkitError
from tornado_rbkit.cli.caveats import check_command
from tornado_rbkit.protocol import Handshake, ObjectSpaceDump, decode_handshake
from tornado_rbkit.recording.recorder import CPU, LAST_FLUSH_SECONDS, MEMORY, Recorder, RecordingSession
from tornado_rbkit.recording.recording import DATA, Record, events, read

__all__ = ["clock"]  # a fixture

ROW = {3: 1, 4: "A", 5: [], 6: None, 7: None, 8: 40}
DUMP = collection(0, [{0: 5, 1: 1.0, 2: [ROW] * 3}])


@pytest.fixture
def tagged() -> Iterator[FakeRbkit]:
    with FakeRbkit(tagged=True) as server:
        server.snapshot = DUMP
        yield server


async def command_line(*arguments: str) -> tuple[int | None, str, str]:
    """Run a command; return its exit status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "tornado_rbkit", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, output.decode(), errors.decode()


class Recording:
    """A session that is being recorded; after `end` it is in `records`."""

    def __init__(self, server: Server, *profiling: str) -> None:
        self._file = io.BytesIO()
        self._profiling = profiling
        self.client = server.client()
        self.recorder = Recorder(self._file)
        self.session = RecordingSession(self.client, self.recorder, profiling)
        self.records: list[Record] = []

    async def __aenter__(self) -> Recording:
        await self.client.__aenter__()
        self._following = asyncio.create_task(self.session.follow())
        await self.session.begin(await self.client.request("handshake"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self._following

    async def end(self) -> list[Exception]:
        errors = await self.session.end(self._following)
        self._file.seek(0)
        self.records = list(read(self._file))
        return errors

    @property
    def messages(self) -> list[bytes]:
        return [record.payload for record in self.records if record.channel == DATA]

    @property
    def commands(self) -> list[str]:
        return [record.command for record in self.records if record.command]


# The last flush


@pytest.mark.parametrize("on_before", [False, True], ids=["started by it", "on before"])
async def test_what_rbkit_sends_after_the_stop_is_recorded(serve: Serve, on_before: bool, clock: Clock) -> None:
    with FakeRbkit(flush_interval=0.3) as rbkit:
        rbkit.enabled |= {"cpu_profiling"} if on_before else set()
        server = await serve(Bridge(**rbkit.endpoints, threaded=False))
        async with Recording(server, CPU) as recording:
            assert rbkit.sent == 0
            queued = [rbkit.publish_collection() for _ in range(3)]
            assert await recording.end() == []
        assert recording.messages == queued
        assert ("cpu_profiling" in rbkit.enabled) == on_before


def test_the_last_messages_have_a_second_and_the_time_of_one_loop() -> None:
    """rbkit polls for 0.1 s and sleeps 0.05 s before it compares the second that has passed."""
    assert LAST_FLUSH_SECONDS > 1.0 + 0.1 + 0.05


async def test_the_wait_for_the_last_messages_ends_with_the_connection(
    serve: Serve, rbkit: FakeRbkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornado_rbkit.recording.recorder.LAST_FLUSH_SECONDS", 1000.0)
    server = await serve(Bridge(**rbkit.endpoints))
    async with Recording(server) as recording:
        ending = asyncio.create_task(recording.end())
        await asyncio.sleep(0)
        await recording.client.close()
        assert await asyncio.wait_for(ending, 60) == []


async def test_the_last_messages_are_waited_for_although_this_process_was_stopped(
    serve: Serve, rbkit: FakeRbkit, clock: Clock
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, threaded=False))
    async with Recording(server) as recording:
        ending = asyncio.create_task(recording.end())
        await asyncio.sleep(0)
        message = rbkit.publish_collection()
        clock.pause(60)
        await until(lambda: recording.recorder.messages or ending.done(), "the message has arrived")
        while not ending.done():
            await clock.run(0.5)
        assert ending.result() == []
    assert recording.messages == [message]


# Restarts


@pytest.mark.parametrize("was_on", [False, True], ids=["started by it", "on before"])
async def test_profiling_is_started_again_after_a_restart_of_the_process(
    serve: Serve, caplog: pytest.LogCaptureFixture, was_on: bool
) -> None:
    with rbkit_process() as process:
        server = await serve(Bridge(**process.endpoints))
        if was_on:
            async with server.client() as other:
                await other.command("start_memory_profile")
        async with Recording(server, MEMORY) as recording:
            await until(lambda: recording.recorder.messages, "the first process is profiled")
            process.kill()
            process.start()
            await until(lambda: "was restarted" in caplog.text, "the restart is noticed")
            before = recording.recorder.messages
            await until(lambda: recording.recorder.messages > before, "the second process is profiled")
            assert await recording.end() == []
    assert "the profiled process was restarted; profiling was started again" in caplog.text
    starts = ["handshake", "start_memory_profile"]
    assert recording.commands == [*starts[: 1 if was_on else 2], *starts, "stop_memory_profile"]
    pids = [decode_handshake(record.payload).pid for record in recording.records if record.command == "handshake"]
    assert len(set(pids)) == 2


async def test_a_process_that_cannot_be_profiled_again_is_reported(
    serve: Serve, rbkit: FakeRbkit, caplog: pytest.LogCaptureFixture
) -> None:
    server = await serve(Bridge(**rbkit.endpoints, command_timeouts={"handshake": 0.2}))
    async with Recording(server, CPU) as recording:
        rbkit.answering.clear()
        recording.session._on_restart()
        await until(lambda: "was restarted" in caplog.text, "it is reported")
        rbkit.answering.set()
    assert "profiling was not started again: timeout: no reply to handshake within 0.2 s" in caplog.text


# rbkit as tagged


async def test_a_client_gets_none_for_what_the_tagged_rbkit_does_not_send(serve: Serve, tagged: FakeRbkit) -> None:
    server = await serve(Bridge(**tagged.endpoints))
    async with server.client() as client:
        handshake = await client.command("handshake")
        assert handshake[1:] == (None, None, "fake", "/srv", os.getpid(), False, *[None] * 4)
        assert await client.command("start_memory_profile") == "ok"
        assert (await client.command("handshake")).object_trace_enabled
        assert await client.command("objectspace_snapshot") == "ok"
        dump = await asyncio.wait_for(anext(client.events()), 60)
    assert isinstance(dump, ObjectSpaceDump)
    assert (dump.correlation_id, dump.complete_message_count, len(dump.objects)) == (None, None, 3)


async def test_a_snapshot_of_the_tagged_rbkit_ends_with_its_message(
    serve: Serve, tagged: FakeRbkit, clock: Clock
) -> None:
    tagged.flush_interval = 3600
    server = await serve(Bridge(**tagged.endpoints, threaded=False))
    async with Recording(server) as recording:
        await recording.session.snapshot()
        assert recording.recorder.messages == 0, "it replies before it sends the snapshot"
        tagged.flush_interval = 0.3
        assert await recording.end() == []
        await until(lambda: recording.recorder.objects, "it is counted")
        assert recording.recorder.progress().endswith(" bytes, 3 objects")
        assert not recording.recorder._snapshot_is_due
    assert recording.messages == [DUMP]
    assert recording.commands == ["handshake", "objectspace_snapshot", "handshake"]


async def test_the_commands_work_with_the_tagged_rbkit(serve: Serve, tagged: FakeRbkit, tmp_path: Path) -> None:
    server = await serve(Bridge(**tagged.endpoints))
    path = tmp_path / "session.rbkit"
    status, output, errors = await command_line("send", "handshake", "--url", server.ws)
    assert (status, errors) == (0, "")
    assert "process_name: fake\n" in output
    assert "rbkit_protocol_version: None\n" in output

    options = ["--seconds", "0", "-o", str(path), "--url", server.ws]
    status, output, errors = await command_line("record", "--memory", "--snapshot", *options)
    assert (status, output.partition(", ")[0]) == (0, "1 messages")
    assert errors.count("\n") == 1
    assert "crashes programs on Ruby 3.1" in errors
    with path.open("rb") as file:
        (dump,) = events(read(file), [])
    assert isinstance(dump, ObjectSpaceDump)
    assert not tagged.enabled

    for command in (["record", "--cpu", *options], ["send", "start_cpu_profiling", "--url", server.ws]):
        status, output, errors = await command_line(*command)
        assert (status, output, errors.count("\n")) == (1, "", 1)
        assert "start_cpu_profiling: this rbkit cannot profile CPU use" in errors
    assert b"start_cpu_profiling" not in tagged.received


# What is said before a command


def handshake(version: str | None, cpu: bool | None) -> Handshake:
    return Handshake(1.0, version, None, "puma", "/srv", 7, False, cpu, None, None)


@pytest.mark.parametrize(("version", "warns"), [(None, True), ("0.1.10", True), ("0.2.0", False), ("0.1.0", False)])
def test_a_snapshot_of_a_version_that_may_crash_ruby_is_warned_about(
    caplog: pytest.LogCaptureFixture, version: str | None, warns: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        check_command("objectspace_snapshot", handshake(version, None))
    assert ("crashes programs on Ruby 3.1" in caplog.text) is warns


@pytest.mark.parametrize("command", ["start_cpu_profiling", "stop_cpu_profiling", "use_cpu_time", "use_wall_time"])
def test_a_cpu_command_is_refused_if_the_profiler_would_ignore_it(command: str) -> None:
    check_command(command, handshake("0.1.10", False))
    with pytest.raises(RbkitError, match=rf"^{command}: .*allowed: "):
        check_command(command, handshake(None, None))
