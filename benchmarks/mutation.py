"""Would the tests notice? Small mistakes are put into the formulas one at a time: `python benchmarks/mutation.py`.

A mutant is the source of `losses.py`, `stats.py`, `intervals.py` or a metric with one change: a sign, a comparison, a constant off by
one, a mask or a slice left out, + for -, min for max, a guard or an upcast dropped. It is compiled in memory (no file is touched) and
judged by the module's doctests and its mirrored tests. A mutant that passes all of them has survived: a mistake that no test would see.
Annotations, type aliases, strings and the wording of errors are not mutated; what cannot change any result is listed in `EQUIVALENT`.

Prints the survivors and the score of each file; exit status 1 if the total is below `--fail-under`. Everything heavy is imported
once; each mutant then lives in a fork, with a limit on its processor time. The mutated module is served by name through the import
system, so that tests see it however they import it.
"""

from __future__ import annotations

import argparse
import ast
import copy
import doctest
import importlib
import importlib.abc
import importlib.util
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CORE = ("losses", "stats", "intervals")
SURVIVED, BY_TEST, BY_DOCTEST, BY_IMPORT = 0, 1, 3, 4

EQUIVALENT: dict[str, str] = {}
"""Mutants that change no result, as "file function: before -> after" and, of several alike, which one; and why."""

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


class Target(NamedTuple):
    """A module, and the tests that are to protect it."""

    path: Path
    module: str
    tests: tuple[Path, ...]

    @property
    def label(self) -> str:
        """The path as printed."""
        return str(self.path.relative_to(ROOT)) if self.path.is_relative_to(ROOT) else self.path.name


class Score(NamedTuple):
    """What became of a file's mutants."""

    killed: int
    tried: int
    equivalent: int

    def __str__(self) -> str:
        share = f"{100 * self.killed / self.tried:5.1f} %" if self.tried else "     -"
        return f"{share}  {self.killed} of {self.tried} killed, {self.equivalent} known to be equivalent"


# ------------------------------------------------------------------------------------------------------------------- mutants


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
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else f"{text[:60]} … {text[-27:]}"


def mutants(path: Path) -> Iterator[Mutant]:
    """All mutants of a file, in the order of its source; the second of the same text in a function is marked ` [2]`."""
    seen: dict[str, int] = {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for parent, function, field, place in list(_sites(tree)):
        held = getattr(parent, field)
        node = held if place is None else held[place]
        for changed in changes(node):
            # Read before the change: in a new tree the same object may sit in two places.
            before, after = _text(node), _text(changed)
            text = f"{function}: {before} -> {after}"
            seen[text] = seen.get(text, 0) + 1
            line = getattr(node, "lineno", getattr(parent, "lineno", 0))
            _put(parent, field, place, ast.copy_location(changed, node) if hasattr(node, "lineno") else changed)
            code = compile(ast.fix_missing_locations(tree), str(path), "exec")
            _put(parent, field, place, node)
            yield Mutant(line, text if seen[text] == 1 else f"{text} [{seen[text]}]", code)


def _put(parent: ast.AST, field: str, place: int | None, node: ast.AST) -> None:
    if place is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[place] = node


# -------------------------------------------------------------------------------------------------------------------- judging


class Served(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves one module from code instead of its file."""

    def __init__(self, target: Target, code: CodeType) -> None:
        self.target, self.code = target, code

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        """The module's own specification; None for every other."""
        if fullname != self.target.module:
            return None
        spec = importlib.util.spec_from_loader(fullname, self, origin=str(self.target.path))
        if spec is not None:
            spec.has_location = True
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Run the code in the module."""
        exec(self.code, module.__dict__)


class Order:
    """A pytest plugin: notes how long each test takes, and runs the quickest first."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.known, self.seconds = seconds, dict[str, float]()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Quickest first."""
        items.sort(key=lambda item: self.known.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add up setup, call and teardown."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def judge(target: Target, code: CodeType, order: Order) -> int:
    """Import the code as the module, run its doctests and tests: SURVIVED or what killed it. For a process of its own."""
    import hypothesis
    import pytest

    hypothesis.settings.register_profile(
        "mutation", derandomize=True, database=None, deadline=None, phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
    )
    hypothesis.settings.load_profile("mutation")
    sys.meta_path.insert(0, Served(target, code))
    try:
        module = importlib.import_module(target.module)
    except Exception:
        return BY_IMPORT
    if doctest.testmod(module, report=False).failed:
        return BY_DOCTEST
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *map(str, target.tests)], plugins=[order])
    return BY_TEST if status else SURVIVED


def fork(target: Target, code: CodeType, order: Order, limit: float | None, note: Path | None = None) -> int:
    """Judge in a fork; returns its process id. `note` receives the tests' seconds and the modules that were imported."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 70  # what the parent sees if even this breaks
    try:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 2))
        if not os.environ.get("MUTATION_VERBOSE"):
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
        status = judge(target, code, order)
        if note is not None:
            lines = [f"{seconds} {test}" for test, seconds in order.seconds.items()]
            note.write_text("\n".join([*lines, "", *sys.modules]), encoding="utf-8")
    finally:
        os._exit(status)


class Broken(Exception):
    """The tests fail without any mutation."""


def baseline(target: Target, scratch: Path) -> tuple[dict[str, float], float]:
    """Run the tests on the module as it is, and import here what they needed.

    Returns:
        Seconds of each test, and the processor time of a mutant's fork beyond which it is stopped.

    Raises:
        Broken: they fail.
    """
    note, code = scratch / "baseline", compile(target.path.read_text(encoding="utf-8"), str(target.path), "exec")
    status = os.waitstatus_to_exitcode(os.waitpid(fork(target, code, Order({}), None, note), 0)[1])
    if status != SURVIVED:
        raise Broken(f"{target.label}: its tests fail without a mutation (status {status}); MUTATION_VERBOSE=1 shows why")
    tests, _, modules = note.read_text(encoding="utf-8").partition("\n\n")
    ours = ("unlearnbench", "tests", "test_", "conftest", target.module)
    for name in modules.splitlines():
        if not name.startswith(ours):
            with suppress(Exception):  # some names in sys.modules are not meant to be imported
                importlib.import_module(name)
    seconds = {test: float(value) for value, _, test in (line.partition(" ") for line in tests.splitlines())}
    return seconds, 30 + 10 * sum(seconds.values())


def verdicts(target: Target, chosen: Sequence[Mutant], scratch: Path, jobs: int) -> Iterator[tuple[Mutant, str]]:
    """What became of each mutant, as it ends: "survived" or what killed it."""
    seconds, limit = baseline(target, scratch)
    names = {SURVIVED: "survived", BY_TEST: "test", BY_DOCTEST: "doctest", BY_IMPORT: "import", -signal.SIGXCPU: "timeout"}
    waiting, running = list(reversed(chosen)), dict[int, Mutant]()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[fork(target, mutant.code, Order(seconds), limit)] = mutant
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        yield running.pop(pid), names.get(code, f"status {code}")


def check(target: Target, scratch: Path, *, limit: int | None = None, seed: int = 0, jobs: int = 1) -> Score:
    """Try a file's mutants, print those that survive, and count."""
    every = list(mutants(target.path))
    chosen = [mutant for mutant in every if f"{target.label} {mutant.what}" not in EQUIVALENT]
    equivalent = len(every) - len(chosen)
    known = {f"{target.label} {mutant.what}" for mutant in every}
    for stale in (entry for entry in EQUIVALENT if entry.startswith(f"{target.label} ") and entry not in known):
        print(f"  no such mutant any more: {stale}")
    if limit is not None and limit < len(chosen):
        chosen = random.Random(seed).sample(chosen, limit)
    killed, start, ways = 0, time.perf_counter(), dict[str, int]()
    for mutant, verdict in verdicts(target, chosen, scratch, jobs):
        killed += verdict != "survived"
        ways[verdict] = ways.get(verdict, 0) + 1
        if verdict == "survived":
            print(f"  survived  {target.label}:{mutant.line}  {mutant.what}", flush=True)
        elif verdict == "timeout":
            print(f"  killed by its time limit  {target.label}:{mutant.line}  {mutant.what}", flush=True)
    score = Score(killed, len(chosen), equivalent)
    by = ", ".join(f"{verdict} {count}" for verdict, count in sorted(ways.items()))
    print(f"{target.label:32} {score}  ({by}; {time.perf_counter() - start:.0f} s)", flush=True)
    return score


# ----------------------------------------------------------------------------------------------------------------------- files


def target_of(path: Path, tests: Sequence[Path] = ()) -> Target:
    """The module name of a file of this repository, and the tests that mirror it, unless others are given.

    Besides `tests/metrics/test_x.py`, every test of metrics that imports the metric counts.

    Raises:
        FileNotFoundError: no test mirrors it.
    """
    path = path.resolve()
    inside = path.relative_to(ROOT).with_suffix("").parts if path.is_relative_to(ROOT) else (path.stem,)
    module = ".".join(inside if inside[0] == "unlearnbench" or len(inside) == 1 else ("unlearnbench", *inside))
    if not tests:
        folder = ROOT.joinpath("tests", *(part for part in inside[:-1] if part != "unlearnbench"))
        mirror = folder / f"test_{path.stem}.py"
        others = sorted(folder.glob("test_*.py")) if inside[0] != "unlearnbench" else []
        tests = [test for test in others if f"from {module} import" in test.read_text(encoding="utf-8")] or [mirror]
        if missing := [test for test in tests if not test.is_file()]:
            raise FileNotFoundError(f"{path.name} has no test: {missing[0].relative_to(ROOT)} does not exist")
    return Target(path, module, tuple(test.resolve() for test in tests))


def main() -> int:
    """Check the files; 1 if fewer than `--fail-under` percent are killed, 2 if tests fail unmutated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, action="append", help="only this file; may be given more than once")
    parser.add_argument("--tests", type=Path, nargs="+", default=[], help="these tests instead of the mirrored ones")
    parser.add_argument("--limit", type=int, help="at most this many mutants of a file, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--fail-under", type=float, default=90.0, help="percent")
    arguments = parser.parse_args()
    metrics = sorted(path for path in (ROOT / "metrics").glob("*.py") if path.name != "__init__.py")
    files = arguments.file or [*(ROOT / "unlearnbench" / f"{name}.py" for name in CORE), *metrics]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        options = {"limit": arguments.limit, "seed": arguments.seed, "jobs": arguments.jobs}
        try:
            scores = [check(target_of(path, arguments.tests), Path(scratch), **options) for path in files]
        except (Broken, FileNotFoundError) as error:
            print(error)
            return 2
    total = Score(*(sum(column) for column in zip(*scores, strict=True)))
    print(f"{'total':32} {total}")
    return int(100 * total.killed < arguments.fail_under * total.tried)


if __name__ == "__main__":
    sys.exit(main())
