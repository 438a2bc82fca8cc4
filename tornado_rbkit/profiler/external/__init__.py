"""Samples the stacks of another process from outside, and publishes them as that process's own profiler would.

`process` identifies the process and explains why it cannot be read; `engine` is the interface of a program that
samples; `austin` runs one, whose output `mojo` parses; `sampler` turns stacks into events; `profile` answers the
commands, and `own_process` samples this process in the same way, by a program that is `detached` from it. Other
packages use `attach`. Imports nothing but `profiler` and `protocol`.
"""

from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.process import ProcessError
from tornado_rbkit.profiler.external.profile import Attachment, attach

__all__ = ["Attachment", "EngineError", "ProcessError", "attach"]
