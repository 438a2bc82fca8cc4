"""What a host program may do with Python itself while it is profiled; `system` has the rest.

Each behaviour runs on a thread of its own until the end. It raises AssertionError, or lets another exception pass, if
anything happens to it that would not happen without the profiler.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

from tornado_rbkit.profiler.threads import internal_threads

Runs = Callable[[], bool]
"""Returns False when the behaviour should end."""

BEHAVIOURS: Final[dict[str, Callable[[Runs, random.Random], None]]] = {}

HOST_SWITCH_INTERVAL: Final = [sys.getswitchinterval()]
"""The switch interval that the host has set, in seconds."""

ACTIVE: Final[set[str]] = set()
"""The behaviours of this process."""

ENDPOINTS: Final[list[str]] = []
"""Of the profiler: PUB and REP."""


def behaviour(function: Callable[[Runs, random.Random], None]) -> Callable[[Runs, random.Random], None]:
    BEHAVIOURS[function.__name__] = function
    return function


class Node:
    """An object that is part of a cycle."""

    def __init__(self, *held: Any) -> None:
        self.held = held
        self.me = self


@behaviour
def threads(runs: Runs, chance: random.Random) -> None:
    """Start and end a thousand threads a second."""
    counted: list[int] = []
    started = 0
    while runs():
        each = [threading.Thread(target=counted.append, args=(1,)) for _ in range(20)]
        for thread in each:
            thread.start()
        for thread in each:
            thread.join()
        started += len(each)
        time.sleep(0.02)
    assert len(counted) == started


@behaviour
def generators(runs: Runs, chance: random.Random) -> None:
    """Advance, throw into and close generators, also while another thread advances them."""

    def numbers(depth: int) -> Iterator[int]:
        try:
            if depth:
                yield from numbers(depth - 1)
            yield from range(50)
        except KeyError:
            yield -1
        finally:
            Node()

    shared: list[Any] = [numbers(3)]

    def advance() -> None:
        while runs():
            with contextlib.suppress(ValueError, RuntimeError, KeyError):  # it runs on the other thread, or ignores
                next(shared[0], None)

    other = threading.Thread(target=advance)
    other.start()
    while runs():
        for _ in range(100):
            made = numbers(chance.randrange(20))
            assert next(made) == 0
            if chance.random() < 0.3:
                assert made.throw(KeyError()) == -1  # type: ignore[attr-defined]
            made.close()  # type: ignore[attr-defined]
        with contextlib.suppress(ValueError, RuntimeError):
            shared[0].close()
        shared[0] = numbers(3)
    other.join()


@behaviour
def tasks(runs: Runs, chance: random.Random) -> None:
    """Start, await and cancel asyncio tasks."""

    async def numbers() -> Any:
        for number in range(10):
            await asyncio.sleep(0)
            yield number

    async def wait(depth: int) -> int:
        if depth:
            return await wait(depth - 1)
        total = 0
        async for number in numbers():
            total += number
        await asyncio.sleep(chance.random() / 100)
        return total

    async def storm() -> None:
        lock = asyncio.Lock()

        async def locked() -> None:
            async with lock:
                await asyncio.sleep(0)

        while runs():
            started: list[asyncio.Task[Any]] = [asyncio.create_task(wait(chance.randrange(20))) for _ in range(100)]
            started += [asyncio.create_task(locked()) for _ in range(20)]
            await asyncio.sleep(0.002)
            cancelled = {task for task in started if chance.random() < 0.5 and task.cancel()}
            for task, result in zip(started, await asyncio.gather(*started, return_exceptions=True), strict=True):
                assert result in (45, None) or (task in cancelled and isinstance(result, asyncio.CancelledError))

    asyncio.run(storm())


@behaviour
def greenlets(runs: Runs, chance: random.Random) -> None:
    """Switch between greenlets."""
    greenlet: Any = __import__("greenlet").greenlet

    def loop(turns: int, depth: int) -> int:
        if depth:
            return loop(turns, depth - 1)
        for _ in range(turns):
            main.switch()
        return turns

    main = __import__("greenlet").getcurrent()
    while runs():
        made = [greenlet(loop) for _ in range(20)]
        for each in made:
            each.switch(chance.randrange(10), chance.randrange(30))
        while made:
            each = chance.choice(made)
            if chance.random() < 0.1:
                each.throw()
            else:
                each.switch()
            made = [each for each in made if not each.dead]


@behaviour
def finalizers(runs: Runs, chance: random.Random) -> None:
    """Allocate and give way to other threads in weakref callbacks, finalizers and callbacks of the collector."""
    risen: list[Any] = []

    living = [0]

    class Risen(Node):
        def __del__(self) -> None:
            living[0] -= 1
            time.sleep(0)
            if len(risen) < 100:
                risen.append(self)

    def allocate(*_: Any) -> None:
        time.sleep(0)
        [Node([]) for _ in range(10)]

    gc.callbacks.append(allocate)
    try:
        while runs():
            for _ in range(50 if living[0] < 2000 else 0):  # the collector must keep up
                living[0] += 1
                Risen(weakref.ref(node := Node(), allocate), node)
            living[0] += len(risen)
            risen.clear()
            time.sleep(0.001)
    finally:
        gc.callbacks.remove(allocate)
        risen.extend([None] * 100)


@behaviour
def collector(runs: Runs, chance: random.Random) -> None:
    """Control the collector; what was set must stay set."""
    before = gc.get_threshold()
    try:
        while runs():
            is_on = chance.random() < 0.7
            (gc.enable if is_on else gc.disable)()
            threshold = chance.choice([before, (1, 1, 1), (10, 2, 2), (0, 10, 10)])
            gc.set_threshold(*threshold)
            if chance.random() < 0.2:
                gc.collect(chance.randrange(3))
            if chance.random() < 0.1:
                gc.freeze()
            [Node(Node()) for _ in range(200)]
            if chance.random() < 0.2:
                gc.unfreeze()
            for _ in range(20):
                assert gc.isenabled() == is_on, "another thread has switched the collector"
                time.sleep(0)
            # the last number has no effect in some versions
            assert gc.get_threshold()[:2] == threshold[:2]
    finally:
        gc.enable()
        gc.set_threshold(*before)
        gc.unfreeze()


@behaviour
def collections(runs: Runs, chance: random.Random) -> None:
    """Collect on two threads at once."""

    def collect() -> None:
        while runs():
            gc.collect()
            time.sleep(0.01)

    other = threading.Thread(target=collect)
    other.start()
    while runs():
        kept = Node(*[Node() for _ in range(100)])
        gc.collect(chance.randrange(3))
        assert len(kept.held) == 100
        time.sleep(0.005)
    other.join()


@behaviour
def tuples(runs: Runs, chance: random.Random) -> None:
    """Make tuples of generators, which the interpreter resizes while they are filled."""

    def count(*items: Any) -> int:
        return len(items)

    while runs():
        size = chance.randrange(300)
        assert len(tuple([each] for each in range(size))) == size
        assert count(*(Node() for _ in range(size))) == size


@behaviour
def containers(runs: Runs, chance: random.Random) -> None:
    """Sort, iterate and compare containers that nobody else changes."""
    while runs():
        table = {Node(): [number] for number in range(100)}
        items = sorted(table.values(), key=lambda item: -item[0])
        assert [item[0] for item in items] == list(range(99, -1, -1))
        for key, _ in table.items():
            weakref.ref(key)
        with contextlib.suppress(ValueError):  # the key changes the list
            items.sort(key=lambda item: (items.extend([[0]]), item))  # type: ignore[func-returns-value]
        assert len({*range(1000)} | set(table)) == 1100


class Liars:
    """Objects whose methods the profiler must never call."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        told = self.tell

        def tell(name: str) -> Any:
            def lie(*_: Any, **__: Any) -> Any:
                told(name)
                raise RuntimeError("a lie")

            return lie

        names = ("len", "sizeof", "eq", "hash", "bool", "iter", "getattr", "repr", "reduce_ex", "index", "call", "ne")
        metaclass: Any = type("Meta", (type,), {f"__{name}__": tell(name) for name in (*names, "instancecheck")})
        body = {f"__{name}__": tell(name) for name in (*names, "getattribute")} | {
            "__class__": property(lambda _: int)
        }
        self.classes = [metaclass("Liar", (), body)]
        self.classes += [
            metaclass(f"Liar{base.__name__}", (base,), body) for base in (dict, list, tuple, deque_class())
        ]
        self.classes.append(metaclass("LiarModule", (types.ModuleType,), body))

    def tell(self, name: str) -> None:
        if threading.get_ident() in internal_threads():
            self.calls.append(name)


def deque_class() -> type:
    from collections import deque

    return deque


@behaviour
def liars(runs: Runs, chance: random.Random) -> None:
    """Create objects that lie about their class and raise in every method; only the host may call these."""
    liars = Liars()
    new = object.__new__
    while runs():
        kept = []
        for cls in liars.classes:
            base = cls.__mro__[1] if len(type.__dict__["__mro__"].__get__(cls)) > 2 else object
            kept.append([base.__new__(cls) if base is not object else new(cls) for _ in range(20)])
        slots = type("Slots", (), {"__slots__": ("a", "b")})()
        slots.a = slots
        time.sleep(0.005)
    assert not liars.calls, f"the profiler has called {set(liars.calls)}"


@behaviour
def modules(runs: Runs, chance: random.Random) -> None:
    """Import and remove modules that lie about their namespace."""

    class Lying(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    number = 0
    while runs():
        number += 1
        name = f"lying_{number % 50}"
        sys.modules[name] = Lying(name)
        sys.modules[name + "_not"] = Node()  # type: ignore[assignment]
        sys.modules.pop(f"lying_{(number + 25) % 50}", None)
        sys.modules.pop(f"lying_{(number + 25) % 50}_not", None)
        time.sleep(0.001)
    for name in [name for name in sys.modules if name.startswith("lying_")]:
        del sys.modules[name]


@behaviour
def nested(runs: Runs, chance: random.Random) -> None:
    """Nest lists, tuples, dicts and instances 100,000 deep, and refer to oneself in all ways."""
    while runs():
        kinds: list[Callable[[Any], Any]] = [lambda x: [x], lambda x: (x,), lambda x: {"x": x}, Node]
        kind = chance.choice(kinds)
        deep: Any = []
        for _ in range(chance.choice([10, 1000, 100_000])):
            deep = kind(deep)
        cyclic: Any = ([],)
        cyclic[0].append(cyclic)
        self_typed: Any = type("Self", (), {})
        self_typed.me = self_typed()
        self_typed.me.cls = self_typed
        huge = 1 << chance.randrange(100_000)
        assert huge.bit_length()
        time.sleep(0.05)


@behaviour
def frames(runs: Runs, chance: random.Random) -> None:
    """Keep tracebacks, and clear the frames of functions that have returned."""

    def fail(depth: int) -> None:
        kept = Node()
        if depth:
            fail(depth - 1)
        raise KeyError(kept)

    def number() -> Iterator[int]:
        yield 1

    while runs():
        try:
            fail(chance.randrange(50))
        except KeyError as error:
            trace = error.__traceback__
            assert trace is not None
            inner = trace.tb_next
            while inner is not None:
                inner.tb_frame.clear()  # RuntimeError if it ran
                inner = inner.tb_next
        made = number()
        next(made)
        if sys.version_info < (3, 13):  # later ones clear no suspended frame
            made.gi_frame.clear()  # type: ignore[attr-defined]
        locals()
        sys._getframe().f_locals.get("made")
