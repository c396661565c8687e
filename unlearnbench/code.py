"""A hash of the code that a result depends on: the syntax trees of a plugin's file and of all first-party modules it imports.

Docstrings, comments, layout and imports for the type checker do not count, so that nothing fresh is thrown away; every imported
module of this package, and of the package that a plugin comes from, counts, so that nothing stale is served.
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
    return _hash_from(plugin.__module__, Path(inspect.getfile(plugin)).resolve())


def module_hash(name: str) -> str:
    """The hash for a first-party module and everything first-party it imports.

    Raises:
        ValueError: there is no such module in this package.
    """
    path = _path_of(name) if _root(name) == PACKAGE else None
    if path is None:
        raise ValueError(f"{name!r} is no module of {PACKAGE}")
    return _hash_from(name, path)


@cache
def _hash_from(name: str, start: Path) -> str:
    roots = {PACKAGE, _root(name)}
    seen: dict[Path, str] = {}
    waiting = [(name, start)]
    while waiting:
        module, path = waiting.pop()
        if path in seen:
            continue
        seen[path], imported = _read(module, path)
        for other in imported:
            found = _path_of(other) if _root(other) in roots else None
            if found is not None:
                waiting.append((other, found))
    # Content alone: where the package is installed must not matter.
    return hashlib.sha256("".join(sorted(seen.values())).encode()).hexdigest()[:16]


@cache
def _read(module: str, path: Path) -> tuple[str, tuple[str, ...]]:
    """The digest of a file, and the names that it imports: modules, and what may be one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [item for item in body if not _is_text(item) and not _is_for_types(item)] or [ast.Pass()]  # type: ignore[attr-defined]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(_imports(tree, package))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING") and not node.orelse


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _root(name: str) -> str:
    return name.partition(".")[0]


def _path_of(name: str) -> Path | None:
    """The source file of a module; None for what is no module."""
    if name in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # `name` is an attribute of a module, not a module
            return None
        origin = spec.origin if spec is not None and spec.has_location else None
    return Path(origin).resolve() if origin and origin.endswith(".py") else None
