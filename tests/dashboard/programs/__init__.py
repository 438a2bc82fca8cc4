"""Programs that are slow or leak, for the README's pictures: run one with `tornado-rbkit run`.

Each docstring describes the fault of its program.
"""
