"""What makes a profiler part of a notebook's day: the Jupyter Server extension, and the magics of a kernel.

`application` and `handlers` need Jupyter Server; `magics` needs IPython, and is for kernels that may have no server
beside them. Hence nothing is imported here.
"""

from __future__ import annotations

import sys
from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from tornado_rbkit.jupyter.application import RbkitExtension

    return [{"module": "tornado_rbkit.jupyter", "app": RbkitExtension}]


def main() -> None:
    """Run ``jupyter rbkit``, or say what is missing for it."""
    try:
        from tornado_rbkit.jupyter.application import RbkitExtension
    except ModuleNotFoundError as error:
        print(f"jupyter-rbkit: there is no {error.name}; pip install 'tornado_rbkit[jupyter]'", file=sys.stderr)
        sys.exit(2)
    RbkitExtension.launch_instance()  # type: ignore[no-untyped-call]
