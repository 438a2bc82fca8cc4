"""What makes a profiler part of a notebook's day: the Jupyter Server extension, and the magics of a kernel.

`application` and `handlers` need Jupyter Server; `magics` needs IPython, and is for kernels that may have no server
beside them. Hence nothing is imported here.
"""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from tornado_rbkit.jupyter.application import RbkitExtension

    return [{"module": "tornado_rbkit.jupyter", "app": RbkitExtension}]
