"""Turns the stacks that an engine reads into cpu_sample events.

The samples are those that the sampler inside a process would publish. With the ``wall`` clock every thread is sampled,
with ``cpu`` every thread that computes at that moment, as often as its CPU clock asks for (see `weights`). An engine's
look that comes late counts for the time since the last one, as in `cpu`, so a sample is repeated once per missed tick.

What is published is bounded: stacks that are deep or many make the interval longer (see `Pace`); the status has the
rate reached. A stack that changed while it was read is not published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

from tornado_rbkit.profiler import real_time
from tornado_rbkit.profiler.arguments import check_interval
from tornado_rbkit.profiler.batcher import BACKLOG_EVENTS, EventBatcher
from tornado_rbkit.profiler.cpu import BETWEEN_SAMPLES, COLLECTING, DEFAULT_INTERVAL, MAKE_UP_SECONDS, Pace
from tornado_rbkit.profiler.external.engine import Engine, EngineError, EngineFullError, Frame, Stack
from tornado_rbkit.profiler.external.moments import Moments
from tornado_rbkit.profiler.external.process import RunningProcess
from tornado_rbkit.profiler.external.weights import CPUWeights, Look
from tornado_rbkit.profiler.frames import MAX_DEPTH
from tornado_rbkit.profiler.objects import LARGE
from tornado_rbkit.profiler.packing import pack_facts, pack_frame, pack_sample, pack_stack, pack_time
from tornado_rbkit.profiler.run_state import RUNNING, WAITING
from tornado_rbkit.profiler.threads import Flag, InternalThread, hiding, internal_logger, original

MAX_ERRORS: Final = 0.05
"""The share of unreadable stacks above which `trouble` reports them."""

MAX_LOST: Final = 0.1
"""The share of the time without an engine above which `trouble` reports it."""

_PATIENCE: Final = 1.0  # seconds for the last output of an engine
_REST: Final = 0.05  # seconds before an engine that has ended is replaced
_ENOUGH_STACKS: Final = 1000  # to judge the share of errors
_NAME_SECONDS: Final = 1.0  # a name is remembered
_BATCH_SECONDS: Final = 0.05  # between two publications
_CACHE_BYTES: Final = 16 << 20
_FRAMES: Final = 65_536  # packed frames that are remembered
_log = internal_logger(__name__)


class ExternalSampler:
    """Publishes the stacks of another process from `start` to `stop`.

    Call `start` and `stop` and set `clock_type` on one thread; `status` may be called on any thread.

    Args:
        batcher: receives the samples.
        process: the sampled process.
        make_engine: returns an engine for one run, on the sampler's thread.
        check: looks at the process once, and raises EngineError if its stacks cannot be read; an engine that fails is
            then replaced once. Without it sampling ends.
    """

    def __init__(
        self,
        batcher: EventBatcher,
        process: RunningProcess,
        make_engine: Callable[[], Engine],
        check: Callable[[], None] | None,
    ) -> None:
        self._clock_type = "wall"
        self.interval = DEFAULT_INTERVAL
        self.failure: EngineError | None = None
        """Why sampling has ended by itself."""
        self._batcher = batcher
        self._process = process
        self._make_engine = make_engine
        self._check = check
        self._lock = original("allocate_lock")()
        self._stopped = Flag()
        self._engine: Engine | None = None
        self._engine_name = ""
        self._thread: InternalThread | None = None
        self._began = self._ended = 0.0
        self._forget()

    def _forget(self) -> None:
        self._packed: dict[tuple[int, tuple[Frame, ...], tuple[bytes, ...]], bytes] = {}
        self._packed_frames: dict[Frame, bytes] = {}
        self._names: dict[int, tuple[int, str | None] | None] = {}
        self._names_due = 0.0
        self._unpublished: list[tuple[list[Stack], float]] = []
        self._published = 0.0
        self._weights, self._moments = CPUWeights(), Moments()
        self._packed_bytes = 0
        self._tick: dict[tuple[int, int], Stack] = {}
        self._pace = Pace(self.interval)
        self._owed = 0.0
        self._ticks = self._late = self._samples = self._stacks = self._errors = self._losses = 0
        self._lost = 0.0
        self._lost_since: float | None = None

    @property
    def clock_type(self) -> str:
        """``wall`` or ``cpu``; setting it starts sampling anew."""
        return self._clock_type

    @clock_type.setter
    def clock_type(self, clock_type: str) -> None:
        if clock_type == self._clock_type:
            return
        was_enabled = self.enabled
        self.stop()
        self._clock_type = clock_type
        if was_enabled:
            self.start()

    @property
    def enabled(self) -> bool:
        """True from `start` to `stop`, or until sampling ends by itself. Any thread."""
        thread = self._thread
        return thread is not None and thread.is_alive() and self.failure is None

    def start(self, interval: float | None = None) -> None:
        """Start sampling every `interval` seconds; None keeps the current interval.

        Raises:
            ArgumentError: the interval is out of range.
        """
        if interval is not None:
            check_interval(interval)
        if self.enabled and interval in (None, self.interval):
            return
        self.stop()
        self.interval = interval or self.interval
        self.failure = None
        self._forget()
        self._stopped = Flag()
        self._began = real_time.monotonic()
        self._thread = InternalThread(self._run, "rbkit-cpu")

    def stop(self) -> None:
        """Stop sampling and join the thread. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._lock:
            self._stopped.set()
            if self._engine is not None:
                self._engine.stop()
        if not thread.join(_PATIENCE):
            with self._lock:
                if self._engine is not None:
                    self._engine.stop()
        thread.join()

    def watch(self) -> None:
        """Do nothing: `failure` says when sampling has ended."""

    def abandon(self) -> None:
        """Close, in a forked child, the descriptors of the parent's engine."""
        if self._engine is not None:
            self._engine.abandon()

    @property
    def trouble(self) -> str | None:
        """Why sampling has ended by itself, or why the samples may mislead. Any thread."""
        if self.failure is not None:
            return str(self.failure)
        if self._error_share() > MAX_ERRORS:
            return f"{self._error_share():.0%} of the stacks changed while they were read, and are left out"
        if self._lost_share() > MAX_LOST:
            return (
                f"no samples were taken for {self._lost_share():.0%} of the time: {self._engine_name} has lost sight "
                f"of the process {self._losses} times, as when many threads come and go"
            )
        return None

    def _lost_share(self) -> float:
        since = self._lost_since
        lost = self._lost + (real_time.monotonic() - since if since is not None and self.enabled else 0.0)
        return lost / max(self._seconds(), _PATIENCE)

    def _seconds(self) -> float:
        return (real_time.monotonic() if self.enabled else self._ended) - self._began

    def _error_share(self) -> float:
        return self._errors / max(self._stacks, _ENOUGH_STACKS)

    def status(self) -> dict[str, Any]:
        """Return the requested interval (seconds), the requested and achieved rates (ticks per second), and `trouble`.

        ``looks`` is the number of stacks that the engine has read, ``errors`` how many of them changed meanwhile,
        ``error_share`` their share (of at least a thousand), ``losses`` the number of engines that lost sight of the
        process and were replaced, and ``lost_share`` the share of the time in which therefore no samples were taken.
        """
        seconds = self._seconds()
        return {
            "enabled": self.enabled,
            "engine": self._engine_name,
            "clock_type": self.clock_type,
            "interval": self.interval,
            "requested_rate": 1.0 / self.interval,
            "achieved_rate": self._ticks / seconds if seconds > 0 else 0.0,
            "samples": self._samples,
            "skipped_ticks": self._late,
            "looks": self._stacks,
            "errors": self._errors,
            "error_share": self._error_share(),
            "losses": self._losses,
            "lost_share": self._lost_share(),
            "trouble": self.trouble,
        }

    # The sampler's thread

    def _run(self) -> None:
        try:
            self._sample_to_the_end()
        except EngineError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001 - the thread ends here
            self.failure = EngineError(f"the sampler failed ({type(error).__name__}: {error})")
            _log.exception("sampling has ended")
        finally:
            self._ended = real_time.monotonic()

    def _sample_to_the_end(self) -> None:
        """Sample with one engine after the other.

        An engine that ends well, after it has read stacks, has lost sight of a process that runs on, or was ended by
        somebody else; it is replaced each time, and no samples are taken for some tenths of a second.
        An engine that fails is replaced once, if `check` finds that the process can be read.

        Raises:
            EngineError: sampling has ended by itself.
        """
        has_failed = False
        while self._begin_engine():
            assert self._engine is not None
            stacks = self._stacks
            failure = self._read_to_the_end(self._engine)
            if self._stopped.is_set() or isinstance(failure, EngineFullError):
                continue
            ended = real_time.monotonic()
            self._stopped.wait(_REST)  # a process that was killed is there for a moment longer
            if not self._process.is_alive():
                raise EngineError(f"{self._process} has ended")
            if self._process.has_new_program():
                _log.warning("%s has executed another program", self._process)
            elif self._engine.has_ended_well and self._stacks > stacks:
                self._note_loss(failure, ended)
            elif self._check is None:
                raise failure
            else:
                self._check()
                if not self._process.is_alive():
                    raise EngineError(f"{self._process} has ended")
                if has_failed:
                    raise failure
                has_failed = True
                _log.warning("%s; it is started again", failure)

    def _note_loss(self, failure: EngineError, ended: float) -> None:
        self._losses += 1
        if self._lost_since is None:
            self._lost_since = ended
        if self._losses == 1:
            _log.info("%s although %s runs on; it is started again whenever it does", failure, self._process)

    def _begin_engine(self) -> bool:
        with hiding(), self._lock:
            if self._stopped.is_set():
                return False
            self._engine = self._make_engine()
            self._weights, self._moments = CPUWeights(), Moments()
            self._engine_name = self._engine.name
            self._engine.start(self.interval)
            return True

    def _read_to_the_end(self, engine: Engine) -> EngineError:
        """Publish the stacks that the engine reads; return why it ended."""
        try:
            while engine.wait():
                with hiding():
                    self._publish(self._read(engine))
            with hiding():
                self._publish_ticks()
            return EngineError(f"{engine.name} has ended")
        except EngineError as error:
            return error
        finally:
            self._tick = {}
            with self._lock:
                engine.close()

    def _read(self, engine: Engine) -> Sequence[Stack]:
        """Return the stacks that an engine has read, and note its name: before its first sample it has the version."""
        stacks = engine.read()
        self._engine_name = engine.name
        return stacks

    def _publish(self, stacks: Sequence[Stack]) -> None:
        """Publish the ticks that these stacks complete."""
        if stacks and self._lost_since is not None:
            self._lost += real_time.monotonic() - self._lost_since
            self._lost_since = None
        ticks = []
        for stack in stacks:
            thread = (stack.interpreter, stack.thread_id)
            if self._tick and (thread in self._tick or stack.seconds != next(iter(self._tick.values())).seconds):
                ticks.append(self._tick)
                self._tick = {}
            self._tick[thread] = stack
        times = self._moments.date(next(iter(tick.values())).seconds for tick in ticks)
        self._unpublished += zip((list(tick.values()) for tick in ticks), times, strict=True)
        if real_time.monotonic() - self._published >= _BATCH_SECONDS:
            self._publish_ticks()

    def _publish_ticks(self) -> None:
        ticks, self._unpublished = self._unpublished, []
        self._published = real_time.monotonic()
        seen = [self._looks(tick, moment) for tick, moment in ticks]
        if self._clock_type == "wall":
            samples = [(look, look.count) for tick in seen for look in tick]
        else:
            samples, unseen = self._weights.weigh(seen, self._pace.interval)
            for thread, count in unseen.items():
                self._publish_unseen(thread, count, ticks[-1][1])
        for look, count in samples:
            payload = look.payload or self._payload(look.stack)
            if payload:
                self._publish_samples(payload, count, look.moment, self._pace.interval * look.count)

    def _payload(self, stack: Stack) -> bytes:
        """Return the payload of the samples of a stack; nothing if its thread is not to be sampled."""
        thread = self._thread_facts(stack.thread_id)
        return b"" if thread is None else self._pack(stack, *thread)

    def _looks(self, stacks: list[Stack], moment: float) -> list[Look]:
        """Return the usable looks of one tick, which count for the time that has passed since the last one."""
        pace = self._pace.interval
        count, self._owed = divmod(self._owed + stacks[0].seconds, pace)
        self._stacks += len(stacks)
        self._errors += sum(_is_error(stack) for stack in stacks)
        if not count:
            return []
        self._ticks += 1
        repeated = min(int(count), 1 + int(MAKE_UP_SECONDS / pace))
        self._late += int(count) - 1
        if self._batcher.backlog > BACKLOG_EVENTS:
            self._late += 1
            self._weights = CPUWeights()  # as the looks, the CPU time of this time is not reported
            return []
        looks: dict[int, Look] = {}
        for stack in stacks:
            thread = self._thread_facts(stack.thread_id)
            # A thread that one interpreter has called from another has two stacks, that of the newer one first.
            if thread is not None and stack.frames and not _is_error(stack) and stack.thread_id not in looks:
                payload = b"" if stack.is_idle and self._clock_type == "cpu" else self._pack(stack, *thread)
                looks[stack.thread_id] = Look(stack, repeated, moment, payload)
        self._pace.adapt(0.0, sum(len(look.payload) for look in looks.values()))
        return list(looks.values())

    def _publish_samples(self, payload: bytes, count: int, moment: float, seconds: float) -> None:
        """Publish a stack `count` times, at times that end with `moment` and go back for at most `seconds`."""
        step = min(self._pace.interval, seconds / max(1, count))
        for before in range(count - 1, -1, -1):
            self._batcher.add(pack_sample(pack_time(moment - before * step), payload))
        self._samples += count

    def _publish_unseen(self, thread: int, count: int, moment: float) -> None:
        """Publish samples without a stack, of a thread that was not seen using its CPU time."""
        facts = self._thread_facts(thread)
        if facts is not None:
            payload = pack_stack([BETWEEN_SAMPLES], facts[0], pack_facts(facts[1], None, None))
            self._publish_samples(payload, count, moment, _BATCH_SECONDS)

    def _pack(self, stack: Stack, thread_id: int, name: str | None) -> bytes:
        """Return the payload of a sample."""
        facts = pack_facts(name, None, self._state(stack))
        key = (thread_id, stack.frames, facts)
        packed = self._packed.get(key)
        if packed is None:
            innermost_first = islice(reversed(stack.frames), MAX_DEPTH)
            frames = [self._pack_frame(frame) for frame in innermost_first]
            packed = pack_stack(frames, thread_id, facts)
            self._packed_bytes += len(packed) + 8 * len(stack.frames)
            if self._packed_bytes > _CACHE_BYTES or len(self._packed) >= LARGE - 1:
                self._packed.clear()
                self._packed_bytes = len(packed) + 8 * len(stack.frames)
            self._packed[key] = packed
        return packed

    def _pack_frame(self, frame: Frame) -> bytes:
        packed = self._packed_frames.get(frame)
        if packed is None:
            module = self._process.module_name(frame.file)
            label = f"{module}.{frame.scope}" if module else frame.scope
            name = frame.scope.rpartition(".")[2]
            packed = pack_frame(
                name, label, frame.file, frame.line, singleton=False, definition_line=frame.definition_line or None
            )
            if len(self._packed_frames) >= _FRAMES:
                self._packed_frames.clear()
            self._packed_frames[frame] = packed
        return packed

    def _thread_facts(self, native_id: int) -> tuple[int, str | None] | None:
        now = real_time.monotonic()
        if now >= self._names_due:
            self._names.clear()  # threads end, and may be given another name
            self._names_due = now + _NAME_SECONDS
        if native_id not in self._names:
            self._names[native_id] = self._process.thread(native_id)
        return self._names[native_id]

    def _state(self, stack: Stack) -> str:
        if stack.is_idle and self._clock_type == "wall":
            return WAITING
        return COLLECTING if stack.is_collecting else RUNNING


def _is_error(stack: Stack) -> bool:
    """Return whether a stack has no use. One whose outer frames were not read is no worse than one that is cut off."""
    return stack.is_broken and len(stack.frames) < MAX_DEPTH
