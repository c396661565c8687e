"""Would the tests notice? Small mistakes are put into the formulas one at a time: `python benchmarks/mutation.py`.

A mutant (see `mutants.py`) is a core module of formulas, or a metric, with one change, such as a sign, a mask or a shift. It is
compiled in memory (no file is touched) and judged by the module's doctests and its mirrored tests. A mutant that passes all of them
has survived: a mistake that no test would see. Those that cannot change any result are listed in `EQUIVALENT`, and do not count.

Prints the survivors and the score of each file; exit status 1 if the total is below `--fail-under`. Everything heavy is imported
once; each mutant then lives in a fork, with a limit on its processor time. The mutated module is served by name through the import
system, so that tests see it however they import it.
"""

from __future__ import annotations

import argparse
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

from mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[1]
CORE = (
    "losses",
    "unlearning_losses",
    "mechanisms/representation",
    "mechanisms/importance",
    "stats",
    "intervals",
    "answers",
    "token_scores",
    "anchoring",
    "membership",
)
SURVIVED, BY_TEST, BY_DOCTEST, BY_IMPORT = 0, 1, 3, 4

_STATS, _INTERVALS, _TOFU = "unlearnbench/stats.py", "unlearnbench/intervals.py", "metrics/tofu.py"
_FILLER = "a place holder, overwritten for every p-value"
_UNIT = "the unit of values that are all 0: any will do"
_NO_ERROR = "the degrees of freedom where the error is 0 are multiplied by it"
_ONE_FORM = "answers and paraphrases have one form"
_SAME_NAMES = "all members have the same names, and the test's pools have two"
_MEMBERSHIP = "unlearnbench/membership.py"
_FORGETTING = "metrics/forgetting.py"
_AT_A_TIME = "how many texts are classified at a time"
_QUALITY = "metrics/forget_quality.py"
_DRAWS = "np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)"
_MIRRORED = "distances between oracles are the same in both directions"
_SYMMETRIC = "a Gram matrix is symmetric"
_TWO_AXES = "logits at scored positions have two axes"
EQUIVALENT = {
    **{
        f"unlearnbench/unlearning_losses.py {loss}: -1 -> 1{which}": _TWO_AXES
        for loss, count in {"kl": 3, "undial": 2, "ceu": 2, "logit_margin": 2}.items()
        for which in ("", " [2]", " [3]")[:count]
    },
    f"{_STATS} tpr_supported: upper <= 3 * fpr -> upper < 3 * fpr": "an incomplete beta quantile never is 3 times its parameter exactly",
    f"{_STATS} holm: [0.0] -> [1.0]": _FILLER,
    f"{_STATS} holm: [0.0] -> [-1.0]": _FILLER,
    f"{_STATS} holm: ([0.0] * len(pvalues), 0.0) -> ([0.0] * len(pvalues), -1.0)": "no p-value is below 0",
    f"{_INTERVALS} _crossed_mean: np.bincount(codes).astype(np.float64) -> np.bincount(codes)": "numpy divides integers as floats",
    f"{_INTERVALS} _crossed_mean: float(np.abs(shifted).max()) or 1.0 -> float(np.abs(shifted).max()) or 2.0": _UNIT,
    f"{_INTERVALS} _crossed_mean: float(np.abs(shifted).max()) or 1.0 -> float(np.abs(shifted).max()) or 0.5": _UNIT,
    f"{_INTERVALS} _crossed_mean: shifted.mean -> shifted.sum": "the working variances count by their ratios alone",
    f"{_INTERVALS} _crossed_mean: variance ** 2 / spread if spread else 1.0 -> variance ** 2 / spread if spread else 2.0": _NO_ERROR,
    f"{_INTERVALS} _crossed_mean: variance ** 2 / spread if spread else 1.0 -> variance ** 2 / spread if spread else 0.5": _NO_ERROR,
    f"{_INTERVALS} _working_variances: variances.any -> variances.all": "x + y / size: all are 0 or none is",
    "unlearnbench/answers.py rouge_l: strict=True -> strict=False": "the lengths were compared before",
    f"{_TOFU} Probability.measure: evidence.nll(self._need())[0] -> evidence.nll(self._need())[-1]": _ONE_FORM,
    f"{_TOFU} _AgainstWrong.measure: right[0] -> right[-1]": _ONE_FORM,
    "metrics/utility.py _UtilityParts._parts: evidence.nll(answer)[0] -> evidence.nll(answer)[-1]": _ONE_FORM,
    "metrics/utility.py _UtilityParts._parts: evidence.nll(right)[0] -> evidence.nll(right)[-1]": _ONE_FORM,
    "metrics/utility.py UtilityScore._useful: np.mean -> np.sum": "it is divided by the oracle's over as many rows",
    f"{_MEMBERSHIP} loss_scores: evidence.nll(tokens_of(split))[0] -> evidence.nll(tokens_of(split))[-1]": _ONE_FORM,
    f"{_MEMBERSHIP} zlib_scores: evidence.nll(tokens_of(split))[0] -> evidence.nll(tokens_of(split))[-1]": _ONE_FORM,
    f"{_QUALITY} distance_error: {_DRAWS}.astype(np.float64) -> {_DRAWS}": "numpy divides integers as floats",
    f"{_QUALITY} distance_error: np.bincount(codes).astype(np.float64) -> np.bincount(codes)": "numpy divides integers as floats",
    f"{_QUALITY} _steps: sample[:, None] <= places[None, :] -> sample[:, None] < places[None, :]": "left limits have the same largest gap",
    f"{_QUALITY} _steps: places[None, :] -> places": "numpy broadcasts from the right",
    f"{_QUALITY} _OfTruthRatios._of: evidence.nll(RIGHT)[0] -> evidence.nll(RIGHT)[-1]": _ONE_FORM,
    f"{_QUALITY} ForgetDistanceNull.measure: between.sum(0) -> between.sum(1)": _MIRRORED,
    f"{_QUALITY} ForgetDistanceNull.measure: between.sum(0) -> between.sum(-1)": _MIRRORED,
    f"{_FORGETTING} _paraphrase: evidence.nll(PARAPHRASE)[0] -> evidence.nll(PARAPHRASE)": _ONE_FORM,
    f"{_FORGETTING} _paraphrase: evidence.nll(PARAPHRASE)[0] -> evidence.nll(PARAPHRASE)[-1]": _ONE_FORM,
    f"{_FORGETTING} MemorizationScore._known: evidence.nll(PARAPHRASE)[0] -> evidence.nll(PARAPHRASE)[-1]": _ONE_FORM,
    "metrics/fluency.py class_probability: -1 -> 1": "logits have two axes",
    "metrics/fluency.py : 32 -> 33": _AT_A_TIME,
    "metrics/fluency.py : 32 -> 31": _AT_A_TIME,
    "unlearnbench/anchoring.py pooled: found[0] -> found[1]": _SAME_NAMES,
    "unlearnbench/anchoring.py pooled: found[0] -> found[-1]": _SAME_NAMES,
    "unlearnbench/similarity.py hsic_1: axis=0 -> axis=1": _SYMMETRIC,
    "unlearnbench/similarity.py hsic_1: axis=0 -> axis=-1": _SYMMETRIC,
    "unlearnbench/similarity.py hsic_1: axis=0 -> axis=1 [2]": _SYMMETRIC,
    "unlearnbench/similarity.py hsic_1: axis=0 -> axis=-1 [2]": _SYMMETRIC,
}
"""Mutants that change no result, as "file function: before -> after", and why."""


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
    except Exception:  # whatever a mutant raises while it is imported, it was noticed
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
    """Try a file's mutants, print those that survive, and count.

    Mutants listed as equivalent are tried too: one that a test kills is none, and is said; the others do not count.
    """
    chosen = list(mutants(target.path))
    known = {f"{target.label} {mutant.what}" for mutant in chosen}
    for stale in (entry for entry in EQUIVALENT if entry.startswith(f"{target.label} ") and entry not in known):
        print(f"  no such mutant any more: {stale}")
    if limit is not None and limit < len(chosen):
        chosen = random.Random(seed).sample(chosen, limit)
    equivalent, start, ways = 0, time.perf_counter(), dict[str, int]()
    for mutant, verdict in verdicts(target, chosen, scratch, jobs):
        listed = f"{target.label} {mutant.what}" in EQUIVALENT
        if listed and verdict == "survived":
            equivalent += 1
            continue
        ways[verdict] = ways.get(verdict, 0) + 1
        if listed or verdict in ("survived", "timeout"):
            note = " though listed as equivalent" if listed else ""
            print(f"  {verdict}{note}  {target.label}:{mutant.line}  {mutant.what}", flush=True)
    tried = sum(ways.values())
    score = Score(tried - ways.get("survived", 0), tried, equivalent)
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
