"""Imported by the interpreter at the start of each Python process of a followed program.

It may be another Python than the one that has this package, so it uses nothing that an old version lacks.
"""

import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))


def _import_hidden() -> None:
    """Import the environment's own sitecustomize, which this module hides."""
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.curdir) != _FOLDER]
    this = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        sys.modules.setdefault("sitecustomize", this)  # the import system looks for it


def _start() -> None:
    try:
        from tornado_rbkit.profiler import follow
    except (ImportError, SyntaxError):  # another environment, or another version of Python
        return
    follow.start_in_child()


try:
    _import_hidden()
finally:
    _start()
