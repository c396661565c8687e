"""What is built once and kept: models, their cost, views, and randomness that nobody else touches."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from unlearnbench.artefacts import Workshop, own_randomness
from unlearnbench.config import load_suite
from unlearnbench.layers import model_hash
from unlearnbench.planning import trials_of
from unlearnbench.store import Store
from unlearnbench.training import hardware
from unlearnbench.trial import Place, Settings, Trained, Trial, Unlearned, needs_of

PLUGINS = Path(__file__).parent / "fixtures" / "runner_plugins.py"


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    path = tmp_path_factory.mktemp("suite") / "suite.yaml"
    path.write_text(f"""\
suite: small
seeds: [0, 1]
oracles: 2
tracks:
  - scenario: {{name: digits, epochs: 1, width: 8}}
    requests: [class3]
    methods: ["{PLUGINS}:Counts", "{PLUGINS}:Untrained", "{PLUGINS}:Mean", "{PLUGINS}:Subsets"]
    metrics: [accuracy]
""")
    return {f"{trial.method.label}/{trial.seed}": trial for trial in trials_of(load_suite(path))[0]}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(Store(tmp_path_factory.mktemp("store")), Settings())


def test_a_model_is_a_private_copy_in_eval_mode(trials: dict[str, Trial], workshop: Workshop) -> None:
    first, second = (workshop.model(trials["original/0"].source) for _ in range(2))
    assert not first.training
    before = model_hash(second)
    with torch.no_grad():
        next(first.parameters()).add_(1)
    assert model_hash(second) == before == model_hash(workshop.model(trials["original/0"].source))
    assert model_hash(workshop.model(trials["original/1"].source)) != before


def test_a_method_gets_the_original_of_its_seed(trials: dict[str, Trial], workshop: Workshop) -> None:
    for seed in (0, 1):
        unlearned, original = (workshop.model(trials[f"{label}/{seed}"].source) for label in ("Counts", "original"))
        assert model_hash(unlearned) == model_hash(original)


def test_a_native_method_trains_each_anchor_on_its_own_rows(trials: dict[str, Trial], workshop: Workshop) -> None:
    original, oracle = trials["Untrained-original/0"], trials["Untrained-oracle/1000"]
    scenario = original.place.open()
    for trial, rows in ((original, 1220), (oracle, 1220 - len(scenario.forget_rows()))):
        expected = scenario.build(trial.seed)
        with torch.no_grad():
            next(expected.parameters()).add_(1e-5 * rows)
        assert model_hash(workshop.model(trial.source)) == model_hash(expected)
    assert model_hash(workshop.model(trials["Untrained/0"].source)) == model_hash(workshop.model(original.source))


def test_a_reference_row_sees_the_anchors(trials: dict[str, Trial], workshop: Workshop) -> None:
    trial = trials["Mean/0"]
    assert trial.role == "reference"
    oracles = [workshop.model(source).state_dict() for source in trial.oracles]
    for name, tensor in workshop.model(trial.source).state_dict().items():
        assert torch.allclose(tensor, (oracles[0][name] + oracles[1][name]) / 2)


def test_subset_models_are_trained_without_their_rows_and_shared(trials: dict[str, Trial], workshop: Workshop) -> None:
    before = set(workshop.store.keys("population"))
    workshop.unlearned(_unlearned(trials["Subsets/0"]))
    first = set(workshop.store.keys("population")) - before
    workshop.unlearned(_unlearned(trials["Subsets/1"]))
    assert len(first) == 1
    assert set(workshop.store.keys("population")) - before == first


def test_subset_models_are_grouped_for_the_device_of_the_run(
    trials: dict[str, Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the caller's context says nothing of the device."""
    trial = trials["Subsets/0"]
    monkeypatch.setattr(type(trial.place.open()), "trained_together", property(lambda _: 2 if hardware.get().device == "cuda" else 1))
    for device, expected in (("cpu", [1, 1, 1]), ("cuda", [2, 2, 1])):
        workshop, sizes = Workshop(Store(tmp_path), Settings(device=device)), []
        monkeypatch.setattr(workshop, "model", lambda source, sizes=sizes: sizes.append(len(source.population.runs)))
        workshop.method_view(trial.place, trial.method).subset_models([frozenset()] * 3)
        assert sizes == expected


def _unlearned(trial: Trial) -> Unlearned:
    assert isinstance(trial.source, Unlearned)
    return trial.source


def test_what_a_method_shares_is_computed_once_for_all_seeds_and_by_its_key(trials: dict[str, Trial], workshop: Workshop) -> None:
    trial, calls = trials["Counts/0"], []

    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"values": torch.arange(3.0), "drawn": torch.rand(2)}

    first = workshop.method_view(trial.place, trial.method).shared({"n": 1}, compute)
    again = Workshop(workshop.store, Settings()).method_view(trial.place, trials["Counts/1"].method).shared({"n": 1}, compute)
    assert len(calls) == 1
    assert all(torch.equal(first[name], again[name]) for name in ("values", "drawn"))
    workshop.method_view(trial.place, trial.method).shared({"n": 2}, compute)
    workshop.method_view(trial.place, trials["Untrained/0"].method).shared({"n": 1}, compute)
    workshop.method_view(Place(scenario=trial.place.scenario, request="class4"), trial.method).shared({"n": 1}, compute)
    assert len(calls) == 4


def test_a_model_that_never_saw_a_forget_set_is_not_given_it_to_retain(trials: dict[str, Trial], workshop: Workshop) -> None:
    trial = trials["Counts/0"]
    other = Place(scenario=trial.place.scenario, request="class4")
    gone = trial.place.open().forget_rows()
    plain, blind = workshop.method_view(other, trial.method), workshop.method_view(other, trial.method, trial.place)
    assert gone <= set(plain.retain.train.ids)
    assert set(blind.retain.train.ids) == set(plain.retain.train.ids) - gone == set(blind.retain.eval.ids)
    assert blind.forget.train.ids == plain.forget.train.ids
    (theirs,), (ours,) = (view.subset_models([frozenset(plain.forget.train.ids)]) for view in (plain, blind))
    assert model_hash(theirs) != model_hash(ours) == model_hash(plain.subset_models([frozenset(plain.forget.train.ids) | gone])[0])
    key = {"n": 3}
    assert not plain.shared(key, lambda: {"of": torch.zeros(1)})["of"]
    assert blind.shared(key, lambda: {"of": torch.ones(1)})["of"]


def test_the_cost_of_a_trained_model_is_its_share(trials: dict[str, Trial], workshop: Workshop) -> None:
    source = trials["oracle/1000"].source
    assert isinstance(source, Trained)
    meta = json.loads((workshop.population(source.population) / "meta.json").read_text())
    assert meta["models"] == 2
    assert workshop.cost(source)["seconds"] == pytest.approx(meta["seconds"] / 2)
    assert workshop.cost(trials["Counts/0"].source)["seconds"] > 0
    assert workshop.cost(source)["peak_memory"] > 2**20


@pytest.mark.parametrize("label", ["original", "oracle"])
def test_the_rows_that_a_training_passed_forward_are_counted(label: str, trials: dict[str, Trial], workshop: Workshop) -> None:
    """One epoch: as many as there are training rows."""
    trial = next(trial for trial in trials.values() if trial.role == label)
    assert isinstance(trial.source, Trained)
    plan, _ = trial.source.population.runs[trial.source.index]
    assert workshop.cost(trial.source)["samples"] == len(trial.place.open().train_view(plan).data.train)


def test_a_method_that_trains_nothing_passes_no_row(trials: dict[str, Trial], workshop: Workshop) -> None:
    assert workshop.cost(trials["Counts/0"].source)["samples"] == 0


def test_evidence_is_kept_and_says_what_the_scenario_says(trials: dict[str, Trial], workshop: Workshop) -> None:
    trial = trials["oracle/1000"]
    needs = needs_of(trial)
    fresh = trial.place.open().evidence(workshop.model(trial.source), needs)
    first = workshop.evidence(trial.source, trial.place, needs)
    count = len(workshop.store.keys("evidence"))
    second = workshop.evidence(trial.source, trial.place, needs)
    assert len(workshop.store.keys("evidence")) == count
    for need in needs:
        assert np.array_equal(first.array(need), fresh.array(need))
        assert np.array_equal(second.array(need), fresh.array(need))


def test_an_attacker_sees_what_he_needs(trials: dict[str, Trial], workshop: Workshop) -> None:
    trial = trials["Counts/1"]
    view = workshop.attack_view(trial.place, trial.originals[1], frozenset({"original", "references", "retain"}), trial.oracles)
    assert model_hash(view.original) == model_hash(workshop.model(trials["original/1"].source))
    assert [model_hash(model) for model in view.references(1)] == [model_hash(workshop.model(trials["oracle/1000"].source))]
    assert set(view.parts) == {"original", "references", "retain"}
    with pytest.raises(TypeError, match="reads 'forget' but declares only"):
        _ = view.forget
    with pytest.raises(ValueError, match="digits has no secrets for an attack"):
        workshop.attack_view(trial.place, trial.originals[1], frozenset({"secrets"}), trial.oracles)


def test_randomness_is_the_seeds_and_comes_back() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = draw()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with own_randomness(5):
        inside = draw()
    assert draw() == expected
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with suppress(KeyError), own_randomness(5):
        raise KeyError
    assert draw() == expected
    with own_randomness(5):
        assert draw() == inside
    with own_randomness(6):
        assert not set(draw()) & set(inside)


def test_a_model_whose_artefact_is_gone_is_made_again(trials: dict[str, Trial], workshop: Workshop) -> None:
    before = model_hash(workshop.model(trials["Counts/0"].source))
    shutil.rmtree(workshop.store.root / "population")
    shutil.rmtree(workshop.store.root / "unlearned")
    assert model_hash(workshop.model(trials["Counts/0"].source)) == before


def test_a_place_is_opened_with_its_request(trials: dict[str, Trial]) -> None:
    place = trials["Counts/0"].place
    assert Place(scenario=place.scenario, request="class7").open().asked().name == "class7"
