"""Every registered plugin keeps its contract, and a plugin that breaks one is found out.

Plugins are discovered through the registry, never listed; settings are given only to scenarios that would train for long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up_data import muse_files, tofu_files, write
from made_up_pictures import MADE_UP_COUNTS, picture_settings

from unlearnbench import registry
from unlearnbench.contracts import tiny_diffusion, tiny_language, tiny_vision
from unlearnbench.registry import BASES, Group
from unlearnbench.scenarios import cifar_files
from unlearnbench.testing import check_plugin

SMALL: dict[str, dict[str, Any]] = {
    "authors": {"n_authors": 20, "n_facts": 2, "epochs": 1},
    "digits": {"epochs": 1},
    "datamodel_matching": {"n_subsets": 12, "calibration_models": 3},
    "digits_diffusion": {"width": 16, "depth": 1, "epochs": 1, "sampling_steps": 3},
}
ON_DATA = ("tofu", "muse", "text", "cifar10", "cifar100", "images")
"""Scenarios that read files: they get made-up ones."""
MANY_REQUESTS = [("scenarios", "cifar100")]
REGISTERED = [(group, entry.name) for group in BASES for entry in registry.entries(group)]
TINY = [f"{tiny_language.__file__}:TinyLanguage", f"{tiny_vision.__file__}:TinyVision", f"{tiny_diffusion.__file__}:TinyDiffusion"]
PARTS = {"forget": 8, "retain": 40, "holdout": 8}
FAULTY = Path(__file__).parent / "fixtures" / "faulty_plugins.py"


def settings(name: str, folder: Path) -> dict[str, Any] | None:
    """Settings of a scenario that would train for long or needs files; None for anything else."""
    if name not in ON_DATA:
        return SMALL.get(name)
    if name in ("cifar10", "cifar100", "images"):
        return picture_settings(name, folder)
    tiny = {"source": "scratch", "width": 8, "layers": 1, "heads": 2, "vocabulary": 400, "epochs": 1}
    if name == "tofu":
        return {"data_dir": str(write(folder, tofu_files())), "retain_authors": 20, "models": {**tiny, "context": 128, "batch_size": 256}}
    if name == "muse":
        few = {"max_documents": 6, "retain_documents": 20, "models": {**tiny, "context": 700, "batch_size": 8}}
        return {"data_dir": str(write(folder, muse_files(), lines=False)), **few}
    rows = {part: [{"question": f"What is {part} {i}?", "answer": f"It is {i}"} for i in range(n)] for part, n in PARTS.items()}
    write(folder, rows)
    return {**{part: str(folder / f"{part}.json") for part in PARTS}, "models": {**tiny, "context": 48, "batch_size": 4}}


@pytest.mark.parametrize(
    ("group", "name"),
    [pytest.param(*item, marks=[pytest.mark.slow] if item in MANY_REQUESTS else []) for item in REGISTERED],
    ids=lambda value: str(value),
)
def test_every_registered_plugin_keeps_its_contract(group: Group, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_files, "COUNTS", MADE_UP_COUNTS)
    results = check_plugin(group, name, settings(name, tmp_path))
    assert [f"{result.name}: {result.reason}" for result in results if not result.passed] == []
    assert len(results) > 4, "a plugin that serves no tiny scenario is not tested at all"


@pytest.mark.parametrize("name", TINY, ids=["language", "vision", "diffusion"])
def test_the_tiny_scenarios_keep_the_contract_of_scenarios(name: str) -> None:
    results = check_plugin("scenarios", name, {"epochs": 1})
    assert [f"{result.name}: {result.reason}" for result in results if not result.passed] == []


@pytest.mark.parametrize(
    ("group", "cls", "test", "reason"),
    [
        ("methods", "GlobalRandom", "the seed decides the result", "the same seed gave another model"),
        ("methods", "NotANumber", "gives a finite model and leaves the data alone", "has NaN or infinite values"),
        ("methods", "ChangesData", "gives a finite model and leaves the data alone", "the view's data were changed"),
        ("methods", "HookOnClosure", "a clone is the same and stands alone", "still uses the model it was copied from"),
        ("methods", "HookOnClosure", "saved and loaded it is the same to the bit", "other outputs"),
        ("methods", "UndeclaredInsert", "saved and loaded it is the same to the bit", "needs the inserted module"),
        ("methods", "ClaimsNoEdit", "stripping undoes what was inserted", "edits_weights is False"),
        ("methods", "OnlyOnce", "serves one request after another", "served already"),
        ("methods", "NoReason", "supports() gives None or a reason", "supports() gives ''"),
        ("methods", "BadDefault", "fields have valid defaults and survive JSON", "greater than 0"),
        ("attacks", "Peeks", "runs on what it declares", "declares only"),
        ("attacks", "FallingSteps", "steps rise from 0 and the last stage is final", "they must rise"),
        ("attacks", "TwoFinals", "steps rise from 0 and the last stage is final", "at the last stage and nowhere else"),
        ("attacks", "StartsLate", "steps rise from 0 and the last stage is final", "the first must be 0"),
        ("attacks", "BeginsAtOnce", "the first stage is no attack yet", "not the model as it was given"),
        ("attacks", "ForgetsToStrip", "the first stage is no attack yet", "not the stripped model"),
        ("attacks", "UnseededNoise", "the seed decides the stages", "the same seed gave other stages"),
        ("attacks", "LosesIdentity", "runs on what it declares", "identity must be kept"),
        ("attacks", "WrongShape", "gives each row a finite score", "got scores of shape"),
        ("attacks", "ByPosition", "gives each row a finite score", "depend on the order"),
        ("metrics", "OutOfBounds", "measures within its bounds", "out of the bounds"),
        ("metrics", "ByRank", "gives the same again", "depend on the order"),
        ("metrics", "OtherRows", "measures within its bounds", "which no asked split has"),
        ("metrics", "UnknownSplit", "asks for splits that there are", "wants split 'nothing'"),
        ("metrics", "ReadsMore", "measures within its bounds", "Missing"),
        ("metrics", "HeadlineUtility", "level, bounds, direction and side", "a headline metric is about forgetting"),
        ("scenarios", "Leaky", "splits share no row", "forget and holdout share"),
        ("scenarios", "TrainsOnAll", "plans leave out what is forgotten", "the oracle is trained on"),
        ("scenarios", "SameKey", "plans leave out what is forgotten", "the same training settings"),
        ("scenarios", "JudgesTheHeld", "an attack is judged on rows", "shares clusters"),
        ("scenarios", "ShadowOfItself", "a shadow forgets other rows", "rows of the request itself"),
        ("scenarios", "ShowsHoldout", "a method's view holds no holdout row", "retain.train holds rows of the holdout"),
        ("scenarios", "Unseeded", "training depends on plan and seed alone", "gave another model"),
    ],
)
def test_a_faulty_plugin_is_found_out(group: Group, cls: str, test: str, reason: str) -> None:
    results = check_plugin(group, f"{FAULTY}:{cls}", {"epochs": 1} if group == "scenarios" else None)
    failed = {result.name: str(result.reason) for result in results if not result.passed}
    assert any(test in name and reason in why for name, why in failed.items()), failed


@pytest.mark.parametrize(
    ("group", "cls"), [("methods", "Sound"), ("attacks", "SoundNoise"), ("attacks", "SoundScore"), ("metrics", "SoundMean")]
)
def test_what_the_faulty_plugins_are_made_from_is_sound(group: Group, cls: str) -> None:
    assert [result for result in check_plugin(group, f"{FAULTY}:{cls}") if not result.passed] == []


def test_a_plugin_without_docstring_is_found_out(tmp_path: Path) -> None:
    file = tmp_path / "bare.py"
    file.write_text(
        "from unlearnbench.api import Method\n\nclass Bare(Method):\n    def unlearn(self, model, view, *, seed):\n        return model\n"
    )
    first = check_plugin("methods", f"{file}:Bare")[0]
    assert not first.passed
    assert first.reason == "the module has no docstring"
