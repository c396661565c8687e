"""From suites to trials: counts, anchors, seeds, grids, sequences, natives, banks, and what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from unlearnbench.config import Suite, load_suite
from unlearnbench.contracts import tiny_vision
from unlearnbench.planning import BANK_SEED, ORACLE_SEED, trials_of
from unlearnbench.trial import Settings, Source, Trained, Trial, Unlearned, population_key, source_key

PLUGINS = Path(__file__).parent / "fixtures" / "runner_plugins.py"
TINY = f'"{tiny_vision.__file__}:TinyVision"'
SETTINGS = Settings()


def suite_of(folder: Path, *, requests: str = "class0", methods: str = "collapsed", metrics: str = "accuracy", attacks: str = "") -> Suite:
    (folder / "suite.yaml").write_text(f"""\
suite: small
seeds: [3, 5]
oracles: 3
tracks:
  - scenario: {{name: {TINY}, label: tiny}}
    requests: [{requests}]
    methods: [{methods}]
    attacks: [{attacks}]
    metrics: [{metrics}]
""")
    return load_suite(folder / "suite.yaml")


def planned(folder: Path, **parts: str) -> list[Trial]:
    trials, skipped = trials_of(suite_of(folder, **parts))
    assert skipped == []
    return trials


def rows(trials: list[Trial]) -> list[tuple[str, str, int]]:
    return [(trial.role, trial.method.label, trial.seed) for trial in trials]


def plans(sources: Sequence[Source | tuple[str, Source]]) -> list[tuple[str, frozenset[str], int]]:
    """Role, rows left out and seed of each trained model, or member of a bank."""
    found = []
    for source in (item[1] if isinstance(item, tuple) else item for item in sources):
        assert isinstance(source, Trained)
        plan, seed = source.population.runs[source.index]
        assert seed == source.seed
        found.append((plan.role, plan.rows, seed))
    return found


def chain(source: Source) -> list[Source]:
    """The model and those it was made from."""
    return [source] if isinstance(source, Trained) else [source, *chain(source.before)]


def test_each_request_has_its_anchors_and_a_trial_for_each_method_and_seed(tmp_path: Path) -> None:
    trials = planned(tmp_path, requests="class0, class1", methods="collapsed, finetune")
    anchors = [("original", "original", 3), ("original", "original", 5)]
    anchors += [("oracle", "oracle", ORACLE_SEED + index) for index in range(3)]
    methods = [("sanity", "collapsed", 3), ("sanity", "collapsed", 5), ("method", "finetune", 3), ("method", "finetune", 5)]
    assert rows(trials) == 2 * (anchors + methods)
    assert [trial.place.request for trial in trials] == 9 * ["class0"] + 9 * ["class1"]
    for trial in trials:
        forget = trial.place.open().forget_rows()
        assert forget
        assert plans(trial.originals) == [("original", frozenset(), 3), ("original", frozenset(), 5)]
        assert plans(trial.oracles) == [("oracle", forget, ORACLE_SEED + index) for index in range(3)]
        if isinstance(trial.source, Unlearned):
            assert (trial.source.seed, trial.source.before) in [(original.seed, original) for original in trial.originals]
        else:
            assert trial.source in (*trial.originals, *trial.oracles)


def test_a_grid_is_one_row_for_each_point(tmp_path: Path) -> None:
    trials = planned(tmp_path, methods="{name: finetune, grid: {lr: [0.1, 0.2], epochs: [1, 2]}}")
    labels = Counter(trial.method.label for trial in trials if trial.role == "method")
    assert labels == {f"finetune[lr={lr},epochs={epochs}]": 2 for lr in (0.1, 0.2) for epochs in (1, 2)}
    keys = {source_key(trial.source, SETTINGS) for trial in trials if trial.role == "method"}
    assert len(keys) == 8


def test_in_a_sequence_each_step_goes_on_from_the_one_before(tmp_path: Path) -> None:
    trials = [trial for trial in planned(tmp_path, requests="sequence") if trial.seed in (3, ORACLE_SEED)]
    assert [(trial.place.step, trial.role) for trial in trials] == [
        (step, role) for step in range(3) for role in ("original", "oracle", "sanity")
    ]
    originals, oracles, models = trials[0::3], trials[1::3], trials[2::3]
    assert len({source_key(trial.source, SETTINGS) for trial in originals}) == 1
    assert len({source_key(trial.source, SETTINGS) for trial in oracles}) == 3
    gone = [trial.place.open().forget_rows() for trial in oracles]
    assert gone[0] < gone[1] < gone[2]
    for step, trial in enumerate(models):
        *steps, start = chain(trial.source)
        assert [(model.place.step, model.seed) for model in steps if isinstance(model, Unlearned)] == [(n, 3) for n in range(step, -1, -1)]
        assert source_key(start, SETTINGS) == source_key(originals[0].source, SETTINGS)
        if step:
            assert source_key(steps[1], SETTINGS) == source_key(models[step - 1].source, SETTINGS)


def test_a_native_method_has_anchors_of_its_own(tmp_path: Path) -> None:
    trials = planned(tmp_path, methods=f'collapsed, {{name: "{PLUGINS}:Untrained", label: own}}')
    assert rows(trials)[7:12] == [
        (role, f"own-{role}", seed) for role, seed in [("original", 3), ("original", 5)] + [("oracle", 1000 + i) for i in range(3)]
    ]
    assert rows(trials)[12:] == [("method", "own", 3), ("method", "own", 5)]
    for trial in trials:
        mine = trial.method.label.startswith("own")
        assert trial.native == (None if trial.role in ("method", "sanity") or not mine else "own")
        for model in (*trial.originals, *trial.oracles):
            assert (model.population.native is not None) is mine
            assert population_key(model.population, SETTINGS)
        assert all((model.population.native is not None) is mine for model in chain(trial.source) if isinstance(model, Trained))
    standard, own = trials[0].originals[0], trials[-1].originals[0]
    assert population_key(standard.population, SETTINGS) != population_key(own.population, SETTINGS)


def test_what_cannot_serve_is_left_out_with_its_reason(tmp_path: Path) -> None:
    trials, skipped = trials_of(suite_of(tmp_path, requests="class0, class1", methods=f'collapsed, "{PLUGINS}:Talker"'))
    assert Counter(trial.method.label for trial in trials) == {"original": 4, "oracle": 6, "collapsed": 4}
    assert [(skip.method.label, skip.place.request, skip.reason) for skip in skipped] == [
        ("Talker", request, "works on language, not on vision") for request in ("class0", "class1")
    ]


BANKED = '{{name: "{plugins}:Banked", label: {role}, role: {role}}}'


def test_banks_hold_what_their_role_says(tmp_path: Path) -> None:
    roles = ("original", "oracle", "unlearned", "unlearned_elsewhere", "oracle_unlearned_elsewhere")
    metrics = ", ".join(BANKED.format(plugins=PLUGINS, role=role) for role in roles)
    trials = planned(tmp_path, requests="mislabelled", methods="finetune", metrics=metrics)
    original, oracle, method = trials[0], trials[2], trials[-1]
    assert (original.role, oracle.role, method.role) == ("original", "oracle", "method")
    forget = method.place.open().forget_rows()
    originals = [("original", frozenset(), BANK_SEED), ("original", frozenset(), BANK_SEED + 1)]
    oracles = [("oracle", forget, BANK_SEED), ("oracle", forget, BANK_SEED + 1)]
    for trial in trials:
        assert tuple(trial.banks) == roles
        assert all({role for role, _ in members} == {name} for name, members in trial.banks.items())
        assert plans(trial.banks["original"]) == originals
        assert plans(trial.banks["oracle"]) == oracles
    # What unlearning would give of an anchor is the anchor itself.
    assert plans(original.banks["unlearned"]) == originals
    assert plans(oracle.banks["unlearned"]) == [("oracle", forget, BANK_SEED + 2), ("oracle", forget, BANK_SEED + 3)]
    assert plans(original.banks["unlearned_elsewhere"]) == originals
    assert plans(original.banks["oracle_unlearned_elsewhere"]) == oracles
    for role, before in (("unlearned", originals), ("unlearned_elsewhere", originals), ("oracle_unlearned_elsewhere", oracles)):
        for number, (_, member) in enumerate(method.banks[role]):
            assert isinstance(member, Unlearned)
            assert (member.method, member.seed) == (method.method, BANK_SEED + number)
            assert plans([member.before]) == [before[number]]
            assert member.unseen == (method.place if role == "oracle_unlearned_elsewhere" else None)
    assert [member.place for _, member in method.banks["unlearned"] if isinstance(member, Unlearned)] == [method.place] * 2
    elsewhere = [member.place.open().forget_rows() for _, member in method.banks["unlearned_elsewhere"] if isinstance(member, Unlearned)]
    assert elsewhere == [rows for _, rows, _ in plans(oracle.banks["unlearned_elsewhere"])]
    never = plans(oracle.banks["oracle_unlearned_elsewhere"])
    assert [rows for _, rows, _ in never] == [rows | forget for rows in elsewhere]
    assert elsewhere[0] != elsewhere[1]
    for rows_ in elsewhere:
        assert len(rows_) == len(forget)
        assert not rows_ & forget


def test_a_bank_of_a_sequence_serves_as_many_requests(tmp_path: Path) -> None:
    trials = planned(tmp_path, requests="sequence", metrics=BANKED.format(plugins=PLUGINS, role="unlearned_elsewhere"))
    last = trials[-1]
    for _, member in last.banks["unlearned_elsewhere"]:
        *steps, _ = chain(member)
        assert [model.place.step for model in steps if isinstance(model, Unlearned)] == [2, 1, 0]
        for model in steps:
            assert isinstance(model, Unlearned)
            assert not model.place.open().forget_rows() & last.place.open().forget_rows()


@pytest.mark.parametrize("together", [1, 2, 50])
def test_populations_are_as_large_as_the_scenario_trains_together(tmp_path: Path, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = suite_of(tmp_path)
    cls = type(suite.tracks[0].asked("class0"))
    monkeypatch.setattr(cls, "trained_together", together)
    trials, _ = trials_of(suite)
    oracles = trials[0].oracles
    sizes = [len(population.runs) for population in dict.fromkeys(model.population for model in oracles)]
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 50: [3]}[together]
    assert [model.seed for model in oracles] == [ORACLE_SEED + index for index in range(3)]
