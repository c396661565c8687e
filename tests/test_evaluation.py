"""What is measured where: cells of metrics, membership attacks and stages, and what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from unlearnbench.artefacts import Workshop
from unlearnbench.config import load_suite
from unlearnbench.evaluation import Scores, score
from unlearnbench.planning import trials_of
from unlearnbench.records import Cell
from unlearnbench.store import Store
from unlearnbench.trial import Population, Settings, Trained, Trial, needs_of, population_key, source_key

FIXTURES = Path(__file__).parent / "fixtures"
SCORING, RUNNER = FIXTURES / "scoring_plugins.py", FIXTURES / "runner_plugins.py"
Score = Callable[..., Scores]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(Store(tmp_path_factory.mktemp("store")), Settings())


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., dict[str, Trial]]:
    def planned(metrics: str, attacks: str = "") -> dict[str, Trial]:
        (tmp_path / "suite.yaml").write_text(f"""\
suite: small
seeds: [0, 1]
oracles: 2
tracks:
  - scenario: {{name: digits, epochs: 2, width: 8}}
    requests: [class3]
    methods: ["{RUNNER}:Counts"]
    attacks: [{attacks}]
    metrics: [{metrics}]
""")
        return {f"{trial.method.label}/{trial.seed}": trial for trial in trials_of(load_suite(tmp_path / "suite.yaml"))[0]}

    return planned


@pytest.fixture
def scored(planned: Callable[..., dict[str, Trial]], workshop: Workshop) -> Score:
    def scored(metrics: str, attacks: str = "", which: str = "Counts/1") -> Scores:
        return score(planned(metrics, attacks)[which], workshop)

    return scored


def metric(cls: str, more: str = "") -> str:
    return f'{{name: "{SCORING}:{cls}"{more}}}'


def reasons(cells: list[Cell]) -> list[tuple[str, str, str | None]]:
    return [(cell.metric, cell.status, cell.reason) for cell in cells]


def test_a_metric_over_rows_is_their_mean_with_clusters_and_items(
    scored: Score, planned: Callable[..., dict[str, Trial]], workshop: Workshop
) -> None:
    found = scored("accuracy, {name: accuracy, label: kept, split: retain}")
    trial = planned("accuracy, {name: accuracy, label: kept, split: retain}")["Counts/1"]
    evidence = workshop.evidence(trial.source, trial.place, needs_of(trial))
    for cell, split, side in zip(found.cells, ("forget", "retain"), ("forget", "utility"), strict=True):
        logits = next(array for need, array in evidence.arrays.items() if need.split == split)
        hits = (logits.argmax(axis=1) == evidence.labels[split]).astype(float)
        assert (cell.status, cell.side, cell.level, cell.direction, cell.bounds) == ("done", side, "T1", "higher", (0.0, 1.0))
        assert cell.headline is (split == "forget")
        assert cell.value == pytest.approx(hits.mean(), abs=1e-12)
        assert cell.n == len(hits)
        assert cell.clusters is not None
        assert np.average(cell.clusters.means, weights=cell.clusters.counts) == pytest.approx(hits.mean(), abs=1e-12)
        items = {row: value for name, attack, step, row, _, value in found.items if name == cell.metric and attack is None and step is None}
        assert items == dict(zip(evidence.ids[split], hits, strict=True))


def test_an_intervention_has_a_pass_of_its_own(scored: Score) -> None:
    cell = scored(metric("Single")).cells[0]
    assert (cell.status, cell.value, cell.n, cell.clusters) == ("done", 0.0, 1, None)


def test_a_single_number_may_come_with_an_interval(scored: Score) -> None:
    cell = scored(metric("Wide")).cells[0]
    assert (cell.status, cell.value, cell.n, cell.interval, cell.covers) == ("done", 0.5, 1, (0.25, 0.875), "oracles")


def test_what_a_metric_cannot_do_is_its_cells_reason_and_no_others(scored: Score) -> None:
    hows = ("raise", "infinite", "nan", "silent", "empty", "unknown row", "missing")
    odd = ", ".join(metric("Odd", f", how: {how}, label: {how.replace(' ', '_')}") for how in hows)
    cells = scored(f"{odd}, {metric('Unfit')}, rouge, accuracy").cells
    assert reasons(cells)[:6] == [
        ("raise", "failed", "ValueError: cannot be measured"),
        ("infinite", "failed", "FloatingPointError: the value is inf"),
        ("nan", "failed", "FloatingPointError: the value is nan"),
        ("silent", "na", "3 rows are too few"),
        ("empty", "failed", "ValueError: no rows to measure"),
        ("unknown_row", "failed", "KeyError: 'nobody'"),
    ]
    assert cells[6].reason is not None
    assert cells[6].reason.startswith("Missing: ")
    assert reasons(cells)[7:9] == [("Unfit", "na", "wants another world"), ("rouge", "na", "works on language, not on vision")]
    assert all(cell.value is None for cell in cells[:9])
    assert (cells[9].status, len(cells)) == ("done", 10)


@pytest.mark.parametrize(
    ("which", "value"),
    [("Counts/1", 0.2 + 0.02 + 0.002), ("original/0", 0.1 + 0.02 + 0.002), ("oracle/1000", 0.2 + 0.01 + 0.002)],
)
def test_an_anchor_is_never_its_own_anchor(scored: Score, which: str, value: float) -> None:
    found = scored(f'{{name: "{RUNNER}:Banked", role: original}}', which=which)
    assert found.cells[0].value == pytest.approx(value, abs=1e-12)


def test_membership_is_an_area_over_all_rows_and_a_rate_where_there_are_enough(scored: Score) -> None:
    found = scored("accuracy", "loss_attack")
    area, rate = found.cells[1:]
    items = [(row, value) for name, _, _, row, _, value in found.items if name == "loss_attack"]
    forget = {row for name, _, _, row, _, _ in found.items if name == "accuracy"}
    assert area.value == pytest.approx(roc_auc_score([row in forget for row, _ in items], [value for _, value in items]), abs=1e-12)
    assert (area.metric, area.level, area.side, area.headline, area.n) == ("loss_attack", "T2", "forget", True, len(forget))
    assert (rate.metric, rate.status, rate.headline, rate.side) == ("loss_attack_tpr@0.01", "na", False, "diagnostic")
    assert rate.reason


def test_membership_that_fails_is_two_failed_cells(scored: Score) -> None:
    for how in ("short", "nan"):
        cells = scored("accuracy", metric("Guess", f", how: {how}")).cells[1:]
        assert [(cell.status, cell.value) for cell in cells] == [("failed", None)] * 2
        assert cells[0].reason == cells[1].reason
        assert "scores of shape" in str(cells[0].reason) if how == "short" else "nan" in str(cells[0].reason).lower()
    perfect = scored("accuracy", metric("Guess")).cells[1]
    assert perfect.value == 1.0


def test_membership_that_has_nothing_to_say_is_two_cells_without(scored: Score) -> None:
    cells = scored("accuracy", metric("Guess", ", how: silent")).cells[1:]
    assert [(cell.status, cell.reason) for cell in cells] == [("na", "forget says nothing")] * 2


def test_stages_are_scored_on_the_judged_rows_cheaply_in_between(scored: Score, planned: Callable[..., dict[str, Trial]]) -> None:
    metrics = f"accuracy, {metric('Largest')}, {{name: accuracy, label: kept, split: retain}}"
    found = scored(metrics, metric("Scaling"))
    cells = [cell for cell in found.cells if cell.attack is not None]
    assert [(cell.metric, cell.attack, cell.step, cell.final) for cell in cells] == [
        ("accuracy", "Scaling", 0, False),
        ("Largest", "Scaling", 0, False),
        ("accuracy", "Scaling", 1, False),
        ("accuracy", "Scaling", 2, True),
        ("Largest", "Scaling", 2, True),
    ]
    judged = planned(metrics)["Counts/1"].place.open().judged()
    assert all((cell.level, cell.n) == ("T3", len(judged)) for cell in cells)
    before = {row: value for name, attack, _, row, _, value in found.items if (name, attack) == ("Largest", None)}
    at_start = {row: value for name, attack, step, row, _, value in found.items if (name, attack, step) == ("Largest", "Scaling", 0)}
    assert set(at_start) == judged
    assert at_start == {row: before[row] for row in judged}
    assert cells[4].value == 0.0


def test_inputs_and_forward_passes_are_changed_stage_by_stage(scored: Score, planned: Callable[..., dict[str, Trial]]) -> None:
    found = scored(metric("Largest", "") + ", accuracy", metric("Inputs"))
    largest = {cell.step: cell for cell in found.cells if cell.metric == "Largest"}
    accuracy = {cell.step: cell for cell in found.cells if cell.metric == "accuracy"}
    forget = planned("accuracy")["Counts/1"].place.open().forget_rows()
    # It holds no part of the forget set: all rows are judged.
    assert largest[0].n == len(forget)
    assert largest[0].value == pytest.approx(largest[None].value, abs=1e-9)
    assert largest[2].value == 0.0
    blank = [value for name, _, step, _, _, value in found.items if (name, step) == ("accuracy", 1)]
    assert len(set(blank)) == 1  # all images are alike
    assert accuracy[1].value in (0.0, 1.0)


def test_an_attack_that_breaks_keeps_what_it_had_and_says_why(scored: Score) -> None:
    found = scored("accuracy", f"{metric('Scaling', ', fails: true')}, {metric('Undeclared')}, {metric('Elsewhere')}, relearning")
    cells = {attack: [cell for cell in found.cells if cell.attack == attack] for attack in ("Scaling", "Undeclared", "Elsewhere")}
    assert [(cell.step, cell.status, cell.final) for cell in cells["Scaling"]] == [
        (0, "done", False),
        (1, "done", False),
        (None, "failed", True),
    ]
    assert cells["Scaling"][-1].reason == "RuntimeError: the attack broke"
    assert [cell.status for cell in cells["Undeclared"]] == ["failed"]
    assert "declares only" in str(cells["Undeclared"][0].reason)
    assert reasons(cells["Elsewhere"]) == [("accuracy", "na", "works on language, not on vision")]
    assert [cell.status for cell in found.cells if cell.attack == "relearning"] == ["done"] * 4


def test_an_attack_that_finds_nothing_to_attack_is_not_measured(scored: Score) -> None:
    found = scored("accuracy", metric("NothingThere"))
    assert reasons([cell for cell in found.cells if cell.attack]) == [("accuracy", "na", "the model has no prompts")]


def test_all_models_are_attacked_with_the_same_seed(
    planned: Callable[..., dict[str, Trial]], workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlearnbench import registry

    cls, seeds = registry.load("attacks", f"{SCORING}:Inputs"), []
    real = cls.stages  # type: ignore[union-attr]

    def spy(self: object, model: object, view: object, *, seed: int) -> object:
        seeds.append(seed)
        return real(self, model, view, seed=seed)

    monkeypatch.setattr(cls, "stages", spy)
    for trial in planned("accuracy", metric("Inputs")).values():
        score(trial, workshop)
    assert seeds == [0] * 6


def test_a_bank_of_untrained_models_and_a_metric_that_counts_both_ways(
    scored: Score, planned: Callable[..., dict[str, Trial]], workshop: Workshop
) -> None:
    found = {cell.metric: cell for cell in scored("{name: zrf, n: 3}, svc_efficacy, accuracy").cells}
    trial = planned("{name: zrf, n: 3}, svc_efficacy, accuracy")["Counts/1"]
    assert [role for role, _ in trial.banks["zrf"]] == ["untrained"] * 3
    scenario = trial.place.open()
    for _, source in trial.banks["zrf"]:
        built, kept = scenario.build(source.seed).state_dict(), workshop.model(source).state_dict()
        assert all(torch.equal(tensor, kept[name]) for name, tensor in built.items())
    # Of the same seed and rows, an untrained model is not the original.
    assert len({source_key(source, Settings()) for _, source in trial.banks["zrf"]}) == 3
    (population,) = {source.population for _, source in trial.banks["zrf"] if isinstance(source, Trained)}
    as_original = Population(place=population.place, runs=tuple((scenario.plan("original"), seed) for _, seed in population.runs))
    assert population_key(population, Settings()) != population_key(as_original, Settings())
    assert found["zrf"].value is not None
    assert 0.3 < found["zrf"].value < 1
    assert [found[name].two_sided for name in ("zrf", "svc_efficacy", "accuracy")] == [True, True, False]
