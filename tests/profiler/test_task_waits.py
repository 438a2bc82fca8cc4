"""The looks at suspended asyncio tasks that the profiler publishes beside the samples of threads."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiler.conftest import Client, raw_events
from tests.profiler.test_suspended import forever, loop_thread, nested
from tornado_rbkit.profiler import task_waits
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.frames import SamplingError
from tornado_rbkit.profiler.packing import TaskGroup, pack_frame, pack_suspended_tasks
from tornado_rbkit.profiler.profile import WATCH_SECONDS, Profile
from tornado_rbkit.profiler.suspended import Look, TaskReader
from tornado_rbkit.profiler.task_waits import TaskWaits
from tornado_rbkit.protocol import CPUSample, DecodeError, EventCollection, EventType, SuspendedTasks, decode
from tornado_rbkit.recording.export import collapsed, json_lines, speedscope


def published(batcher: EventBatcher) -> list[SuspendedTasks]:
    found = []
    for message in batcher.take(0.0, flush=True):
        collection = decode(message)
        assert isinstance(collection, EventCollection)
        found += [event.suspended_tasks for event in collection.events if isinstance(event, CPUSample)]
    return [look for look in found if look is not None]


def one_look() -> SuspendedTasks:
    batcher = EventBatcher()
    TaskWaits(batcher).work(is_wanted=True)
    (found,) = published(batcher)
    return found


async def fetch() -> None:
    await forever()


async def handler() -> None:
    await fetch()


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
counts = st.integers(0, 1 << 40)


@given(counts, counts, st.lists(st.tuples(counts, st.lists(text, max_size=3), st.none() | text, counts), max_size=20))
def test_groups_of_any_size_are_read_as_they_were_packed(
    tasks: int, read: int, groups: list[tuple[int, list[str], str | None, int]]
) -> None:
    frame = pack_frame("f", "m.f", "m.py", 3, singleton=False, definition_line=1)
    packed = [TaskGroup(count, names, awaits, (frame,) * (depth % 20)) for count, names, awaits, depth in groups]
    event = pack_suspended_tasks(1.0, tasks, read, 100.0, packed)
    message = decode(EventBatcher().collection([event], 0.0))
    assert isinstance(message, EventCollection)
    (sample,) = message.events
    assert isinstance(sample, CPUSample)
    assert (sample.timestamp, sample.frames, sample.thread_name) == (1000.0, [], None)
    assert sample.suspended_tasks is not None
    assert sample.suspended_tasks[:3] == (tasks, read, 100.0)
    assert [(*group[:3], len(group.frames)) for group in sample.suspended_tasks.groups] == [
        (count, names, awaits, depth % 20) for count, names, awaits, depth in groups
    ]


@pytest.mark.parametrize(
    ("key", "value"), [(25, "1"), (26, None), (27, "x"), (2, {}), (2, [{25: 1, 28: 1, 4: None, 2: []}])]
)
def test_a_look_of_other_types_is_refused(key: int, value: Any) -> None:
    look = {25: 1, 26: 1, 27: 1.0, 2: [], key: value}
    event = msgpack.packb({0: 9, 1: 1.0, 2: [], 24: look})
    with pytest.raises(DecodeError):
        decode(EventBatcher().collection([event], 0.0))


def test_tasks_that_wait_at_the_same_place_are_one_group() -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(handler()) for _ in range(37)]
        tasks += [asyncio.create_task(nested(0), name=f"nested {number}") for number in range(5)]
        await asyncio.gather(*tasks)

    with loop_thread(main):
        found = one_look()
    first, second, *others = found.groups
    assert (found.tasks, found.tasks_read) == (44, 44)
    assert (first.tasks, first.names, first.awaits) == (37, [], "Future")
    assert (second.tasks, second.names) == (5, ["nested 0", "nested 1", "nested 2"])
    assert sum(group.tasks for group in others) == 2
    of_main = ["main"] if sys.version_info >= (3, 14) else []  # which awaits them
    assert [frame.method_name for frame in first.frames][:4] == ["forever", "fetch", "handler", *of_main]
    assert first.frames[1].line == fetch.__code__.co_firstlineno + 1


def test_only_the_largest_groups_are_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_waits, "MAX_GROUPS", 2)

    async def main() -> None:
        await asyncio.gather(*(nested(depth) for depth in (0, 1, 1, 2, 2, 2)))

    with loop_thread(main):
        assert [group.tasks for group in one_look().groups] == [3, 2]


def test_a_pause_of_the_machine_is_no_time_for_which_tasks_have_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now, time=lambda: 0.0, thread_time=lambda: 0.0)
    monkeypatch.setattr(task_waits, "real_time", clock)
    batcher = EventBatcher()
    waits = TaskWaits(batcher)
    with loop_thread(handler):
        for passed in (0.1, 0.15, 60.0, 0.1):
            now += passed
            waits.work(is_wanted=True)
    assert [look.milliseconds for look in published(batcher)] == pytest.approx([100, 150, 200, 100])


def test_an_error_ends_the_looks_until_they_are_wanted_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def fails(*_: object) -> None:
        calls.append(1)
        raise ValueError("planted")

    monkeypatch.setattr("tornado_rbkit.profiler.suspended.TaskReader.look", fails)
    monkeypatch.setattr(task_waits, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(task_waits, "SHARE", 1e9)
    waits = TaskWaits(EventBatcher())
    for expected in (1, 2):
        for _ in range(3):
            waits.work(is_wanted=True)
        assert len(calls) == expected
        waits.work(is_wanted=False)
    assert [record.getMessage() for record in caplog.records].count(
        "the asyncio tasks cannot be read; they are left out of the CPU profile"
    ) == 2
    caplog.clear()


def test_a_process_whose_threads_cannot_be_read_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object) -> None:
        raise SamplingError("planted")

    monkeypatch.setattr("tornado_rbkit.profiler.event_loops.EventLoops.find", refuses)
    waits = TaskWaits(EventBatcher())
    waits.work(is_wanted=True)
    (record,) = caplog.records
    assert record.getMessage() == "the tasks cannot be read: planted; they are left out of the CPU profile"
    assert record.exc_info is None
    assert waits.trouble == "the tasks cannot be read: planted"
    caplog.clear()


class Outlet:
    """A server with or without subscribers."""

    def __init__(self) -> None:
        self.has_subscribers = True

    def send_all(self, events: Sequence[bytes]) -> None:
        raise AssertionError

    def flush(self) -> None:
        pass

    def yield_to_host(self) -> bool:
        return True


class Sampling:
    """A CPU sampler that samples nothing."""

    enabled = True
    clock_type = "wall"
    trouble = None

    def watch(self) -> None:
        pass


def test_tasks_are_looked_at_while_the_wall_clock_is_sampled_for_a_subscriber(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_waits, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(task_waits, "SHARE", 1e9)
    batcher, outlet, sampler = EventBatcher(), Outlet(), Sampling()
    profile = Profile("test", batcher, outlet, "in-process")
    profile.gc_stats = False
    profile.cpu = sampler  # type: ignore[assignment]
    seen = []
    with loop_thread(handler):
        for enabled, clock, subscribed in (
            *((True, "wall", True), (False, "wall", True), (True, "wall", True)),
            *((True, "cpu", True), (True, "wall", False), (True, "wall", True)),
        ):
            sampler.enabled, sampler.clock_type, outlet.has_subscribers = enabled, clock, subscribed
            profile.work()
            seen.append(len(published(batcher)))
    assert seen == [1, 0, 1, 0, 0, 1]


def test_the_server_wakes_for_looks_only_while_there_are_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_waits, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(task_waits, "SHARE", 1e9)
    totals = [0, 3, 0]
    monkeypatch.setattr(TaskReader, "look", lambda *_: Look(totals.pop(0), 0, []))
    profile = Profile("test", EventBatcher(), Outlet(), "in-process")
    profile.gc_stats = False
    profile.cpu = Sampling()  # type: ignore[assignment]
    assert [profile.work() for _ in range(3)] == [WATCH_SECONDS, 0.0, WATCH_SECONDS]


def test_a_client_is_sent_the_looks(client: Client) -> None:
    with loop_thread(handler):
        client.ask(b"start_cpu_profiling")
        found = client.events(CPUSample, lambda found: any(sample.suspended_tasks for sample in found))
        client.ask(b"stop_cpu_profiling")
    (look, *_) = [sample for sample in found if sample.suspended_tasks]
    assert look.suspended_tasks is not None
    assert any(frame.method_name == "fetch" for group in look.suspended_tasks.groups for frame in group.frames)
    raw = [event for message in client.messages for event in raw_events(message, EventType.CPU_SAMPLE) if 24 in event]
    assert all(event[2] == [] for event in raw)  # other clients see a sample without frames


def test_exports_of_stacks_leave_the_looks_out_and_json_has_them() -> None:
    frame = pack_frame("f", "m.f", "m.py", 3, singleton=False)
    event = pack_suspended_tasks(1.0, 5, 4, 100.0, [TaskGroup(4, ["job"], "Future", (frame,))])
    message = decode(EventBatcher().collection([event], 0.0))
    assert isinstance(message, EventCollection)
    assert list(collapsed(message.events, "name")) == []
    assert '"profiles":[]' in "".join(speedscope(message.events, "name"))
    (line,) = json_lines(message.events, "name")
    assert '"suspended_tasks": {"tasks": 5, "tasks_read": 4, "milliseconds": 100.0, "groups": [{"tasks": 4,' in line
