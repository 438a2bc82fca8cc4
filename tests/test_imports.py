"""Imports between the parts of the package go one way, as the docstrings of the packages say."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tornado_rbkit

PACKAGE = Path(tornado_rbkit.__file__).parent
BASE = {"errors", "protocol", "endpoints", "deadline", "log_throttle", "tasks"}
ALLOWED = {
    "errors": set[str](),
    "protocol": {"errors"},
    "frames": {"protocol"},
    "deadline": set[str](),
    "log_throttle": set[str](),
    "tasks": set[str](),
    "endpoints": {"errors"},
    "inbox": {"protocol"},
    "client": {"deadline", "errors", "protocol", "inbox", "tasks"},
    "upstream": {*BASE, "frames"},
    "bridge": {*BASE, "frames", "upstream"},
    "fleet": {*BASE, "frames", "upstream", "bridge", "profiler.folder"},
    "web": {
        *BASE,
        "frames",
        "upstream",
        "bridge",
        "profiler.discovery",
        "profiler.endpoints",
        "profiler.vitals",
        "dashboard",
    },
    "dashboard": set[str](),
    "recording": {*BASE, "client", "inbox"},
    "profiler": {"errors", "protocol", "endpoints"},
    "jupyter": {*BASE, "upstream", "bridge", "fleet", "web", "client", "recording", "profiler"},
    "cli": {*BASE, "upstream", "bridge", "fleet", "web", "client", "recording", "profiler"},
    "__main__": {"cli"},
}
"""What each module or package may import of the others; `profiler.discovery` is that module alone, for example."""


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of this package that a file imports, wherever the statement is, without the package's name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level == 1 and path.parent.name == "stack_reader":  # a program, which is run by its path
                continue
            assert not node.level, f"{path} has a relative import"
            names = [str(node.module)]
            if node.module == "tornado_rbkit":
                names = [f"tornado_rbkit.{alias.name}" for alias in node.names if alias.name != "__version__"]
        else:
            continue
        yield from (name.partition(".")[2] for name in names if name.partition(".")[0] == "tornado_rbkit")


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_a_part_imports_only_what_is_below_it(part: str) -> None:
    files = sorted((PACKAGE / part).rglob("*.py")) if (PACKAGE / part).is_dir() else [PACKAGE / f"{part}.py"]
    for path in files:
        for name in imports(path):
            own = name.partition(".")[0] == part
            known = name.partition(".")[0] in ALLOWED[part] or name in ALLOWED[part]
            assert own or known, f"{path.relative_to(PACKAGE)} imports {name}"


def test_every_part_is_known() -> None:
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__init__", "__pycache__"} == set(ALLOWED)


@pytest.mark.parametrize("package", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_every_package_names_its_modules_and_what_it_may_import(package: str) -> None:
    init = PACKAGE / package / "__init__.py"
    text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
    parts = [path for path in init.parent.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    missing = [
        part.stem for part in parts if part != init and f"`{part.stem}`" not in text and f"`{part.stem}." not in text
    ]
    assert missing == [], "the docstring says what is in each module"
    assert parts == [init] or "mport" in text, "the docstring says what the package may import"
