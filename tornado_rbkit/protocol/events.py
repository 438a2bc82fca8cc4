"""The events and the handshake of rbkit, and the integer keys and types of their MessagePack."""

from __future__ import annotations

import enum
from typing import Any, Final, NamedTuple, TypeAlias

DEFAULT_PUB_PORT: Final = 5555
DEFAULT_REQ_PORT: Final = 5556


class EventType(enum.IntEnum):
    """The value of `Field.EVENT_TYPE`."""

    OBJ_CREATED = 0
    OBJ_DESTROYED = 1
    GC_START = 2
    GC_END_M = 3
    GC_END_S = 4
    OBJECT_SPACE_DUMP = 5
    GC_STATS = 6
    EVENT_COLLECTION = 7
    HANDSHAKE = 8
    CPU_SAMPLE = 9


class Field(enum.IntEnum):
    """The integer keys in rbkit's MessagePack maps."""

    EVENT_TYPE = 0
    TIMESTAMP = 1
    PAYLOAD = 2
    OBJECT_ID = 3
    CLASS_NAME = 4
    REFERENCES = 5
    FILE = 6
    LINE = 7
    SIZE = 8
    MESSAGE_COUNTER = 9
    CORRELATION_ID = 10
    COMPLETE_MESSAGE_COUNT = 11
    METHOD_NAME = 12
    LABEL = 13
    SINGLETON_METHOD = 14
    THREAD_ID = 15
    ATTRIBUTES = 16
    """An extension of this package, which rbkit does not send and its clients ignore, for objects in a snapshot: the
    names of attributes or variables in the order of `REFERENCES`, as text, or nil for a reference without a known
    name. The list may be shorter than `REFERENCES`; the remaining references have no known name. `LABEL` is the name
    of a function, class, module, coroutine or running function itself."""
    KEYS = 17
    """Like `ATTRIBUTES`, for the keys of a dict: text, integers or nil. The number 0 in place of a list says that the
    position in `REFERENCES` is the index in a list or tuple."""
    RESIDENT = 18
    """An extension like `ATTRIBUTES`, for an object_space_dump: the resident memory of the process in bytes, ``''`` if
    it is not known."""
    THREAD_NAME = 19
    """An extension like `ATTRIBUTES`, for the innermost frame of a cpu_sample: the name of the thread
    (`threading.Thread.name`), as text. This and the next three fields are absent if the value is not known."""
    TASK_NAME = 20
    """Likewise: the name of the asyncio task that runs on the thread."""
    THREAD_STATE = 21
    """Likewise: ``running``, ``waiting`` (off the processor: asleep, idle, or in input or output), ``lock`` (waits for
    a lock), or ``gc`` (a garbage collection runs on the thread)."""
    DEFINITION_LINE = 22
    """An extension like `ATTRIBUTES`, for each frame of a cpu_sample: the number of the line where the function begins
    (co_firstlineno)."""
    TRACED = 23
    """An extension like `ATTRIBUTES`, for an object_space_dump: the bytes that tracemalloc has traced, which are those
    allocated by Python's allocators since it was switched on, and in use. Absent while it is off."""
    SUSPENDED_TASKS = 24
    """An extension like `ATTRIBUTES`, for a cpu_sample without frames, which rbkit's clients ignore (an event of
    another type would crash rbkit-client): a `SuspendedTasks` as a map of `TASKS`, `TASKS_READ`, `MILLISECONDS`, and
    `PAYLOAD` with the groups. A group is a map of `TASKS`, `CLASS_NAME` (its `awaits`), `TASK_NAMES`, and `PAYLOAD`
    with the frames, packed as in a cpu_sample with 0 as `THREAD_ID`."""
    TASKS = 25
    TASKS_READ = 26
    MILLISECONDS = 27
    TASK_NAMES = 28


class ObjCreated(NamedTuple):
    timestamp: float
    object_id: int
    class_name: str | None


class ObjDestroyed(NamedTuple):
    timestamp: float
    object_id: int


class GCStart(NamedTuple):
    timestamp: float


class GCEndMark(NamedTuple):
    timestamp: float


class GCEndSweep(NamedTuple):
    timestamp: float


class GCStats(NamedTuple):
    """Statistics of Ruby's GC; `stats` has Ruby's own keys, and ``''`` where Ruby has nil.

    rbkit sends one every five seconds while memory is profiled. The profiler for Python sends one each second to
    subscribers, whatever is profiled: the handshake says what is. It adds ``process_rss`` (bytes), ``process_cpu_ms``
    (CPU time used so far), ``process_threads`` and ``gc_pause_ms`` (in total), each only if it is known; its
    ``old_objects`` is ``''`` unless memory is profiled.
    """

    timestamp: float
    stats: dict[str, int | str]


class HeapObject(NamedTuple):
    """One object in a snapshot. Only objects created while tracing have `file` and `line`. `size` is in bytes."""

    object_id: int
    class_name: str | None
    references: list[int]
    file: str | None
    line: int | None
    size: int | None


class ObjectSpaceDump(NamedTuple):
    """A part of a heap snapshot. All parts of one snapshot have the same `correlation_id`.

    `complete_message_count` is, despite its name, the number of OBJECTS in the whole snapshot. Both are None if rbkit
    is the tagged version 0.1.10.
    """

    timestamp: float
    correlation_id: int | None
    complete_message_count: int | None
    objects: list[HeapObject]


class StackFrame(NamedTuple):
    """A frame of a stack; `definition_line` is None if the profiler does not send it, as rbkit."""

    method_name: str | None
    label: str
    file: str
    line: int
    singleton_method: bool
    thread_id: int
    definition_line: int | None = None


class TaskGroup(NamedTuple):
    """Suspended asyncio tasks that wait at the same place.

    Attributes:
        tasks: the number of tasks.
        names: some of the names that the program has given to the tasks.
        awaits: the name of the class of the future that they wait for; None if they wait for the event loop to run
            them.
        frames: the coroutines of a task, then (from Python 3.14 on) the coroutines of the tasks that wait for it,
            innermost first. The outermost ones are missing if they have not been read.
    """

    tasks: int
    names: list[str]
    awaits: str | None
    frames: list[StackFrame]


class SuspendedTasks(NamedTuple):
    """What the suspended asyncio tasks of a process wait for, at one moment.

    Sent several times a second by the profiler for Python, while it samples by the wall clock.

    Attributes:
        tasks: the number of tasks of the process that are not done.
        tasks_read: the number of these tasks that the profiler has read. A group stands for ``tasks / tasks_read``
            times its tasks.
        milliseconds: the time since the previous look.
        groups: the largest groups among the tasks that were read, without those that run.
    """

    tasks: int
    tasks_read: int
    milliseconds: float
    groups: list[TaskGroup]


class CPUSample(NamedTuple):
    """One sample of a stack; `frames` begins with the innermost frame.

    `thread_name`, `task_name` and `thread_state` are described in `Field`; they are None if the profiler, such as
    rbkit, does not send them. A sample with `suspended_tasks` has no frames: it is about tasks, not about a thread.
    """

    timestamp: float
    frames: list[StackFrame]
    thread_name: str | None = None
    task_name: str | None = None
    thread_state: str | None = None
    suspended_tasks: SuspendedTasks | None = None


class UnknownEvent(NamedTuple):
    """An event of a type that protocol 2.1 does not define; `payload` is the decoded MessagePack value."""

    timestamp: float
    event_type: int
    payload: Any


Event: TypeAlias = (
    ObjCreated | ObjDestroyed | GCStart | GCEndMark | GCEndSweep | GCStats | ObjectSpaceDump | CPUSample | UnknownEvent
)
"""An event in an `EventCollection`. Every `timestamp` is in milliseconds since the Unix epoch."""


class EventCollection(NamedTuple):
    """One published message; `message_counter` begins at 0 in each process and has no gaps."""

    timestamp: float
    message_counter: int
    events: list[Event]


class Handshake(NamedTuple):
    """The reply to ``handshake``. Facts that the profiler does not send are None (rbkit before protocol 2.1).

    `allocation_tracing_enabled` is sent by profilers that know `TRACING_COMMANDS` only, as that for Python.
    That sends further facts, which are not decoded here: ``cpu_interval`` (seconds between two samples),
    ``cpu_engine`` (what samples, nil before the first start), ``cpu_engine_reason`` (why it is not the external one)
    and, for sampling inside the process, ``cpu_shortest_burst`` (seconds; within a shorter burst of computing the
    shares of functions are too coarse).
    """

    timestamp: float
    rbkit_server_version: str | None
    rbkit_protocol_version: str | None
    process_name: str
    pwd: str
    pid: int
    object_trace_enabled: bool
    cpu_profiling_enabled: bool | None
    clock_type: str | None
    cpu_profiling_mode: str | None
    allocation_tracing_enabled: bool | None = None
