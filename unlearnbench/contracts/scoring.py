"""Contract tests of plugins that read evidence: metrics and membership attacks.

They get the evidence they ask for and nothing more. Rows are joined by identity: a shuffled pass over the model under test must give
the same numbers. The file knows no formula.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from torch import nn

from unlearnbench.api import Audit, Bank, InferenceAttack, Member, Metric, Need, NotMeasurable, Scenario, Threat
from unlearnbench.contracts.checks import Report, require, trained
from unlearnbench.evidence import Evidence, Tokens

SEED = 0
ORACLE_SEED, BANK_SEED, HELD_OUT_SEED = 1000, 2000, 3000
MOST_MEMBERS = 6
"""Different models in a bank, so that a check ends soon; a larger bank repeats them."""
CLOSE = 1e-6
"""Relative: a sum over shuffled rows differs in its last bits."""


def check_metric(report: Report, metric: Metric, site: str, scenario: Scenario) -> None:
    """All contract tests of a metric on one scenario it serves."""
    needs: list[tuple[Need, ...]] = []

    def facts() -> None:
        low, high = metric.bounds
        require(low < high, f"bounds are {metric.bounds}; allowed: a lower and a higher number")
        require(metric.direction in ("higher", "lower"), f"direction is {metric.direction!r}; allowed: 'higher', 'lower'")
        require(metric.side in ("forget", "utility", "diagnostic"), f"side is {metric.side!r}; allowed: forget, utility, diagnostic")
        require(not metric.headline or metric.side == "forget", f"a headline metric is about forgetting, not {metric.side}")
        require(isinstance(metric.level, Threat), f"level is {metric.level!r}; allowed: {', '.join(Threat)}")

    def asks() -> None:
        needs.append(metric.wants(scenario))
        _asks(needs[0], scenario)

    def measures() -> None:
        for role, seed in (("original", SEED), ("oracle", ORACLE_SEED + 2)):
            model = trained(scenario, scenario.plan(role), seed)
            evidence = scenario.evidence(model, frozenset(needs[0]))
            value = metric.measure(evidence, _audit(metric, scenario, needs[0]))
            _check_value(value, metric, evidence, needs[0])

    def agrees() -> None:
        evidence = scenario.evidence(trained(scenario, scenario.plan("original"), SEED), frozenset(needs[0]))
        audit = _audit(metric, scenario, needs[0])
        first = metric.measure(evidence, audit)
        require(_same(first, metric.measure(evidence, audit), 0.0), "measuring twice gave different values")
        require(_same(first, metric.measure(shuffled(evidence), audit), CLOSE), "the values depend on the order of the rows")

    def at_stages() -> None:
        evidence = scenario.evidence(trained(scenario, scenario.plan("original"), SEED), frozenset(needs[0]), only=scenario.judged())
        try:
            value = metric.measure(evidence, Audit(originals=(), oracles=()))
        except NotMeasurable:  # of so few rows it may have nothing to say
            return
        _check_value(value, metric, evidence, needs[0])

    report.run(f"{site}: level, bounds, direction and side are valid", facts)
    if not report.run(f"{site}: asks for splits that there are", asks):
        return
    if report.run(f"{site}: measures within its bounds, by row or as one number", measures):
        report.run(f"{site}: gives the same again, whatever the order of the rows", agrees)
        if metric.side == "forget" and metric.level is not Threat.T0:
            report.run(f"{site}: measures at the stages of an attack, on the rows judged", at_stages)


def check_inference(report: Report, attack: InferenceAttack, site: str, scenario: Scenario) -> None:
    """All contract tests of a membership attack on one scenario it serves."""
    needs: list[Need] = []

    def asks() -> None:
        for split in ("forget", "holdout"):
            wanted = attack.wants(split, scenario)
            _asks(wanted, scenario)
            needs.extend(wanted)

    def scores() -> None:
        evidence = scenario.evidence(trained(scenario, scenario.plan("original"), SEED), frozenset(needs))
        bank = _members(attack.banks, scenario, needs)
        mixed = shuffled(evidence)
        for split in ("forget", "holdout"):
            found = np.asarray(attack.score(evidence, split, bank))
            rows = len(evidence.ids[split])
            require(found.shape == (rows,), f"{rows} rows of {split} got scores of shape {found.shape}")
            require(bool(np.isfinite(found).all()), f"{int((~np.isfinite(found)).sum())} of {rows} scores of {split} are NaN or infinite")
            by_row = evidence.by_row(split, found)
            again = mixed.by_row(split, np.asarray(attack.score(mixed, split, bank)))
            require(_same(by_row, again, CLOSE), f"the scores of {split} depend on the order of the rows")

    report.run(f"{site}: level is valid", lambda: require(isinstance(attack.level, Threat), f"level is {attack.level!r}"))
    if report.run(f"{site}: asks for splits that there are", asks):
        report.run(f"{site}: gives each row a finite score, whatever their order", scores)


def shuffled(evidence: Evidence) -> Evidence:
    """The same evidence with the rows of every split in another order."""
    order = {split: random.Random(split).sample(range(len(ids)), len(ids)) for split, ids in evidence.ids.items()}
    return dataclasses.replace(
        evidence,
        ids={split: tuple(ids[i] for i in order[split]) for split, ids in evidence.ids.items()},
        clusters={split: tuple(names[i] for i in order[split]) for split, names in evidence.clusters.items()},
        token_stats={need: tuple(_reordered(one, order[need.split]) for one in several) for need, several in evidence.token_stats.items()},
        texts={need: tuple(texts[i] for i in order[need.split]) for need, texts in evidence.texts.items()},
        references={need: tuple(texts[i] for i in order[need.split]) for need, texts in evidence.references.items()},
        arrays={need: array[order[need.split]] for need, array in evidence.arrays.items()},
        labels={split: labels[order[split]] for split, labels in evidence.labels.items()},
    )


def _reordered(tokens: Tokens, order: Sequence[int]) -> Tokens:
    rows = tokens.rows()
    index = np.concatenate([np.arange(rows[i].start, rows[i].stop) for i in order])
    lengths = [rows[i].stop - rows[i].start for i in order]
    return Tokens(
        logprob=tokens.logprob[index],
        hit=tokens.hit[index],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        mean=None if tokens.mean is None else tokens.mean[index],
        variance=None if tokens.variance is None else tokens.variance[index],
    )


def _asks(needs: Sequence[Need], scenario: Scenario) -> None:
    require(isinstance(needs, tuple) and bool(needs), f"wants() gives {needs!r}; allowed: a tuple with at least one Need")
    for need in needs:
        require(need.split in scenario.splits, f"wants split {need.split!r}; the scenario has: {', '.join(scenario.splits)}")


def _check_value(value: Mapping[str, float] | float, metric: Metric, evidence: Evidence, needs: Sequence[Need]) -> None:
    low, high = metric.bounds
    numbers = list(value.values()) if isinstance(value, Mapping) else [float(value)]
    for number in numbers:
        require(math.isfinite(number), f"a value is {number}")
        slack = CLOSE * max(1.0, abs(number))
        require(low - slack <= number <= high + slack, f"a value is {number}, out of the bounds {metric.bounds}")
    if isinstance(value, Mapping):
        asked = {need.split: set(evidence.ids[need.split]) for need in needs}
        known = set().union(*asked.values())
        require(bool(value) and set(value) <= known, f"values of rows {sorted(set(value) - known)[:3]}, which no asked split has")


def _same(first: Mapping[str, float] | float, second: Mapping[str, float] | float, tolerance: float) -> bool:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        pairs = [(value, second.get(row, math.nan)) for row, value in first.items()]
        return first.keys() == second.keys() and all(math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) for a, b in pairs)
    if isinstance(first, Mapping) or isinstance(second, Mapping):
        return False
    return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)


def _audit(metric: Metric, scenario: Scenario, needs: Sequence[Need]) -> Audit:
    def members(role: str, seeds: Sequence[int]) -> tuple[Member, ...]:
        return tuple(_member(trained(scenario, scenario.plan(role), seed), role, seed, scenario, needs) for seed in seeds)

    originals, oracles = members("original", [SEED + 1]), members("oracle", [ORACLE_SEED, ORACLE_SEED + 1])
    return Audit(originals=originals, oracles=oracles, bank=_members(metric.banks, scenario, needs))


def _members(banks: Sequence[Bank], scenario: Scenario, needs: Sequence[Need]) -> tuple[Member, ...]:
    """Members as an ideal method would leave them: unlearned is an oracle, unlearned elsewhere the oracle of another request."""
    members = []
    for bank in banks:
        require(bank.n > 0, f"a bank of {bank.n} members; allowed: 1 or more")
        for number in range(bank.n):
            index = number % MOST_MEMBERS
            seed = index + (HELD_OUT_SEED if bank.role == "unlearned" else BANK_SEED)
            made_at = scenario.shadow_request(index) if bank.role == "unlearned_elsewhere" else scenario
            plan = made_at.plan("original" if bank.role == "original" else "oracle")
            model = _untrained(scenario, seed) if bank.role == "untrained" else trained(made_at, plan, seed)
            members.append(_member(model, bank.role, seed, scenario, needs))
    return tuple(members)


def _member(model: nn.Module, role: str, seed: int, scenario: Scenario, needs: Sequence[Need]) -> Member:
    return Member(role=role, seed=seed, evidence=_read(model, scenario, frozenset(needs)), load=lambda: copy.deepcopy(model))


@cache
def _untrained(scenario: Scenario, seed: int) -> nn.Module:
    """A model as it is built."""
    return scenario.build(seed).eval()


@cache
def _read(model: nn.Module, scenario: Scenario, needs: frozenset[Need]) -> Evidence:
    """The evidence of a model that nobody changes."""
    return scenario.evidence(model, needs)
