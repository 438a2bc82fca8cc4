"""The samples of a thread follow its CPU clock, whatever an engine sees of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Union

from hypothesis import given
from hypothesis import strategies as st

from tornado_rbkit.profiler.external.engine import Frame, Stack
from tornado_rbkit.profiler.external.weights import MAX_UNSEEN, WAKE_SECONDS, CPUWeights, Look, Use

PACE = 0.001
WINDOW = 0.05
PARSE, SCORE, NAP = (Frame("app.py", scope, 1) for scope in ("parse", "score", "nap"))
ASLEEP = "asleep"
Seen = Union[Frame, "tuple[Frame, str]"]


class Process:
    """What the system counts for threads, and the weights of what an engine sees of them."""

    def __init__(self) -> None:
        self.used: dict[int, Use] = {}
        self.now = 0.0
        self.weights = CPUWeights(self.used.get)
        self.reported: Counter[tuple[int, str]] = Counter()

    def run(self, *ticks: dict[int, Seen], use: dict[int, tuple[float, int]]) -> None:
        """Advance the CPU time and the switches of threads, and weigh the looks of that time."""
        for thread, (seconds, switches) in use.items():
            before = self.used.get(thread, Use(0.0, 0))
            self.used[thread] = Use(before.seconds + seconds, before.switches + switches)
        looks = [[look(thread, seen) for thread, seen in tick.items()] for tick in ticks]
        self.now += WINDOW
        counts, unseen = self.weights.weigh(looks, PACE, self.now)
        for each, count in zip([each for tick in looks for each in tick], counts, strict=True):
            self.reported[each.stack.thread_id, each.stack.frames[-1].scope] += count
        for thread, count in unseen.items():
            self.reported[thread, "unseen"] += count

    def forget(self) -> None:
        self.reported.clear()

    def of(self, thread: int) -> int:
        return sum(count for (each, _), count in self.reported.items() if each == thread)


def look(thread: int, seen: Seen) -> Look:
    frame, is_idle = (seen[0], True) if isinstance(seen, tuple) else (seen, False)
    return Look(Stack(0, thread, (frame,), PACE, False, False, is_idle), 1, 0.0, b"")


def napping(process: Process, windows: int, ticks: Sequence[Seen]) -> None:
    """Let thread 1 parse for 4 ms and nap 100 times in each window of 50 ms."""
    for _ in range(windows):
        process.run(*({1: seen} for seen in ticks), use={1: (0.004 + 100 * WAKE_SECONDS, 100)})


def test_a_thread_that_waits_for_a_processor_after_naps_is_not_said_to_compute_there() -> None:
    process = Process()
    seen = [(NAP, ASLEEP)] * 36 + [NAP] * 10 + [PARSE] * 4
    napping(process, 100, seen)
    process.forget()
    napping(process, 1000, seen)
    share = process.reported[1, "parse"] / process.of(1)
    assert abs(share - 4 / 4.7) < 0.01
    assert abs(process.of(1) - 4700) < 50


def test_a_thread_that_is_rarely_seen_computing_gets_its_cpu_time_at_the_places_where_it_is() -> None:
    """As where the engine waits for the processor on which the thread computes."""
    process = Process()
    missed = [(NAP, ASLEEP)] * 46 + [NAP] * 4
    for _ in range(300):
        napping(process, 4, missed)
        napping(process, 1, [*missed[:-2], PARSE, SCORE])
    assert abs(process.of(1) - 1500 * 4.7) < 350
    assert abs(process.reported[1, "parse"] - process.reported[1, "score"]) < 10
    assert process.reported[1, "parse"] + process.reported[1, "score"] > 0.8 * process.of(1)


def test_threads_that_wait_for_the_gil_do_not_wait_at_a_waiting_place() -> None:
    """One of ten threads computes at any moment; each is seen asleep nine times as often as running."""
    process = Process()
    for window in range(200):
        ticks = [
            {thread: PARSE if thread == (tick + window) % 10 else (PARSE, ASLEEP) for thread in range(10)}
            for tick in range(50)
        ]
        process.run(*ticks, use=dict.fromkeys(range(10), (0.005, 10)))
    assert all(abs(process.of(thread) - 1000) < 20 for thread in range(10))


def test_cpu_time_of_which_nothing_was_seen_is_reported_without_a_stack() -> None:
    process = Process()
    for _ in range(400):
        process.run({1: (NAP, ASLEEP)}, use={1: (0.01, 0)})
    assert set(process.reported) == {(1, "nap"), (1, "unseen")}
    assert process.reported[1, "nap"] == 0
    assert 4000 - 1000 * MAX_UNSEEN - 210 < process.reported[1, "unseen"] <= 4000


def test_a_thread_that_is_new_or_has_ended_is_sampled_as_it_was_seen() -> None:
    process = Process()
    process.run({1: PARSE}, {1: PARSE}, use={1: (5.0, 100)})
    process.run({2: PARSE}, use={})
    assert process.reported == {(1, "parse"): 2, (2, "parse"): 1}


def test_a_thread_with_the_identifier_of_one_that_has_ended_begins_anew() -> None:
    process = Process()
    process.run({1: PARSE}, use={1: (5.0, 100)})
    process.used.clear()
    process.run({1: PARSE}, use={1: (0.001, 1)})
    assert process.reported == {(1, "parse"): 2}
    process.run({1: PARSE}, use={1: (0.003, 0)})
    assert process.reported[1, "parse"] == 5


def test_threads_that_come_and_go_leave_nothing_behind() -> None:
    process = Process()
    for thread in range(100):
        process.run({0: PARSE, thread: PARSE}, use={0: (0.001, 1), thread: (0.001, 1)})
    assert set(process.weights._accounts) == {0, 99}


seen = st.sampled_from([PARSE, SCORE, NAP, (PARSE, ASLEEP), (NAP, ASLEEP)])


@given(st.lists(st.tuples(st.lists(seen, min_size=1, max_size=50), st.integers(0, 50), st.integers(0, 500))))
def test_never_more_is_reported_than_was_used(windows: list[tuple[list[Seen], int, int]]) -> None:
    process = Process()
    process.run({1: (NAP, ASLEEP)}, use={1: (1.0, 0)})
    for ticks, milliseconds, switches in windows:
        process.run(*({1: each} for each in ticks), use={1: (milliseconds / 1000, switches)})
    used = 1000 * (process.used[1].seconds - 1.0)
    assert process.of(1) <= used + 1
