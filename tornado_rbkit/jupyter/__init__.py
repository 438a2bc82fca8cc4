"""The Jupyter Server extension. Whatever imports it needs the extra ``jupyter``."""

from __future__ import annotations

from typing import Any

from tornado_rbkit.jupyter.application import RbkitExtension

__all__ = ["RbkitExtension"]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    return [{"module": "tornado_rbkit.jupyter", "app": RbkitExtension}]
