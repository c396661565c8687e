"""The command line: what each command prints, its exit code, and that mistakes are one line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from unlearnbench import __version__, progress, registry
from unlearnbench.cli import app
from unlearnbench.terminal import Reporter

PLUGINS = Path(__file__).parent / "fixtures" / "small_plugins.py"
SUITE = f"""\
suite: small
seeds: [0]
tracks:
  - scenario: {PLUGINS}:Small
    requests: [one]
    methods: ["{PLUGINS}:Descend"]
    metrics: ["{PLUGINS}:Share"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "suite.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def record(label: str = "npo", status: str = "done", reason: str | None = None) -> Any:
    return SimpleNamespace(trial=SimpleNamespace(label=label, scenario="small", request="one", seed=3), status=status, reason=reason)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the modules that a run calls, and keeps what they were called with."""
    seen: dict[str, Any] = {"failed": 0}

    def run_suite(suite: Any, *, on_record: Any, **options: Any) -> Any:
        seen.update(suite=suite, **options)
        for i in range(2):
            on_record(record(), i + 1, 2)
        return SimpleNamespace(done=2, skipped=0, failed=seen["failed"], folder=options["out"])

    def stub(name: str, **functions: Any) -> None:
        module = ModuleType(f"unlearnbench.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(f"unlearnbench.{name}", module, raising=False)

    def leaderboard(folder: Path, **options: Any) -> str:
        seen.update(board=(folder, options))
        return "THE TABLE"

    def write_all(folder: Path) -> list[Path]:
        seen.update(written=folder)
        return [folder / "leaderboard.md", folder / "leaderboard.png"]

    stub("runner", run_suite=run_suite)
    stub("forecast", plan=lambda suite, **options: (suite, options), print_plan=lambda console, *plan: seen.update(plan=plan))
    stub("tuning", tune_suite=run_suite)
    stub("report", write_all=write_all, leaderboard=leaderboard)
    return seen


def test_help_teaches_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom unlearnbench.cli import main\nsys.argv = ['unlearnbench', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'sklearn', 'scipy', 'numpy', 'pydantic', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for word in ("run configs/quickstart.yaml", "leaderboard", "describe", "check", "tune"):
        assert word in done.stdout


@pytest.mark.parametrize("command", ["list", "describe", "run", "tune", "leaderboard", "check", "new", "new method"])
def test_every_command_has_help(command: str) -> None:
    result = call(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_version() -> None:
    assert call("--version").stdout == f"unlearnbench {__version__}\n"


def test_describe_shows_docstring_facts_and_fields(folder: Path) -> None:
    result = call("describe", f"{PLUGINS}:Descend")
    assert result.exit_code == 0
    for text in (
        "Go down.",
        "A second paragraph.",
        "paper: arXiv:0000.00000",
        "modality: vision",
        "> 0, <= 10",
        "How far each step goes.",
        "tuple[int, ...]",
    ):
        assert text in result.stdout
    scenario = call("describe", f"{PLUGINS}:Small").stdout
    assert "request two: forget two" in scenario
    assert "split_seed" in scenario


def test_list_as_json_has_working_and_broken_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [registry.Entry("descend", "a:Descend", "pack"), registry.Entry("bad", "b:Bad", "pack")]
    cls = registry.load("methods", f"{PLUGINS}:Descend")
    monkeypatch.setattr(registry, "entries", lambda group: entries if group == "methods" else [])
    broken = [registry.Broken("bad", "b:Bad", "ImportError: [no]")]
    monkeypatch.setattr(
        registry, "discover", lambda group: registry.Listing({"descend": cls}, broken) if group == "methods" else registry.Listing({}, [])
    )
    rows = json.loads(call("list", "--json").stdout)
    assert [(row["group"], row["name"], row.get("error")) for row in rows] == [
        ("methods", "descend", None),
        ("methods", "bad", "ImportError: [no]"),
    ]
    assert (rows[0]["summary"], rows[0]["modality"], rows[0]["distribution"]) == ("Go down.", ["vision"], "pack")
    text = call("list", "methods").stdout
    assert "broken: ImportError: [no]" in text
    assert "metrics" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.yaml"], "error: absent.yaml: No such file"),
        (["run", "suite.yaml", "--set", "oracles=1"], "error: --set oracles=1: field 'oracles' is 1"),
        (["run", "suite.yaml", "--seeds", "a"], "error: --seeds 'a': write whole numbers"),
        (["run", "suite.yaml", "--seeds", "1,1"], "error: --set seeds=[1, 1]: seeds.1: the seed 1 is given more than once"),
        (["run", "suite.yaml", "--method", "nothing"], "error: no method 'nothing'"),
        (["run", "suite.yaml", "--out", "suite.yaml"], "error: --out suite.yaml is a file"),
        (["tune", "absent.yaml"], "error: absent.yaml: No such file"),
        (["leaderboard", "absent"], "error: absent is no folder"),
        (["describe", "nothing"], "error: no plugin 'nothing'"),
        (["check", "nothing"], "error: no plugin 'nothing'"),
        (["check", "nothing.py:X"], "error: 'nothing.py:X': there is no file"),
        (["new", "method", "My-Method"], "error: 'My-Method' is no name for a method"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_writes_nothing(arguments: list[str], message: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert sorted(folder.iterdir()) == before


def test_a_wrong_option_is_refused(folder: Path) -> None:
    assert call("run", "suite.yaml", "--workers", "0").exit_code == 2
    assert call("run", "suite.yaml", "--device", "tpu").exit_code == 2
    assert call("list", "things").exit_code == 2


def test_run_passes_everything_on_and_shows_the_table(folder: Path, parts: dict[str, Any]) -> None:
    result = call("run", "suite.yaml", "--seeds", "3, 4", "--set", "oracles=5", "--workers", "2", "--device", "cpu", "--store", "s3://x")
    assert result.exit_code == 0, result.stderr
    assert (parts["suite"].seeds, parts["suite"].oracles) == ((3, 4), 5)
    assert (parts["workers"], parts["device"], parts["dtype"], parts["store"]) == (2, "cpu", "fp32", "s3://x")
    assert parts["out"] == parts["written"] == Path("runs/small")
    assert result.stdout == "THE TABLE\npicture: runs/small/leaderboard.png\n"
    assert "[1/2] npo on small/one, seed 3: done\n[2/2]" in result.stderr
    assert "2 done, 0 skipped, 0 failed" in result.stderr


def test_run_adds_methods(folder: Path, parts: dict[str, Any]) -> None:
    (folder / "more.py").write_text(PLUGINS.read_text().replace("class Descend", "class Other").replace("(Descend)", "(Other)"))
    result = call("run", "suite.yaml", "--method", "more.py:Other", "--device", "cpu", "--out", "there")
    assert result.exit_code == 0, result.stderr
    assert [spec.label for spec in parts["suite"].tracks[0].methods] == ["Descend", "Other"]
    assert parts["out"] == Path("there")
    assert parts["store"] == "runs/store"


def test_a_failed_trial_is_exit_code_1_after_the_table(folder: Path, parts: dict[str, Any]) -> None:
    parts["failed"] = 1
    result = call("run", "suite.yaml", "--device", "cpu")
    assert result.exit_code == 1
    assert result.stdout.startswith("THE TABLE\n")


def test_a_dry_run_plans_and_does_not_run(folder: Path, parts: dict[str, Any]) -> None:
    result = call("run", "suite.yaml", "--device", "cpu", "--dtype", "bf16", "--workers", "3", "--dry-run")
    assert result.exit_code == 0, result.stderr
    (suite, options), workers = parts["plan"]
    assert (suite.suite, options, workers) == ("small", {"store": "runs/store", "device": "cpu", "dtype": "bf16"}, 3)
    assert "out" not in parts
    assert not (folder / "runs").exists()


def test_tune_writes_beside_the_run(folder: Path, parts: dict[str, Any]) -> None:
    assert call("tune", "suite.yaml", "--device", "cpu").exit_code == 0
    assert parts["out"] == Path("runs/small-tune")


def test_leaderboard_passes_its_options_on(folder: Path, parts: dict[str, Any]) -> None:
    result = call("leaderboard", ".", "--scenario", "digits", "--sort", "rouge", "--format", "csv")
    assert result.stdout == "THE TABLE\n"
    assert parts["board"] == (Path(), {"scenario": "digits", "sort": "rouge", "fmt": "csv"})


def test_an_interruption_is_130_and_a_full_disk_1(folder: Path, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(error: BaseException) -> Any:
        def run_suite(*_: Any, **__: Any) -> Any:
            raise error

        return run_suite

    runner = sys.modules["unlearnbench.runner"]
    monkeypatch.setattr(runner, "run_suite", raises(KeyboardInterrupt()))
    result = call("run", "suite.yaml", "--device", "cpu")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    monkeypatch.setattr(runner, "run_suite", raises(OSError(28, "No space left on device", "runs/x")))
    result = call("run", "suite.yaml", "--device", "cpu")
    assert result.exit_code == 1
    assert result.stderr == "error: No space left on device: runs/x\n"


def test_cuda_is_refused_where_there_is_none(folder: Path, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = call("run", "suite.yaml", "--device", "cuda")
    assert result.exit_code == 2
    assert "no CUDA device" in result.stderr
    assert call("run", "suite.yaml").exit_code == 0
    assert parts["device"] == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert call("run", "suite.yaml").exit_code == 0
    assert parts["device"] == "cuda"


def test_check_prints_every_result_and_fails_if_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [SimpleNamespace(name="clones", passed=True, reason=""), SimpleNamespace(name="reloads", passed=False, reason="differs")]
    testing = ModuleType("unlearnbench.testing")
    vars(testing)["check_plugin"] = lambda group, name: results
    monkeypatch.setitem(sys.modules, testing.__name__, testing)
    monkeypatch.setattr("unlearnbench.testing", testing, raising=False)
    result = call("check", f"{PLUGINS}:Talk")
    assert result.exit_code == 1
    assert result.stdout == "pass  clones\nFAIL  reloads: differs\n"
    results.pop()
    assert call("check", f"{PLUGINS}:Talk").exit_code == 0


def test_a_new_method_loads_and_is_not_overwritten(folder: Path) -> None:
    result = call("new", "method", "my_way", "--dir", "plugins")
    assert result.exit_code == 0
    assert 'my_way = "your_package.my_way:MyWay"' in result.stdout
    plugin = registry.make("methods", "plugins/my_way.py:MyWay", {"lr": 1e-3})
    assert plugin.hyperparameters()["lr"] == 1e-3
    for path in ("plugins/my_way.py", "plugins/test_my_way.py"):
        compile(Path(path).read_text(), path, "exec")
    text = Path("plugins/my_way.py").read_text()
    again = call("new", "method", "my_way", "--dir", "plugins")
    assert again.exit_code == 2
    assert "plugins/my_way.py exists and is not overwritten" in again.stderr
    assert Path("plugins/my_way.py").read_text() == text


def test_bars_are_drawn_on_a_terminal_and_failures_said() -> None:
    console = Console(force_terminal=True, width=120, file=io.StringIO(), record=True)
    with Reporter(console, "small") as reporter:
        listener = progress.progress.get()
        assert listener is not None
        listener("train", 1, 4)
        assert [task.description for task in reporter._bars.tasks] == ["small", "train"]  # type: ignore[union-attr]
        listener("train", 4, 4)
        assert [task.description for task in reporter._bars.tasks] == ["small"]  # type: ignore[union-attr]
        reporter.record(record(), 1, 2)
        reporter.record(record("bad", "failed", "it [broke]"), 2, 2)
        assert reporter._bars.tasks[0].completed == 2  # type: ignore[union-attr]
    assert progress.progress.get() is None
    said = console.export_text()
    assert "bad on small/one, seed 3: failed: it [broke]" in said
    assert "npo on" not in said


def test_off_a_terminal_nobody_listens_to_single_steps() -> None:
    with Reporter(Console(force_terminal=False, quiet=True), "small"):
        assert progress.progress.get() is None
