"""What is committed under results/ is what the code makes of its records, and one trial of the quickstart comes out again."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from unlearnbench.config import load_suite
from unlearnbench.records import read_records

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "results" / "quickstart"


@pytest.fixture(autouse=True)
def _committed() -> None:
    if not (QUICKSTART / "suite.json").exists():
        pytest.fail("results/quickstart is missing: run `make results`")


def test_one_trial_of_the_quickstart_comes_out_again(capsys: pytest.CaptureFixture[str]) -> None:
    verify = runpy.run_path(str(ROOT / "benchmarks" / "verify.py"))["verify"]
    assert verify(QUICKSTART) == 0, capsys.readouterr().out
    assert "largest difference" in capsys.readouterr().out


def test_verify_notices_a_changed_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = tmp_path / "quickstart"
    shutil.copytree(QUICKSTART, copy)
    for path in copy.glob("gradient_ascent-*.json"):
        record = json.loads(path.read_text())
        for cell in record["cells"]:
            if cell["value"] is not None:
                cell["value"] -= 0.5
        path.write_text(json.dumps(record))
    verify = runpy.run_path(str(ROOT / "benchmarks" / "verify.py"))["verify"]
    assert verify(copy) == 1
    assert "gradient_ascent" in capsys.readouterr().out


def test_the_readme_shows_the_committed_tables() -> None:
    filled = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))["filled"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "| rank |" in text
    assert filled(text, QUICKSTART) == text


SUITES = sorted(path.parent for path in (ROOT / "results").rglob("suite.json"))


@pytest.mark.parametrize("folder", SUITES, ids=lambda folder: str(folder.name))
def test_no_committed_trial_failed(folder: Path) -> None:
    assert not [record.filename for record in read_records(folder) if record.status == "failed"]


@pytest.mark.parametrize("folder", SUITES, ids=lambda folder: str(folder.name))
def test_committed_suites_are_those_of_the_configs(folder: Path, tmp_path: Path) -> None:
    committed = json.loads((folder / "suite.json").read_text(encoding="utf-8"))["suite"]
    (tmp_path / "suite.yaml").write_text(json.dumps(committed), encoding="utf-8")  # JSON is YAML; fields that are new take their defaults
    assert load_suite(tmp_path / "suite.yaml").document() == load_suite(ROOT / "configs" / f"{folder.name}.yaml").document()


def test_no_language_method_is_there_only_in_name() -> None:
    """Forgetting of at least half the way to the oracles with 80 % of their utility, but for three that cannot have both."""
    records = read_records(ROOT / "results" / "authors-full")

    def means(name: str) -> dict[str, float]:
        values: dict[str, list[float]] = {}
        for record in records:
            cell = record.cell(name)
            if cell is not None and cell.value is not None:
                values.setdefault(record.trial.label, []).append(cell.value)
        return {label: float(np.mean(found)) for label, found in values.items()}

    methods = {record.trial.label for record in records if record.trial.role == "method"}
    forgot, useful = means("forgetting"), means("model_utility")
    short = {label for label in methods if forgot[label] < 0.5 or useful[label] < 0.8 * useful["oracle"]}
    assert len(methods) >= 24
    assert short == {"gradient_ascent", "kl", "mcu_rmu"}
    assert abs(forgot["original"]) < 0.05
    assert abs(forgot["oracle"] - 1) < 0.05


def values(folder: str, request: str) -> dict[str, dict[str, float]]:
    """Column -> row -> mean over seeds, of a committed vision board's standard rows."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in read_records(ROOT / "results" / folder):
        if record.trial.request != request or record.trial.scenario != "digits":
            continue
        for cell in record.cells:
            if cell.attack is None and cell.value is not None:
                found.setdefault(cell.metric, {}).setdefault(record.trial.label, []).append(cell.value)
    return {column: {row: float(np.mean(numbers)) for row, numbers in rows.items()} for column, rows in found.items()}


def test_head_distillation_looks_forgotten_on_logits_and_not_on_features() -> None:
    found = values("digits-full", "mislabelled")
    assert abs(found["accuracy"]["head_distillation"] - found["accuracy"]["oracle"]) < 0.05
    assert abs(found["average_gap"]["head_distillation"] - found["average_gap"]["oracle"]) < 0.05
    for column in ("linear_probe", "unbiased_cka"):
        assert found[column]["head_distillation"] == pytest.approx(found[column]["original"], abs=1e-6)
        assert abs(found[column]["head_distillation"] - found[column]["oracle"]) > 0.15


def test_held_out_oracles_lie_within_the_floor_of_klom() -> None:
    (floor, *_) = [
        cell
        for record in read_records(ROOT / "results" / "digits-klom")
        for cell in record.cells
        if cell.metric == "klom_floor" and record.trial.role == "oracle"
    ]
    found = values("digits-klom", "coherent")["klom"]
    assert floor.interval is not None
    low, high = floor.interval
    assert low < found["oracle"] < high < 1
    assert found["original"] > 9
    assert all(number > high for row, number in found.items() if row != "oracle")
