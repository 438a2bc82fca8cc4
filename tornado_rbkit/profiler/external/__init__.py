"""Sample the stacks of another process from outside, and publish them as that process's profiler would.

`process` identifies the process and says why it cannot be read; `engine` is the interface of a program that samples;
`austin` runs one, whose output `mojo` parses; `sampler` turns stacks into events; `profile` answers the commands.
`attach` is for use by others. Imports nothing but `profiler` and `protocol`.
"""

from tornado_rbkit.profiler.external.engine import EngineError
from tornado_rbkit.profiler.external.process import ProcessError
from tornado_rbkit.profiler.external.profile import Attachment, attach

__all__ = ["Attachment", "EngineError", "ProcessError", "attach"]
