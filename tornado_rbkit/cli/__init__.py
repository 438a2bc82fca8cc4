"""The command line: ``tornado-rbkit``, or ``python -m tornado_rbkit``.

`commands` has one module for each command, `command` defines the parts of a command, `options` has the options that
several commands share, `address` those for a web server's address and `fleet` those for a NATS server, and `main`
combines them and reports errors. Only the module of the given command is imported. `serving` serves bridges until a
signal, with the HTTP server of `listener`; `program` runs a Python program under the profiler, and `injecting` puts
the profiler into a running one; `output` writes files and standard output, `progress` shows progress on a terminal,
`stopping` handles signals, and `caveats` knows the commands that some versions of rbkit ignore or do not survive.

May import every other package except `jupyter`; no package imports it.
"""
