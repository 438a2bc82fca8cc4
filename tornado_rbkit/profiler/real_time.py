"""The interpreter's clocks, also while the program has stopped, shifted or replaced the functions of `time`.

Tests do that, of a program that stays profiled: `unittest.mock.patch` replaces an attribute of `time`, freezegun also
each reference to its functions in the namespace of a module, ours included. So the functions here are those of another
instance of the module, which nobody else knows. time-machine changes the clock of the Unix epoch within the functions
of every instance, but has the original one.
"""

from __future__ import annotations

import importlib.util
import sys
import time as _time
from typing import TYPE_CHECKING, Any

if not TYPE_CHECKING:
    _spec = _time.__spec__
    _time = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_time)

monotonic = _time.monotonic
monotonic_ns = _time.monotonic_ns
perf_counter = _time.perf_counter
process_time = _time.process_time
process_time_ns = _time.process_time_ns
thread_time = _time.thread_time
thread_time_ns = _time.thread_time_ns
if sys.platform != "win32":
    clock_gettime_ns = _time.clock_gettime_ns


def time() -> float:
    """Return the seconds since the Unix epoch."""
    time_machine: Any = sys.modules.get("time_machine")
    if time_machine is not None:
        try:
            return float(time_machine.escape_hatch.time.time())
        except (AttributeError, ValueError):  # it is being imported, or does not travel
            pass
    return _time.time()
