"""Programs that do what breaks profilers, under random commands: a night of crash tests in minutes.

    python -m tests.profiler.torture --minutes 5

`behaviours` and `system` have what a host program may do, each with its own checks; `host` is the process that does a
random choice of them; `__main__` starts one such process after the other, each from its own seed, and commands its
profiler.
"""
