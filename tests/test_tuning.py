"""Tuning: equal budgets, the validation request, the score by hand, and what is written."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from by_hand import ORACLES, anchors, beside, record

from unlearnbench import tuning
from unlearnbench.api import UserError
from unlearnbench.config import PluginSpec, Suite, expand, load_suite
from unlearnbench.records import Record, read_records
from unlearnbench.runner import RunSummary
from unlearnbench.tables import boards

SUITE = """\
suite: small
seeds: [0, 1]
oracles: 4
budget: 3
tracks:
  - scenario: authors
    requests: [forget10, forget05]
    methods:
      - {name: npo, grid: {lr: [1e-5, 1e-4, 1e-3], beta: [0.1, 0.2]}, epochs: 2}
      - {name: grad_diff, label: gd, grid: {lr: [1e-5, 1e-4, 1e-3]}}
      - {name: gradient_ascent, lr: 1e-3}
    attacks: [loss_attack, relearning]
    metrics: [probability, model_utility]
  - scenario: digits
    requests: [class3, random10]
    methods: [collapsed]
    metrics: [accuracy]
"""


def suite_of(folder: Path, text: str = SUITE) -> Suite:
    (folder / "suite.yaml").write_text(text)
    return load_suite(folder / "suite.yaml")


def test_every_method_gets_the_same_number_of_points_on_the_validation_request(tmp_path: Path) -> None:
    derived = tuning.validation_suite(suite_of(tmp_path))
    (track,) = derived.tracks  # the other has no grid
    assert derived.suite == "small-tune"
    assert (derived.seeds, derived.oracles) == ((0, 1), 4)
    assert track.requests == ("validation",)
    assert track.attacks == ()
    labels = [spec.label for spec in track.methods]
    assert len([label for label in labels if label.startswith("npo[")]) == 3
    assert labels[3:] == ["gd[lr=1e-05]", "gd[lr=0.0001]", "gd[lr=0.001]"]
    assert all(spec.fields["epochs"] == 2 for spec in track.methods[:3])


def test_a_sample_of_a_grid_is_fixed_in_order_and_stable_when_the_grid_grows() -> None:
    small = PluginSpec(name="npo", label="npo", grid={"lr": [1.0, 2.0, 3.0, 4.0]})
    large = PluginSpec(name="npo", label="other", grid={"lr": [1.0, 2.0, 3.0, 4.0, 5.0]})
    order = [point.label for point in expand(small)]
    kept = [point.label for point in tuning.sampled(small, 2)]
    assert kept == [point.label for point in tuning.sampled(small, 2)]
    assert kept == sorted(kept, key=order.index)
    before = {point.fields["lr"] for point in tuning.sampled(small, 2)}
    after = {point.fields["lr"] for point in tuning.sampled(large, 2)}
    assert len(before & after) >= 1
    chosen = {tuple(p.fields["lr"] for p in tuning.sampled(small.model_copy(update={"name": f"m{i}"}), 2)) for i in range(20)}
    assert len(chosen) > 1  # it is a draw, not always the first points
    assert [point.label for point in tuning.sampled(small, 4)] == order


def test_digits_are_tuned_on_one_validation_request_for_each_request(tmp_path: Path) -> None:
    text = SUITE.replace("methods: [collapsed]", "methods: [{name: finetune, grid: {lr: [1, 2, 3]}}]")
    assert tuning.validation_suite(suite_of(tmp_path, text)).tracks[1].requests == ("class4", "validation_random10")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("budget: 3", "budget: 8", r"the grid of npo has 6 configurations \(3 x 2\).*budget: 8; add at least 2 more, or lower the budget"),
        (
            "forget05",
            "validation",
            "authors/validation is the validation request of one of forget10, validation, and the suite asks for it",
        ),
        ("grid: {lr: [1e-5, 1e-4, 1e-3]}", "lr: 1e-3", None),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_written(
    old: str, new: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SUITE.replace(old, new)
    if message is None:
        text = text.replace("grid: {lr: [1e-5, 1e-4, 1e-3], beta: [0.1, 0.2]}", "lr: 1e-3")
        message = "no method of small has a grid"
    monkeypatch.setattr(tuning, "run_suite", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(UserError, match=message):
        tuning.tune_suite(suite_of(tmp_path, text), store="store", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_tracks_cannot_be_tuned_on_one_request(tmp_path: Path) -> None:
    track = "  - scenario: authors\n    requests: [forget01]\n    methods: [{name: npo, grid: {lr: [1, 2, 3]}}]\n    metrics: [rouge]\n"
    with pytest.raises(UserError, match="tracks 0 and 2 are both tuned on authors/validation"):
        tuning.validation_suite(suite_of(tmp_path, SUITE + track))


# ------------------------------------------------------------------------------------------------------------------------ the score


def judged(values: dict[str, Any], signal: bool = True) -> dict[str, Any]:
    full = {"probability": 1.0, "rouge": 1.0, "blunt": 0.5, "relearning:rouge": 1.0, "model_utility": 0.8}
    oracles = [{**full, "probability": v, "rouge": v, "blunt": v, "relearning:rouge": v} for v in ORACLES]
    npo = record("npo", 0, {"blunt": 0.5, "relearning:rouge": 0.2, **values}, signal=signal)
    (board,) = boards(beside(anchors([{**full, "blunt": 0.2}] * 2, oracles, signal=signal), npo))
    return tuning.judged(board, board.rows[-1])


def test_the_score_is_the_mean_distance_and_the_utility_lost() -> None:
    # Anchored: (0.6 - 0.2) / 0.8 = 0.5 and (0.0 - 0.2) / 0.8 = -0.25; relearning's 0.2 is 0.
    found = judged({"probability": 0.6, "rouge": 0.0, "model_utility": 0.6})
    assert found["anchored"] == pytest.approx({"probability": 0.5, "rouge": -0.25, "relearning:rouge": 0.0})
    assert found["distance"] == pytest.approx((0.5 + 0.25 + 0.0) / 3)
    assert found["lost"] == pytest.approx(0.25)
    assert found["score"] == pytest.approx(0.5)
    assert found["reason"] is None


def test_a_distance_is_clipped_and_more_utility_is_no_gain() -> None:
    found = judged({"probability": 2.0, "rouge": 0.2, "model_utility": 1.0})
    assert found["distance"] == pytest.approx(1 / 3)
    assert found["lost"] == 0.0


def test_without_a_signal_utility_alone_decides() -> None:
    found = judged({"probability": 0.9, "rouge": 0.2, "model_utility": 0.4}, signal=False)
    assert (found["distance"], found["anchored"]) == (0.0, {})
    assert found["score"] == pytest.approx(0.5)


def test_a_missing_value_leaves_no_score() -> None:
    found = judged({"probability": "failed: NaN", "rouge": 0.2, "model_utility": 0.8})
    assert (found["score"], found["reason"]) == (None, "failed: NaN")


# ---------------------------------------------------------------------------------------------------------------- from run to file


@pytest.fixture
def fake_run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[PluginSpec, int], dict[str, Any] | None]], list[Suite]]:
    """Stands in for the runner: records whose values are a function of the configuration and seed; None is a failed trial."""

    def install(values: Callable[[PluginSpec, int], dict[str, Any] | None]) -> list[Suite]:
        seen: list[Suite] = []

        def run_suite(suite: Suite, *, out: Path, on_record: Callable[[Record, int, int], None], **options: Any) -> RunSummary:
            seen.append(suite)
            (track,) = suite.tracks
            place = {"suite": suite.suite, "request": track.requests[0]}
            made = []
            for spec in track.methods:
                for seed in suite.seeds:
                    given = values(spec, seed)
                    broken = {"status": "failed", "reason": "loss is NaN"} if given is None else {}
                    made.append(record(spec.label, seed, given, **place, **broken))
            every = beside(anchors(**place), *made)
            for count, item in enumerate(every):
                on_record(item, count + 1, len(every))
            out.mkdir(parents=True, exist_ok=True)
            failed = sum(item.status == "failed" for item in every)
            return RunSummary(done=len(every) - failed, skipped=0, failed=failed, folder=out)

        monkeypatch.setattr(tuning, "run_suite", run_suite)
        return seen

    return install


def by_rate(spec: PluginSpec, seed: int) -> dict[str, Any] | None:
    """The middle learning rate is best: the lowest forgets nothing, the highest breaks the model."""
    forgotten, kept = {1e-5: (0.9, 1.0), 1e-4: (0.2, 0.9), 1e-3: (0.2, 0.3)}[spec.fields["lr"]]
    return {"probability": forgotten, "model_utility": kept + 0.01 * seed}


def test_the_best_configuration_is_chosen_and_the_tuned_suite_loads(tmp_path: Path, fake_run: Any) -> None:
    suite = suite_of(tmp_path, SUITE.replace(", beta: [0.1, 0.2]", ""))
    seen, told = fake_run(by_rate), []
    summary = tuning.tune_suite(suite, store="store", out=tmp_path / "out", on_record=lambda item, *_: told.append(item.trial.label))
    assert seen[0].tracks[0].requests == ("validation",)
    assert (summary.done, summary.failed) == (6 + 12, 0)
    assert len(told) == 18
    report = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert (report["suite"], report["budget"], report["rule"]) == ("small", 3, tuning.RULE)
    npo = report["methods"][0]
    assert (npo["label"], npo["chosen"], npo["error"], npo["requests"]) == ("npo", "npo[lr=0.0001]", None, ["validation"])
    assert [entry["fields"] for entry in npo["configurations"]] == [{"lr": 1e-5}, {"lr": 1e-4}, {"lr": 1e-3}]
    # 0.9 is at (0.9 - 0.2) / 0.8 between the anchors; utility is the mean over two seeds.
    assert [entry["score"] for entry in npo["configurations"]] == pytest.approx([0.875, 0.095, 0.695])
    tuned = load_suite(tmp_path / "out" / "tuned.yaml")
    methods = tuned.tracks[0].methods
    assert [(spec.label, spec.fields["lr"], spec.grid) for spec in methods] == [
        ("npo", 1e-4, {}),
        ("gd", 1e-4, {}),
        ("gradient_ascent", 1e-3, {}),
    ]
    assert methods[0].fields["epochs"] == 2
    assert tuned.tracks[0].attacks == suite.tracks[0].attacks
    assert tuned.tracks[1] == suite.tracks[1]
    assert (tuned.suite, tuned.seeds, tuned.tracks[0].requests) == ("small", (0, 1), ("forget10", "forget05"))


def test_among_equals_the_first_of_the_grid_is_chosen(tmp_path: Path, fake_run: Any) -> None:
    fake_run(lambda spec, seed: {"probability": 0.5, "model_utility": 1.0})
    tuning.tune_suite(suite_of(tmp_path), store="store", out=tmp_path / "out")
    entry = json.loads((tmp_path / "out" / "tuning.json").read_text())["methods"][1]
    assert entry["chosen"] == "gd[lr=1e-05]"


def test_a_method_that_never_succeeds_is_said_and_left_out(tmp_path: Path, fake_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    # One failed seed is enough to leave a configuration without a score.
    fake_run(lambda spec, seed: None if spec.name == "npo" and seed == 1 else {"probability": 0.5, "model_utility": 1.0})
    with caplog.at_level(logging.WARNING):
        summary = tuning.tune_suite(suite_of(tmp_path), store="store", out=tmp_path / "out")
    assert summary.failed == 3
    npo, gd = json.loads((tmp_path / "out" / "tuning.json").read_text())["methods"]
    assert npo["chosen"] is None
    assert npo["error"].startswith("none of 3 configurations has a score, so it is left out of tuned.yaml: 1 of 2 seeds missing")
    assert all(entry["score"] is None and "loss is NaN" in entry["reason"] for entry in npo["configurations"])
    assert gd["chosen"] is not None
    assert "npo on authors: none of 3 configurations" in caplog.text
    assert [spec.label for spec in load_suite(tmp_path / "out" / "tuned.yaml").tracks[0].methods] == ["gd", "gradient_ascent"]


def test_nothing_to_choose_writes_no_suite(tmp_path: Path, fake_run: Any) -> None:
    fake_run(lambda spec, seed: None)
    text = SUITE[: SUITE.index("  - scenario: digits")].replace("      - {name: gradient_ascent, lr: 1e-3}\n", "")
    tuning.tune_suite(suite_of(tmp_path, text), store="store", out=tmp_path / "out")
    assert (tmp_path / "out" / "tuning.json").is_file()
    assert not (tmp_path / "out" / "tuned.yaml").exists()


def test_plugin_files_are_found_from_the_tuned_suite(tmp_path: Path, fake_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(__file__).parent.parent / "methods" / "npo.py"
    (tmp_path / "mine.py").write_text(source.read_text())
    monkeypatch.chdir(tmp_path)
    fake_run(lambda spec, seed: {"probability": 0.5, "model_utility": 1.0})
    suite = suite_of(tmp_path, SUITE.replace("name: npo", 'name: "mine.py:NPO"'))
    tuning.tune_suite(suite, store="store", out=tmp_path / "deep" / "out")
    tuned = load_suite(tmp_path / "deep" / "out" / "tuned.yaml")
    assert tuned.tracks[0].methods[0].name == suite.tracks[0].methods[0].name == "mine.py:NPO"


REAL = """\
suite: real
seeds: [0]
oracles: 2
budget: 2
tracks:
  - scenario: {name: digits, epochs: 2}
    requests: [mislabelled]
    methods: [{name: gradient_ascent, grid: {lr: [1e-3, 1e-1, 1e-2]}, epochs: 1}]
    attacks: [relearning]
    metrics: [accuracy, {name: accuracy, label: test_accuracy, split: test}]
"""


@pytest.mark.slow
def test_tuning_runs_is_resumed_and_reads_no_leaderboard_request(tmp_path: Path) -> None:
    suite, out = suite_of(tmp_path, REAL), tmp_path / "out"
    summary = tuning.tune_suite(suite, store=str(tmp_path / "store"), out=out)
    assert (summary.done, summary.failed) == (5, 0)
    found = read_records(out)
    assert {item.trial.request for item in found} == {"validation_mislabelled"}
    assert {cell.attack for item in found for cell in item.cells} == {None}
    before = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
    (out / "tuning.json").unlink()
    tuning.tune_suite(suite, store=str(tmp_path / "store"), out=out)
    assert {path.name: path.read_bytes() for path in sorted(out.iterdir())} == before
    assert load_suite(out / "tuned.yaml").tracks[0].methods[0].fields["lr"] in (1e-3, 1e-2, 1e-1)
