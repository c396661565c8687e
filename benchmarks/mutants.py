"""Mutants: the source of a module with one small mistake, compiled.

Knows syntax trees, and neither tests nor scores. A mutant is one change: a sign, a comparison, a constant off by one, a mask or a slice
left out, + for -, min for max, a guard or an upcast dropped. Annotations, type aliases, strings and the wording of errors stay as they
are.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_PAIRS = (("min", "max"), ("minimum", "maximum"), ("argmin", "argmax"), ("any", "all"), ("sum", "mean"), ("isnan", "isinf"))
NAMES = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
DROPPED = {"abs", "sqrt", "exp", "log", "log1p", "logsigmoid", "sigmoid", "isfinite", "float", "double", "astype", "detach", "sort"}
"""Functions of one argument, and methods, whose call is left out."""


class Mutant(NamedTuple):
    """One change of one module."""

    line: int
    what: str  # "function: before -> after"
    code: CodeType


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Each mutated form of one node, its children as they are."""

    def form(**fields: Any) -> ast.AST:
        changed = copy.copy(node)
        for name, value in fields.items():
            setattr(changed, name, value)
        return changed

    match node:
        case ast.Compare():
            for place, op in enumerate(node.ops):
                for other in COMPARISONS[type(op)]:
                    yield form(ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])
        case ast.BinOp() | ast.AugAssign() if type(node.op) in OPERATORS:
            yield form(op=OPERATORS[type(node.op)]())
            if isinstance(node, ast.BinOp):  # a constant dropped
                yield from (kept for kept, gone in ((node.left, node.right), (node.right, node.left)) if isinstance(gone, ast.Constant))
        case ast.UnaryOp():
            yield node.operand
        case ast.BoolOp():
            yield form(op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
            for gone in node.values:
                left = [value for value in node.values if value is not gone]
                yield left[0] if len(left) == 1 else form(values=left)
        case ast.Constant(value=bool(value)):
            yield form(value=not value)
        case ast.Constant(value=int(value)):
            yield from (form(value=value + 1), form(value=value - 1))
        case ast.Constant(value=float(value)):
            yield from (form(value=value + 1.0), form(value=value / 2) if value else form(value=-1.0))
        case ast.Slice():
            yield from (form(**{end: None}) for end in ("lower", "upper", "step") if getattr(node, end) is not None)
        case ast.Subscript(ctx=ast.Load()):
            yield node.value
        case ast.IfExp():
            yield from (node.body, node.orelse)
        case ast.If() | ast.While() if isinstance(node.test, (ast.Name, ast.Call, ast.Attribute, ast.NamedExpr)):
            yield form(test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Name(ctx=ast.Load()) if node.id in NAMES:
            yield form(id=NAMES[node.id])
        case ast.Attribute(ctx=ast.Load()) if node.attr in NAMES:
            yield form(attr=NAMES[node.attr])
        case (
            ast.Call(func=ast.Attribute(attr=name, value=ast.Name(id="np" | "math" | "torch" | "functional")))
            | ast.Call(func=ast.Name(id="abs" as name))
        ) if name in DROPPED and len(node.args) == 1:
            yield node.args[0]
        case ast.Call(func=ast.Attribute(attr=name, value=inner)) if name in DROPPED:
            yield inner


def _is_alias(node: ast.AST, function: str) -> bool:
    """Whether this is `Name = some[type]` of a module."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript() | ast.BinOp()) if not function:
            return name[0].isupper() and not name.isupper()
    return False


def _sites(node: ast.AST, function: str = "") -> Iterator[tuple[ast.AST, str, str, int | None]]:
    """(parent, function, field, place) of every node that may be mutated."""
    if isinstance(node, ast.Raise) or _is_alias(node, function):
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(child, ast.AST):
                continue
            yield node, function, field, place
            inner = f"{function}.{child.name}".lstrip(".") if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else function
            yield from _sites(child, inner)


def _text(node: ast.AST) -> str:
    """The node as one short line of source."""
    return " ".join(ast.unparse(node).split())


def mutants(path: Path) -> Iterator[Mutant]:
    """All mutants of a file, in the order of its source; the second of the same text in a function is marked ` [2]`."""
    seen: dict[str, int] = {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for parent, function, field, place in list(_sites(tree)):
        held = getattr(parent, field)
        node = held if place is None else held[place]
        for changed in changes(node):
            # A constant or a name says little by itself: its expression is shown with it.
            shown = parent if isinstance(node, (ast.Constant, ast.Name)) and isinstance(parent, (ast.expr, ast.keyword)) else None
            before = _text(shown or node)
            _put(parent, field, place, ast.copy_location(changed, node) if hasattr(node, "lineno") else changed)
            text = f"{function}: {before} -> {_text(shown or changed)}"
            seen[text] = seen.get(text, 0) + 1
            code = compile(ast.fix_missing_locations(tree), str(path), "exec")
            _put(parent, field, place, node)
            line = getattr(node, "lineno", getattr(parent, "lineno", 0))
            yield Mutant(line, text if seen[text] == 1 else f"{text} [{seen[text]}]", code)


def _put(parent: ast.AST, field: str, place: int | None, node: ast.AST) -> None:
    if place is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[place] = node
