"""The Jupyter Server extension, and the magics for kernels.

`application`, `handlers` and `kernels` (the figures of one kernel) need Jupyter Server; `magics`, which shows a
`cell_profile` with its `flamegraph` or a `cell_memory` (both with `tables`), needs IPython and runs in kernels where
Jupyter Server may not be installed.
Therefore nothing is imported here.

May import every other package except `cli`; no package imports it.
"""

from __future__ import annotations

import sys
from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from tornado_rbkit.jupyter.application import RbkitExtension

    return [{"module": "tornado_rbkit.jupyter", "app": RbkitExtension}]


def main() -> None:
    """Run ``jupyter rbkit``, or print which module is missing."""
    try:
        from tornado_rbkit.jupyter.application import RbkitExtension
    except ModuleNotFoundError as error:
        print(f"jupyter-rbkit: there is no {error.name}; pip install 'tornado_rbkit[jupyter]'", file=sys.stderr)
        sys.exit(2)
    RbkitExtension.launch_instance()  # type: ignore[no-untyped-call]
