"""Programs that are slow or leak, for the README's pictures: run one with `tornado-rbkit run`.

The docstring of each says what is wrong with it.
"""
