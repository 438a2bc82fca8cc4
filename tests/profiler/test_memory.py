"""The memory profile: objects that come and go, pauses, the collector's figures, and what it costs."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fake_rbkit import recorded
from tests.profiler.conftest import PATIENCE, Client, raw_events, shape
from tornado_rbkit import profiler
from tornado_rbkit.profiler import memory
from tornado_rbkit.profiler.alignment import id_array
from tornado_rbkit.profiler.batcher import EventBatcher
from tornado_rbkit.profiler.changes import Changes
from tornado_rbkit.profiler.objects import DICTS_ARE_UNTRACKED
from tornado_rbkit.profiler.tracked import list_tracked
from tornado_rbkit.protocol import EventType, GCEndMark, GCEndSweep, GCStart, ObjCreated, ObjDestroyed


class Leaked:
    pass


class Other:
    pass


class Hostile(type):
    """A metaclass whose methods all raise."""

    def __getattribute__(cls, name: str) -> object:
        raise AssertionError(f"the host's code was called for {name}")

    def __hash__(cls) -> int:
        raise AssertionError("the host's code was called")


class Touchy(metaclass=Hostile):
    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"the host's code was called for {name}")

    __class__ = property(lambda self: 1 / 0)


def test_a_thousand_leaked_instances_are_counted(client: Client) -> None:
    name = f"{__name__}.Leaked"
    before = Leaked()
    client.ask(b"start_memory_profile")
    leak = [Leaked() for _ in range(1000)]
    created = client.events(ObjCreated, lambda found: sum(event.class_name == name for event in found) >= 1000)
    ids = [event.object_id for event in created if event.class_name == name]
    assert sorted(ids) == sorted(map(id, leak))
    assert id(before) not in ids
    leak.clear()
    gone = client.events(ObjDestroyed, lambda found: len({event.object_id for event in found} & set(ids)) >= 1000)
    assert sum(event.object_id in set(ids) for event in gone) == 1000


def test_the_hosts_containers_are_told_in_a_small_heap_too(client: Client) -> None:
    client.ask(b"start_memory_profile")
    lists = [[Leaked] for _ in range(1500)]
    dicts = [{"key": lists} for _ in range(1500)]
    wanted = {id(item) for item in (*lists, *dicts)}
    # one at the address of a list that was there before and has gone since is taken for that list
    client.events(ObjCreated, lambda found: len(wanted - {event.object_id for event in found}) < 100)


def test_a_tick_that_costs_too_much_pauses_once_it_refers_to_no_object() -> None:
    batcher = EventBatcher()
    profile = memory.MemoryProfile(batcher, list)
    profile.start()
    try:
        while profile.status()["ticks"] < 1:
            profile.work()
        things = [Leaked() for _ in range(20_000)]
        alive = [weakref.ref(thing) for thing in things]
        profile._tick = profile._begin()
        profile._budget._credit = -1e9
        while profile.work() != memory._REST:
            assert profile.status()["ticks"] < 2, "it has ended without a pause"
        things.clear()
        assert not any(thing() for thing in alive)
        assert profile.work() == memory._REST
        profile._budget._credit = 1e9
        while profile.status()["ticks"] < 2:
            profile.work()
        messages = batcher.take(time.time(), flush=True)
        created = [event for message in messages for event in raw_events(message, EventType.OBJ_CREATED)]
        names = Counter(event[2][4] for event in created)
        assert names[f"{__name__}.Leaked"] == len(alive)
    finally:
        profile.stop()


def test_an_id_taken_by_another_class_is_one_that_went_and_one_that_came() -> None:
    batcher = EventBatcher()
    profile = memory.MemoryProfile(batcher, list)
    thing = Leaked()
    profile._known.extend(id_array([1, id(thing), 2, 3]), id_array([id(list), id(dict), id(list), id(list)]))
    tracked = list_tracked()
    tracked.objects[:] = [thing]
    changes = Changes(0.0, 0.0)
    for _ in profile._compare(tracked, changes, memory._full_collections(), gc.get_freeze_count()):
        pass
    for _ in changes.events(batcher):
        pass
    (message,) = batcher.take(0.0, flush=True)
    destroyed = [event[2][3] for event in raw_events(message, EventType.OBJ_DESTROYED)]
    (created,) = raw_events(message, EventType.OBJ_CREATED)
    assert destroyed == [id(thing), 1, 2, 3]
    assert created[2] == {3: id(thing), 4: f"{__name__}.Leaked"}


@given(
    seconds=st.floats(0, 200),
    created=st.lists(st.booleans(), max_size=300),
    destroyed=st.integers(0, 300),
    published=st.integers(1, 50),
)
def test_changes_are_spread_evenly_over_the_time_since_the_comparison_before(
    seconds: float, created: list[bool], destroyed: int, published: int
) -> None:
    """Each change is published once, in the order of the times, wherever the comparison was ended."""
    changes = Changes(1000.0 - seconds, 1000.0)
    changes.note_created(range(len(created)), ["Thing"] * len(created))
    changes.note_replaced(object_id for object_id, replaced in enumerate(created) if replaced)
    changes.note_destroyed(range(10_000, 10_000 + destroyed))
    batcher = EventBatcher()
    publication = memory.MemoryProfile(batcher, list)._publish(iter([None]), changes)
    for _ in zip(range(published), publication, strict=False):
        pass
    publication.close()
    events = [
        event
        for message in batcher.take(0.0, flush=True)
        for event in msgpack.unpackb(message, strict_map_key=False)[2]
    ]
    times = [event[1] / 1000 for event in events]
    assert times == sorted(times)
    since = 1000.0 - min(seconds, 100.0)
    assert all(since - 0.001 <= time <= 1000.001 for time in times)
    made = [event for event in events if event[0] == EventType.OBJ_CREATED]
    gone = [event[2][3] for event in events if event[0] == EventType.OBJ_DESTROYED]
    assert [event[2][3] for event in made] == list(range(len(created)))
    assert [object_id for object_id in gone if object_id >= 10_000] == list(range(10_000, 10_000 + destroyed))
    for object_id, replaced in enumerate(created):
        assert (object_id in gone) is replaced
    half = sum(event[1] / 1000 < (since + 1000) / 2 for event in made)
    if seconds > 1 and not any(created):
        assert abs(half - len(made) / 2) <= len(made) / min(seconds, 100) / 5 + 1


def test_a_steady_rate_is_reported_as_such_although_comparisons_are_far_apart(frozen: None) -> None:
    comparison = Comparison()
    comparison.profile._listed = time.time() - 40.0
    made = [Leaked() for _ in range(4000)]
    for _ in comparison.profile._begin():
        pass
    wanted = ids(made)
    events = [
        event
        for message in comparison._batcher.take(time.time(), flush=True)
        for event in raw_events(message, EventType.OBJ_CREATED)
        if event[2][3] in wanted
    ]
    seconds = Counter(int(event[1] // 1000) for event in events)
    assert len(seconds) >= 40
    assert max(seconds.values()) <= 120


class Comparison:
    """A memory profile without a server, whose ticks the test runs."""

    def __init__(self) -> None:
        self._batcher = EventBatcher()
        self.profile = memory.MemoryProfile(self._batcher, list)
        self.tick(baseline=True)

    def tick(self, *, baseline: bool = False) -> tuple[set[int], set[int]]:
        """Return the ids of what has come and of what has gone."""
        for _ in self.profile._begin(baseline=baseline):
            pass
        messages = self._batcher.take(time.time(), flush=True)
        created = {event[2][3] for message in messages for event in raw_events(message, EventType.OBJ_CREATED)}
        destroyed = {event[2][3] for message in messages for event in raw_events(message, EventType.OBJ_DESTROYED)}
        return created, destroyed


def ids(items: Iterable[object]) -> set[int]:
    return set(map(id, items))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["create", "drop", "replace", "collect"]), st.integers(0, 400), st.integers(0, 900)),
        min_size=3,
        max_size=12,
    )
)
def test_the_reported_objects_add_up_to_those_that_are_alive(
    frozen: None, changes: list[tuple[str, int, int]]
) -> None:
    """Whatever their order in the collector's lists, and whichever addresses are used again."""
    comparison = Comparison()
    alive: list[object] = []
    reported: set[int] = set()
    for change, count, start in changes:
        if change == "collect":
            gc.collect()
        elif change == "create":
            alive[start:start] = [Leaked() if number % 2 else Other() for number in range(count)]
        else:
            del alive[start : start + count]
            if change == "replace":
                alive += [Other() if number % 3 else Leaked() for number in range(count)]
        created, destroyed = comparison.tick()
        reported = (reported - destroyed) | created
        assert ids(alive) <= reported
    before = ids(alive)
    alive.clear()
    assert before <= comparison.tick()[1]


def test_a_tuple_of_plain_values_is_not_reported_because_the_collector_loses_sight_of_it(frozen: None) -> None:
    comparison = Comparison()
    gc.disable()
    try:
        plain = [(number, str(number), (None, number + 0.5), int) for number in range(1000)]
        others: list[object] = [(number, [], Leaked) for number in range(1000)]
        created, _ = comparison.tick()
    finally:
        gc.enable()
    assert not created & ids(plain)
    assert len(created & ids(others)) > 900  # but those at the address of another tuple that has just gone
    gc.collect()
    assert not any(map(gc.is_tracked, plain))
    assert not comparison.tick()[1] & (ids(plain) | ids(others))
    gone = ids(others) & created
    others.clear()
    assert len(comparison.tick()[1] & gone) > 900


def test_a_tuple_of_tuples_without_end_is_not_reported(frozen: None) -> None:
    comparison = Comparison()
    chain: tuple[object, ...] = ()
    gc.disable()
    try:
        for number in range(10_000):
            chain = (number, chain)
        assert id(chain) not in comparison.tick()[0]
    finally:
        gc.enable()


if DICTS_ARE_UNTRACKED:

    def test_a_dict_is_not_reported_as_gone_because_the_collector_loses_sight_of_it(frozen: None) -> None:
        comparison = Comparison()
        gc.disable()
        try:
            plain = [{"a": (number, number)} for number in range(1000)]
            emptied: list[dict[str, object]] = [{"a": []} for _ in range(1000)]
            dropped: list[dict[str, object]] = [{"a": []} for _ in range(1000)]
            created, _ = comparison.tick()
        finally:
            gc.enable()
        told = {kind: ids(items) & created for kind, items in (("emptied", emptied), ("dropped", dropped))}
        assert not ids(plain) & created
        assert min(map(len, told.values())) > 900
        for item in emptied:
            item["a"] = 1
        dropped.clear()
        gc.collect()
        assert not any(map(gc.is_tracked, emptied))
        _, destroyed = comparison.tick()
        assert not destroyed & (ids(plain) | ids(emptied))
        assert len(destroyed & told["dropped"]) > 900
        assert not comparison.tick()[1] & ids(emptied)
        for item in emptied[:500]:
            item["a"] = []
        kept, gone = ids(emptied[:500]), ids(emptied[500:]) & created
        del emptied[500:], item
        gc.collect()
        created, destroyed = comparison.tick()
        assert not kept & (created | destroyed)
        assert gone & destroyed  # but those at the address of another dict by now


def test_what_is_frozen_is_not_reported_as_gone(frozen: None) -> None:
    comparison = Comparison()
    leak = [Leaked() for _ in range(1000)]
    created = comparison.tick()[0] & ids(leak)
    gc.freeze()
    try:
        assert not comparison.tick()[1] & created
        assert not comparison.tick()[1] & created
    finally:
        gc.unfreeze()
    assert all(not created & told for told in comparison.tick())
    leak.clear()
    assert created <= comparison.tick()[1]


def test_frames_are_not_reported(frozen: None) -> None:
    comparison = Comparison()
    frame = sys._getframe()
    assert id(frame) not in comparison.tick()[0]


def test_no_code_of_the_hosts_is_called(client: Client) -> None:
    client.ask(b"start_memory_profile")
    touchy = [Touchy() for _ in range(10)]
    name = f"{__name__}.Touchy"
    client.events(ObjCreated, lambda found: sum(event.class_name == name for event in found) >= 10)
    del touchy


def own_callbacks(callbacks: list[Any]) -> list[Any]:
    """Return those of the profiler: others may have been here before."""
    return [each for each in callbacks if getattr(each, "__module__", "").startswith("tornado_rbkit")]


class Unequal:
    """A callback of the host's that cannot be compared."""

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        raise AssertionError("the host's code was called")

    __hash__ = None  # type: ignore[assignment]


def test_the_hosts_callbacks_are_not_asked_whether_they_are_ours(client: Client) -> None:
    host = Unequal()
    gc.callbacks.append(host)
    try:
        before = list(gc.callbacks)
        client.ask(b"start_memory_profile", b"stop_memory_profile")
        assert list(map(id, gc.callbacks)) == list(map(id, before))
    finally:
        del gc.callbacks[-1]


def test_the_profilers_own_objects_are_left_out(client: Client) -> None:
    client.ask(b"start_memory_profile")
    client.ask(b"start_cpu_profiling")
    leak = Leaked()
    name = f"{__name__}.Leaked"
    created = client.events(ObjCreated, lambda found: any(event.class_name == name for event in found))
    ours = {event.class_name for event in created if (event.class_name or "").startswith("tornado_rbkit.profiler")}
    assert not ours
    del leak


def test_a_collection_is_reported_with_its_true_time(client: Client) -> None:
    client.ask(b"start_memory_profile")
    before = time.time() * 1000.0
    client.ask(b"trigger_gc")
    after = time.time() * 1000.0
    client.events(GCStart, lambda found: any(before <= event.timestamp <= after for event in found))


def test_a_collection_starts_and_ends_in_this_order(client: Client) -> None:
    client.ask(b"start_memory_profile", b"trigger_gc")
    found = client.events(
        GCStart | GCEndMark | GCEndSweep,  # type: ignore[arg-type]
        lambda found: len(found) >= 3,
    )
    assert [type(event) for event in found[:3]] == [GCStart, GCEndMark, GCEndSweep]
    assert found[0].timestamp <= found[1].timestamp == found[2].timestamp


def test_nothing_of_a_collection_is_told_while_memory_profiling_is_off(
    client: Client, server: profiler.Server
) -> None:
    client.ask(b"trigger_gc")
    list(client.waiting())
    assert not any(raw_events(message, EventType.GC_START) for message in client.messages)
    assert not own_callbacks(gc.callbacks)


def test_the_events_have_the_shape_of_rbkits(client: Client) -> None:
    client.ask(b"start_memory_profile", b"trigger_gc")
    leak = [Leaked()]
    name = f"{__name__}.Leaked"
    client.events(ObjCreated, lambda found: any(event.class_name == name for event in found))
    leak.clear()
    client.events(ObjDestroyed, lambda found: found)
    rubys = [payload for _, channel, _, payload in recorded("memory") if channel == 1]
    for kind in (
        EventType.OBJ_CREATED,
        EventType.OBJ_DESTROYED,
        EventType.GC_START,
        EventType.GC_END_M,
        EventType.GC_END_S,
    ):
        ours = [event for message in client.messages for event in raw_events(message, kind)]
        theirs = [event for message in rubys for event in raw_events(message, kind)]
        assert shape(ours[0]) == shape(theirs[0])
    assert list(msgpack.unpackb(client.messages[0], strict_map_key=False)) == [0, 1, 9, 2]


def test_stopping_forgets_everything(client: Client, server: profiler.Server) -> None:
    client.ask(b"start_memory_profile", b"stop_memory_profile")
    client.ask(b"handshake")
    assert server.status()["memory"]["tracked_objects"] == 0
    assert not own_callbacks(gc.callbacks)


def test_stopping_tells_what_came_and_went_since_the_last_tick(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornado_rbkit.profiler.profile.LAST_SECONDS", PATIENCE)
    gone = [Leaked() for _ in range(100)]
    lost = ids(gone)
    client.ask(b"start_memory_profile")
    came = [Leaked() for _ in range(100)]
    gone.clear()
    assert client.ask(b"stop_memory_profile") == b"ok"
    told = {EventType.OBJ_CREATED: lost.copy(), EventType.OBJ_DESTROYED: ids(came)}  # one may have another's address
    while not (ids(came) <= told[EventType.OBJ_CREATED] and lost <= told[EventType.OBJ_DESTROYED]):
        client.next()
        for kind, found in told.items():
            found.update(event[2][3] for event in raw_events(client.messages[-1], kind))


def test_stopping_takes_no_longer_than_it_may(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tornado_rbkit.profiler.profile.LAST_SECONDS", 0.0)
    heap = [[] for _ in range(100_000)]  # type: ignore[var-annotated]
    client.ask(b"start_memory_profile")
    assert client.ask(b"stop_memory_profile") == b"ok"
    assert not own_callbacks(gc.callbacks)
    del heap
