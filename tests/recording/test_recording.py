"""A session saved, served again with its timing, and converted for other tools."""

from __future__ import annotations

import asyncio
import errno
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from tests.cli.here import run_here
from tests.conftest import Serve, until
from tests.fake_rbkit import DATA as RECORDINGS
from tests.fake_rbkit import FakeRbkit, collection
from tests.patient import PATIENT
from tornado_rbkit import Bridge, RbkitClient
from tornado_rbkit.bridge.profiler_state import State
from tornado_rbkit.cli.progress import Progress
from tornado_rbkit.errors import RecordingError
from tornado_rbkit.protocol import CommandError, CPUSample, Handshake, RbkitError, StackFrame
from tornado_rbkit.recording.export import collapsed, json_lines, speedscope
from tornado_rbkit.recording.recorder import Recorder
from tornado_rbkit.recording.recording import DATA, REPLY, Record, events, read
from tornado_rbkit.recording.replay import ReplayServer


def packed(*records: object) -> bytes:
    return b"".join(msgpack.packb(record) for record in records)


def frame(label: str, line: int, thread: int = 1) -> dict[int, object]:
    return {12: label.rpartition("#")[2], 13: label, 6: "/srv/shop.rb", 7: line, 14: 0, 15: thread}


def sample(*labels: str, thread: int = 1) -> dict[int, object]:
    """Return a cpu_sample of frames given from the inside out."""
    return {0: 9, 1: 1.0, 2: [frame(label, 10 + len(label), thread) for label in labels]}


SAMPLES = packed(
    [0.0, DATA, None, collection(0, [sample("a;b", "main"), sample("c", "main"), sample("a;b", "main")])],
    [0.5, DATA, None, collection(1, [sample("idle", thread=2), {0: 9, 1: 1.0, 2: []}, {0: 2, 1: 1.0}])],
)


def recording(name: str) -> list[Record]:
    with (RECORDINGS / f"{name}.msgpack").open("rb") as file:
        return list(read(file))


class TestReading:
    @pytest.mark.parametrize("name", ["commands", "cpu", "memory", "snapshot"])
    def test_real_recordings_are_read_whole(self, name: str) -> None:
        records = recording(name)
        assert len(records) > 1
        assert name == "commands" or list(events(records, []))

    @pytest.mark.parametrize(
        "content",
        [b"GIF89a", packed(1), packed([1.0, 0, None]), packed([0.0, 7, None, b""]), packed([0.0, 1, None, "text"])],
    )
    def test_another_file_is_refused(self, content: bytes) -> None:
        with pytest.raises(RecordingError):
            list(read(io.BytesIO(content)))

    def test_a_file_that_was_cut_off_yields_the_complete_records_and_then_an_error(self) -> None:
        records = read(io.BytesIO(SAMPLES[:-5]))
        assert next(records).seconds == 0.0
        with pytest.raises(RecordingError, match="in the middle of a record"):
            next(records)

    def test_wherever_it_was_cut_off_it_says_so(self) -> None:
        first = len(packed([0.0, DATA, None, collection(0)]))
        whole = packed([0.0, DATA, None, collection(0)]) + packed([1.0, DATA, None, bytes(70_000)])
        for end in (*range(first + 1, first + 40), len(whole) - 1):
            with pytest.raises(RecordingError, match=f"in the middle of a record, at byte {first}"):
                list(read(io.BytesIO(whole[:end])))

    def test_an_empty_file_is_an_empty_recording(self) -> None:
        assert list(read(io.BytesIO(b""))) == []


class TestExport:
    def test_speedscope_has_a_profile_for_each_thread_from_the_outside_in(self) -> None:
        (text,) = speedscope(events(read(io.BytesIO(SAMPLES)), []), "session")
        document = json.loads(text)
        names = [frame["name"] for frame in document["shared"]["frames"]]
        first, second = document["profiles"]
        assert [[names[index] for index in stack] for stack in first["samples"]] == [
            ["main", "a;b"],
            ["main", "c"],
            ["main", "a;b"],
        ]
        assert first["weights"] == [1, 1, 1]
        assert (first["startValue"], first["endValue"]) == (0, 3)
        assert second["name"] == "thread 2"
        assert document["shared"]["frames"][0] == {"name": "main", "file": "/srv/shop.rb", "line": 14}

    def test_collapsed_counts_equal_stacks_and_escapes_the_separator(self) -> None:
        assert sorted(collapsed(events(read(io.BytesIO(SAMPLES)), []), "session")) == [
            "thread 1;main;a:b 2",
            "thread 1;main;c 1",
            "thread 2;idle 1",
        ]

    def test_blocks_of_one_file_are_distinguished(self) -> None:
        def of(label: str, file: str, line: int) -> CPUSample:
            return CPUSample(1.0, [StackFrame(None, label, file, line, False, 1)])

        samples = [
            *[of("block in <main>", "/srv/app.rb", 3)] * 52,
            *[of("block in <main>", "/srv/app.rb", 9)] * 471,
            *[of("block in <main>", "/srv/admin.rb", 9)] * 134,
            of("ensure in Shop#close", "/srv/shop.rb", 7),
            *[of("shop.total.<locals>.<lambda>", "shop;py", line) for line in (1, 2)],
            *[
                of("Shop#total", "/srv/shop.rb", line) for line in (1, 2)
            ],  # a Python function's line is the current one
        ]
        assert list(collapsed(samples, "shop")) == [
            "thread 1;Shop#total 2",
            "thread 1;block in <main> (/srv/admin.rb:9) 134",
            "thread 1;block in <main> (/srv/app.rb:3) 52",
            "thread 1;block in <main> (/srv/app.rb:9) 471",
            "thread 1;ensure in Shop#close (/srv/shop.rb:7) 1",
            "thread 1;shop.total.<locals>.<lambda> (shop:py:1) 1",
            "thread 1;shop.total.<locals>.<lambda> (shop:py:2) 1",
        ]
        (document,) = map(json.loads, speedscope(samples, "shop"))
        frames = [(each["name"], each["file"], each["line"]) for each in document["shared"]["frames"]]
        assert frames[:3] == [
            ("block in <main>", file, line)
            for file, line in (("/srv/app.rb", 3), ("/srv/app.rb", 9), ("/srv/admin.rb", 9))
        ]

    @pytest.mark.parametrize("export", [speedscope, collapsed, json_lines])
    def test_messages_that_are_not_rbkit_s_are_left_out_and_told(self, export: Callable[..., Any]) -> None:
        odd = {0: 9, 1: 1.0, 2: [{12: 5, 13: 7, 6: None, 7: "z", 14: 0, 15: None}]}
        records = [
            Record(0.0, DATA, None, collection(0, [sample("before")])),
            Record(1.5, DATA, None, collection(1, [odd])),
            Record(2.0, DATA, None, b"hello"),
            Record(3.0, DATA, None, collection(2, [sample("after")])),
        ]
        problems: list[str] = []
        text = "\n".join(export(events(records, problems), "odd"))
        assert "before" in text
        assert "after" in text
        [problem] = problems
        assert problem.startswith("2 of 4 messages are not rbkit's and were left out; the first: ")
        assert problem.endswith("at 1.500 s")

    def test_json_has_every_event_with_its_fields_by_name(self) -> None:
        lines = [json.loads(line) for line in json_lines(events(read(io.BytesIO(SAMPLES)), []), "session")]
        assert [line["event"] for line in lines] == ["CPUSample"] * 5 + ["GCStart"]
        assert lines[0]["frames"][0]["label"] == "a;b"

    @pytest.mark.parametrize("name", ["commands", "cpu", "memory", "snapshot"])
    def test_real_recordings_convert(self, name: str) -> None:
        for convert in (speedscope, collapsed, json_lines):
            output = "\n".join(convert(events(recording(name), []), name))
            output.encode()
            assert bool(output.strip()) or name != "cpu"


async def test_what_is_recorded_is_what_was_sent(serve: Serve, rbkit: FakeRbkit) -> None:
    server = await serve(Bridge(**rbkit.endpoints))
    file = io.BytesIO()
    recorder = Recorder(file)
    async with server.client() as client:
        await recorder.ask_all(client, ["handshake"])
        sent = [rbkit.publish_collection(padding) for padding in (0, 1000, 300_000)]
        with pytest.raises(CommandError):
            await recorder.ask_all(client, ["nonsense"])
        following = recorder.follow(client)
        async for item in client.messages():
            assert isinstance(item, bytes)
            recorder.write(DATA, None, item)
            if recorder.messages == len(sent):
                break
    await following
    file.seek(0)
    records = list(read(file))
    assert [record.payload for record in records if record.channel == DATA] == sent
    assert records[0][1:] == (REPLY, "handshake", rbkit.handshake())
    assert [record.command for record in records if record.channel == REPLY] == ["handshake", "nonsense"]
    times = [record.seconds for record in records]
    assert times == sorted(times)
    assert recorder.size == sum(map(len, sent))


class TestReplay:
    async def test_says_again_what_was_said_from_the_first_subscriber_on(self, serve: Serve) -> None:
        records = [*recording("commands"), *recording("cpu")]
        with ReplayServer(lambda: records, speed=1000) as replay:
            server = await serve(Bridge(replay.pub, replay.req))
            async with server.client() as client:
                handshake = await client.command("handshake")
                assert isinstance(handshake, Handshake)
                assert handshake.rbkit_server_version == "0.1.10"
                assert await client.command("trigger_gc") == "ok"
                expected = [record.payload for record in records if record.channel == DATA]
                received: list[bytes] = []
                async for item in client.messages():
                    if isinstance(item, bytes):
                        received.append(item)
                        if len(received) == len(expected):
                            break
                assert received == expected

    async def test_keeps_the_time_between_messages(self, serve: Serve) -> None:
        records = [Record(5.0, DATA, None, collection(0)), Record(4005.0, DATA, None, collection(1))]
        with ReplayServer(lambda: records, speed=10_000) as replay:
            server = await serve(Bridge(replay.pub, replay.req))
            before = time.monotonic()  # and not when the first has arrived, which may be late
            async with server.client() as client:
                messages = client.messages()
                await messages.__anext__()
                await messages.__anext__()
                assert time.monotonic() - before >= 0.4

    async def test_starts_over_for_a_client_that_comes_after_the_last_has_left(self, serve: Serve) -> None:
        records = [Record(0.0, DATA, None, collection(0)), Record(60.0, DATA, None, collection(1))]
        with ReplayServer(lambda: records) as replay:
            server = await serve(Bridge(replay.pub, replay.req, idle_grace=0))
            for _ in range(3):
                async with server.client() as client:
                    assert await client.messages().__anext__() == records[0].payload
                await until(lambda: server.bridge.state is State.IDLE, "the bridge has left")

    @pytest.mark.logs_errors
    async def test_a_recording_that_is_cut_off_is_reported_and_served_up_to_there(self, serve: Serve) -> None:
        replay = ReplayServer(lambda: read(io.BytesIO(SAMPLES[:-5])))
        with pytest.raises(RecordingError), replay:  # noqa: PT012 - it is raised on leaving
            server = await serve(Bridge(replay.pub, replay.req))
            async with server.client() as client:
                assert isinstance(await client.messages().__anext__(), bytes)

    async def test_a_file_that_cannot_be_read_further_ends_it_with_the_reason(self, serve: Serve) -> None:
        def broken() -> Iterator[Record]:
            yield Record(0.0, REPLY, "handshake", b"ok")
            yield Record(0.0, DATA, None, collection(0))
            yield Record(0.0, DATA, None, collection(1))
            raise OSError(errno.EIO, "Input/output error")

        replay = ReplayServer(broken)
        with pytest.raises(RbkitError, match="Input/output error"), replay:  # noqa: PT012 - it is raised on leaving
            server = await serve(Bridge(replay.pub, replay.req))
            async with server.client():
                await until(replay.ended.done, "its thread has ended")

    def test_sockets_that_cannot_be_bound_are_an_error_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def bind(self: object, endpoint: str) -> None:
            raise zmq.ZMQError(errno.EADDRINUSE)

        monkeypatch.setattr(zmq.Socket, "bind", bind)
        with pytest.raises(RbkitError, match="Address already in use"), ReplayServer(list):
            pass

    async def test_a_subscriber_that_does_not_read_holds_it_up_and_does_not_fill_the_memory(self) -> None:
        taken = 0
        payload = bytes(1_000_000)

        def endless() -> Iterator[Record]:
            nonlocal taken
            while True:
                taken += 1
                yield Record(0.0, DATA, None, payload)

        with (
            ReplayServer(endless) as replay,
            zmq.Context() as context,
            context.socket(zmq.SUB) as stuck,
            context.socket(zmq.REQ) as asking,
        ):
            stuck.linger = asking.linger = 0
            stuck.rcvhwm = 1
            stuck.subscribe(b"")
            stuck.connect(replay.pub)
            asking.connect(replay.req)
            await until(lambda: taken > 1010, "it has begun")  # behind the search for a handshake
            before = -1
            while taken != before:  # it goes on until as much waits as may
                before = taken
                for _ in range(5):
                    asking.send(b"trigger_gc")  # 50 ms are waited for the subscriber each time
                    assert await asyncio.to_thread(asking.recv) == b"ok"
            assert taken < 1100
            received = 0
            while received < 300:  # and for one that reads again it goes on without a loss
                assert len(await asyncio.to_thread(stuck.recv)) == len(payload)
                received += 1
            assert taken >= 1300

    async def test_answers_the_handshake_that_came_after_the_first_message(self, serve: Serve) -> None:
        handshake = next(record for record in recording("commands") if record.command == "handshake")
        records = [Record(0.0, DATA, None, collection(0)), Record(60.0, DATA, None, collection(1)), handshake]
        with ReplayServer(lambda: records) as replay:
            server = await serve(Bridge(replay.pub, replay.req))
            async with server.client() as client:
                assert (await client.command("handshake")).rbkit_server_version == "0.1.10"

    def test_the_command_ends_with_the_reason_when_its_thread_has_ended(self, tmp_path: Path) -> None:
        program = """
import sys
from tornado_rbkit.cli.commands import replay
from tornado_rbkit.cli.main import main

times = 0

def read(file):
    global times
    times += 1
    if times == 2:  # the first time the command looks whether it is a recording
        raise OSError(5, "Input/output error")
    return iter(())

replay.read = read
sys.exit(main(["replay", sys.argv[1], "--port", "0"]))
"""
        path = tmp_path / "session.rbkit"
        path.write_bytes(SAMPLES)
        finished = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, str(path)], capture_output=True, text=True, timeout=60
        )
        assert finished.returncode == 1
        assert finished.stderr.endswith("tornado-rbkit: the replay has ended: [Errno 5] Input/output error\n")

    def test_a_speed_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="more than 0"):
            ReplayServer(list, speed=0)


class TestCommandLine:
    async def test_record_replay_and_export_go_together(self, serve: Serve, rbkit: FakeRbkit, tmp_path: Path) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        await server.connected()
        rbkit.snapshot = collection(0, [sample("work", "main")])
        path = tmp_path / "session.rbkit"
        command = [
            "-q",  # without the warning of a snapshot
            "record",
            "--url",
            server.ws,
            "-o",
            str(path),
            "--cpu",
            "--memory",
            "--snapshot",
            "--seconds",
            "0.3",
        ]
        assert re.fullmatch(r"1 messages, \d+ bytes\n", await run(*command))
        assert rbkit.received[-1] == b"stop_memory_profile"
        assert not rbkit.enabled
        assert "thread 1;main;work 1" in await run("export", str(path), "--format", "collapsed")
        output = tmp_path / "session.json"
        assert await run("export", str(path), "-o", str(output)) == ""
        assert json.loads(output.read_text())["profiles"][0]["samples"] == [[0, 1]]

        process = subprocess.Popen(
            [sys.executable, *PATIENT, "replay", str(path), "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        port = process.stdout.readline().removeprefix("ready http://127.0.0.1:").partition("/")[0]
        async with RbkitClient(f"ws://127.0.0.1:{port}/rbkit/ws") as client:
            assert await client.messages().__anext__() == rbkit.snapshot
        async with RbkitClient(f"ws://127.0.0.1:{port}/rbkit/ws") as client:
            assert await client.messages().__anext__() == rbkit.snapshot
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        process.stdout.close()

    @pytest.mark.parametrize("path", ["-", "/dev/stdout"])
    async def test_a_recording_to_standard_output_has_nothing_else_in_it(
        self, serve: Serve, rbkit: FakeRbkit, tmp_path: Path, path: str
    ) -> None:
        if path != "-" and not os.path.exists(path):
            pytest.skip(f"there is no {path}")
        server = await serve(Bridge(**rbkit.endpoints))
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "tornado_rbkit", "record", "-o", path, "--url", server.ws],
            *["--cpu", "--seconds", "0"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = await process.communicate()
        assert process.returncode == 0
        assert [record.command for record in read(io.BytesIO(output))] == [
            "handshake",
            "start_cpu_profiling",
            "stop_cpu_profiling",
        ]
        assert re.fullmatch(rb"0 messages, \d+ bytes\n", errors)
        assert not list(tmp_path.iterdir()), "there is no file of that name"

    def test_export_writes_what_is_whole_of_a_file_that_was_cut_off_and_says_so(self, tmp_path: Path) -> None:
        path, output = tmp_path / "session.rbkit", tmp_path / "session.json"
        path.write_bytes(SAMPLES[:-5])
        finished = subprocess.run(
            [sys.executable, "-m", "tornado_rbkit", "export", str(path), "-o", str(output)],
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 2
        assert "in the middle of a record" in finished.stderr
        assert len(json.loads(output.read_text())["profiles"][0]["samples"]) == 3

    async def test_record_leaves_on_what_was_on_and_a_file_it_cannot_begin(
        self, serve: Serve, rbkit: FakeRbkit, tmp_path: Path
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        rbkit.enabled.add("memory_profile")
        path = tmp_path / "session.rbkit"
        await run("record", "--url", server.ws, "-o", str(path), "--cpu", "--memory", "--seconds", "0.1")
        assert rbkit.enabled == {"memory_profile"}
        before = path.read_bytes()
        await server.bridge.close()
        server.http.stop()
        refused = subprocess.run(
            [sys.executable, "-m", "tornado_rbkit", "record", "--url", server.ws, "-o", str(path)],
            capture_output=True,
            text=True,
        )
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert path.read_bytes() == before

    async def test_a_second_ctrl_c_ends_record_with_what_was_recorded_whole(
        self, serve: Serve, rbkit: FakeRbkit, tmp_path: Path
    ) -> None:
        program = """
import sys
from tornado_rbkit.cli.main import main
from tornado_rbkit.recording.recorder import Recorder

def write(recorder, channel, command, payload, write=Recorder.write):
    write(recorder, channel, command, payload)
    print(command, file=sys.stderr, flush=True)

Recorder.write = write
sys.exit(main())
"""
        server = await serve(Bridge(**rbkit.endpoints, command_timeouts={"stop_memory_profile": 300}))
        path = tmp_path / "session.rbkit"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", program),
            *("record", "--url", server.ws, "-o", str(path), "--memory"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        for written in (b"handshake\n", b"start_memory_profile\n"):
            assert await process.stderr.readline() == written
        published = [rbkit.publish_collection(padding=1000) for _ in range(3)]
        for _ in published:
            assert await process.stderr.readline() == b"None\n"
        rbkit.answering.clear()
        process.send_signal(signal.SIGINT)
        await until(lambda: rbkit.received[-1] == b"stop_memory_profile", "it waits for a reply")
        assert process.returncode is None
        process.send_signal(signal.SIGINT)
        output, errors = await asyncio.wait_for(process.communicate(), 60)  # the reply would take 300 s
        rbkit.answering.set()
        assert errors == b""
        assert process.returncode == 130
        assert output.startswith(b"3 messages, ")
        with path.open("rb") as file:
            records = list(read(file))
        assert [record.payload for record in records if record.channel == DATA] == published
        assert [record.command for record in records if record.command] == ["handshake", "start_memory_profile"]

    async def test_one_ctrl_c_ends_record_before_it_has_begun(self, tmp_path: Path) -> None:
        path = tmp_path / "session.rbkit"
        connected = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.set()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-m", "tornado_rbkit", "record", "--url", url, "-o", str(path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        await asyncio.wait_for(connected.wait(), 60)
        process.send_signal(signal.SIGINT)
        output, errors = await asyncio.wait_for(process.communicate(), 60)  # opening would fail after 20 s
        assert (output, errors) == (b"", b"")
        assert process.returncode == 130
        assert not path.exists()
        server.close()

    @pytest.mark.parametrize(
        "foreign",
        [
            b"hello, I am not rbkit",
            msgpack.packb({0: 7, 1: 1.0, 9: 0, 2: [{0: 5, 1: 1.0, 10: [1], 11: 2, 2: []}]}),
            msgpack.packb({0: 7, 1: 1.0, 9: 0, 2: [{0: 5, 1: 1.0, 10: 1, 11: "many", 2: []}]}),
            msgpack.packb({0: 7, 1: 1.0, 9: 0, 2: [{2: 1, 0: [5]}]}),
            b"\x81\x02\xdd\xff\xff\xff\xff",
        ],
        ids=["foreign", "unhashable", "text-count", "no-type", "huge"],
    )
    async def test_what_cannot_be_counted_is_recorded_all_the_same(
        self, serve: Serve, rbkit: FakeRbkit, foreign: bytes
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        file = io.BytesIO()
        recorder = Recorder(file)
        rbkit.snapshot = foreign
        async with server.client() as client:
            following = asyncio.create_task(recorder.follow(client))
            await recorder.ask_all(client, ["objectspace_snapshot"])
            rbkit.publish(dump(1, 2, 3))
            await until(lambda: recorder.objects == 2, "the next one is counted")
            assert not following.done()
        await following
        file.seek(0)
        assert [record.payload for record in read(file) if record.channel == DATA] == [foreign, dump(1, 2, 3)]

    async def test_record_keeps_what_there_is_when_the_server_goes(
        self, serve: Serve, rbkit: FakeRbkit, tmp_path: Path
    ) -> None:
        server = await serve(Bridge(**rbkit.endpoints))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tornado_rbkit", "record", "--url", server.ws, "-o", str(tmp_path / "x"), "--cpu"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        await until(lambda: "cpu_profiling" in rbkit.enabled, "it records")
        await server.bridge.close()
        output, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 1
        assert re.fullmatch(rb"0 messages, 0 bytes\n", output)
        assert errors.startswith(b"tornado-rbkit: ws://")
        assert errors.count(b"\n") == 1

    @pytest.mark.parametrize(
        ("command", "text"),
        [
            (["export", "missing.rbkit"], "No such file"),
            (["export", __file__], f"{__file__}: not a recording"),
            (["replay", "missing.rbkit"], "No such file"),
            (["replay", __file__, "--speed", "0"], "more than 0"),
            (["record", "--url", "ftp://127.0.0.1/", "-o", "/dev/null"], "ws://"),
        ],
    )
    def test_what_cannot_be_done_is_said_in_one_line(self, command: list[str], text: str) -> None:
        finished = run_here(*command)
        assert finished.returncode == 2
        assert text in finished.stderr
        assert finished.stderr.count("\n") == 1


async def test_a_snapshot_s_progress_is_reported_by_the_total_it_announces(serve: Serve, rbkit: FakeRbkit) -> None:
    def dump(count: int) -> dict[int, object]:
        return {0: 5, 1: 1.0, 10: 1, 11: 5, 2: [{3: 1, 4: "A", 5: [], 6: None, 7: None, 8: 40}] * count}

    server = await serve(Bridge(**rbkit.endpoints))
    recorder = Recorder(io.BytesIO())
    rbkit.snapshot = collection(0, [dump(2)])
    async with server.client() as client:
        following = asyncio.create_task(recorder.follow(client))
        await recorder.ask_all(client, ["objectspace_snapshot"])
        await until(lambda: recorder.progress().endswith(", 2 of 5 objects"), "the first part has been counted")
        rbkit.publish(collection(1, [dump(3)]))
        await until(lambda: recorder.progress().endswith(", 5 of 5 objects"), "the second part has been counted")
    await following


def dump(snapshot: int, count: int, total: int) -> bytes:
    row = {3: 1, 4: "A", 5: [], 6: None, 7: None, 8: 40}
    return collection(0, [{0: 5, 1: 1.0, 10: snapshot, 11: total, 2: [row] * count}])


async def test_snapshots_that_come_at_the_same_time_are_counted_apart() -> None:
    recorder = Recorder(io.BytesIO())
    recorder._snapshot_is_due = True
    shown: list[tuple[int, int]] = []
    for payload in (dump(1, 2, 3), dump(2, 4, 9), dump(1, 1, 3), dump(2, 5, 9), dump(3, 1, 7)):
        before = recorder.objects
        recorder.write(DATA, None, payload)
        if len(shown) < 4:  # all has come then
            await until(lambda before=before: recorder.objects > before, "it has been counted")  # type: ignore[misc]
        shown.append((recorder.objects, recorder.objects_announced))
    assert shown == [(2, 3), (6, 12), (7, 12), (12, 12), (12, 12)]


async def test_counting_a_large_snapshot_leaves_the_loop_its_turns() -> None:
    """Fail if the loop stands still for half of the work that the counting is: it has pings to answer."""
    events = [{0: 5, 1: 1.0, 10: 1, 11: 600_000, 2: [{3: 1, 4: "A", 5: [1] * 5, 6: None, 7: None, 8: 40}] * 1000}]
    payload = collection(0, events * 600)
    recorder = Recorder(io.BytesIO())
    recorder._snapshot_is_due = True
    recorder.write(DATA, None, payload)
    turns = [time.process_time()]  # which a busy machine does not lengthen
    while recorder.objects == 0:
        await asyncio.sleep(0.001)
        turns.append(time.process_time())
    assert recorder.progress().endswith(", 600,000 of 600,000 objects")
    longest = max(after - before for before, after in itertools.pairwise(turns))
    assert longest < (turns[-1] - turns[0]) / 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_one_line_on_a_terminal_and_nothing_elsewhere(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("tornado_rbkit.cli.progress.INTERVAL", 0.0)
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with Progress(lambda: "half way") as progress:
        progress.step()
        shown = screen.getvalue()
    if terminal:
        assert re.fullmatch(r"\rhalf way, \d+ s", shown)
        assert re.fullmatch(r"\rhalf way, \d+ s\r +\r", screen.getvalue()), "it is cleared at the end"
    else:
        assert screen.getvalue() == ""


def test_progress_on_a_terminal_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("tornado_rbkit.cli.progress.INTERVAL", 0.0)
    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress(lambda: "half way") as progress:
        progress.step()


async def run(*command: str) -> str:
    """Run a command line beside this loop, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tornado_rbkit", *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, errors) == (0, b"")
    return output.decode()
