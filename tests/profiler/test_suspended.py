"""The stacks of suspended asyncio tasks, read from another thread without running the host's code."""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import sys
import threading
import types
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.profiler.python import python
from tornado_rbkit.profiler import suspended
from tornado_rbkit.profiler.await_chains import MAX_CHAIN, SuspendedTask
from tornado_rbkit.profiler.frame_cache import line_number
from tornado_rbkit.profiler.suspended import Look, TaskReader

Main = Callable[[], Coroutine[Any, Any, None]]


@contextmanager
def loop_thread(
    main: Main, runner: Callable[[Coroutine[Any, Any, None]], object] = asyncio.run, turns: int = 5
) -> Iterator[None]:
    """Run a loop on a thread of its own, until the block has ended; it begins when `main` has been suspended once."""
    begun, loops, done = threading.Event(), [], []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        done.append(asyncio.Event())
        task = asyncio.create_task(main(), name="main")
        for _ in range(turns):  # turns of the loop, in which the tasks of `main` reach their waits
            await asyncio.sleep(0)
        loops[0].call_soon(begun.set)  # once this task is suspended, too
        await done[0].wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    thread = threading.Thread(target=lambda: runner(run()))
    thread.start()
    assert begun.wait(60)
    try:
        yield
    finally:
        loops[0].call_soon_threadsafe(done[0].set)
        thread.join()
        loops.clear()
        done.clear()


def look(reader: TaskReader | None = None) -> Look:
    """Look twice: what a chain ends in is learned at first."""
    reader = reader or TaskReader()
    reader.loops.find()
    reader.look()
    found = reader.look()
    assert found is not None
    return found


def by_name(found: Look) -> dict[str, SuspendedTask]:
    return {task.name: task for task in found.suspended}


def functions(task: SuspendedTask) -> list[str]:
    return [place if isinstance(place, str) else place[0].co_name for place in task.chain]


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def nested(depth: int) -> None:
    await (nested(depth - 1) if depth else forever())


async def numbers() -> AsyncIterator[int]:
    await forever()
    yield 1


async def iterating() -> None:
    async for _ in numbers():
        raise AssertionError


async def throwing() -> None:
    async def careful() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await forever()

    iterator = careful()
    await anext(iterator)
    await iterator.aclose()  # type: ignore[attr-defined]


async def with_default() -> None:
    await anext(numbers(), 0)


@types.coroutine
def generator() -> Generator[Any, None, None]:
    yield from forever().__await__()


async def of_generator() -> None:
    await generator()


class Wrapped:
    def __await__(self) -> Generator[Any, None, None]:
        return forever().__await__()


class Unknown:
    """An awaitable without a frame; none of its other methods may be called."""

    def __init__(self) -> None:
        self.inner = forever().__await__()

    def __await__(self) -> Unknown:
        return self

    def __iter__(self) -> Unknown:
        raise AssertionError

    def __next__(self) -> Any:
        return next(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name in ("send", "throw", "close"):  # asked for by the interpreter
            raise AttributeError(name)
        raise AssertionError(name)

    def _not_to_be_called(self, *_: object) -> Any:
        raise AssertionError

    __eq__ = __hash__ = __bool__ = __len__ = __repr__ = __class__ = property(_not_to_be_called)


class Imitation:
    """An awaitable with the attributes of Cython's coroutines, of which none may be read."""

    __slots__ = ("__qualname__", "cr_await", "cr_frame", "cr_running", "iterator")

    def __init__(self) -> None:
        self.cr_frame = self.cr_await = Unknown.__new__(Unknown)
        self.cr_running, self.__qualname__ = False, "imitation"
        self.iterator = forever().__await__()

    def __await__(self) -> Imitation:
        return self

    def __iter__(self) -> Imitation:
        raise AssertionError

    def __next__(self) -> Any:
        return next(self.iterator)


async def wrapped(awaitable: Callable[[], Awaitable[None]]) -> None:
    await awaitable()


CHAINS: dict[str, tuple[Callable[[], Coroutine[Any, Any, None]], list[str]]] = {
    "nested": (lambda: nested(3), ["nested", "nested", "nested", "nested", "forever"]),
    "asynchronous generator": (iterating, ["iterating", "numbers", "forever"]),
    "asynchronous generator that is closed": (throwing, ["throwing", "careful", "forever"]),
    "anext with a default": (with_default, ["with_default", "numbers", "forever"]),
    "generator": (of_generator, ["of_generator", "generator", "forever"]),
    "__await__ of a coroutine": (lambda: wrapped(Wrapped), ["wrapped", "forever"]),
    "imitation of a coroutine": (lambda: wrapped(Imitation), ["wrapped", "Imitation"]),  # type: ignore[arg-type]
    "unknown awaitable": (lambda: wrapped(Unknown), ["wrapped", "Unknown"]),
}


def test_the_chain_of_each_kind_of_awaitable_is_read_to_its_end() -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(start(), name=name) for name, (start, _) in CHAINS.items()]
        await asyncio.gather(*tasks)

    with loop_thread(main):
        tasks = by_name(look())
    assert {name: functions(tasks[name]) for name in CHAINS} == {name: chain for name, (_, chain) in CHAINS.items()}
    assert {tasks[name].awaits for name in CHAINS} == {"Future"}
    assert tasks["main"].awaits == "_GatheringFuture"


def test_a_place_is_where_the_coroutine_is_suspended() -> None:
    with loop_thread(lambda: nested(0)):
        first, second = by_name(look())["main"].chain
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    assert line_number(*first[:2]) == nested.__code__.co_firstlineno + 1
    assert line_number(*second[:2]) == forever.__code__.co_firstlineno + 1


def test_a_task_that_is_ready_is_told_from_one_that_waits_and_running_or_ended_tasks_are_left_out() -> None:
    looks = []

    async def main() -> None:
        async def ended() -> None:
            pass

        tasks = [asyncio.create_task(ended(), name="ended"), asyncio.create_task(forever(), name="waits")]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(forever(), name="ready"))
        looks.append(look())
        await asyncio.gather(*tasks)

    with loop_thread(main):
        pass
    tasks = by_name(looks[0])
    assert {name: tasks[name].awaits for name in ("waits", "ready")} == {"waits": "Future", "ready": None}
    assert functions(tasks["ready"]) == ["forever"]
    assert not {"ended", "main"} & tasks.keys()


def test_the_loops_of_several_threads_are_read() -> None:
    async def other() -> None:
        await asyncio.gather(asyncio.create_task(nested(1), name="of the other"))

    with loop_thread(lambda: nested(2)), loop_thread(other):
        tasks = by_name(look())
    assert functions(tasks["of the other"]) == ["nested", "nested", "forever"]
    assert functions(tasks["main"]) in (["nested"] * 3 + ["forever"], ["other"])


def test_a_loop_is_found_that_a_function_runs_by_itself() -> None:
    """As uvloop's, whose methods have no frames: only the caller's variables have the loop."""

    def run(main: Coroutine[Any, Any, None]) -> None:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(main)
        finally:
            loop.close()

    reader = TaskReader()
    with loop_thread(lambda: nested(1), run):
        assert "main" in by_name(look(reader))
    reader.loops.find()
    reader.loops.find()
    gc.collect()
    after = reader.look()
    assert after is not None
    assert "main" not in by_name(after)


if sys.version_info >= (3, 14):  # before, asyncio does not keep who awaits whom

    def test_the_tasks_that_wait_for_a_task_are_told() -> None:
        async def handler() -> None:
            await asyncio.gather(asyncio.create_task(forever(), name="fetch"))

        async def main() -> None:
            await asyncio.create_task(handler(), name="handler")

        with loop_thread(main):
            tasks = by_name(look())
        assert tasks["fetch"].awaited_by == [tasks["handler"].number]
        assert tasks["handler"].awaited_by == [tasks["main"].number]


@pytest.mark.parametrize("names", [("get_name", "get_coro"), ("get_name", "done", "get_loop", "__eq__")])
def test_a_subclass_of_task_is_read_without_its_methods(names: tuple[str, ...]) -> None:
    called_on: set[int] = set()

    def noted(name: str) -> Callable[..., Any]:
        def method(self: object, *arguments: object) -> Any:
            called_on.add(threading.get_ident())
            return getattr(asyncio.Task, name)(self, *arguments)

        return method

    classes = [
        type("Own", (asyncio.Task,), {**{name: noted(name) for name in names}, "__hash__": asyncio.Task.__hash__})
    ]
    if "done" not in names:
        del classes[0].__hash__

    async def main() -> None:
        task = classes[0](forever(), loop=asyncio.get_running_loop(), name="of an own class")
        await forever()
        del task

    with loop_thread(main):
        called_on.clear()
        reader = TaskReader()
        reader.loops.find()
        found = reader.look()
        assert threading.get_ident() not in called_on
    assert found is not None
    if "done" in names and sys.version_info >= (3, 14):  # asyncio.all_tasks() would call it
        assert found.suspended == []
        assert reader.trouble is not None
        assert reader.trouble.endswith("Own overrides a method of asyncio.Task")
    else:
        assert functions(by_name(found)["of an own class"]) == ["forever"]
        assert reader.trouble is None
    classes.clear()
    gc.collect()  # other tests are to see no such class


def of_class(kind: str) -> Callable[..., Any]:
    """Return a task factory. On Python 3.10 and 3.11 there are no eager tasks, which are tasks of a usual class."""
    tasks: Any = asyncio.tasks
    if kind == "eager":
        return getattr(
            asyncio, "eager_task_factory", lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options)
        )
    return lambda loop, coro, **options: tasks._PyTask(coro, loop=loop, **options)


@pytest.mark.parametrize("kind", ["eager", "written in Python"])
def test_tasks_of_other_kinds_are_read(kind: str) -> None:
    async def ends() -> None:
        pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(of_class(kind))
        tasks = [loop.create_task(nested(1), name="waits"), loop.create_task(ends(), name="ended")]
        await asyncio.gather(*tasks)

    reader = TaskReader()
    with loop_thread(main):
        tasks = by_name(look(reader))
        assert (functions(tasks["waits"]), tasks["waits"].awaits) == (["nested", "nested", "forever"], "Future")
        assert "ended" not in tasks
        assert reader.trouble is None


if sys.version_info < (3, 14):  # from then on `all_tasks` filters them

    def test_tasks_of_other_classes_are_reported() -> None:
        called_on: set[int] = set()

        class Other:
            def done(self) -> bool:
                called_on.add(threading.get_ident())
                return True

            def get_loop(self) -> None:
                called_on.add(threading.get_ident())

        other: Any = Other()
        asyncio.tasks._register_task(other)
        reader = TaskReader()
        try:
            with loop_thread(lambda: nested(1)):
                called_on.clear()
                assert "main" in by_name(look(reader))
                assert reader.trouble is not None
                assert reader.trouble.startswith("tasks of classes not derived from asyncio's, such as ")
                assert threading.get_ident() not in called_on
        finally:
            asyncio.tasks._unregister_task(other)


def test_many_tasks_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspended, "MAX_TASKS", 10)

    async def main() -> None:
        await asyncio.gather(*(asyncio.create_task(forever(), name=f"task {number}") for number in range(38)))

    with loop_thread(main):
        reader = TaskReader()
        reader.loops.find()
        parts = [part for skip in range(4) if (part := reader.look(skip, 4))]
        assert [(part.total, part.read) for part in parts] == [(40, 10)] * 4  # the main tasks are two
        names = [task.name for part in parts for task in part.suspended]
        assert len(set(names)) == len(names) == 40
        first = reader.look()
        assert first is not None
        assert (first.total, first.read) == (40, 10)


def test_a_long_chain_is_cut() -> None:
    with loop_thread(lambda: nested(MAX_CHAIN + 5)):
        assert functions(by_name(look())["main"]) == ["nested"] * MAX_CHAIN


@given(st.lists(st.integers(0, 12), max_size=12))
@settings(max_examples=20, deadline=None)
def test_chains_of_any_lengths_are_told_apart(depths: list[int]) -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.create_task(nested(depth), name=str(at)) for at, depth in enumerate(depths)))
        await forever()

    with loop_thread(main):
        tasks = by_name(look())
    assert {at: len(tasks[str(at)].chain) for at in range(len(depths))} == {
        at: depth + 2 for at, depth in enumerate(depths)
    }


def test_nothing_is_kept_alive_after_a_look() -> None:
    kept: list[weakref.ref[object]] = []

    class Held:
        pass

    async def holding() -> None:
        held = Held()
        kept.append(weakref.ref(held))
        await forever()

    async def main() -> None:
        task = asyncio.create_task(holding())
        kept.append(weakref.ref(task))
        await asyncio.wait([task])

    reader = TaskReader()
    with loop_thread(main):
        found = look(reader)
        assert any(functions(task) == ["holding", "forever"] for task in found.suspended)
        del found
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_tasks_that_come_and_go_are_read_meanwhile() -> None:
    """Another thread begins, resumes and ends tasks all the time; their coroutines end on that thread only."""
    ended_on: set[int] = set()
    stop = threading.Event()
    loop_threads: list[int] = []

    async def short(turns: int) -> None:
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            ended_on.add(threading.get_ident())

    async def main() -> None:
        loop_threads.append(threading.get_ident())
        for turns in itertools.cycle(range(4)):
            if stop.is_set():
                return
            abandoned = [asyncio.create_task(short(turns)) for _ in range(20)]
            abandoned[0].cancel()
            await asyncio.sleep(0)
            del abandoned
            await asyncio.sleep(0)

    reader = TaskReader()
    ends: set[str] = set()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with loop_thread(main):
            for _ in range(300):
                reader.loops.find()
                found = reader.look()
                assert found is not None
                ends.update(functions(task)[-1] for task in found.suspended if task.chain)
            stop.set()
    finally:
        sys.setswitchinterval(before)
    assert ended_on == set(loop_threads)
    assert ends <= {"short", "sleep", "__sleep0", "main", "run", "wait"}


def test_without_asyncio_there_is_nothing_to_read() -> None:
    script = """
import sys
from tornado_rbkit.profiler.suspended import TaskReader
reader = TaskReader()
reader.loops.find()
print(reader.look(), "asyncio" in sys.modules)
"""
    assert python(script) == "None False\n"


async def in_generator(inner: Coroutine[Any, Any, None]) -> None:
    async def generator() -> AsyncIterator[int]:
        await inner  # waits
        yield 1

    async for _ in generator():  # waits
        pass


async def on_entry(inner: Coroutine[Any, Any, None]) -> None:
    class Context:
        async def __aenter__(self) -> None:
            await inner  # waits

        async def __aexit__(self, *error: object) -> None:
            pass

    async with Context():  # waits
        pass


async def in_turn(inner: Coroutine[Any, Any, None]) -> None:
    await asyncio.sleep(0)
    await inner  # waits


async def gathered(inner: Coroutine[Any, Any, None]) -> None:
    await asyncio.gather(asyncio.create_task(inner, name="inner"))  # waits


async def waited_for(inner: Coroutine[Any, Any, None]) -> None:
    await asyncio.wait([asyncio.create_task(inner, name="inner")])  # waits


async def shielded(inner: Coroutine[Any, Any, None]) -> None:
    await asyncio.shield(asyncio.create_task(inner, name="inner"))  # waits


async def on_lock() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    async with lock:  # waits
        pass


async def on_condition() -> None:
    condition = asyncio.Condition()
    async with condition:
        await condition.wait()  # waits


async def on_semaphore() -> None:
    async with asyncio.Semaphore(0):  # waits
        pass


async def on_event() -> None:
    await asyncio.Event().wait()  # waits


async def on_queue() -> None:
    await asyncio.Queue[int]().get()  # waits


async def on_full_queue() -> None:
    queue = asyncio.Queue[int](1)
    queue.put_nowait(1)
    await queue.put(2)  # waits


async def on_stream() -> None:
    await asyncio.StreamReader().readline()  # waits


async def on_sleep() -> None:
    await asyncio.sleep(1000)  # waits


async def on_timeout() -> None:
    await asyncio.wait_for(asyncio.get_running_loop().create_future(), 1000)  # waits


async def on_first() -> None:
    for future in asyncio.as_completed([asyncio.get_running_loop().create_future()]):
        await future  # waits


LEAVES: dict[Callable[[], Coroutine[Any, Any, None]], str] = {
    on_lock: "acquire",
    on_condition: "wait",
    on_semaphore: "acquire",
    on_event: "wait",
    on_queue: "get",
    on_full_queue: "put",
    on_stream: "_wait_for_data",
    on_sleep: "sleep",
    on_timeout: "wait_for",
    on_first: "get",
}
"""The function of asyncio in which each one waits."""

SAME_TASK = [in_generator, on_entry, in_turn]
NEW_TASK = {gathered: "_GatheringFuture", waited_for: "Future", shielded: "Future"}


def expected(function: Callable[..., Any]) -> list[int]:
    """Return the lines at which a function of this file and those in it wait, outermost first."""
    lines, first = inspect.getsourcelines(function)
    found = [first + at for at, line in enumerate(lines) if line.endswith("# waits\n")]
    return found[::-1]  # the inner functions stand first in the source, and are called last


@given(st.lists(st.sampled_from([*SAME_TASK, *NEW_TASK]), max_size=8), st.sampled_from(list(LEAVES)))
@settings(max_examples=40, deadline=None)
def test_each_task_of_any_graph_of_awaits_waits_at_its_line(wrappers: list[Any], leaf: Any) -> None:
    async def main() -> None:
        coroutine = leaf()
        for wrapper in wrappers[::-1]:
            coroutine = wrapper(coroutine)
        await asyncio.wait([asyncio.create_task(coroutine, name="inner")])

    tasks: list[tuple[list[int], str]] = [([], "")]
    for wrapper in wrappers:
        tasks[-1][0].extend(expected(wrapper))
        if wrapper in NEW_TASK:
            tasks[-1] = (tasks[-1][0], NEW_TASK[wrapper])
            tasks.append(([], ""))
    tasks[-1] = ([*tasks[-1][0], *expected(leaf)], "Future")
    with loop_thread(main, turns=5 + 4 * len(wrappers)):
        inner = [task for task in look().suspended if task.name == "inner"]
    found = [([line_number(*at[:2]) for at in task.chain if is_here(at)], task.awaits) for task in inner]
    assert sorted(found, key=repr) == sorted(tasks, key=repr)
    assert LEAVES[leaf] in {functions(task)[-1] for task in inner}


def is_here(place: Any) -> bool:
    return not isinstance(place, str) and place[0].co_filename == __file__
