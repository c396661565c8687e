"""Keys: everything that a result depends on changes them, and nothing else does."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unlearnbench import trial as trial_module
from unlearnbench.api import Need
from unlearnbench.config import PluginSpec, load_suite
from unlearnbench.planning import trials_of
from unlearnbench.trial import Place, Settings, Trial, evidence_key, needs_of, population_key, source_key, trial_key

PLUGINS = Path(__file__).parent / "fixtures" / "runner_plugins.py"
CPU = Settings()
SUITE = {
    "suite": "small",
    "seed": "4",
    "oracles": "2",
    "epochs": "1",
    "split_seed": "0",
    "label": "digits",
    "request": "class3",
    "method": "{name: finetune, epochs: 1, lr: 0.1}",
    "attack": "loss_attack",
    "metric": "accuracy",
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Trial]:
    """The trial of a suite's only method, with some of the suite's words changed."""

    def make(**changes: str) -> Trial:
        words = {**SUITE, **changes}
        (tmp_path / "suite.yaml").write_text(
            """\
suite: {suite}
seeds: [{seed}]
oracles: {oracles}
tracks:
  - scenario: {{name: digits, epochs: {epochs}, split_seed: {split_seed}, label: {label}}}
    requests: [{request}]
    methods: [{method}]
    attacks: [{attack}]
    metrics: [{metric}]
""".format(**words)
        )
        return trials_of(load_suite(tmp_path / "suite.yaml"))[0][-1]

    return make


def keys(trial: Trial, settings: Settings = CPU) -> dict[str, str]:
    original, oracle = trial.originals[0].population, trial.oracles[0].population
    return {
        "original": population_key(original, settings),
        "oracle": population_key(oracle, settings),
        "model": source_key(trial.source, settings),
        "evidence": evidence_key(trial.source, trial.place, needs_of(trial), settings),
        "trial": trial_key(trial, settings),
    }


EVERYTHING = {"original", "oracle", "model", "evidence", "trial"}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"suite": "other"}, set()),
        ({"method": "{lr: 0.10, epochs: 1, name: finetune}"}, set()),
        ({"label": "other"}, {"trial"}),
        ({"method": "{name: finetune, epochs: 1, lr: 0.1, label: mine}"}, {"trial"}),
        ({"metric": "{name: accuracy, label: share}"}, {"trial"}),
        ({"metric": "accuracy, true_probability"}, {"trial"}),
        ({"metric": "{name: accuracy, split: retain}"}, {"evidence", "trial"}),
        ({"attack": ""}, {"evidence", "trial"}),
        ({"attack": "loss_attack, relearning"}, {"trial"}),
        ({"attack": "{name: loss_attack, label: other}"}, {"trial"}),
        ({"oracles": "3"}, {"oracle", "trial"}),
        ({"method": "{name: finetune, epochs: 1, lr: 0.2}"}, {"model", "evidence", "trial"}),
        ({"method": "{name: finetune, epochs: 2, lr: 0.1}"}, {"model", "evidence", "trial"}),
        ({"request": "class4"}, EVERYTHING - {"original"}),
        ({"seed": "5"}, EVERYTHING - {"oracle"}),
        ({"epochs": "2"}, EVERYTHING),
        ({"split_seed": "1"}, EVERYTHING),
    ],
    ids=str,
)
def test_each_ingredient_changes_the_keys_of_what_depends_on_it(
    make: Callable[..., Trial], change: dict[str, str], changed: set[str]
) -> None:
    before, after = keys(make()), keys(make(**change))
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.parametrize("settings", [Settings(dtype="bf16"), Settings(device="cuda")])
def test_device_and_precision_are_part_of_every_key(make: Callable[..., Trial], settings: Settings) -> None:
    before, after = keys(make()), keys(make(), settings)
    assert all(before[name] != after[name] for name in before)


@pytest.mark.parametrize(
    ("group", "name", "changed"),
    [
        ("scenarios", "digits", EVERYTHING),
        ("methods", "finetune", {"model", "evidence", "trial"}),
        ("attacks", "loss_attack", {"trial"}),
        ("metrics", "accuracy", {"trial"}),
        ("methods", "collapsed", set()),
    ],
)
def test_code_is_part_of_the_keys(
    make: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch, group: str, name: str, changed: set[str]
) -> None:
    before, real = keys(make()), trial_module._code
    monkeypatch.setattr(trial_module, "_code", lambda g, n: "other" if (g, n) == (group, name) else real(g, n))
    after = keys(make())
    assert {key for key in before if before[key] != after[key]} == changed


def test_the_code_of_the_harness_is_part_of_a_trials_key_alone(make: Callable[..., Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(make())
    monkeypatch.setattr(trial_module, "module_hash", lambda name: f"another {name}")
    after = keys(make())
    assert {name for name in before if before[name] != after[name]} == {"trial"}


def test_a_key_is_the_same_after_pickling_and_in_any_order_of_names(make: Callable[..., Trial]) -> None:
    trial = make()
    assert keys(pickle.loads(pickle.dumps(trial))) == keys(trial)
    turned = {name: trial.place.scenario.fields[name] for name in reversed(trial.place.scenario.fields)}
    other = trial.place.scenario.model_copy(update={"fields": turned})
    assert trial_key(replace(trial, place=replace(trial.place, scenario=other)), CPU) == trial_key(trial, CPU)


def test_members_of_a_population_have_keys_of_their_own(make: Callable[..., Trial]) -> None:
    first, second = make().oracles
    assert first.population is second.population
    assert source_key(first, CPU) != source_key(second, CPU)


def test_a_bank_is_part_of_a_trials_key(make: Callable[..., Trial]) -> None:
    own = make(metric=f'{{name: "{PLUGINS}:Banked", role: unlearned}}')
    banks = {"Banked": own.banks["Banked"][:1]}
    assert trial_key(replace(own, banks=banks), CPU) != trial_key(own, CPU)


def test_equal_places_share_a_scenario() -> None:
    def place(**fields: Any) -> Place:
        return Place(scenario=PluginSpec(name="digits", label="d", fields=fields), request="class1")

    assert place(epochs=1).open() is place(epochs=1).open()
    assert place(epochs=1).open() is not place(epochs=2).open()
    assert place(epochs=1).open().asked().name == "class1"


def test_needs_are_those_of_metrics_and_membership_attacks(make: Callable[..., Trial]) -> None:
    forget, retain, holdout = (Need(what="logits", split=split) for split in ("forget", "retain", "holdout"))
    assert needs_of(make()) == {forget, holdout}
    assert needs_of(make(attack="relearning")) == {forget}
    assert needs_of(make(attack="", metric="accuracy, {name: accuracy, split: retain, label: r}")) == {forget, retain}
    # A metric that cannot serve the scenario is asked nothing.
    assert needs_of(make(attack="", metric="accuracy, rouge")) == {forget}
