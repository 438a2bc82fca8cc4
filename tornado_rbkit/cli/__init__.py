"""The command line: ``tornado-rbkit``, or ``python -m tornado_rbkit``.

`main` has the commands and their arguments, `program` runs a Python program under the profiler, `listener` is the
HTTP server, `output` writes files, `progress` shows progress on a terminal, and `stopping` handles signals.

May import every other package except `jupyter`; no package imports it.
"""
