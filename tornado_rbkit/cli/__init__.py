"""The command line: ``tornado-rbkit``, or ``python -m tornado_rbkit``.

`main` has the commands and their arguments; `program` runs a Python program under the profiler, `listener` is the
HTTP server, `output` and `progress` are about files and terminals, `stopping` about signals.

May import every other package but `jupyter`; nothing imports it.
"""
