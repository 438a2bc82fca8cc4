"""The samples of a thread follow its CPU clock, whatever an engine sees of it."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from unittest.mock import patch

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tornado_rbkit.profiler.external import weights
from tornado_rbkit.profiler.external.engine import Frame, Stack, Use
from tornado_rbkit.profiler.external.weights import MAX_UNSEEN, WAKE_SECONDS, CPUWeights, Look

PACE = 0.001
WINDOW = 50
NAMES = ("parse", "score", "write", "nap")
FRAMES = {name: Frame("app.py", name, 1) for name in NAMES}


def used(seconds: float, switches: int = 1) -> Use:
    """Return the use of a thread that runs, or sleeps."""
    return Use(seconds, switches, True)


def waiting(seconds: float) -> Use:
    """Return the use of a thread that waits for a processor."""
    return Use(seconds, 1, False)


class Program:
    """Looks at threads, each a millisecond after the one before, and the samples that are reported for them."""

    def __init__(self) -> None:
        self.weights = CPUWeights()
        self.reported: Counter[tuple[int, str]] = Counter()
        self.found_running = 0
        self._ticks = 0

    def see(self, *ticks: Mapping[int, tuple[str, bool, Use | None]], count: int = 1) -> None:
        """Weigh ticks. Each has the place of each thread, whether it sleeps, and its use of the processors."""
        self.weigh([(tick, count) for tick in ticks])

    def weigh(self, ticks: Sequence[tuple[Mapping[int, tuple[str, bool, Use | None]], int]]) -> None:
        """Weigh ticks, each with the number of intervals since the one before it."""
        looks = []
        for tick, count in ticks:
            self._ticks += count
            looks.append([self._look(thread, *seen, count) for thread, seen in tick.items()])
        samples, unseen = self.weights.weigh(looks, PACE)
        for look, number in samples:
            self.reported[look.stack.thread_id, look.stack.frames[0].scope] += number
        for thread, number in unseen.items():
            self.reported[thread, "unseen"] += number

    def _look(self, thread: int, name: str, is_idle: bool, use: Use | None, count: int) -> Look:
        use = None if use is None else use._replace(is_running=use.is_running and not is_idle)
        self.found_running += use is not None and use.is_running
        stack = Stack(0, thread, (FRAMES[name],), PACE * count, False, False, is_idle, use)
        return Look(stack, count, self._ticks * PACE, b"" if is_idle else name.encode())

    def of(self, thread: int) -> int:
        return sum(count for (each, _), count in self.reported.items() if each == thread)


def test_looks_that_find_a_thread_on_a_processor_share_its_cpu_time_alike() -> None:
    """However long it waits for processors elsewhere."""
    program = Program()
    seconds = 1.0
    program.see({1: ("nap", True, used(seconds))})
    ticks = []
    for _ in range(100):
        ticks += [{1: ("parse", False, used(seconds))}, {1: ("score", False, used(seconds))}]
        ticks += [{1: ("write", False, waiting(seconds))}] * 5
        seconds += 0.002
    ticks.append({1: ("nap", True, used(seconds))})
    program.see(*ticks)
    assert set(program.reported) == {(1, "parse"), (1, "score")}
    assert abs(program.reported[1, "parse"] - program.reported[1, "score"]) <= 1
    assert abs(program.of(1) - 200) <= 1


def test_a_look_that_came_late_counts_as_any_other() -> None:
    program = Program()
    late, prompt = ({1: (name, False, used(1.02))} for name in ("parse", "score"))
    program.weigh([({1: ("nap", True, used(1.0))}, 1), (late, 20), (prompt, 1), ({1: ("nap", True, used(1.022))}, 1)])
    assert program.reported == {(1, "parse"): 11, (1, "score"): 11}


def test_cpu_time_from_long_before_a_look_is_reported_without_a_stack() -> None:
    """20 samples are made up for, and the thread has computed for a second since the last look."""
    program = Program()
    program.see({1: ("parse", False, used(1.0))})
    program.see({1: ("parse", False, used(2.0))}, count=20)
    assert program.reported == {(1, "parse"): 20, (1, "unseen"): 980}


def test_a_thread_whose_clock_is_late_has_run_at_all_looks_since_then() -> None:
    program = Program()
    program.see({1: ("parse", False, used(1.0))})
    for tick in range(100):
        program.see(*({1: (name, False, used(1.0 + 0.004 * tick))} for name in NAMES))
    assert all(90 < count < 110 for count in program.reported.values())
    assert 390 < program.of(1) <= 400


def test_cpu_time_that_a_late_clock_shows_is_of_the_looks_before_it() -> None:
    """Also if they came in an earlier window, as those at a thread that lives for a few milliseconds may."""
    program = Program()
    program.see({1: ("nap", True, used(1.0))})
    program.see({1: ("parse", False, used(1.0))})
    program.see({1: ("score", False, used(1.004))})
    assert program.reported == {(1, "parse"): 4}
    program.see({1: ("nap", True, used(1.006))})
    assert program.reported == {(1, "parse"): 4, (1, "score"): 2}


def test_a_place_computes_again_as_soon_as_it_does() -> None:
    """A function that has waited for long, and now computes, was no waiting place."""
    program = Program()
    for tick in range(5000):
        program.see({1: ("parse", True, used(1.0, 1)), 2: ("score", False, used(0.001 * tick, 1))})
    program.see(*({1: ("parse", False, used(1.0 + 0.001 * tick, 2))} for tick in range(51)))
    assert abs(program.reported[1, "parse"] - 50) <= 1


def test_cpu_time_of_which_nothing_was_seen_is_reported_without_a_stack() -> None:
    program = Program()
    for tick in range(400):
        program.see({1: ("nap", True, used(1.0 + 0.01 * tick, 1))})
    assert set(program.reported) == {(1, "unseen")}
    assert 3990 - 1000 * MAX_UNSEEN <= program.reported[1, "unseen"] <= 3990


def test_going_to_sleep_and_waking_up_is_charged_to_where_the_thread_sleeps() -> None:
    """Each nap is seen twice; the second look sees no other nap."""
    program = Program()
    use = used(1.0, 0)
    program.see({1: ("parse", False, use)})
    for _ in range(100):
        use = used(use.seconds + 0.01, use.switches + 100)
        program.see({1: ("nap", True, use)}, {1: ("nap", True, use)}, {1: ("parse", False, use)})
    assert abs(program.reported[1, "nap"] - 10_000 * WAKE_SECONDS / PACE) < 3
    assert 995 < program.of(1) <= 1000


def test_a_thread_that_is_switched_while_it_computes_has_not_slept() -> None:
    program = Program()
    for tick in range(100):
        program.see({1: ("parse", False, used(1.0 + tick / 1000, 10 * tick))})
    assert set(program.reported) == {(1, "parse")}
    assert 95 < program.of(1) <= 99


def test_cpu_time_from_before_the_first_look_is_not_reported() -> None:
    program = Program()
    program.see({1: ("parse", False, used(500.0, 1))})
    program.see({1: ("parse", False, used(500.002, 1))})
    assert program.reported == {(1, "parse"): 2}


def test_a_thread_that_is_seen_once_has_used_what_its_clock_says_and_a_look_more() -> None:
    program = Program()
    program.see({0: ("nap", True, used(1.0, 1))})
    program.see({0: ("nap", True, used(1.0, 1)), 1: ("parse", False, used(0.002, 1))}, count=3)
    program.see(*({0: ("nap", True, used(1.0, 1))} for _ in range(300)))
    assert program.reported == {(1, "parse"): 5}


def test_a_thread_that_was_there_before_its_first_look_has_used_at_most_the_time_since_the_last_one() -> None:
    """As a thread of another library that now runs Python for the first time."""
    program = Program()
    program.see({0: ("nap", True, used(1.0, 1))})
    program.see({1: ("parse", False, used(3600.0, 1))})
    program.see({1: ("parse", False, used(3600.001, 1))})
    assert program.reported == {(1, "parse"): 2}


def test_a_thread_with_the_identifier_of_one_that_has_ended_begins_anew() -> None:
    program = Program()
    program.see({1: ("parse", False, used(5.0, 1))})
    program.see({1: ("parse", False, used(0.001, 1))}, {1: ("parse", False, used(0.004, 1))})
    assert program.reported == {(1, "parse"): 4}


def test_looks_without_clocks_count_as_they_are() -> None:
    program = Program()
    program.see({1: ("parse", False, None), 2: ("nap", True, None)}, {1: ("score", False, None)}, count=2)
    assert program.reported == {(1, "parse"): 2, (1, "score"): 2}


def test_a_tick_that_misses_a_thread_changes_nothing() -> None:
    program = Program()
    for tick in range(200):
        everyone = {thread: ("parse", False, used(1 + tick / 1000, 1)) for thread in (0, 1)}
        program.see(everyone if tick % 2 else {0: everyone[0]})
    assert program.of(0) - 1 <= program.of(1) <= program.of(0)


def test_threads_that_come_and_go_leave_nothing_behind() -> None:
    program = Program()
    for thread in range(2000):
        looks = {each: ("parse", False, used(thread / 1000, 1)) for each in (0, thread)}
        program.see(looks)
    assert len(program.weights._accounts) < 260


def test_nothing_is_remembered_of_a_thread_that_waits_for_a_processor() -> None:
    program = Program()
    program.see({1: ("parse", False, used(1.0))})
    program.see(*[{1: ("parse", False, waiting(1.001))}] * 5000)
    account = program.weights._accounts[1]
    assert (account.running, account.asleep) == ([], {})


seen = st.tuples(st.sampled_from(NAMES), st.sampled_from(["sleeps", "waits", "runs"]), *[st.integers(0, 40)] * 2)


@given(st.lists(st.lists(seen, max_size=50)))
def test_never_more_is_reported_than_was_used(windows: list[list[tuple[str, str, int, int]]]) -> None:
    program = Program()
    use = used(1.0)
    program.see({1: ("nap", True, use)})
    for window in windows:
        ticks = []
        for name, state, ran, switches in window:
            use = Use(use.seconds + ran / 1000, use.switches + switches, state == "runs")
            ticks.append({1: (name, state == "sleeps", use)})
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
        self._ran = self._late = self._switches = self._rest = 0

    @property
    def name(self) -> str:
        return self._parts[self._at].name

    def use(self, is_running: bool) -> Use:
        return Use(self._ran * STEP, self._switches, is_running)

    def is_asleep(self, now: int) -> bool:
        return now < self._wakes

    def begin(self) -> None:
        """Get a processor."""
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
        return keeps

    def _next_part(self) -> None:
        self._at, self._done, self._has_slept = (self._at + 1) % len(self._parts), 0, False


class Sampler:
    """When looks come: every millisecond or so, if the sampler does not have to wait for a processor.

    Args:
        starved: the share of the looks for which it waits for 5 to 100 ms.
    """

    def __init__(self, starved: float, seed: int) -> None:
        self._starved = starved
        self._chance = random.Random(seed)
        self.due = self.passed = 10

    def wait(self) -> int:
        """Return how often an interval has passed since the last look, and set the time of the next one."""
        count = max(1, round(self.passed * STEP / PACE))
        self.passed = self._chance.randint(8, 12)
        if self._chance.random() < self._starved:
            self.passed += self._chance.randint(50, 1000)
        self.due += self.passed
        return count


def simulate(threads: Sequence[Simulated], others: int, processors: int, steps: int, sampler: Sampler) -> Program:
    """Run threads beside other programs that compute all the time, and look at them."""
    program = Program()
    ticks: list[tuple[dict[int, tuple[str, bool, Use | None]], int]] = []
    everyone = [*threads, *(Simulated([Part("other", 1 << 30, 0)]) for _ in range(others))]
    queue, sleeping, running = deque(everyone), list[Simulated](), list[Simulated]()
    for now in range(steps):
        for thread in [each for each in sleeping if not each.is_asleep(now)]:
            sleeping.remove(thread)
            queue.append(thread)
        while queue and len(running) < processors:
            thread = queue.popleft()
            thread.begin()
            running.append(thread)
        if now == sampler.due:
            looks = {number: look(thread, now, thread in running) for number, thread in enumerate(threads)}
            ticks.append((looks, sampler.wait()))
            if sum(count for _, count in ticks) >= WINDOW:
                program.weigh(ticks)
                ticks.clear()
        for thread in list(running):
            if not thread.run(now):
                running.remove(thread)
                (sleeping if thread.is_asleep(now + 1) else queue).append(thread)
    return program


def look(thread: Simulated, now: int, is_running: bool) -> tuple[str, bool, Use | None]:
    """Return what the stack reader sees."""
    use = thread.use(is_running)
    if thread.is_asleep(now):
        thread.asleep = use
    return thread.name, use == thread.asleep, use


parts = st.builds(Part, st.sampled_from(NAMES), st.integers(1, 80), st.sampled_from([0, 0, 5, 15, 40, 100]))
machines = st.tuples(st.lists(st.lists(parts, min_size=2, max_size=4), min_size=1, max_size=3), st.integers(0, 8))


def differences(threads: Sequence[Simulated], program: Program) -> dict[str, float]:
    """Return how far the shares of the functions are from the truth."""
    true = sum((thread.true for thread in threads), Counter[str]())
    reported = Counter[str]()
    for (_, name), count in program.reported.items():
        reported[name] += count
    unseen = reported.pop("unseen", 0)
    assert unseen * PACE <= MAX_UNSEEN * len(threads) + 0.01
    return {name: reported[name] / max(1, reported.total()) - true[name] / true.total() for name in NAMES}


@settings(max_examples=12, derandomize=True, deadline=None, phases=[Phase.generate])
@given(machines, st.integers(1, 2), st.sampled_from([0.0, 0.05, 0.3]), st.integers(0, 1000))
def test_the_shares_of_functions_are_those_of_the_time_for_which_they_have_computed(
    machine: tuple[list[list[Part]], int], processors: int, starved: float, seed: int
) -> None:
    """Threads that compute, sleep, repeat themselves, and wait for processors that other programs use."""
    programs, others = machine
    threads = [Simulated(parts) for parts in programs]
    with patch.object(weights, "WAKE_SECONDS", 0.0):  # as on the simulated machine
        program = simulate(threads, others, processors, 20_000, Sampler(starved, seed))
    found = differences(threads, program)
    chance = 2.5 / max(1, program.found_running) ** 0.5
    assert all(abs(difference) < 0.01 + chance for difference in found.values()), found
    unreported = sum(thread.true.total() for thread in threads) * STEP - program.reported.total() * PACE
    assert -0.01 < unreported < len(threads) * (MAX_UNSEEN + 0.1), "what was used in the last moments is not reported"
