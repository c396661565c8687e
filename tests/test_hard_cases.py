"""The hard cases of the contracts, each as a small plugin in a whole run: planned, stored, attacked, scored and recorded."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from unlearnbench import registry
from unlearnbench.artefacts import Workshop
from unlearnbench.config import Suite, load_suite
from unlearnbench.contracts import tiny_language
from unlearnbench.deployed import load_model, save_model
from unlearnbench.layers import inserted, model_hash
from unlearnbench.planning import trials_of
from unlearnbench.records import Cell, Record, read_record
from unlearnbench.runner import RunSummary, run_suite
from unlearnbench.store import Store
from unlearnbench.tables import Board, boards
from unlearnbench.testing import check_plugin
from unlearnbench.trial import Settings, Unlearned

CASES = Path(__file__).parent / "fixtures" / "hard_cases.py"
STAGED = CASES.with_name("staged_scenario.py")
TINY = tiny_language.__file__
KEPT = f"{{name: '{CASES}:Likelihood', label: kept, split: retain}}"


def case(name: str) -> str:
    return f"'{CASES}:{name}'"


def metric(name: str = "Likelihood", label: str = "likelihood") -> str:
    return f"{{name: {case(name)}, label: {label}}}"


def suite_of(folder: Path, *, methods: str, scenario: str = f"{TINY}:TinyLanguage", request: str = "authors", **lists: str) -> Suite:
    path = folder / "suite.yaml"
    metrics = lists.get("metrics", f"{metric()}, {KEPT}")
    path.write_text(
        f"suite: hard\nseeds: [0]\noracles: 2\ntracks:\n"
        f"  - scenario: {{name: '{scenario}', label: tiny}}\n    requests: [{request}]\n    methods: [{methods}]\n"
        f"    attacks: [{lists.get('attacks', '')}]\n    metrics: [{metrics}]\n"
    )
    return load_suite(path)


class Ran:
    """A suite that was run, its records by label, seed and step, and its models."""

    def __init__(self, suite: Suite, folder: Path, store: Path) -> None:
        self.suite, self.store = suite, store
        self.summary: RunSummary = run_suite(suite, store=str(store), out=folder / "out")
        names = json.loads((folder / "out" / "suite.json").read_text())["records"]
        self.records = [read_record(folder / "out" / name) for name in names]

    def of(self, label: str, *, seed: int | None = None, step: int = 0) -> Record:
        found = [r for r in self.records if r.trial.label == label and r.trial.step == step and seed in (None, r.trial.seed)]
        return sorted(found, key=lambda record: record.trial.seed)[0]

    def model(self, label: str, step: int = 0) -> torch.nn.Module:
        trials, _ = trials_of(self.suite)
        source = next(t.source for t in trials if t.method.label == label and t.place.step == step)
        return Workshop(Store(str(self.store)), Settings()).model(source)

    @property
    def board(self) -> Board:
        (board,) = boards(self.records)
        return board


def cell(record: Record, label: str = "likelihood", attack: str | None = None, step: int | None = None) -> Cell:
    (found,) = [c for c in record.cells if (c.metric, c.attack) == (label, attack) and (step is None or c.step == step)]
    return found


def value(record: Record, label: str = "likelihood", attack: str | None = None, step: int | None = None) -> float:
    found = cell(record, label, attack, step)
    assert found.value is not None, found.reason
    return found.value


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all suites of this file, which share their originals and oracles."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Ran:
    """One run with most of the cases in it."""
    folder = tmp_path_factory.mktemp("language")
    methods = ("SteerNames", "SteeredAdapter", "OnlyImages", "MeanOfOracles", "FirstOracle", "Diverges")
    attacks = ("WeightNoise", "TurnedNames", "Strips", "Ablates", "ReadsUndeclared", "KnownElsewhere", "KnownHere")
    suite = suite_of(
        folder,
        methods=", ".join(map(case, methods)),
        attacks="{name: relearning, steps: [0, 8], lr: 0.01}, " + ", ".join(map(case, attacks)),
        metrics=f"{metric()}, {KEPT}, {metric('AblatedLikelihood', 'ablated')}, {metric('Raises', 'raises')}",
    )
    return Ran(suite, folder, store)


# ------------------------------------------------------------------------------------------------------------- steering wrappers


def test_steering_on_the_prompt_acts_on_named_rows_alone_and_is_attacked_as_deployed(ran: Ran) -> None:
    steered, original = ran.of("SteerNames"), ran.of("original")
    assert value(original) > 0.5
    assert value(steered) < 0.5 * value(original)
    assert value(steered, "kept") == value(original, "kept")
    # The attack starts from the steered model as it was saved, on half of the rows, and gets something back.
    assert cell(steered, attack="relearning", step=0).n == cell(steered).n // 2
    assert value(steered, attack="relearning", step=0) < 0.5 * value(original, attack="relearning", step=0)
    assert value(steered, attack="relearning", step=8) > value(steered, attack="relearning", step=0)


def test_stripped_a_method_without_weight_edits_is_the_original_to_the_bit(ran: Ran) -> None:
    for label in ("SteerNames", "SteeredAdapter"):
        stripped = cell(ran.of(label), attack="Strips")
        assert stripped == cell(ran.of("original"), attack="Strips")
        assert stripped.level == "T5"
        assert stripped.value != value(ran.of(label))


def test_an_adapter_around_a_steered_model_is_saved_and_loaded_with_it(ran: Ran) -> None:
    model = ran.model("SteeredAdapter")
    assert [type(module).__name__ for _, module in inserted(model)] == ["Steer"]
    assert model_hash(model) == ran.of("SteeredAdapter").provenance["model"]
    assert value(ran.of("SteeredAdapter"), "kept") != value(ran.of("original"), "kept")  # the adapter acts on every row


def test_a_wrapper_survives_deepcopy_lora_and_a_fresh_process(ran: Ran, tmp_path: Path) -> None:
    scenario = registry.make("scenarios", f"{TINY}:TinyLanguage", {"request": "authors"})
    probe = sys.modules[registry.load("methods", f"{CASES}:SteerNames").__module__].probe
    steered: Any = ran.model("SteerNames")
    plain = probe(steered, scenario)
    around: Any = get_peft_model(copy.deepcopy(steered), LoraConfig(r=2, target_modules=["q_proj"])).eval()
    assert torch.equal(probe(around, scenario), plain)  # an untrained adapter changes nothing, and the wrapper works inside it
    with torch.no_grad():
        for name, parameter in around.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.2)
    assert not torch.equal(probe(around, scenario), plain)
    expected = {"steered": plain, "around": probe(around, scenario)}
    for name, model in (("steered", steered), ("around", around)):
        clone = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert torch.equal(probe(clone, scenario), expected[name])
        (tmp_path / name).mkdir()
        save_model(clone, tmp_path / name)
    script = f"""
import sys, torch
from pathlib import Path
from unlearnbench import registry
from unlearnbench.deployed import load_model
torch.set_num_threads(1)
method = registry.make("methods", {f"{CASES}:SteerNames"!r}, {{}})
scenario = registry.make("scenarios", {f"{TINY}:TinyLanguage"!r}, {{"request": "authors"}})
probe = sys.modules[type(method).__module__].probe
for name in ("steered", "around"):
    folder = Path({str(tmp_path)!r}) / name
    torch.save(probe(load_model(folder, lambda: scenario.build(5), method.inserts), scenario), folder / "outputs.pt")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    for name, outputs in expected.items():
        assert torch.equal(torch.load(tmp_path / name / "outputs.pt", weights_only=True), outputs)


def test_several_adapters_and_adapters_of_other_weights_are_refused(ran: Ran, tmp_path: Path) -> None:
    model: Any = get_peft_model(ran.model("original"), LoraConfig(r=2, target_modules=["q_proj"]))
    save_model(model, tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    scenario = registry.make("scenarios", f"{TINY}:TinyLanguage", {"request": "authors"})
    with pytest.raises(ValueError, match="do not fit"):
        load_model(tmp_path, lambda: scenario.build(0))
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="adapters \\['default', 'second'\\]"):
        save_model(model, tmp_path)


# ----------------------------------------------------------------------------------------------------------- other kinds of method


def test_a_native_method_is_judged_beside_anchors_that_it_trained(tmp_path: Path, store: Path) -> None:
    ran = Ran(suite_of(tmp_path, methods=case("Native")), tmp_path, store)
    native, own = ran.of("Native"), {role: ran.of(f"Native-{role}") for role in ("original", "oracle")}
    assert own["original"].trial.native == own["oracle"].trial.native == "Native"
    assert native.anchors["original"] == (own["original"].key,)
    assert own["oracle"].key in native.anchors["oracle"]
    assert not set(native.anchors["oracle"]) & set(ran.of("original").anchors["oracle"])
    assert [type(module).__name__ for _, module in inserted(ran.model("Native-oracle"))] == ["Scale"]
    assert inserted(ran.model("oracle")) == []
    assert value(own["original"]) > value(own["oracle"])
    # The gap on the board is the one to its own oracles.
    rows = {row.label: row for row in ran.board.rows}
    oracles = [value(ran.of("Native-oracle", seed=seed)) for seed in (1000, 1001)]
    assert rows["Native"].scores["likelihood", None].gap == pytest.approx(value(native) - sum(oracles) / 2)


def test_state_is_carried_over_a_sequence_of_requests(tmp_path: Path, store: Path) -> None:
    ran = Ran(suite_of(tmp_path, methods=case("Accumulates"), request="sequence"), tmp_path, store)
    scenario = registry.make("scenarios", f"{TINY}:TinyLanguage", {"request": "sequence"})
    for step in range(3):
        ((_, memory),) = inserted(ran.model("Accumulates", step))
        assert set(memory.names) == scenario.at(step).forget_rows()
        assert memory.rows.shape == (2 * (step + 1), 1)
        assert cell(ran.of("Accumulates", step=step)).n == 4 * (step + 1)
    oracles = {ran.of("oracle", step=step).provenance["model"] for step in range(3)}
    assert len(oracles) == 3
    assert len({ran.of("original", step=step).provenance["model"] for step in range(3)}) == 1
    assert [board.step for board in boards(ran.records)] == [0, 1, 2]


def test_a_method_is_given_what_it_returned_for_the_request_before(tmp_path: Path) -> None:
    trials, _ = trials_of(suite_of(tmp_path, methods=case("Accumulates"), request="sequence"))
    sources = [trial.source for trial in trials if trial.method.label == "Accumulates"]
    before = [source.before for source in sources if isinstance(source, Unlearned)]
    assert [type(source).__name__ for source in before] == ["Trained", "Unlearned", "Unlearned"]
    assert [source.place.step for source in before[1:] if isinstance(source, Unlearned)] == [0, 1]


def test_a_method_that_cannot_serve_says_why(ran: Ran) -> None:
    record = ran.of("OnlyImages")
    assert (record.status, record.reason, record.cells) == ("skipped", "needs pixels to blur", ())
    (row,) = [row for row in ran.board.rows if row.label == "OnlyImages"]
    assert "needs pixels to blur" in str(row.scores["likelihood", None].reason)


def test_reference_rows_take_the_auditors_view_and_are_never_ranked(ran: Ran) -> None:
    first, oracle = ran.of("FirstOracle"), ran.of("oracle", seed=1000)
    assert first.provenance["model"] == oracle.provenance["model"]
    assert value(first) == value(oracle)
    states = [ran.model("MeanOfOracles").state_dict(), *(load_oracle(ran, seed) for seed in (1000, 1001))]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, (states[1][name] + states[2][name]) / 2)
    rows = {row.label: row for row in ran.board.rows}
    assert [(rows[label].role, rows[label].rank) for label in ("MeanOfOracles", "FirstOracle")] == [("reference", None)] * 2


def load_oracle(ran: Ran, seed: int) -> dict[str, torch.Tensor]:
    trials, _ = trials_of(ran.suite)
    source = next(trial.source for trial in trials if trial.role == "oracle" and trial.seed == seed)
    return Workshop(Store(str(ran.store)), Settings()).model(source).state_dict()


# ----------------------------------------------------------------------------------------------------------------------- attacks


def test_an_attack_on_weights_changes_the_values_and_starts_from_none(ran: Ran) -> None:
    for label in ("original", "SteerNames"):
        record = ran.of(label)
        assert value(record, attack="WeightNoise", step=0) == value(record)
        assert value(record, attack="WeightNoise", step=1) != value(record)


def test_an_attack_on_inputs_evades_a_filter_of_names(ran: Ran) -> None:
    steered, original = ran.of("SteerNames"), ran.of("original")
    assert value(steered, attack="TurnedNames", step=0) == value(steered)
    assert value(steered, attack="TurnedNames", step=1) == value(original, attack="TurnedNames", step=1)
    assert value(original, attack="TurnedNames", step=1) != value(original)


def test_members_of_a_bank_unlearned_elsewhere_know_the_forget_set(ran: Ran) -> None:
    for label in ("original", "oracle", "SteerNames"):
        assert value(ran.of(label), "KnownElsewhere") > 0.9
    assert value(ran.of("original"), "KnownHere") > 0.9  # what unlearning gives is, for an anchor, the anchor
    assert value(ran.of("SteerNames"), "KnownHere") < 0.6
    assert value(ran.of("oracle"), "KnownHere") < 0.9


def test_an_intervention_is_read_beside_the_plain_pass(ran: Ran, tmp_path: Path, store: Path) -> None:
    for label in ("original", "SteerNames"):
        record = ran.of(label)
        assert value(record, "ablated") != value(record)
        # As an attack's last stage the same intervention gives the same number.
        assert value(record, attack="Ablates", step=1) == value(record, "ablated")
        assert value(record, attack="Ablates", step=0) == value(record)
    alone = Ran(suite_of(tmp_path, methods=case("SteerNames"), metrics=metric()), tmp_path, store)
    assert value(alone.of("SteerNames")) == value(ran.of("SteerNames"))


# ---------------------------------------------------------------------------------------------------------------------- failures


def test_what_fails_is_recorded_with_its_reason_and_leaves_the_others(ran: Ran) -> None:
    record = ran.of("SteerNames")
    assert record.status == "done"
    raises = cell(record, "raises")
    assert (raises.status, raises.value, raises.reason) == ("failed", None, "ZeroDivisionError: no rows of this kind")
    peeks = cell(record, attack="ReadsUndeclared")
    assert (peeks.status, peeks.final) == ("failed", True)
    assert str(peeks.reason).startswith("Undeclared: this attack reads 'original'")
    failed = {(c.metric, c.attack) for c in record.cells if c.status == "failed"}
    assert failed == {("raises", None), ("likelihood", "ReadsUndeclared")}


def test_a_method_that_diverges_fails_alone(ran: Ran) -> None:
    record = ran.of("Diverges")
    assert record.status == "failed"
    assert "FloatingPointError: Diverges left model.embed_tokens.weight with NaN or infinite values" in str(record.reason)
    # Each trial has failed cells in this suite; only one has failed as a whole, only one is skipped.
    assert (ran.summary.done, ran.summary.skipped, ran.summary.failed) == (0, 1, len(ran.records) - 1)
    assert [r.trial.label for r in ran.records if r.status == "failed"] == ["Diverges"]


# --------------------------------------------------------------------------------------------------------------------- scenarios


def test_the_oracle_of_a_staged_scenario_is_an_earlier_stage(tmp_path: Path, store: Path) -> None:
    ran = Ran(suite_of(tmp_path, methods="finetune", scenario=f"{STAGED}:Staged"), tmp_path, store)
    original, oracle = ran.of("original"), ran.of("oracle")
    assert value(original) > 0.5 > value(oracle)  # of the corrupted answers
    scenario = registry.make("scenarios", f"{STAGED}:Staged", {"request": "authors"})
    assert scenario.plan("oracle").role == "clean"
    (clean,) = scenario.train([scenario.plan("oracle")], [1000])
    assert model_hash(clean) == ran.of("oracle", seed=1000).provenance["model"]


# ------------------------------------------------------------------------------------------------------------------------- alone


@pytest.mark.parametrize("cls", ["SteerNames", "SteeredAdapter", "Native", "Accumulates", "OnlyImages", "MeanOfOracles", "FirstOracle"])
def test_the_methods_of_the_hard_cases_keep_the_contract(cls: str) -> None:
    assert [result for result in check_plugin("methods", f"{CASES}:{cls}") if not result.passed] == []


@pytest.mark.parametrize("cls", ["WeightNoise", "TurnedNames", "Strips", "Ablates", "KnownElsewhere", "KnownHere"])
def test_the_attacks_of_the_hard_cases_keep_the_contract(cls: str) -> None:
    assert [result for result in check_plugin("attacks", f"{CASES}:{cls}") if not result.passed] == []


@pytest.mark.parametrize("cls", ["Likelihood", "AblatedLikelihood"])
def test_the_metrics_of_the_hard_cases_keep_the_contract(cls: str) -> None:
    assert [result for result in check_plugin("metrics", f"{CASES}:{cls}") if not result.passed] == []
