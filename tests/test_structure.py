"""The rules of CONTRIBUTING.md that a parser can check: who may import whom, sizes, quick imports, registration, safe loading."""

import ast
import importlib
import inspect
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKS = ("methods", "attacks", "metrics")
SOURCES = [path for folder in ("unlearnbench", *PACKS) for path in sorted((ROOT / folder).rglob("*.py"))]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENTRY_POINTS = [
    EntryPoint(name, value, group) for group, entries in PYPROJECT["project"]["entry-points"].items() for name, value in entries.items()
]

# A module may import those before it; a row is a subject.
ROWS = (
    "views scenario api progress files fields registry document config code trial",
    "intervals stats answers token_scores confidence distributions similarity geometry drawing",
    "tensors remote store layers losses unlearning_losses diffusion causal adapters",
    "recipe training finetuning mechanisms deployed checkpoints attribution stacking ensembles evidence",
    "anchoring membership membership_classifiers populations",
    "nets scenarios",
    "planning artefacts records executors evaluation provenance runner",
    "comparisons tables continual picture formats report",
    "tuning catalogue scaffold forecast",
    "contracts testing",
    "open_unlearning evaluating unlearning",
    "terminal cli_options cli_models cli",
)
PACKAGES = sorted(path.parent.name for path in (ROOT / "unlearnbench").glob("*/__init__.py"))
USES_SCENARIOS = f"{ROWS[-3]} {ROWS[-2]}".split()  # the contract tests run plugins on tiny scenarios
ORDER = [name for row in ROWS for name in row.split()]
HEAVY = ("torch", "transformers", "datasets", "sklearn", "pandas", "scipy")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """First-party modules that a file imports when it runs, also inside functions, by name from `unlearnbench.` on."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    for_types = {id(inner) for guard in guarded for statement in guard.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "unlearnbench" else [str(node.module)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((name.split(".", 1)[1], node.lineno) for name in names if name.startswith("unlearnbench."))


def located(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --------------------------------------------------------------------------------------------------------- who imports whom


def test_every_core_module_has_its_place_in_the_order() -> None:
    parts = {path.stem for path in (ROOT / "unlearnbench").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(parts - {"__init__"}) == sorted(ORDER)


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "unlearnbench")], ids=located)
def test_core_modules_import_only_what_stands_before_them(path: Path) -> None:
    inside = path.parent.name != "unlearnbench"
    own = path.parent.name if inside else path.stem
    before = {"__version__", *ORDER[: ORDER.index(own)]} if own != "__init__" else set()
    if inside:  # a package may be spread over several files
        before |= {own}
    elif own not in USES_SCENARIOS:
        before -= {"scenarios"}
    wrong = [f"{located(path)}:{line} imports {name}" for name, line in imports(path) if name.split(".")[0] not in before]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_files_of_a_package_do_not_import_each_other_in_a_circle(package: str) -> None:
    files = [path for path in SOURCES if path.parent.name == package]
    graph = {path.stem: {name.split(".")[1] for name, _ in imports(path) if name.startswith(f"{package}.")} for path in files}
    while leaves := [name for name, targets in graph.items() if not targets & set(graph)]:
        for name in leaves:
            del graph[name]
    assert not graph


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent.name in PACKS], ids=located)
def test_packs_import_no_pack_and_no_scenario(path: Path) -> None:
    assert path.parent.parent == ROOT, "packs are flat"
    wrong = [f"{located(path)}:{line} imports {name}" for name, line in imports(path) if name.split(".")[0] in (*PACKS, "scenarios")]
    assert not wrong


def test_files_are_of_a_size_to_be_read() -> None:
    lines = {located(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES if path.name != "__init__.py"}
    assert {name: count for name, count in lines.items() if count >= 400} == {}
    assert 60 <= statistics.median(lines.values()) <= 200


# ------------------------------------------------------------------------------------------------------------- quick imports


def imported_by(code: str) -> set[str]:
    """Heavy packages that a fresh interpreter has after this code."""
    show = f"\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + show], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy() -> None:
    assert imported_by("import unlearnbench") == set()
    helped = "from typer.testing import CliRunner\nfrom unlearnbench.cli import app\nprint(CliRunner().invoke(app, ['--help']).output)"
    assert imported_by(helped) == set()


def test_the_leaderboard_needs_no_torch() -> None:
    assert "torch" not in imported_by("import unlearnbench.records, unlearnbench.tables, unlearnbench.picture, unlearnbench.report")


# -------------------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize("entry", ENTRY_POINTS, ids=lambda entry: f"{entry.group}.{entry.name}")
def test_entry_points_load(entry: EntryPoint) -> None:
    from unlearnbench.api import Attack, InferenceAttack, Method, Metric, Scenario

    base = {"methods": Method, "attacks": (Attack, InferenceAttack), "metrics": Metric, "scenarios": Scenario}[entry.group.split(".")[1]]
    loaded = entry.load()
    assert issubclass(loaded, base)
    assert not inspect.isabstract(loaded)


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent.name in PACKS and path.stem != "__init__"], ids=located)
def test_every_plugin_of_a_pack_is_registered(path: Path) -> None:
    from unlearnbench.api import Plugin

    module = importlib.import_module(f"unlearnbench.{path.parent.name}.{path.stem}")
    public = [thing for name, thing in vars(module).items() if inspect.isclass(thing) and not name.startswith("_")]
    plugins = {thing.__name__ for thing in public if thing.__module__ == module.__name__ and issubclass(thing, Plugin)}
    group = PYPROJECT["project"]["entry-points"][f"unlearnbench.{path.parent.name}"]
    registered = {value.split(":")[1] for value in group.values() if value.split(":")[0] == module.__name__}
    assert plugins, "a file of a pack holds a plugin"
    assert plugins == registered


def test_the_wheel_holds_every_package() -> None:
    folders = {path.parent.relative_to(ROOT) for path in SOURCES}
    names = {"unlearnbench." + folder.name if folder.name in PACKS else ".".join(folder.parts) for folder in folders}
    packaged = PYPROJECT["tool"]["setuptools"]
    assert set(packaged["packages"]) == names
    assert packaged["package-dir"] == {"unlearnbench": "unlearnbench"} | {f"unlearnbench.{pack}": pack for pack in PACKS}
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)


# -------------------------------------------------------------------------------------------------------------- safe loading


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Calls that run code from the file that they read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).rpartition(".")[2] == "Unpickler" for base in node.bases):
            if not any(isinstance(item, ast.FunctionDef) and item.name == "find_class" for item in node.body):
                yield f"line {node.lineno}: {node.name}"
            continue
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {option.arg: ast.unparse(option.value) for option in node.keywords}
        loads = name.rpartition(".")[2] in ("load", "load_all")
        bad = (
            (name == "torch.load" and options.get("weights_only") != "True")
            or (
                name.partition(".")[0] in ("pickle", "dill", "joblib", "shelve", "marshal")
                and name.rpartition(".")[2] in ("load", "loads", "open", "Unpickler")
            )
            or (name.startswith("yaml.") and loads and not options.get("Loader", "").endswith("SafeLoader"))
            or options.get("trust_remote_code", "False") != "False"
            or options.get("allow_pickle", "False") != "False"
        )
        if bad:
            yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("torch.load(p)", 1),
        ("torch.load(p, weights_only=False)", 1),
        ("torch.load(p, weights_only=True)", 0),
        ("pickle.loads(b)", 1),
        ("pickle.Unpickler(f)", 1),
        ("class Any(pickle.Unpickler): pass", 1),
        ("class Few(pickle.Unpickler):\n    def find_class(self, module, name): ...", 0),
        ("yaml.load(t)", 1),
        ("yaml.load(t, Loader=yaml.Loader)", 1),
        ("yaml.load(t, Loader=yaml.SafeLoader)", 0),
        ("yaml.safe_load(t)", 0),
        ("np.load(p, allow_pickle=True)", 1),
        ("auto.from_pretrained(p, trust_remote_code=True)", 1),
        ("auto.from_pretrained(p, trust_remote_code=flag)", 1),
        ("auto.from_pretrained(p, trust_remote_code=False)", 0),
    ],
)
def test_unsafe_calls_are_seen(code: str, found: int) -> None:
    assert len(list(unsafe(ast.parse(code)))) == found


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "benchmarks").glob("*.py"))], ids=located)
def test_nothing_read_is_run(path: Path) -> None:
    assert not list(unsafe(ast.parse(path.read_text(encoding="utf-8"))))
