"""Samples the stacks of another process from outside, and publishes them as that process's own profiler would.

`process` identifies the process and explains why it cannot be read; `interpreter` acts on it with the interpreter of
its own version, for `profiler.injection`; `engine` is the interface of what samples; `program` runs `stack_reader`,
whose output `mojo` parses, as a `child` of this process or `detached` from it. `sampler` turns stacks into events, as
many as the threads' CPU clocks ask for (`weights`); `profile` answers the commands, and `own_process` samples this
process in the same way. Other packages use `profile.attach`. Imports nothing but `profiler` and `protocol`.
"""
