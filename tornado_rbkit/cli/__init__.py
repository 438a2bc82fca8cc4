"""The command line: ``tornado-rbkit``, or ``python -m tornado_rbkit``.

`commands` has one module for each command, `command` what a command consists of, `options` the options that several
share, and `main` puts them together and reports errors. `serving` serves bridges until a signal, with the HTTP server
of `listener`; `program` runs a Python program under the profiler; `output` writes files and standard output,
`progress` shows progress on a terminal, and `stopping` handles signals.

May import every other package except `jupyter`; no package imports it.
"""
