"""`unlearnbench evaluate` by our own metrics: a checkpoint scored as the trial of a scenario, with a record and a table.

The checkpoint stands where a suite's original stands, an oracle that is given beside it. The file knows which metrics and attacks are
taken; nothing of formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unlearnbench import registry
from unlearnbench.api import InferenceAttack, Plugin, Scenario, UserError
from unlearnbench.artefacts import Workshop, own_randomness, peak_memory
from unlearnbench.checkpoints import load_tokenizer
from unlearnbench.config import PluginSpec
from unlearnbench.evaluation import score
from unlearnbench.fields import resolved
from unlearnbench.layers import model_hash
from unlearnbench.open_unlearning.prompts import DATE, SYSTEM
from unlearnbench.planning import ORACLE_SEED, trained
from unlearnbench.provenance import machine, provenance
from unlearnbench.records import Record, write_items
from unlearnbench.runner import info_of
from unlearnbench.store import Store
from unlearnbench.trial import Place, Settings, Trained, Trial, trial_key

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
_TOFU_UTILITY = {"splits": ["retain", "real_authors", "world_facts"]}
METRICS: dict[str, tuple[tuple[str, str, dict[str, Any]], ...]] = {
    "tofu": (
        *((name, name, {}) for name in ("probability", "rouge", "truth_ratio_closer_to_1", "extraction_strength", "exact_memorization")),
        *((name, name, {}) for name in ("forget_quality", "forget_distance", "privleak", "memorization_score", "privacy_score", "fluency")),
        ("retain_probability", "probability", {"split": "retain"}),
        ("retain_rouge", "rouge", {"split": "retain"}),
        ("model_utility", "model_utility", _TOFU_UTILITY),
        ("utility_score", "utility_score", _TOFU_UTILITY),
    ),
    "muse": (
        ("verbmem", "verbmem", {"split": "verbmem"}),
        ("knowmem", "knowmem", {"split": "knowmem"}),
        ("retain_knowmem", "knowmem", {"split": "retain_knowmem"}),
        ("extraction_strength", "extraction_strength", {"split": "verbmem"}),
        ("exact_memorization", "exact_memorization", {"split": "verbmem"}),
        ("privleak", "privleak", {}),
    ),
}
"""Scenario -> its benchmark's metrics: label, name and fields."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint and what it is compared with.

    Attributes:
        scenario: tofu or muse.
        request: what the checkpoint was to forget.
        fields: of the scenario, such as data_dir.
        model: folder or hub name.
        oracle: the model retrained without the request's data.
        reference: the model of the reference attack.
        attacks: names; None for every membership attack that needs no other model.
    """

    scenario: str
    request: str
    fields: dict[str, Any]
    model: str
    oracle: str | None = None
    reference: str | None = None
    attacks: tuple[str, ...] | None = None


def evaluate(
    checkpoint: Checkpoint, *, store: str, out: Path, device: Literal["cpu", "cuda"], dtype: Literal["fp32", "bf16"]
) -> list[Record]:
    """Score a checkpoint, and its oracle if there is one, and write a record of each.

    Raises:
        UserError: a folder, a data set or a name is not what it must be; nothing is written then.
    """
    settings = Settings(device=device, dtype=dtype)
    trials = _trials(checkpoint, dtype)
    workshop = Workshop(Store(store), settings)
    for trial in trials:
        workshop.model(trial.source)
    scored = [(trial, trial_key(trial, settings)) for trial in trials]
    keys = {role: tuple(key for trial, key in scored if trial.role == role) for role in ("original", "oracle")}
    records = [_record(trial, key, keys, workshop) for trial, key in scored]
    out.mkdir(parents=True, exist_ok=True)
    for record, items in records:
        write_items(record.write(out).with_suffix(".parquet"), items)
    return [record for record, _ in records]


def _trials(checkpoint: Checkpoint, dtype: str) -> list[Trial]:
    """The checkpoint's trial, and that of its oracle."""
    others = [folder for folder in (checkpoint.oracle, checkpoint.reference) if folder is not None]
    models = {"source": "ready", "original": checkpoint.model, "oracles": others, "of": checkpoint.request, "dtype": PRECISIONS[dtype]}
    fields: dict[str, Any] = {**checkpoint.fields, "models": models}
    if load_tokenizer(checkpoint.model).chat_template is not None:
        fields["prompts"] = {"style": "chat", "system": SYSTEM, "date": DATE}
    cls = registry.load("scenarios", checkpoint.scenario)
    if checkpoint.request not in (known := [request.name for request in cls.requests()]):
        raise UserError(f"{checkpoint.scenario} has no request {checkpoint.request!r}; it has: {', '.join(known)}")
    scenario = registry.make("scenarios", checkpoint.scenario, {**fields, "request": checkpoint.request})
    spec = _spec("scenarios", checkpoint.scenario, scenario)
    place = Place(scenario=spec, request=checkpoint.request)
    original = trained(place, [(scenario.plan("original"), 0)])
    pool = trained(place, [(scenario.plan("oracle"), ORACLE_SEED + number) for number in range(len(others))])
    oracles = pool[:1] if checkpoint.oracle is not None else ()
    attacks = _attacks(checkpoint, scenario)
    banks = {attack.label: (("oracle", pool[-1]),) for attack in attacks if attack.name == "reference_attack"}
    metrics = tuple(_spec("metrics", name, registry.make("metrics", name, fields), label) for label, name, fields in METRICS[spec.name])

    def trial(role: Literal["original", "oracle"], source: Trained) -> Trial:
        method = PluginSpec(name=role, label=role, fields={})
        anchors: dict[str, Any] = {"originals": original, "oracles": oracles, "banks": banks}
        return Trial(
            suite="evaluate",
            place=place,
            role=role,
            method=method,
            seed=source.seed,
            source=source,
            attacks=attacks,
            metrics=metrics,
            **anchors,
        )

    return [trial("original", original[0]), *(trial("oracle", oracle) for oracle in oracles)]


def _spec(group: registry.Group, name: str, plugin: Plugin, label: str | None = None) -> PluginSpec:
    fields = {field: value for field, value in resolved(plugin).items() if field != "request"}
    return PluginSpec(name=name, label=label or name, fields=fields)


def _attacks(checkpoint: Checkpoint, scenario: Scenario) -> tuple[PluginSpec, ...]:
    known = {entry.name: registry.load("attacks", entry.name) for entry in registry.entries("attacks")}
    made = {name: registry.make("attacks", name, {}) for name in known}
    many = [name for name, attack in made.items() if isinstance(attack, InferenceAttack) and attack.banks and name != "reference_attack"]
    alone = [name for name, attack in made.items() if isinstance(attack, InferenceAttack) and not attack.banks]
    names: Sequence[str] = checkpoint.attacks or [*alone, *(["reference_attack"] if checkpoint.reference is not None else [])]
    for name in names:
        if name not in known:
            raise UserError(f"--attacks {name!r} is no attack; there are: {', '.join(known)}")
        if name == "reference_attack" and checkpoint.reference is None:
            raise UserError("--attacks reference_attack compares with another model: give its folder as --reference-model")
        if name in many:
            raise UserError(f"--attacks {name} compares with many models, retrained and unlearned; a suite trains them, see `run`")
    chosen = [name for name in names if checkpoint.attacks or made[name].supports(scenario) is None]
    return tuple(_spec("attacks", name, made[name]) for name in chosen)


def _record(trial: Trial, key: str, anchors: dict[str, tuple[str, ...]], workshop: Workshop) -> tuple[Record, list[Any]]:
    with own_randomness(trial.seed):
        scores = score(trial, workshop)
    settings = workshop.settings
    record = Record(
        key=key,
        status="done",
        trial=info_of(trial),
        cells=tuple(scores.cells),
        anchors=anchors,
        provenance={**provenance(trial, settings), "model": model_hash(workshop.model(trial.source))},
        volatile={**machine(settings.device), "seconds": scores.seconds, "peak_memory_bytes": peak_memory(settings.device)},
    )
    return record, scores.items
