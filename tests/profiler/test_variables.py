"""Variables of running functions: each is found under its name, and the host cannot tell that they were read."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from types import CellType, FrameType
from typing import Any

import pytest

from tornado_rbkit.profiler import variables
from tornado_rbkit.profiler.references import running_frames
from tornado_rbkit.profiler.variables import SlotReader, variable_reader

HAS_SLOTS = sys.version_info < (3, 13)


class Kept(list):  # type: ignore[type-arg]
    """A list to which there can be a weak reference."""


def read(frame: FrameType) -> dict[str, Any]:
    """Return the variables of a frame by name, without cells."""
    reader = variable_reader()
    assert reader is not None
    values, names = reader(frame)
    return {
        name: value.cell_contents if type(value) is CellType else value
        for name, value in zip(names, values, strict=True)
    }


def frame_of(function: Any) -> FrameType:
    """Return the frame of a function that runs in another thread."""
    (frame,) = [frame for frame in running_frames() if frame.f_code is function.__code__]
    return frame


class Threads:
    """Threads that run functions until those call their argument, which returns when they may finish."""

    def __init__(self) -> None:
        self._leave = threading.Event()
        self._threads: list[threading.Thread] = []

    def run(self, function: Callable[[Callable[[], None]], object]) -> None:
        ready = threading.Event()

        def pause() -> None:
            ready.set()
            self._leave.wait()

        self._threads.append(threading.Thread(target=function, args=(pause,)))
        self._threads[-1].start()
        assert ready.wait(60)

    def finish(self) -> None:
        self._leave.set()
        for each in self._threads:
            each.join()


@pytest.fixture
def threads() -> Iterator[Threads]:
    running = Threads()
    yield running
    running.finish()


def test_arguments_local_shared_and_missing_variables(threads: Threads) -> None:
    outer = Kept()

    def work(pause: Any, *rest: int, option: int = 2**70, **more: int) -> object:
        text, gone, shared = "text", 1, Kept([1])
        del gone
        loop = [pause() for pause in [pause] for _ in shared]
        later = text
        return outer, (lambda: (shared, rest)), option, more, loop, later

    threads.run(work)
    found = read(frame_of(work))
    assert found.keys() - {"pause", "_"} == {"rest", "option", "more", "text", "shared", "outer"}
    assert (found["rest"], found["option"], found["more"], found["text"]) == ((), 2**70, {}, "text")
    assert found["outer"] is outer
    assert found["shared"] == [1]


def test_generators_and_coroutines_that_run(threads: Threads) -> None:
    def numbers(pause: Any) -> Iterator[int]:
        in_generator = Kept()
        yield 1
        pause()
        yield len(in_generator)

    async def stream(pause: Any) -> AsyncIterator[int]:
        in_stream = Kept()
        for number in numbers(pause):
            yield number + len(in_stream)

    async def wait(pause: Any) -> None:
        in_coroutine = Kept()
        async for _ in stream(pause):
            in_coroutine.append(1)

    def work(pause: Any) -> None:
        with pytest.raises(StopIteration):
            wait(pause).send(None)

    threads.run(work)
    for function, name, value in [
        (numbers, "in_generator", []),
        (stream, "in_stream", []),
        (wait, "in_coroutine", [1]),
    ]:
        found = read(frame_of(function))
        assert (type(found[name]), found[name]) == (Kept, value)


def test_a_generator_that_waits_and_a_function_that_has_ended() -> None:
    def numbers() -> Iterator[int]:
        kept = Kept([1])
        yield 1
        raise ValueError(kept)

    generator = numbers()
    frame: Any = generator.gi_frame  # type: ignore[attr-defined]
    assert read(frame) == {}
    next(generator)
    assert read(frame) == {"kept": [1]}
    with pytest.raises(ValueError):
        next(generator)
    assert read(frame) == {"kept": [1]}
    frame.clear()
    assert read(frame) == {}


def test_the_frame_of_code_with_a_namespace_is_listed(threads: Threads) -> None:
    def work(pause: Any) -> None:
        exec("value = [1]\nclass Body:\n    member = [2]\n    pause()", {"pause": pause})

    threads.run(work)
    assert {"<module>", "Body"} <= {frame.f_code.co_name for frame in running_frames()}


def test_a_variable_lives_no_longer_than_without_a_look() -> None:
    ready, drop, dropped, leave = (threading.Event() for _ in range(4))
    references: list[weakref.ref[Kept]] = []

    def work() -> None:
        early, late = Kept(), Kept()
        references.extend(map(weakref.ref, (early, late)))
        ready.set()
        drop.wait()
        del early
        dropped.set()
        leave.wait()
        del late

    gc.disable()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(60)
        assert read(frame_of(work)).keys() >= {"early", "late"}
        drop.set()
        assert dropped.wait(60)
        assert [reference() is None for reference in references] == [True, False]
        leave.set()
        thread.join()
        assert references[1]() is None
    finally:
        for event in (drop, leave):
            event.set()
        thread.join()
        gc.enable()


if HAS_SLOTS:  # otherwise f_locals shows the variables, and writes through

    def test_what_a_debugger_changes_stays(threads: Threads) -> None:
        """Its change is in the frame's dict until the trace function returns."""
        seen = []

        def watched() -> None:
            number = 1
            seen.append(number)

        def work(pause: Any) -> None:
            def trace(frame: FrameType, event: str, argument: object) -> Any:
                if frame.f_code is watched.__code__ and event == "line" and "number" in frame.f_locals:
                    frame.f_locals["number"] = 2
                    pause()
                return trace

            sys.settrace(trace)
            watched()
            sys.settrace(None)

        threads.run(work)
        assert read(frame_of(watched)) == {"number": 1, "seen": []}
        threads.finish()
        assert seen == [2]

    @pytest.mark.parametrize("name", ["_FRAME_POINTER", "_OWN_FRAME", "_SLOTS"])
    @pytest.mark.parametrize("distance", [-8, 8])
    def test_another_layout_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str, distance: int) -> None:
        assert SlotReader().knows_layout()
        monkeypatch.setattr(variables, name, getattr(variables, name) + distance)
        assert not SlotReader().knows_layout()
