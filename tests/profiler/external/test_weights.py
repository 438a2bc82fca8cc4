"""The samples of a thread follow its CPU clock, whatever an engine sees of it."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from tornado_rbkit.profiler.external import weights
from tornado_rbkit.profiler.external.engine import Frame, Stack, Use
from tornado_rbkit.profiler.external.weights import MAX_UNSEEN, WAKE_SECONDS, CPUWeights, Look

PACE = 0.001
WINDOW = 50
NAMES = ("parse", "score", "write", "nap")
FRAMES = {name: Frame("app.py", name, 1) for name in NAMES}


class Program:
    """Looks at threads, each a millisecond after the one before, and the samples that are reported for them."""

    def __init__(self) -> None:
        self.weights = CPUWeights()
        self.reported: Counter[tuple[int, str]] = Counter()
        self._ticks = 0

    def see(self, *ticks: Mapping[int, tuple[str, bool, Use | None]], count: int = 1) -> None:
        """Weigh ticks. Each has the place of each thread, whether it sleeps, and its use of the processors."""
        looks = []
        for tick in ticks:
            self._ticks += count
            looks.append([self._look(thread, *seen, count) for thread, seen in tick.items()])
        samples, unseen = self.weights.weigh(looks, PACE)
        for look, number in samples:
            self.reported[look.stack.thread_id, look.stack.frames[0].scope] += number
        for thread, number in unseen.items():
            self.reported[thread, "unseen"] += number

    def _look(self, thread: int, name: str, is_idle: bool, use: Use | None, count: int) -> Look:
        stack = Stack(0, thread, (FRAMES[name],), PACE * count, False, False, is_idle, use)
        return Look(stack, count, self._ticks * PACE, b"" if is_idle else name.encode())

    def of(self, thread: int) -> int:
        return sum(count for (each, _), count in self.reported.items() if each == thread)


def test_looks_share_the_cpu_time_by_the_part_of_it_for_which_the_thread_had_a_processor() -> None:
    program = Program()
    use = Use(1.0, 1.0, 0)
    program.see({1: ("nap", True, use)})
    ticks = []
    for _ in range(100):
        ticks.append({1: ("parse", False, use)})
        use = Use(use.seconds + 0.001, use.waited + 0.003, use.switches + 1)
        ticks.append({1: ("score", False, use)})
        use = Use(use.seconds + 0.001, use.waited, use.switches)
    program.see(*ticks)
    assert 34 <= program.reported[1, "parse"] <= 46  # of 40, by chance
    assert 195 < program.of(1) <= 200


def test_a_thread_whose_clock_is_late_has_run_at_all_looks_since_then() -> None:
    program = Program()
    program.see({1: ("parse", False, Use(1.0, 0.0, 1))})
    for tick in range(100):
        use = Use(1.0 + 0.004 * tick, 0.0, 1)
        program.see(*({1: (name, False, use)} for name in NAMES))
    assert all(90 < count < 110 for count in program.reported.values())
    assert 390 < program.of(1) <= 400


def test_a_place_computes_again_as_soon_as_it_does() -> None:
    """A function that has waited for long, and now computes, was no waiting place."""
    program = Program()
    for tick in range(5000):
        program.see({1: ("parse", True, Use(1.0, 0.0, 1)), 2: ("score", False, Use(0.001 * tick, 0.0, 1))})
    program.see(*({1: ("parse", False, Use(1.0 + 0.001 * tick, 0.0, 2))} for tick in range(51)))
    assert abs(program.reported[1, "parse"] - 50) <= 1


def test_cpu_time_of_which_nothing_was_seen_is_reported_without_a_stack() -> None:
    program = Program()
    for tick in range(400):
        program.see({1: ("nap", True, Use(1.0 + 0.01 * tick, 0.0, 1))})
    assert set(program.reported) == {(1, "unseen")}
    assert 3990 - 1000 * MAX_UNSEEN <= program.reported[1, "unseen"] <= 3990


def test_going_to_sleep_and_waking_up_is_charged_to_where_the_thread_sleeps() -> None:
    """Each nap is seen twice; the second look sees no other nap."""
    program = Program()
    use = Use(1.0, 0.0, 0)
    program.see({1: ("parse", False, use)})
    for _ in range(100):
        use = Use(use.seconds + 0.01, use.waited, use.switches + 100)
        program.see({1: ("nap", True, use)}, {1: ("nap", True, use)}, {1: ("parse", False, use)})
    assert abs(program.reported[1, "nap"] - 10_000 * WAKE_SECONDS / PACE) < 3
    assert 995 < program.of(1) <= 1000


def test_a_thread_that_is_switched_while_it_computes_has_not_slept() -> None:
    program = Program()
    for tick in range(100):
        program.see({1: ("parse", False, Use(1.0 + tick / 1000, 0.0, 10 * tick))})
    assert set(program.reported) == {(1, "parse")}
    assert 95 < program.of(1) <= 99


def test_cpu_time_from_before_the_first_look_is_not_reported() -> None:
    program = Program()
    program.see({1: ("parse", False, Use(500.0, 0.0, 1))})
    program.see({1: ("parse", False, Use(500.002, 0.0, 1))})
    assert program.reported == {(1, "parse"): 2}


def test_a_thread_that_is_seen_once_has_used_what_its_clock_says_and_a_look_more() -> None:
    program = Program()
    program.see({0: ("nap", True, Use(1.0, 0.0, 1))})
    program.see({0: ("nap", True, Use(1.0, 0.0, 1)), 1: ("parse", False, Use(0.002, 0.0, 1))}, count=3)
    program.see(*({0: ("nap", True, Use(1.0, 0.0, 1))} for _ in range(300)))
    assert program.reported == {(1, "parse"): 5}


def test_a_thread_that_was_there_before_its_first_look_has_used_at_most_the_time_since_the_last_one() -> None:
    """As a thread of another library that now runs Python for the first time."""
    program = Program()
    program.see({0: ("nap", True, Use(1.0, 0.0, 1))})
    program.see({1: ("parse", False, Use(3600.0, 0.0, 1))})
    program.see({1: ("parse", False, Use(3600.001, 0.0, 1))})
    assert program.reported == {(1, "parse"): 2}


def test_a_thread_with_the_identifier_of_one_that_has_ended_begins_anew() -> None:
    program = Program()
    program.see({1: ("parse", False, Use(5.0, 0.0, 1))})
    program.see({1: ("parse", False, Use(0.001, 0.0, 1))}, {1: ("parse", False, Use(0.004, 0.0, 1))})
    assert program.reported == {(1, "parse"): 4}


def test_looks_without_clocks_count_as_they_are() -> None:
    program = Program()
    program.see({1: ("parse", False, None), 2: ("nap", True, None)}, {1: ("score", False, None)}, count=2)
    assert program.reported == {(1, "parse"): 2, (1, "score"): 2}


def test_a_tick_that_misses_a_thread_changes_nothing() -> None:
    program = Program()
    for tick in range(200):
        everyone = {thread: ("parse", False, Use(1 + tick / 1000, 0.0, 1)) for thread in (0, 1)}
        program.see(everyone if tick % 2 else {0: everyone[0]})
    assert program.of(0) - 1 <= program.of(1) <= program.of(0)


def test_threads_that_come_and_go_leave_nothing_behind() -> None:
    program = Program()
    for thread in range(2000):
        looks = {each: ("parse", False, Use(thread / 1000, 0.0, 1)) for each in (0, thread)}
        program.see(looks)
    assert len(program.weights._accounts) < 260


def test_a_thread_that_waits_for_a_processor_for_long_is_remembered_once() -> None:
    program = Program()
    program.see({1: ("parse", False, Use(1.0, 0.0, 1))})
    program.see(*[{1: ("parse", False, Use(1.0, 0.0, 2))}] * 5000)
    assert len(program.weights._accounts[1].pending) == 1


seen = st.tuples(st.sampled_from(NAMES), st.booleans(), *[st.integers(0, 40)] * 3)


@given(st.lists(st.lists(seen, max_size=50)))
def test_never_more_is_reported_than_was_used(windows: list[list[tuple[str, bool, int, int, int]]]) -> None:
    program = Program()
    use = Use(1.0, 1.0, 1)
    program.see({1: ("nap", True, use)})
    for window in windows:
        ticks = []
        for name, is_idle, ran, waited, switches in window:
            use = Use(use.seconds + ran / 1000, use.waited + waited / 1000, use.switches + switches)
            ticks.append({1: (name, is_idle, use)})
        program.see(*ticks)
    assert program.of(1) <= 1000 * (use.seconds - 1.0) + 1


# A simulated machine. Its unit of time is 0.1 ms.

STEP = 0.0001
SLICE, TICK = 28, 40


class Part(NamedTuple):
    """A part of what a thread repeats: so long it computes in a function, and then it sleeps there."""

    name: str
    computes: int
    sleeps: int


class Simulated:
    """A thread of a simulated machine, and its clocks as the system shows them.

    Attributes:
        true: the time that it has computed in each function.
        asleep: what it had used when a look saw it asleep.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.true: Counter[str] = Counter()
        self.asleep: Use | None = None
        self._parts = parts
        self._at = self._done = self._wakes = 0
        self._has_slept = False
        self._ran = self._late = self._waited = self._switches = self._queued = self._rest = 0

    @property
    def name(self) -> str:
        return self._parts[self._at].name

    @property
    def use(self) -> Use:
        return Use(self._ran * STEP, self._waited * STEP, self._switches)

    def is_asleep(self, now: int) -> bool:
        return now < self._wakes

    def begin(self, now: int) -> None:
        """Get a processor, for which it has waited since it woke or lost it."""
        self._waited += now - max(self._queued, self._wakes)
        self._switches += 1
        self._rest = SLICE
        if self._has_slept:
            self._next_part()

    def run(self, now: int) -> bool:
        """Compute for one step; return whether it keeps the processor."""
        part = self._parts[self._at]
        self.true[part.name] += 1
        self._late += 1
        self._rest -= 1
        self._done += 1
        if self._done == part.computes:
            if part.sleeps:
                self._wakes, self._has_slept = now + 1 + part.sleeps, True
            else:
                self._next_part()
        keeps = self._rest > 0 and not self._has_slept
        if not keeps or now % TICK == 0:
            self._ran, self._late = self._ran + self._late, 0
            self._queued = now + 1
        return keeps

    def _next_part(self) -> None:
        self._at, self._done, self._has_slept = (self._at + 1) % len(self._parts), 0, False


def simulate(threads: Sequence[Simulated], others: int, processors: int, steps: int, chance: random.Random) -> Program:
    """Run threads beside other programs that compute all the time, and look at them every millisecond or so."""
    program = Program()
    everyone = [*threads, *(Simulated([Part("other", 1 << 30, 0)]) for _ in range(others))]
    queue, sleeping, running = deque(everyone), list[Simulated](), list[Simulated]()
    due, ticks = 10, list[dict[int, tuple[str, bool, "Use | None"]]]()
    for now in range(steps):
        for thread in [each for each in sleeping if not each.is_asleep(now)]:
            sleeping.remove(thread)
            queue.append(thread)
        while queue and len(running) < processors:
            thread = queue.popleft()
            thread.begin(now)
            running.append(thread)
        if now == due:
            due += chance.randint(8, 12)
            ticks.append({number: look(thread, now) for number, thread in enumerate(threads)})
            if len(ticks) == WINDOW:
                program.see(*ticks)
                ticks.clear()
        for thread in list(running):
            if not thread.run(now):
                running.remove(thread)
                (sleeping if thread.is_asleep(now + 1) else queue).append(thread)
    return program


def look(thread: Simulated, now: int) -> tuple[str, bool, Use]:
    """Return what the stack reader sees."""
    use = thread.use
    if thread.is_asleep(now):
        thread.asleep = use
    return thread.name, use == thread.asleep, use


parts = st.builds(Part, st.sampled_from(NAMES), st.integers(1, 80), st.sampled_from([0, 0, 5, 15, 40, 100]))
machines = st.tuples(st.lists(st.lists(parts, min_size=2, max_size=4), min_size=1, max_size=4), st.integers(0, 3))


@settings(max_examples=12, derandomize=True, deadline=None)
@given(machines, st.integers(1, 2), st.integers(0, 1000))
def test_the_shares_of_functions_are_those_of_the_time_for_which_they_have_computed(
    machine: tuple[list[list[Part]], int], processors: int, seed: int
) -> None:
    """Threads that compute, sleep, repeat themselves, and wait for processors that other programs use."""
    programs, others = machine
    threads = [Simulated(parts) for parts in programs]
    with patch.object(weights, "WAKE_SECONDS", 0.0):  # as on the simulated machine
        program = simulate(threads, others, processors, 20_000, random.Random(seed))
    true = Counter[str]()
    for thread in threads:
        true.update(thread.true)
    reported = Counter[str]()
    for (_, name), count in program.reported.items():
        reported[name] += count
    differences = {name: reported[name] / reported.total() - true[name] / true.total() for name in [*NAMES, "unseen"]}
    assert all(abs(difference) < 0.08 for difference in differences.values()), differences
    unreported = true.total() * STEP - reported.total() * PACE
    assert -0.01 < unreported < len(threads) * 0.1, "what was used in the last moments is not reported"
