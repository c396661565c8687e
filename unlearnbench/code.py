"""A hash of the code that a result depends on: the syntax trees of a plugin's file and of all first-party modules it imports.

Docstrings, comments and layout do not count, so that nothing fresh is thrown away; every imported first-party module counts, so that
nothing stale is served.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "unlearnbench"


def code_hash(plugin: type) -> str:
    """The hash for a plugin class: its own file and every first-party module reached from it."""
    return _hash_from(Path(inspect.getfile(plugin)).resolve())


def module_hash(name: str) -> str:
    """The hash for a first-party module and everything first-party it imports."""
    path = _path_of(name)
    if path is None:
        raise ValueError(f"{name!r} is no module of {PACKAGE}")
    return _hash_from(path)


@cache
def _hash_from(start: Path) -> str:
    seen: dict[Path, str] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        waiting.extend(_imports(tree))
        seen[path] = _digest(tree)
    # Content alone: where the package is installed must not matter.
    return hashlib.sha256("".join(sorted(seen.values())).encode()).hexdigest()[:16]


def _digest(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [item for item in node.body if not _is_text(item)] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.Module) -> Iterator[Path]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = _path_of(name)
            if path is not None:
                yield path


def _path_of(name: str) -> Path | None:
    if name.partition(".")[0] != PACKAGE:
        return None
    if name in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None)
        return Path(origin).resolve() if origin else None
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # `name` is an attribute of a module, not a module
        return None
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None
