"""Scores one trial: evidence, metrics, membership inference, and every stage of every attack, as cells.

One metric or attack that fails becomes a failed cell with its reason, and the others go on. What does not apply becomes an N/A cell.
The file decides what is measured where; the formulas are the plugins' and `stats`'.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unlearnbench import stats
from unlearnbench.api import Attack, Audit, Estimate, InferenceAttack, Member, Metric, Need, NotMeasurable, Scenario, Stage, Threat
from unlearnbench.artefacts import Workshop
from unlearnbench.config import PluginSpec
from unlearnbench.evidence import Evidence
from unlearnbench.records import Cell, cluster_means
from unlearnbench.trial import Source, Trial, attacks_of, inference_attacks_of, metrics_of, needs_of, source_key

LOW_FPR = 0.01

Item = tuple[str, str | None, int | None, str, str, float]


@dataclass
class Scores:
    """The cells of a trial and the per-item values behind them."""

    cells: list[Cell] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def score(trial: Trial, workshop: Workshop) -> Scores:
    """Everything that the trial's metrics and attacks say of its model."""
    scenario, needs = trial.place.open(), needs_of(trial)
    scores = Scores()
    start = time.perf_counter()
    evidence = workshop.evidence(trial.source, trial.place, needs)
    under = frozenset(need for need in needs if need.intervention is not None)
    if under:
        with workshop.on_hardware():
            evidence = evidence.joined(scenario.evidence(workshop.model(trial.source), under))
    me = source_key(trial.source, workshop.settings)

    def members(named: Sequence[tuple[str, Source]]) -> tuple[Member, ...]:
        # An anchor is never its own anchor.
        return tuple(
            workshop.member(source, role, trial.place, needs) for role, source in named if source_key(source, workshop.settings) != me
        )

    audit = Audit(
        originals=members([("original", source) for source in trial.originals]),
        oracles=members([("oracle", source) for source in trial.oracles]),
    )
    for spec, metric in metrics_of(trial.metrics):
        wider = Audit(originals=audit.originals, oracles=audit.oracles, bank=members(trial.banks.get(spec.label, ())))
        _measure(scores, spec, metric, scenario, evidence, wider)
    for spec, inference in inference_attacks_of(trial.attacks):
        _infer(scores, spec, inference, scenario, evidence, members(trial.banks.get(spec.label, ())))
    scores.seconds["evidence"] = time.perf_counter() - start
    for spec, attack in attacks_of(trial.attacks):
        start = time.perf_counter()
        _attack(scores, spec, attack, trial, workshop)
        scores.seconds[spec.label] = time.perf_counter() - start
    return scores


# ----------------------------------------------------------------------------------------------------------------------- metrics


def _facts(spec: PluginSpec, metric: Metric, stage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "metric": spec.label,
        "level": str(stage.get("level", metric.level)),
        "direction": metric.direction,
        "bounds": metric.bounds,
        "side": metric.side,
        "headline": metric.headline,
        "two_sided": metric.two_sided,
        **{name: value for name, value in stage.items() if name != "level"},
    }


def _measure(
    scores: Scores,
    spec: PluginSpec,
    metric: Metric,
    scenario: Scenario,
    evidence: Evidence,
    audit: Audit,
    **stage: Any,
) -> None:
    facts = _facts(spec, metric, stage)
    reason = metric.supports(scenario)
    if reason is not None:
        scores.cells.append(Cell(**facts, status="na", reason=reason))
        return

    def run() -> Cell:
        result = metric.measure(evidence, audit)
        if isinstance(result, Estimate):
            return Cell(**facts, value=_finite(float(result)), n=1, interval=result.interval, covers=result.covers)
        if not isinstance(result, Mapping):
            return Cell(**facts, value=_finite(float(result)), n=1)
        if not result:
            raise ValueError("no rows to measure")
        clusters = _clusters(evidence, result)
        value = _finite(float(np.mean(list(result.values()))))
        scores.items.extend(
            (spec.label, stage.get("attack"), stage.get("step"), row, clusters[row], number) for row, number in result.items()
        )
        return Cell(**facts, value=value, n=len(result), clusters=cluster_means(result, clusters))

    scores.cells.append(_guarded(run, facts))


def _clusters(evidence: Evidence, rows: Mapping[str, float]) -> dict[str, str]:
    found: dict[str, str] = {}
    for split, ids in evidence.ids.items():
        found.update(zip(ids, evidence.clusters[split], strict=True))
    return {row: found[row] for row in rows}


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise FloatingPointError(f"the value is {value}")
    return value


def _guarded(run: Callable[[], Cell], facts: Mapping[str, Any]) -> Cell:
    try:
        return run()
    except NotMeasurable as error:
        return Cell(**facts, status="na", reason=str(error))
    except Exception as error:  # a plugin's failure is a result: recorded with its reason, while the others go on
        logging.getLogger(__name__).debug("%s failed", facts["metric"], exc_info=True)
        return Cell(**facts, status="failed", reason=describe(error))


def describe(error: BaseException) -> str:
    """One line for a failure: its type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"


# -------------------------------------------------------------------------------------------------------------------- membership


def _infer(
    scores: Scores,
    spec: PluginSpec,
    attack: InferenceAttack,
    scenario: Scenario,
    evidence: Evidence,
    bank: Sequence[Member],
) -> None:
    facts: dict[str, Any] = {
        "metric": spec.label,
        "level": str(attack.level),
        "direction": "higher",
        "bounds": (0.0, 1.0),
        "side": "forget",
        "headline": True,
        "two_sided": True,
    }
    low = {**facts, "metric": f"{spec.label}_tpr@{LOW_FPR:g}", "headline": False, "side": "diagnostic"}
    reason = attack.supports(scenario)
    if reason is not None:
        scores.cells += [Cell(**facts, status="na", reason=reason), Cell(**low, status="na", reason=reason)]
        return
    found: dict[str, Any] = {}

    def area() -> Cell:
        for split in ("forget", "holdout"):
            found[split] = np.asarray(attack.score(evidence, split, bank), dtype=np.float64)
            if found[split].shape != (len(evidence.ids[split]),):
                raise ValueError(f"{len(evidence.ids[split])} rows of {split} got scores of shape {found[split].shape}")
            rows = zip(evidence.ids[split], evidence.clusters[split], found[split], strict=True)
            scores.items.extend((spec.label, None, None, row, cluster, float(value)) for row, cluster, value in rows)
        value = stats.auc(found["forget"], found["holdout"])
        members, others = evidence.clusters["forget"], evidence.clusters["holdout"]
        if min(len(set(members)), len(set(others))) < 2:  # one author alone says nothing of others
            return Cell(**facts, value=value, n=len(members))
        low, high, covers = stats.auc_interval(found["forget"], found["holdout"], member_clusters=members, nonmember_clusters=others)
        return Cell(**facts, value=value, n=len(members), interval=(low, high), covers=covers)

    def at_low_fpr() -> Cell:
        unsupported = stats.tpr_supported(len(found["holdout"]), LOW_FPR)
        if unsupported is not None:
            return Cell(**low, status="na", reason=unsupported)
        value = stats.tpr_at_fpr(found["forget"], found["holdout"], LOW_FPR)
        return Cell(**low, value=value, n=len(found["forget"]))

    cell = _guarded(area, facts)
    scores.cells.append(cell)
    scores.cells.append(_guarded(at_low_fpr, low) if cell.status == "done" else Cell(**low, status=cell.status, reason=cell.reason))


# ----------------------------------------------------------------------------------------------------------------------- attacks


def _attack(scores: Scores, spec: PluginSpec, attack: Attack, trial: Trial, workshop: Workshop) -> None:
    """Score the forget side at every stage: cheap metrics everywhere, all of them at the first and the strongest stage.

    Metrics of level T0 are left out: they compare with other models, and those are not under the same attack here.
    """
    scenario = trial.place.open()
    watched = [
        (name, metric)
        for name, metric in metrics_of(trial.metrics)
        if metric.side == "forget" and metric.level is not Threat.T0 and metric.supports(scenario) is None
    ]
    only = scenario.judged() if "forget_part" in attack.needs else None
    reason = attack.supports(scenario)
    if reason is None and only is not None and not only:
        reason = "the forget set cannot be split into a part that the attacker holds and one to judge on"
    blank = {"attack": spec.label, "level": str(attack.level)}
    if reason is not None:
        scores.cells += [Cell(**_facts(name, metric, blank), status="na", reason=reason) for name, metric in watched]
        return
    same_seed = [anchor for anchor in trial.originals if anchor.seed == trial.seed]
    original = (same_seed or list(trial.originals))[0]
    try:
        view = workshop.attack_view(trial.place, original, attack.needs, trial.oracles)
        with workshop.on_hardware():
            # One seed for all models: the anchors are attacked with the same order of the same rows.
            for stage in attack.stages(workshop.model(trial.source), view, seed=scenario.split_seed):
                _stage(scores, stage, watched, scenario, only, blank)
    except NotMeasurable as error:
        scores.cells += [Cell(**_facts(name, metric, blank), status="na", reason=str(error)) for name, metric in watched]
    except Exception as error:  # recorded with its reason, while the others go on
        logging.getLogger(__name__).debug("%s failed", spec.label, exc_info=True)
        failed = describe(error)
        scores.cells += [Cell(**_facts(name, metric, blank), status="failed", reason=failed, final=True) for name, metric in watched]


def _stage(
    scores: Scores,
    stage: Stage,
    watched: Sequence[tuple[PluginSpec, Metric]],
    scenario: Scenario,
    only: frozenset[str] | None,
    blank: Mapping[str, Any],
) -> None:
    due = [(spec, metric) for spec, metric in watched if metric.curve or stage.final or stage.step == 0]
    needs: set[Need] = set()
    for _, metric in due:
        needs.update(metric.wants(scenario))
    if stage.intervention is not None:
        with stage.intervention.applied(stage.model):
            evidence = scenario.evidence(stage.model, frozenset(needs), rewrite=stage.rewrite, only=only)
    else:
        evidence = scenario.evidence(stage.model, frozenset(needs), rewrite=stage.rewrite, only=only)
    audit = Audit(originals=(), oracles=())
    for spec, metric in due:
        _measure(scores, spec, metric, scenario, evidence, audit, **blank, step=stage.step, final=stage.final)
