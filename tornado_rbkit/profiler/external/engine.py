"""The interface between the sampler and a program, or library, that reads the stacks of another process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tornado_rbkit.errors import RbkitError


class EngineError(RbkitError):
    """The stacks of a process cannot be read; the message says why and what to change."""


class EngineFullError(EngineError):
    """The engine has defined too many places and must be restarted.

    This is not a fault: it happens with programs that keep compiling code.
    """


class Frame:
    """A place in a program. Equal places of one engine are the same object, so that stacks are compared quickly.

    Attributes:
        file: the file name of the code.
        scope: the qualified name of the function; up to Python 3.10 its plain name.
        line: the line number, 0 if unknown.
        definition_line: the number of the line where the function begins, 0 if unknown.
    """

    __slots__ = ("definition_line", "file", "line", "scope")

    def __init__(self, file: str, scope: str, line: int, definition_line: int = 0) -> None:
        self.file = file
        self.scope = scope
        self.line = line
        self.definition_line = definition_line


class Use(NamedTuple):
    """What the system has counted for one thread, proc(5) schedstat, and whether the thread has run at a look.

    A clock of a thread that runs is brought up to date at the ticks of the system, every 1 to 10 ms, and when the
    thread gives up the processor.

    Attributes:
        seconds: its CPU time.
        switches: how often it was given a processor.
        is_running: whether it had a processor while its stack was read, or had just lost it to the reader.
    """

    seconds: float
    switches: int
    is_running: bool


class Stack(NamedTuple):
    """The stack of one thread at one moment.

    Attributes:
        interpreter: identifies the interpreter within its process.
        thread_id: the system's identifier of the thread.
        frames: outermost first.
        seconds: the time since the engine looked at this process before.
        is_broken: whether the stack changed while it was read; its outer frames are missing.
        is_collecting: whether a garbage collection ran in the process.
        is_idle: whether the thread slept just after its stack was read, or waited for a processor where it had slept.
        use: what the system had counted for the thread just before; known on most systems.
    """

    interpreter: int
    thread_id: int
    frames: tuple[Frame, ...]
    seconds: float
    is_broken: bool
    is_collecting: bool
    is_idle: bool = False
    use: Use | None = None


class Engine(Protocol):
    """Samples one process once: `start`, then `read` after each `wait` until that returns False, then `close`.

    `stop` may be called on any thread, everything else on one thread.
    """

    @property
    def name(self) -> str:
        """The name and the version of the sampling program. Any thread."""

    @property
    def has_ended_well(self) -> bool:
        """True after `close` if the engine has found that the process ended, rightly or not."""

    def start(self, interval: float) -> None:
        """Start to sample every thread every `interval` seconds.

        Raises:
            EngineError: the engine cannot be started.
        """

    def wait(self) -> bool:
        """Wait for output; return False after the end, or after `stop`."""

    def read(self) -> Sequence[Stack]:
        """Return the stacks of the output, in the order they were read.

        Raises:
            EngineError: the engine does not work as documented.
            EngineFullError: the engine has to be replaced.
        """

    def stop(self) -> None:
        """Let `wait` return False once everything was read; called again, let it return False at once."""

    def close(self) -> None:
        """Stop, and release everything. May be called twice."""

    def abandon(self) -> None:
        """Release, in a forked child, the descriptors that it has inherited."""
